"""Diffusion by a published chain of T steps: DDPM, IDDPM, ADM, DiT.

Ho, Jain and Abbeel (2020): the process is a table of T noise levels between the data and the prior,
on the curve `vp`.  The network reads the number of the step and estimates the noise, and the loss
is L_simple.  Nichol and Dhariwal (2021): a second output is the variance of the reverse step, which
L_vlb trains.

The network's images have the outermost levels at -1 and 1, a multiple of our x
(`processes.Scaled`).  So the ledger, the samplers and the codings see the model like any other.

Real data, such as the latents of an autoencoder, are x as they are.  The last step of their chain
is a normal density.

The chain begins at the data themselves, where log-SNR is infinite, so the bound of continuous time
has no value.  The published bound of DDPM is the estimate `vlb@T/ddpm`; for IDDPM and later models
it is `vlb@T/learned/ddpm`.
"""
import functools
import math

import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, guidance, inputs
from vdm_jax.decoders import DiscretisedNormal, Pixels, log_normal, normal
from vdm_jax.errors import InputError
from vdm_jax.objectives import ddpm, iddpm, vlb
from vdm_jax.processes import Scaled
from vdm_jax.processes import vp as curve_vp
from vdm_jax.schedules import (
  TableSchedule,
  cosine_betas,
  linear_betas,
  scaled_linear_betas,
)
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Denoiser, Experiment, Objective


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a published chain."""
  return compose.default_config(**{
      'timesteps': 1000,
      'betas': 'linear',   # 'cosine', or 'scaled_linear'; the two `beta_ends` are a further field
      'variances': False,  # whether those of the reverse steps are learned
      'clip': True,        # whether x_hat stays between the outermost levels where the model is
                           # used or measured; it is not where it is trained
      **networks.published_fields(),
  } | model)


def unet_config(**model) -> ml_collections.ConfigDict:
  """The fields of a chain with VDM's network, `networks.unet`, for small images."""
  return vdm.default_config(**{
      'timesteps': 1000, 'betas': 'linear', 'variances': False, 'clip': True} | model)


def unet(config: ml_collections.ConfigDict) -> nn.Module:
  """VDM's network, which reads the number of the step instead of log-SNR, and z at DDPM's scale."""
  net = networks.unet(config)
  octaves = math.log2(Pixels(data.resolve(config.data).levels).to_ends)
  return net.clone(logsnr_max=0.0, logsnr_min=config.model.timesteps - 1.0,
                   fourier=tuple(n - octaves for n in net.fourier),
                   heads=int(config.model.variances))


def table(config: ml_collections.ConfigDict, to_ends: float) -> TableSchedule:
  """The chain of `config.model`, as a schedule of x; to_ends: see `decoders.Pixels.to_ends`.

  Linear betas go from 1e-4 to 0.02 for 1,000 steps.  For other numbers of steps they are scaled, so
  that the last level is about the same (the public code of Nichol and Dhariwal 2021).  With
  config.model.beta_ends, linear betas go from the first to the second of these, whatever the number
  of steps.  `schedules.scaled_linear_betas` needs both ends.

  Raises InputError.
  """
  m = config.model
  compose.require(config, 'timesteps', m.timesteps >= 2, 'a chain has two steps or more',
                  'give more')
  compose.require(config, 'betas', m.betas in ('linear', 'cosine', 'scaled_linear'),
                  'there is no such choice', 'choose linear, cosine or scaled_linear')
  own = 'beta_ends' in m
  compose.require(config, 'betas', own or m.betas != 'scaled_linear', 'it needs '
                  'config.model.beta_ends, the first and the last beta',
                  'add it: default_config(beta_ends=(0.00085, 0.012))')
  compose.require(config, 'timesteps', own or m.betas != 'linear' or m.timesteps > 20,
                  'with 20 steps or fewer, a linear beta reaches 1',
                  'take more steps, or config.model.betas=cosine')
  scale = 1000.0 / m.timesteps
  ends = m.beta_ends if own else (1e-4 * scale, 0.02 * scale)
  betas = {'cosine': lambda: cosine_betas(m.timesteps),
           'linear': lambda: linear_betas(m.timesteps, *ends),
           'scaled_linear': lambda: scaled_linear_betas(m.timesteps, *ends)}[m.betas]()
  return TableSchedule(TableSchedule.from_betas(betas).logsnr + 2.0 * np.log(to_ends))


def within(config: ml_collections.ConfigDict, denoise: Denoiser) -> Denoiser:
  """`denoise` as in use: if `config.model.clip`, x_hat is clipped to the outermost levels.

  Raises InputError for data without levels.
  """
  return clipped(config, denoise) if config.model.clip else denoise


def clipped(config: ml_collections.ConfigDict, denoise: Denoiser) -> Denoiser:
  """`denoise` with x_hat clipped to the outermost levels.  Raises InputError as `within` does."""
  levels = data.resolve(config.data).x.levels
  if not levels:
    raise InputError('config.model.clip', config.model.clip, 'the data are real numbers, without '
                     'outermost levels', 'set it to False')
  to_ends = Pixels(levels).to_ends
  return guidance.clip(denoise, -1.0 / to_ends, 1.0 / to_ends)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               scale: float = 1.0, condition: str | None = '', encoder: nn.Module | None = None,
               beside: tuple[str, ...] = (), trained: Objective | None = None) -> Experiment:
  """The experiment of `config` with this network of (z, scale * step, label, keys).

  The loss is L_simple or, with learned variances, L_hybrid.  In L_hybrid, 0.001 times L_vlb in
  bits/dim is added to the mean squared error, as in the public code.

  Args:
    net: the network.  Default: `unet`, for a config of `unet_config`.
    scale: the factor of the step that the network reads.
    condition, encoder, beside: as in `compose.experiment`.
    trained: another objective to minimise, with the keywords `steps` and `context`.  Then only
      validation measures the bound.

  Raises InputError as `compose.experiment` does.
  """
  m, levels, net = config.model, data.resolve(config.data).x.levels, net or unet(config)
  to_ends = Pixels(levels).to_ends if levels else 1.0
  schedule = table(config, to_ends)
  last = DiscretisedNormal(levels).log_prob if levels else log_normal
  chosen = (functools.partial(iddpm.hybrid, weight=0.001 / np.log(2.0)) if m.variances else
            ddpm.objective)
  variance = vlb.learned if m.variances else vlb.fixed_large

  def objective(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
    # Trained as it is, measured as it is used: the step from pure noise weighs an error of x_hat
    # that no image could have by a thousand.  So is the first step, by an evaluation of its own.
    if context.train and trained is not None:
      return trained(denoise, process, x, t, keys, cond, steps=m.timesteps, context=context)
    denoise = denoise if context.train else within(config, denoise)
    kernel = {'steps': m.timesteps, 'data': data, 'last': last, 'variance': variance}
    first = None if context.train else vlb.first_step(denoise, process, x, keys, cond, **kernel)
    return chosen(denoise, process, x, t, keys, cond, **kernel, decoder=decoder, first=first)

  base = compose.experiment(
      config, net=net, schedule=schedule, curve=Scaled(curve_vp, to_ends), objective=objective,
      heads=_heads(config), inputs=inputs.chain(schedule, scale), condition=condition,
      encoder=encoder, beside=beside)

  def model(params, keys=None):
    of = base.model(params, keys)
    return of._replace(denoise=within(config, of.denoise), clips=m.clip)

  return base._replace(model=model)


def _heads(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  return ('variance',) if config.model.variances else ()


def latent_experiment(config: ml_collections.ConfigDict, *, net: nn.Module) -> Experiment:
  """A chain whose x are the latents of an autoencoder, as the network sees them; for sampling only.

  There are no data to train it or to evaluate it on, so its loss raises InputError.
  """
  schedule = table(config, to_ends=1.0)
  base = compose.experiment(config, net=net, schedule=schedule, heads=_heads(config),
                            inputs=inputs.chain(schedule))

  def loss(params, batch, context):
    raise InputError(problem='this model draws latents, and no data set of latents is here',
                     remedy='sample from it (scripts/sample.py --out=latents.npz)')

  def model(params, keys=None):
    same = lambda x: x
    return base.model(params, keys)._replace(encode=same, decode=same, decoder=normal,
                                             is_latent=True)

  return base._replace(loss=loss, model=model)
