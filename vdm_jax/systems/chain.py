"""Diffusion by a published chain of T steps: DDPM, IDDPM, ADM, DiT.

Ho, Jain and Abbeel (2020): the process is a table of T noise levels between the data and the prior,
on the curve `vp`; the network reads the number of the step and estimates the noise; the loss is
L_simple.  Nichol and Dhariwal (2021): a second output is the variance of the reverse step, which
L_vlb trains.  Images are coded with the outermost levels at -1 and 1, which our x is a multiple of
(`processes.Scaled`), so that the ledger, the samplers and the codings see the model like any other.

The chain begins at the data themselves, where log-SNR is infinite: the bound of continuous time has
no value, and the published one is `vlb@T/ddpm`, of IDDPM and after `vlb@T/learned/ddpm`.
"""
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, inputs
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.objectives import iddpm, vlb
from vdm_jax.processes import Scaled
from vdm_jax.processes import vp as curve_vp
from vdm_jax.schedules import TableSchedule, cosine_betas, linear_betas
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def default_config() -> ml_collections.ConfigDict:
  """That of `vdm`, with the recipe of DDPM on CIFAR-10 (Ho et al. 2020, section 4, appendix B)."""
  config = vdm.default_config()
  config.model = ml_collections.ConfigDict({
      'timesteps': 1000,
      'betas': 'linear',           # or 'cosine'
      'variances': False,          # whether those of the reverse steps are learned
      'class_conditional': False,
      'dropout': 0.1,
      'dtype': 'float32',          # of the network's trunk; or bfloat16
      'remat': 'dots',             # kept for the backward pass: 'none' (all), 'dots' or 'block'
      'weight_gradient': 'auto',   # of convolutions: 'xla', 'winograd', 'auto': fastest here
      'attention': 'auto',         # 'xla', 'cudnn' (GPU, bfloat16), 'auto': cudnn where it exists
  })
  return config


def table(config: ml_collections.ConfigDict) -> TableSchedule:
  """The chain of `config.model`, as a schedule of our x.

  linear: from 1e-4 to 0.02 for 1,000 steps, and for others in proportion, so that the last level is
  about the same (Nichol and Dhariwal 2021, their public code).  Raises InputError.
  """
  m = config.model
  vdm.require(config, 'timesteps', m.timesteps >= 2, 'a chain has two steps or more')
  vdm.require(config, 'betas', m.betas in ('linear', 'cosine'), 'choose linear or cosine')
  scale = 1000.0 / m.timesteps
  betas = (cosine_betas(m.timesteps) if m.betas == 'cosine' else
           linear_betas(m.timesteps, 1e-4 * scale, 0.02 * scale))
  to_ends = Pixels(data.resolve(config.data).levels).to_ends
  return TableSchedule(TableSchedule.from_betas(betas).logsnr + 2.0 * np.log(to_ends))


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module) -> Experiment:
  """The experiment of `config` with this network of (z, step, label, keys).

  The loss is L_simple, with learned variances L_hybrid, in which L_vlb counts 0.001 bits/dim to a
  mean square of 1, as in the public code.  Raises InputError as `vdm.experiment`.
  """
  m, levels = config.model, data.resolve(config.data).levels
  schedule = table(config)
  last = DiscretisedNormal(levels).log_prob
  kernel = ({'weight': 0.001 / np.log(2.0), 'variance': vlb.learned} if m.variances else
            {'weight': 0.0, 'variance': vlb.fixed_large})

  def objective(model, batch, context):
    nats, terms = iddpm.hybrid(
        model.denoise, model.process, model.encode(batch['image']), context.t, context.keys,
        model.cond(batch), steps=m.timesteps, data=batch['image'], decoder=model.decoder,
        last=last, **kernel)
    return nats, {'bits_per_dim': terms.pop('vlb'), **terms}

  return vdm.experiment(
      config, net=net, schedule=schedule, curve=Scaled(curve_vp, Pixels(levels).to_ends),
      objective=objective, heads=('v',) if m.variances else (), inputs=inputs.chain(schedule))
