"""The bound of an exact oracle of `shapes` is the entropy of its 9,216 pictures, and of 64 told."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.data import shapes
from vdm_jax.decoders import Pixels
from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.processes import GaussianProcess

DRAWS = 8  # for each caption


@pytest.mark.long
def test_the_exact_oracle_of_shapes_needs_their_entropy_and_six_bits_if_told_the_caption():
  """log2 9216 = 13.1699 bits, and log2 64: the diffusion term from log-SNR 4 to -12.

  Above 4, sigma / alpha is 0.135, and pictures 1.5 apart are not confused.  Below -12, the term is
  at most e^-12 E|x|^2 / 2 = 0.002 bits.  A block is a caption, and has one time in each stratum, so
  the blocks are independent.
  """
  pictures = Pixels(256).encode(jnp.asarray(shapes.images()))
  process = GaussianProcess(schedules.Linear(4.0, -12.0))

  @jax.jit
  def block(key, own):
    of_rows, of_times, of_noise = jax.random.split(key, 3)
    x = jax.random.choice(of_rows, own, (DRAWS,))
    t = (jnp.arange(DRAWS) + jax.random.uniform(of_times)) / DRAWS
    keys = jax.random.split(of_noise, DRAWS)
    nats = lambda data: jnp.mean(weighted_diffusion(
        oracles.Empirical(data), process, x, t, keys, None)[0])
    return jnp.stack([nats(pictures), nats(own)]) / jnp.log(2.0)

  untold, told = np.array([block(key, own) for key, own in zip(
      jax.random.split(jax.random.key(0), 144), pictures.reshape(144, 64, 16, 16, 3),
      strict=True)]).T
  for bits, exact in ((untold, 13.1699), (told, 6.0), (untold - told, 7.1699)):
    error = np.std(bits, ddof=1) / np.sqrt(len(bits))
    assert error < 1.0  # or the test would tell nothing
    assert abs(bits.mean() - exact) < 4 * error
