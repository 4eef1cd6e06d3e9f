"""MeanFlow: the average velocity of a Gaussian's flow is known, and is where the loss is still."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, random
from vdm_jax.objectives import flow_matching, mean_flow
from vdm_jax.processes import RectifiedFlow

pytestmark = pytest.mark.usefixtures('x64')

S = 0.5


def keys(n):
  return random.per_example(random.key(0), jnp.arange(n))


def std(t):
  return jnp.sqrt(((1.0 - t) * S)**2 + t**2)


def gain(r, t):
  """u(z_t, r, t) = gain z_t: the flow carries z_t to z_t std(r) / std(t)."""
  return (1.0 - std(r) / std(t)) / (t - r)


def test_steps_of_the_exact_average_velocity_are_the_flow_map():
  network = lambda z, r, t: gain(r, t)[:, None] * z
  z, one = jnp.array([[1.0], [-2.0]]), jnp.ones(2)
  np.testing.assert_allclose(mean_flow.step(network, z, one, 0.0 * one), S * z, rtol=1e-12)
  half = mean_flow.step(network, z, one, 0.3 * one)
  exact = oracles.Gaussian(0.0, S).flow_map(z, RectifiedFlow()(one), RectifiedFlow()(0.3 * one))
  np.testing.assert_allclose(half, exact, rtol=1e-12)


def test_the_gradient_vanishes_at_the_average_velocity_and_not_beside_it():
  """The four points x = +-S, eps = +-1 average what is quadratic exactly."""
  r, t = (jnp.repeat(jnp.array(u), 4) for u in ([0.0, 0.2, 0.5], [1.0, 0.6, 0.9]))
  x = S * jnp.tile(jnp.array([1.0, 1.0, -1.0, -1.0]), 3)[:, None]
  eps = jnp.tile(jnp.array([1.0, -1.0, 1.0, -1.0]), 3)[:, None]

  @jax.jit
  def slope(theta):
    def loss(theta):
      network = lambda z, r, t: (gain(r, t) + jnp.repeat(theta, 4))[:, None] * z
      return mean_flow.objective(network, x, r, t, keys(12), power=0.0, eps=eps)[0].sum()
    return jax.grad(loss)(theta)
  np.testing.assert_allclose(slope(jnp.zeros(3)), 0.0, atol=1e-12)
  assert (slope(0.1 * jnp.ones(3)) > 0.01).all() and (slope(-0.1 * jnp.ones(3)) < -0.01).all()


@pytest.mark.long
def test_at_equal_times_it_is_flow_matching_and_the_weight_is_a_constant_of_the_gradient():
  n, oracle = 6, oracles.Gaussian(0.0, 0.8)
  x = random.normal(keys(n), jnp.zeros((n, 3)))
  t = jnp.linspace(0.1, 0.9, n)

  def network(c):
    return lambda z, r, t: c * flow_matching.velocity(oracle, RectifiedFlow(), z, t)
  plain, _ = flow_matching.objective(oracle, RectifiedFlow(), x, t, keys(n))
  loss = jax.jit(lambda c, power: mean_flow.objective(network(c), x, t, t, keys(n), power=power)[0],
                 static_argnums=1)
  np.testing.assert_allclose(loss(1.0, 0.0), plain, rtol=1e-12)
  np.testing.assert_allclose(loss(1.0, 0.5), plain / jnp.sqrt(plain + 1e-3), rtol=1e-12)
  by = lambda power: jax.jacobian(lambda c: loss(c, power))(1.1)
  error = loss(1.1, 0.0)
  np.testing.assert_allclose(by(1.0), by(0.0) / (error + 1e-3), rtol=1e-10)


@pytest.mark.long
def test_times_are_in_order_and_so_many_of_them_the_same():
  n = 4000
  r, t = mean_flow.times(jnp.linspace(0.0, 1.0, n), keys(n), 0.75)
  assert (r <= t).all() and (t <= 1.0).all()
  share = float((r == t).mean())
  assert abs(share - 0.75) < 4 * (0.75 * 0.25 / n)**0.5
  apart = np.asarray(t - r)[np.asarray(r < t)]  # |u - v| of two uniform times: mean 1/3, var 1/18
  assert abs(apart.mean() - 1 / 3) < 4 * (1 / 18 / len(apart))**0.5
