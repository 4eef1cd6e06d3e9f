"""Runs of Gaussian data of any shape, whose network is the exact denoiser times a number.

The data are points [D], sequences [L, C] of an autoregression, sets [K, C] that no order changes,
or volumes [D, H, W, C], and are in a file of real numbers.
"""
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.errors import require_choice
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

SHAPES = {'points': (2,), 'sequences': (5, 2), 'sets': (4, 2), 'volumes': (3, 2, 2, 1)}
ENDS = 12.0, -8.0  # log-SNR at t = 0 and at t = 1


def covariance(law: str) -> np.ndarray:
  """[D, D], of an example in a row."""
  decay = lambda n, by: by**np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
  if law == 'points':
    return np.array([[1.0, 0.4], [0.4, 0.5]])
  if law == 'sequences':
    return np.kron(decay(5, 0.7), [[1.0, 0.4], [0.4, 0.5]])
  if law == 'sets':
    return np.kron(0.6 * np.eye(4) + 0.4, [[0.5, -0.2], [-0.2, 1.0]])
  return np.kron(decay(3, 0.8), np.kron(decay(2, 0.5), decay(2, 0.3)))


def draw(law: str, n: int, seed: int = 0) -> np.ndarray:
  """float32 [n, ...]"""
  noise = np.random.default_rng(seed).normal(size=(n, math.prod(SHAPES[law])))
  return (noise @ np.linalg.cholesky(covariance(law)).T).reshape(n, *SHAPES[law]).astype(np.float32)


class Net(nn.Module):
  """`scale` times E(eps | z) = sigma (alpha^2 C + sigma^2)^-1 z."""
  law: str
  scale: float

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    scale = self.param('scale', nn.initializers.constant(self.scale), ())
    values, vectors = np.linalg.eigh(covariance(self.law))
    signal, noise = jax.nn.sigmoid(logsnr)[:, None], jax.nn.sigmoid(-logsnr)[:, None]
    u = jnp.matmul(z.reshape(len(z), -1), vectors, precision='highest')
    u = jnp.sqrt(noise) * u / (signal * values + noise)
    return scale * jnp.matmul(u, vectors.T, precision='highest').reshape(z.shape)


def get_config(law: str = 'sequences') -> ml_collections.ConfigDict:
  require_choice('config', law, tuple(SHAPES))
  config = vdm.default_config(law=law, scale=1.0)
  config.data.update(name='data.npy', validation=8, batch_size=8)
  config.optimizer.update(learning_rate=1e-6, warmup_steps=0, decay_steps=0, weight_decay=0.0)
  config.ema = {'ema': 0.5}
  config.train.update(steps=2, log_every=1, validate_every=2, checkpoint_every=2,
                      pictures_every=2, keep=2, validation_repeats=1)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  return vdm.experiment(config, net=Net(m.law, m.scale), schedule=schedules.Linear(*ENDS))
