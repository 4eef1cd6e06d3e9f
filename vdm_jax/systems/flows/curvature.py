"""Flows whose coupling of data and noise is learned, so that trajectories bend less.

Lee, Kim and Ye (2023); see `objectives.curvature`.  The encoder is a network like the flow's, and
reads t = 1.  The encoder starts at the independent coupling, and is not used after training.  The
flow has no score: see `Model.coupled`.
"""
import functools

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import inputs
from vdm_jax.objectives import curvature
from vdm_jax.systems import compose, networks
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.typing import Array, Experiment
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, the weight of the divergence, and the encoder's width."""
  return system.default_config(**{
      'beta': 20.0,            # against KL / D: of CIFAR-10, MNIST and FFHQ in the public code
      'encoder_features': 64,  # of the default encoder
      'encoder_blocks': 4,
      'encoder_groups': 16,
  } | model)


def small(config: ml_collections.ConfigDict) -> nn.Module:
  """The default encoder: `networks.unet` of the encoder's own size.  Raises InputError."""
  networks.require_groups(config, 'encoder_')
  m = config.model
  return networks.unet(config).clone(features=m.encoder_features, blocks=m.encoder_blocks,
                                     groups=m.encoder_groups, fourier=(), dropout=0.0)


def doubled(u: Array) -> Array:
  """u with as many channels of zeros added, so that a network returns two numbers per channel."""
  return jnp.concatenate([u, jnp.zeros_like(u)], axis=-1)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               encoder: nn.Module | None = None, read: inputs.Inputs | None = None,
               condition: str | None = '') -> Experiment:
  """Flow matching with a learned coupling.  params: {'net', 'encoder'}.

  encoder: a network of `systems.networks`.  Default: `small`.  Validation uses independent noise,
  from which samples start, and reports the bound for this noise.

  Raises InputError for a beta below 0.
  """
  beta = config.model.beta
  compose.require(config, 'beta', beta >= 0, 'it is negative', 'give 0 or more')
  base = system.experiment(config, net=net, read=read, condition=condition)
  encoder = system.told_time(encoder or small(config))
  shape = base.data.spec.shape

  def init(key):
    x = jnp.zeros((1, *shape))
    own = encoder.init(jax.random.fold_in(key, 0), doubled(x), jnp.ones(1))
    return {**base.init(key), 'encoder': own['params']}

  def loss(params, batch, context):
    if not context.train:
      return base.loss(params, batch, context)
    network = Bound(params['encoder'], encoder)

    def encode(x):
      mean, log_variance = jnp.split(network(doubled(x), jnp.ones(len(x))), 2, axis=-1)
      return mean, log_variance

    coupled = functools.partial(curvature.objective, encode=encode, beta=beta)
    return compose.loss_of(coupled, base.model, shape)(params, batch, context)

  def model(params, keys=None):
    return base.model(params, keys)._replace(coupled=True)

  return base._replace(init=init, loss=loss, model=model)
