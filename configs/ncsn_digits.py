"""NCSN and NCSNv2 on the digits: denoising score matching on a ladder of noise levels.

  python scripts/train.py --config=configs/ncsn_digits.py --workdir=runs/ncsn_digits
  python scripts/sample.py --workdir=runs/ncsn_digits --sampler=annealed_langevin --steps=20 \
    --out=ncsn_digits.png

Song and Ermon (2019), eq. 6: levels in equal ratios, each equally often, lambda = sigma^2.  After
the colon `v2` for Song and Ermon (2020): as many levels as their techniques 1 and 2 ask for, 18
of them, and a network that is not told which it sees (technique 3).  The ladder starts in both at
the largest distance of two images.  The grid of the sampler is the ladder with as many steps as
levels, and its last step the final denoising.  The network is the U-Net of digits_small.py
(ncsnv2.py has the RefineNets).
The bound is that of the chain of these levels, whose first step is from the data themselves.
Hardware, time and what it reaches: see configs/README.md.
"""
import math

import digits_small
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import data, inputs, random, schedules
from vdm_jax.decoders import DiscretisedNormal
from vdm_jax.errors import InputError
from vdm_jax.objectives import score_matching, vlb
from vdm_jax.processes import diffuse, ve
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment

SIZE = 64  # numbers in an image


def get_config(version: str = 'v1') -> ml_collections.ConfigDict:
  if version not in ('v1', 'v2'):
    raise InputError(f'--config=configs/ncsn_digits.py:{version}: choose v1 or v2.')
  config = digits_small.get_config()
  config.optimizer.decay_steps = config.train.steps = 1100  # three minutes
  m = config.model
  m.sigma_max = 9.0   # of x in [-1, 1]: the largest distance of two digits is 9.04
  m.sigma_min = 0.05
  m.told = version == 'v1'  # whether the network is told the level
  m.timesteps = 20 if m.told else len(schedules.ncsnv2_sigmas(m.sigma_max, m.sigma_min, SIZE))
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  vdm.require(config, 'timesteps', m.timesteps >= 2, 'a ladder has two levels of noise or more')
  vdm.require(config, 'sigma_min', 0.0 < m.sigma_min < m.sigma_max,
              f'it lies between 0 and --config.model.sigma_max={m.sigma_max}')
  ladder = schedules.TableSchedule.from_sigmas(
      np.geomspace(m.sigma_max, m.sigma_min, m.timesteps))
  ncsn = score_matching.on_ladder(score_matching.denoising, m.timesteps)
  last = DiscretisedNormal(data.resolve(config.data).levels).log_prob

  def objective(model, batch, context):
    x, t, keys = model.encode(batch['image']), context.t, context.keys
    level = model.process(vlb.step_number(t, m.timesteps) / m.timesteps)
    eps = random.normal(random.stream(keys, 'eps'), x)
    estimate = model.denoise(diffuse(x, eps, level), level, model.cond(batch))
    once = lambda *_: estimate  # one evaluation for the loss and for the bound beside it
    loss, terms = ncsn(once, model.process, x, t, keys, eps=eps)
    chain = {'steps': m.timesteps, 'data': batch['image'], 'last': last}
    first = None if context.train else vlb.first_step(model.denoise, model.process, x, keys,
                                                      model.cond(batch), **chain)
    bound, of_bound = vlb.discrete(once, model.process, x, t, keys, decoder=model.decoder,
                                   first=first, eps=eps, **chain)
    return loss, {'bits_per_dim': bound, **of_bound, **terms}

  def told(z, level):  # its input as on `vp`: of about unit scale at every level
    return inputs.logsnr(z / jnp.hypot(1.0, level.expand(z).sigma), level)

  def untold(z, level):  # sigma times the score is a function of z alone
    return z, jnp.zeros(len(z))

  net = vdm.unet(config).clone(logsnr_max=-2.0 * math.log(m.sigma_min),
                               logsnr_min=-2.0 * math.log(m.sigma_max), adds_z=m.told)
  return vdm.experiment(config, net=net, schedule=ladder, curve=ve,
                        inputs=told if m.told else untold, objective=objective)
