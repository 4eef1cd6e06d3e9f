"""MeanFlow: one step from noise to data, learned without a teacher.

Geng et al. (2025); see `objectives.mean_flow`.  The network reads t / time_scale as its time, and
t - r as its scalar condition.  The target of the loss has the network's derivative in t.  Networks
embed 1000 times their time in sines.  If t itself were the time, this derivative would be far
larger than the velocity, and would hide it.
"""
import math

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, random
from vdm_jax.decoders import Pixels
from vdm_jax.objectives import mean_flow
from vdm_jax.systems import compose, networks
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.systems.flows.rectified_flow import OneStep
from vdm_jax.typing import Experiment
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, and the fields that draw, weight and scale the pairs of times."""
  return system.default_config(**{
      'same': 0.75, 'power': 1.0,
      'time_scale': 100.0,  # 100: the sines are of 10 t
  } | model)


def told_slow_time(net: nn.Module, scale: float) -> nn.Module:
  """A network of `systems.networks` that reads t / scale as its time: sines of 1000 t / scale."""
  return system.told_time(net).clone(logsnr_min=scale)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """MeanFlow with this network of (z, t, t - r, keys), by default `networks.unet`.

  The model samples in one step and has no likelihood.

  Raises InputError if config.model.timesteps is not 0, for labels, for a share outside of [0, 1],
  or for a scale that is not positive.
  """
  m = config.model
  scale = m.get('time_scale', 1.0)  # a run's config may be older than the field: it read t itself
  compose.require_continuous(config)
  compose.require(config, 'same', 0 <= m.same <= 1, 'it must be a share',
                  'give a number from 0 to 1')
  compose.require(config, 'time_scale', 0 < scale < math.inf, 'it divides the time',
                  'give a number above 0')
  compose.require(config, 'class_conditional', not m.class_conditional,
                  'the condition of this network is a time', 'set it to False')
  spec = data.resolve(config.data)
  net = told_slow_time(net or networks.unet(config), scale)
  coding, size = Pixels(spec.levels), int(np.prod(spec.shape))

  def network(params, keys=None):
    bound = Bound(params['net'], net, keys)
    return lambda z, r, t: bound(z, t, t - r)

  def init(key):
    one = jnp.ones(1)
    return {'net': net.init(key, jnp.zeros((1, *spec.shape)), one, one)['params']}

  def loss(params, batch, context):
    x = coding.encode(batch[spec.x.name])
    r, t = mean_flow.times(context.t, context.keys, m.same)
    loss, terms = mean_flow.objective(network(params, compose.dropout_keys(context)), x, r, t,
                                      context.keys, power=m.power)
    terms = {name: u / size for name, u in terms.items()}
    # Weighed by its own inverse the error is about 1, whatever it is, which chooses no checkpoint.
    return loss if context.train else terms['velocity_error'], terms

  def model(params, keys=None):
    def sample(key, n=None):
      keys = random.each(key, n)
      z_1 = random.normal(random.stream(keys, 'z_1'), jnp.zeros((len(keys), *spec.shape)))
      one = jnp.ones(len(keys))
      return coding.decode(mean_flow.step(network(params), z_1, one, 0.0 * one))
    return OneStep(sample, spec.shape, spec.x.name)

  return compose.assemble(config, init=init, loss=loss, model=model)
