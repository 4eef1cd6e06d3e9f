"""Losses of a spectrum: Parseval, a recording of numpy's transform, and their place in a loss."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, schedules
from vdm_jax.objectives import ddpm, spectral
from vdm_jax.processes import GaussianProcess
from vdm_jax.schedules import TableSchedule

STEPS = 50
PROCESS = GaussianProcess(TableSchedule.from_betas(schedules.linear_betas(STEPS, 1e-3, 0.2)))
X = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))


@pytest.mark.long
def test_the_losses_are_those_of_numpy_s_transform(x64):
  arrays = recordings.shared('wavelets')
  apart = jnp.asarray(arrays['x'] - arrays['student'])
  plain = spectral.spectral_square(apart)
  np.testing.assert_allclose(plain, arrays['freq_loss_unweighted'], rtol=1e-12)
  np.testing.assert_allclose(plain, arrays['spatial_loss'] * np.prod(apart.shape[1:3]), rtol=1e-12)
  # Its least |F x| is above so small a floor.
  weighed = spectral.spectral_square(apart, spectral.inverse_spectrum(
      jnp.asarray(arrays['clean']), floor=1e-9))
  np.testing.assert_allclose(weighed, arrays['freq_loss'], rtol=1e-10)


def test_without_a_weight_the_loss_is_parseval_s_and_a_flat_spectrum_weighs_all_alike():
  """sum |F d|^2 = H W sum |d|^2.  A datum that is one pixel of height a has |F x| = |a|."""
  d = jax.random.normal(jax.random.key(2), (3, 4, 6, 2))
  spatial = 4 * 6 * jnp.sum(jnp.square(d), axis=(1, 2, 3))
  np.testing.assert_allclose(spectral.spectral_square(d), spatial, rtol=1e-5)
  heights = jnp.array([0.5, -2.0, 4.0])
  pixel = jnp.zeros_like(d).at[:, 1, 3].set(heights[:, None])
  weighed = spectral.spectral_square(d, spectral.inverse_spectrum(pixel, floor=0.1))
  np.testing.assert_allclose(weighed, spatial / jnp.abs(heights), rtol=1e-5)


@pytest.mark.long
def test_a_frequency_that_the_datum_lacks_weighs_no_more_than_the_floor_says():
  flat = jnp.ones((1, 4, 4, 1))  # which has the frequency 0 alone
  weight = spectral.inverse_spectrum(flat, floor=0.5)
  np.testing.assert_allclose(weight[0, 0, 0, 0], 1 / 16, rtol=1e-6)
  np.testing.assert_allclose(weight.at[0, 0, 0, 0].set(2.0), 2.0, rtol=1e-6)
  assert np.isfinite(jax.grad(lambda d: spectral.spectral_square(d, weight)[0])(flat)).all()


@pytest.mark.long
def test_a_student_that_is_its_teacher_pays_l_simple_alone():
  t, keys = jnp.array([0.1, 0.5, 0.9]), jax.random.split(jax.random.key(1), 3)
  of = oracles.Gaussian(0.1, 0.5)
  losses, terms = spectral.distilled(of, PROCESS, X, t, keys, teacher=of, steps=STEPS)
  wanted, _ = ddpm.simple(of, PROCESS, X, t, keys, steps=STEPS)
  np.testing.assert_allclose(losses, wanted, rtol=1e-6)
  np.testing.assert_array_equal(terms['spatial'], 0.0)
  np.testing.assert_array_equal(terms['spectral'], 0.0)


@pytest.mark.long
def test_the_parts_have_their_factors_and_the_teacher_no_gradient():
  t, keys = jnp.array([0.1, 0.5, 0.9]), jax.random.split(jax.random.key(1), 3)

  def loss(student, teacher, **factors):
    losses, terms = spectral.distilled(oracles.Gaussian(student, 0.5), PROCESS, X, t, keys,
                                       teacher=oracles.Gaussian(teacher, 0.5), steps=STEPS,
                                       **factors)
    return losses.sum(), terms
  total, terms = loss(0.1, 0.4, spatial=2.0, spectral=3.0)
  np.testing.assert_allclose(total, sum(
      factor * terms[name].sum() for name, factor in
      (('eps_error', 1.0), ('spatial', 2.0), ('spectral', 3.0))), rtol=1e-6)
  slope, _ = jax.grad(loss, argnums=(0, 1), has_aux=True)(0.1, 0.4)
  assert float(slope[1]) == 0.0 and abs(float(slope[0])) > 1.0
