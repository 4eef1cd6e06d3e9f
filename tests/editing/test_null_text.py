"""Null-text inversion, where the embedding is the mean of a Gaussian that is not told."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.editing import null_text
from vdm_jax.errors import InputError
from vdm_jax.guidance import classifier_free
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ddim, sample

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Cosine(8.0, -5.0))
KEYS = jax.random.split(jax.random.key(0), 3)
TOLD, W = oracles.Gaussian(0.4, 0.5), 6.5
X = np.linspace(-0.5, 1.5, 12).reshape(3, 4)
TIMES = np.linspace(1.0, 0.0, 51)


def untold(z, level, null):
  return oracles.Gaussian(null, 0.5)(z, level)


@pytest.mark.long
def test_guided_sampling_leaves_the_inversion_and_comes_back_with_tuned_embeddings():
  null = jnp.full((3, 4), 0.1)

  @jax.jit
  def run(null):
    path = null_text.invert(TOLD, PROCESS, KEYS, X, TIMES)
    nulls = null_text.optimise(TOLD, untold, W, PROCESS, path, TIMES, null)
    guided = classifier_free(TOLD, lambda z, level, _: untold(z, level, null), W)
    return (path, nulls, *(sample(sampler, KEYS, path[0], TIMES) for sampler in (
        ddim(TOLD, PROCESS), ddim(guided, PROCESS),
        null_text.with_nulls(TOLD, untold, W, PROCESS, nulls))))

  path, nulls, unguided, guided, tuned = run(null)
  np.testing.assert_array_equal(path[-1], X)
  # Equal stds: guidance moves the mean from 0.4 by w times its distance from the null's.
  at, end = PROCESS(1.0), PROCESS(0.0)
  width = lambda level: np.sqrt(0.25 * level.alpha**2 + level.sigma**2)
  moved = end.alpha - at.alpha * width(end) / width(at)
  np.testing.assert_allclose(guided - unguided, W * 0.3 * moved, rtol=0.05)
  assert np.abs(tuned - X).max() < 0.05
  # A null at the told mean guides to nowhere; what is left corrects the error of the inversion.
  np.testing.assert_allclose(nulls[-1], 0.4, atol=0.1)
  # Ten of Adam's first steps, each about as long as its rate, 0.01 in the first step of the grid.
  np.testing.assert_allclose(nulls[0], 0.2, atol=0.01)


@pytest.mark.long
def test_an_embedding_is_left_after_the_first_update_whose_loss_was_small():
  """The null guides to nowhere, and the path is off by a little: its square is the loss."""
  times, null = np.linspace(1.0, 0.0, 3), jnp.full((3, 4), 0.4)
  z = sample(ddim(TOLD, PROCESS), KEYS, X, times, trace=lambda z: z)[1]
  moves = []
  for off in (1e-3, 1e-1):  # losses of 1e-6 and 1e-2, on either side of 1e-5
    nulls = null_text.optimise(TOLD, untold, W, PROCESS, z.at[1:].add(off), times, null)
    moves.append(np.abs(nulls[0] - null))
  np.testing.assert_allclose(moves[0], 0.01, rtol=1e-3)  # Adam's first step is its rate
  assert moves[1].min() > 0.015


def test_lengths_that_do_not_fit_are_refused():
  path = jnp.zeros((3, 3, 4))
  with pytest.raises(InputError, match='3 latents for 51 times'):
    null_text.optimise(TOLD, untold, W, PROCESS, path, TIMES, X)
  with pytest.raises(InputError, match='for 3 steps, and the grid has 50'):
    sample(null_text.with_nulls(TOLD, untold, W, PROCESS, path), KEYS, X, TIMES)
