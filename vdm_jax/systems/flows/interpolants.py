"""Stochastic interpolants between data and a base that is any other distribution.

Albergo, Boffi and Vanden-Eijnden (2023); see `vdm_jax.interpolants`.  One network with two heads
estimates the velocity of the path and the noise.  Both targets are finite, and give the drift and
the score.  A Gaussian base needs no second head.  This one-sided case is `flow_matching`, whose
denoiser gives the drift and the score (`samplers.interpolants.of_process`).
"""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, random
from vdm_jax.decoders import Pixels, Reals
from vdm_jax.interpolants import Drift, Drifts, Interpolant
from vdm_jax.objectives import interpolants
from vdm_jax.samplers import interpolants as samplers
from vdm_jax.samplers import sample as run_down
from vdm_jax.systems import compose
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.systems.flows.curvature import doubled
from vdm_jax.typing import Array, Experiment, brief
from vdm_jax.values import Bound

Base = Callable[[Array, Array], Array]  # keys [B], like [B, ...] -> y of that shape


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, and the fields of sampling."""
  return system.default_config(**{
      'diffusivity': 0.0,     # c of e(t) = c gamma^2: 0 samples by the flow, more by an SDE
      'sampling_steps': 100,
  } | model)


class Between(NamedTuple):
  """A trained interpolant between two distributions: it samples the data from the base."""
  sample: Callable[..., Array]  # keys [B], or key, n -> data [B, ...]
  drifts: Drifts                # z, t -> drift and score
  shape: tuple[int, ...]        # of one example
  field: str = 'image'          # which field of a batch is the data

  def __repr__(self) -> str:
    return brief(self)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, base: Base,
               interpolant: Interpolant) -> Experiment:
  """The interpolant from this base, at t = 1, to the data, at t = 0; each y is drawn anew.

  net: a network of `systems.networks`, for twice the channels of x.

  Raises InputError if config.model.timesteps is not 0, for a negative diffusivity, or for fewer
  than one sampling step.
  """
  m = config.model
  compose.require_continuous(config)
  compose.require(config, 'diffusivity', m.diffusivity >= 0, 'it is negative', 'give 0 or more')
  compose.require(config, 'sampling_steps', m.sampling_steps >= 1, 'it is not positive',
                  'give 1 or more')
  spec, net = data.resolve(config.data), system.told_time(net)
  coding = Reals() if spec.x.levels is None else Pixels(spec.x.levels)
  size = int(np.prod(spec.shape))

  def network(params, keys=None):
    bound = Bound(params['net'], net, keys)
    return lambda z, t, cond=None: bound(doubled(z), jnp.broadcast_to(t, z.shape[:1]))

  def init(key):
    z = jnp.zeros((1, *spec.shape))
    return {'net': net.init(key, doubled(z), jnp.zeros(1))['params']}

  def loss(params, batch, context):
    x = coding.encode(batch[spec.x.name])
    y = base(random.stream(context.keys, 'y'), x)
    loss, terms = interpolants.joint(network(params, compose.dropout_keys(context)), interpolant,
                                     x, y, context.t, context.keys)
    return loss / size, {name: u / size for name, u in terms.items()}

  def model(params, keys=None):
    estimate = network(params, keys)

    def drifts(z, t, cond=None):
      velocity, noise = jnp.split(estimate(z, t, cond), 2, axis=-1)
      at = interpolant(t).expand(z)
      return Drift(velocity + at.dgamma * noise, -noise / jnp.maximum(at.gamma, 1e-6))

    def sample(key, n=None):
      keys = random.each(key, n)
      y = base(random.stream(keys, 'y'), jnp.zeros((len(keys), *spec.shape)))
      method = samplers.euler(drifts, lambda t: m.diffusivity * jnp.square(interpolant(t).gamma))
      times = np.linspace(1.0, 0.0, m.sampling_steps + 1)
      return coding.decode(run_down(method, random.stream(keys, 'sampler'), y, times))

    return Between(sample, drifts, spec.shape, spec.x.name)

  return compose.assemble(config, init=init, loss=loss, model=model)
