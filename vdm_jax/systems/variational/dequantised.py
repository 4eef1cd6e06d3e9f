"""A density of continuous data and the dequantiser that belongs to it, trained together.

A dequantiser q(y | data) draws y inside the bins of the discrete data, and y is diffused.  The
decoder of continuous data is p(y | z_0) = N(z_0 / alpha_0, (sigma_0 / alpha_0)^2).  So

-log P(data) <= E[log q(y | data)] + E[-log p(y | z_0)] + KL(q(z_1 | y) || p(z_1)) + diffusion term
                 dequantisation       reconstruction       latent

is a bound on the probability of the discrete data.  All terms are one expectation over the draws of
q, so the gradient of the bound reaches q too (Ho et al. 2019, section 3.1).  A learned q wins back
the lost entropy where the density is high.

p(y) is smooth at the scale of sigma_0, so sigma_0 must be small against the bins.  Take y uniform
in one bin, with empty bins around it.  The smoothing costs 1.81 (sigma_0 / alpha_0) / (2 / levels)
nats per dimension, to first order (0.06 at a thirtieth of a bin).  A learned q saves part of this
cost by avoiding the edges of the bin.
"""
import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, dequantisers, schedules, targets
from vdm_jax.nn.small.dequantiser import Couplings
from vdm_jax.objectives import vlb
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment, Schedule, Target
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{
      # For 256 levels: sigma_0 a thirtieth of a bin, below which the density is hardly smoothed.
      'logsnr_max': 16.5,
      'couplings': 4,  # of the variational dequantiser; 0: uniform noise
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               schedule: nn.Module | Schedule | None = None,
               dequantiser: nn.Module | dequantisers.Dequantiser | None = None,
               target: Target = targets.eps) -> Experiment:
  """`compose.experiment` on dequantised data, with the bound above as the loss and as Model.bound.

  Args:
    dequantiser: a fixed function, or a Linen module that is learned as params['dequantiser'], the
      `transport` of `dequantisers.variational`.  Default: the couplings of `config.model`.
    schedule: the schedule.  Default: linear between fixed end points.
  """
  couplings = config.model.get('couplings', 0)
  if dequantiser is None:
    compose.require(config, 'couplings', couplings >= 0, 'it is negative',
                    'give 0 (uniform noise) or more')
    dequantiser = (Couplings(couplings=couplings) if couplings else
                   dequantisers.uniform(data.resolve(config.data).levels))
  net = net or networks.unet(config)
  schedule = schedule or schedules.Linear(*compose.end_points(config))
  base = compose.experiment(config, net=net, schedule=schedule, target=target)
  spec = data.resolve(config.data)
  learned = isinstance(dequantiser, nn.Module)

  def init(key):
    params = base.init(key)
    if learned:
      x = jnp.zeros((1, *spec.shape))
      params['dequantiser'] = dequantiser.init(jax.random.fold_in(key, 0), x, x)['params']
    return params

  def model(params, keys=None):
    m = base.model(params, keys)
    dequantise = dequantiser
    if learned:
      transport = Bound(params['dequantiser'], dequantiser)
      dequantise = dequantisers.variational(transport, spec.levels)

    def bound(batch, t, keys, steps=0):
      y, log_q = dequantise(batch[m.field], keys)
      nats, terms = vlb.density(m.denoise, m.process, y, t, keys, m.cond(batch), steps=steps)
      return nats + log_q, {'dequantisation': log_q, **terms}

    return m._replace(bound=bound, dequantise=dequantise)

  return base._replace(init=init, model=model,
                       loss=compose.bound_loss(model, spec.shape, config.model.timesteps))
