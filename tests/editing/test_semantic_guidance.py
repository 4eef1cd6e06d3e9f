"""Gradients of semantic diffusion guidance, by hand and as guided flows."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import guidance, oracles, schedules
from vdm_jax.editing import semantic
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import sample
from vdm_jax.samplers.runge_kutta import heun

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Linear(20.0, -5.0))
CLEAN = PROCESS(0.0)
KEYS = jax.random.split(jax.random.key(0), 1)
Z = jnp.array([[3.0, 4.0]])
itself = lambda z, level: z


@pytest.mark.long
def test_the_gradient_of_a_cosine_is_the_one_by_hand():
  want = [[0.128, -0.096]]
  np.testing.assert_allclose(semantic.text(itself, jnp.array([1.0, 0.0]))(Z, CLEAN, None), want)
  # At t = 0 the noise of the reference is e^-10 of it.
  image = semantic.image(itself, jnp.array([[2.0, 0.0]]), KEYS)
  np.testing.assert_allclose(image(Z, CLEAN, None), want, atol=1e-4)


@pytest.mark.long
def test_the_reference_has_new_noise_at_each_level_and_the_same_in_each_call():
  seen = []
  watch = lambda z, level: seen.append(z) or z
  gradient = semantic.image(watch, jnp.array([[2.0, 0.0]]), KEYS)
  for t in (0.5, 0.5, 0.6):
    level = PROCESS(t)
    gradient(Z, level, None)
  noise = [(np.asarray(u[0]) - float(PROCESS(t).alpha) * np.array([2.0, 0.0])) / float(
      PROCESS(t).sigma) for u, t in zip(seen[1::2], (0.5, 0.5, 0.6), strict=True)]
  np.testing.assert_array_equal(noise[0], noise[1])
  assert np.abs(noise[0] - noise[2]).min() > 1e-3
  assert np.abs(noise).max() < 5.0


@pytest.mark.long
def test_the_gradient_of_a_style_is_the_one_by_hand():
  """One pixel (3, 4): G = z z' / 2, and F = - mean((G - R)^2) has the gradient - (G - R) z / 2.

  G z = (37.5, 50), and R = diag(2, 0) of the reference (2, 0) takes (6, 0) from it.  Of two stages,
  a stage without features halves the gradient.
  """
  pixel = lambda z, level: [z[:, None, None, :]]
  reference = jnp.array([[2.0, 0.0]])
  got = semantic.style(pixel, reference, KEYS)(Z, CLEAN, None)
  np.testing.assert_allclose(got, [[-15.75, -25.0]], rtol=1e-3)
  two = lambda z, level: [*pixel(z, level), jnp.zeros((1, 2, 2, 3))]
  np.testing.assert_allclose(semantic.style(two, reference, KEYS)(Z, CLEAN, None), got / 2)


def test_a_style_forgets_positions():
  maps = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
  turned = jnp.flip(jnp.swapaxes(maps, 1, 2), axis=1)
  np.testing.assert_allclose(semantic.gram(maps), semantic.gram(turned), rtol=1e-12)


@pytest.mark.long
def test_gradients_add_with_their_weights():
  first, second = (semantic.text(itself, jnp.array(words)) for words in ([1.0, 0.0], [0.0, 1.0]))
  both = semantic.together((first, 160.0), (second, -2.0))
  want = 160.0 * np.array([[0.128, -0.096]]) - 2.0 * np.array([[-0.096, 0.072]])
  np.testing.assert_allclose(both(Z, CLEAN, None), want)
  with pytest.raises(InputError, match='there is no gradient'):
    semantic.together()


@pytest.mark.first(1)
@pytest.mark.parametrize('std,shift', [(0.5, 1.394891), (1.0, 2.503358)])
def test_a_linear_similarity_moves_the_flow_by_the_closed_form(std, shift):
  """F = a z of weight w, from noise of sigma / alpha = e^2.5: the samples move by shift w a."""
  a, w = 0.3, 0.7
  kappa = math.exp(2.5)
  assert abs(std * math.log((math.hypot(1, kappa) + math.hypot(std, kappa)) / (1 + std)) - shift
             ) < 1e-6
  oracle = oracles.Gaussian(0.2, std)
  gradient = semantic.together((lambda z, level, cond: jnp.full_like(z, a), w))
  z, times = jnp.array([[0.5], [-1.0]]), np.linspace(1.0, 0.0, 401)
  keys = jax.random.split(jax.random.key(0), 2)
  run = lambda d: sample(heun(d, PROCESS), keys, z, times) / PROCESS(0.0).alpha
  moved = run(guidance.classifier(oracle, gradient)) - run(oracle)
  np.testing.assert_allclose(moved, shift * w * a, rtol=1e-3)
