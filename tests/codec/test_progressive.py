"""DiffC and UQDM on Gaussian data: their rates and distortions have closed forms."""
import numpy as np
import pytest
from scipy import stats

from tests.support.gaussian import STD, exact_decoder, true_variances
from vdm_jax import model, oracles, processes, schedules
from vdm_jax.codec import channel, diffc, kernels, uqdm
from vdm_jax.codec.queue import Writer
from vdm_jax.errors import InputError

PROCESS = processes.GaussianProcess(schedules.Linear(13.3, -5.0))
UNIFORM = np.sqrt(12.0)


def of(times, shape, process=PROCESS, **options):
  """Kernels of the exact denoiser of N(0, 1/4), with its exact variances."""
  exact = model.Model(oracles.Gaussian(0.0, STD), process, exact_decoder, lambda x: x, lambda x: x,
                      lambda batch: None, shape)
  return kernels.kernels(exact, 256, times, true_variances(200), **options)


def data(count, size, seed=0):
  return STD * np.random.default_rng(seed).standard_normal((count, size))


@pytest.mark.long
def test_the_ideal_rate_and_the_two_distortions_are_those_of_gaussian_data():
  """Theis et al. (2022): D_A = 2 s^2 (1 - rho^2), D_F = 2 s^2 (1 - rho); half of D_A of x_hat."""
  of_gaussian, x = of(np.linspace(0.0, 1.0, 11), (16, 16, 1)), data(40, 256)
  x *= STD / np.sqrt(np.square(x).mean())  # a divergence is linear in x^2
  each, seen = np.zeros(40), 0
  for i, z, bits in diffc.ideal(of_gaussian, x):
    snr = np.exp(of_gaussian.logsnr[i])
    each += bits / 256
    exact = 0.5 * np.log2(1.0 + STD**2 * snr)
    assert each.mean() == pytest.approx(exact, abs=4.0 * each.std() / 40**0.5 + 1e-3), i
    if i not in (7, 5, 2):
      continue
    seen += 1
    rho = np.sqrt(STD**2 * snr / (1.0 + STD**2 * snr))
    for how, exact in (('ancestral', 2.0 * STD**2 * (1.0 - rho**2)),
                       ('flow', 2.0 * STD**2 * (1.0 - rho)), ('mean', STD**2 * (1.0 - rho**2))):
      square = np.square(of_gaussian.finish(z, i, how, 0, kernels.nothing) - x)
      standard = square.std() / square.size**0.5
      # The flow is of second order in 32 steps.
      assert square.mean() == pytest.approx(exact, abs=4.0 * standard + 0.01 * exact), (how, i)
  assert seen == 3
  # Golden: 5.956015 nats between the ends, whatever T, and what z_T has.
  first = 0.5 * np.log2(1.0 + STD**2 * np.exp(-5.0))
  error = 4.0 * each.std() / 40**0.5 * np.log(2.0)
  assert (each.mean() - first) * np.log(2.0) == pytest.approx(5.956015, abs=error)


@pytest.fixture(scope='module')
def sent():
  """Eight images of 16 pixels up to log-SNR 3, by the search that is exact."""
  x = data(8, 16)
  process = processes.GaussianProcess(schedules.Linear(3.0, -5.0))
  of_gaussian = of(np.linspace(0.0, 1.0, 4), (4, 4, 1), process)
  return of_gaussian, x, diffc.encode(of_gaussian, x, progress=False), process


def test_a_block_costs_its_divergence_its_logarithm_and_a_bit(sent):
  _, _, coded, _ = sent
  bits = coded.ideal.sum()
  mean = bits / coded.blocks
  assert coded.cost.sum() <= bits + coded.blocks * (np.log2(mean + 1.0) + 1.2)
  assert len(coded.words) * 32 <= coded.cost.sum() + 96
  assert coded.blocks >= bits / 4.0
  assert stats.kstest(coded.noise, 'norm').pvalue > 0.003


def test_what_arrives_is_a_noisy_image_of_the_right_variance_at_every_level(sent):
  of_gaussian, x, coded, _ = sent
  for i, z in diffc.decode(of_gaussian, coded.words, coded.tables, 8):
    noise = (z - of_gaussian.alpha[i] * x) / of_gaussian.sigma[i]
    assert np.square(noise).mean() == pytest.approx(1.0, abs=4.0 * (2.0 / noise.size)**0.5)
    assert noise.mean() == pytest.approx(0.0, abs=4.0 / noise.size**0.5)


def test_a_prefix_has_its_levels_and_batches_change_only_the_rounding(sent):
  of_gaussian, _, coded, process = sent
  whole = list(diffc.decode(of_gaussian, coded.words, coded.tables, 8))
  assert [i for i, _ in whole] == [3, 2, 1, 0] and coded.ends == sorted(coded.ends)
  other = of(np.linspace(0.0, 1.0, 4), (4, 4, 1), process, batch_size=3)
  part = list(diffc.decode(other, coded.words[:coded.ends[1]], coded.tables[:2], 8))
  assert [i for i, _ in part] == [3, 2]
  for (_, z), (_, same) in zip(part, whole, strict=False):
    np.testing.assert_allclose(z, same, atol=1e-5)


def test_the_approximate_search_is_biased_towards_the_prediction(sent):
  of_gaussian, x, *_ = sent
  coded = diffc.encode(of_gaussian, np.tile(x, (4, 1)), search=diffc.Search(12.0, 6),
                       progress=False)
  assert coded.noise.mean() < -4.0 * coded.noise.std() / coded.blocks**0.5
  assert coded.cost.sum() < sent[2].cost.sum() * 4


def test_blocks_that_are_too_large_for_an_exact_sample_are_counted(sent):
  """A pixel of more than 4 bits makes its block such a one, and has no other beside it."""
  of_gaussian, x, *_ = sent
  far = x[:2].copy()
  far[0, 5] = 4.0  # 8 deviations of the data
  coded = diffc.encode(of_gaussian, far, search=diffc.Search(4.0, 8), progress=False)
  large, above = 0, np.zeros_like(far)
  for i, z in diffc.decode(of_gaussian, coded.words, coded.tables, 2):
    mean, std = of_gaussian.predicted(above, i, kernels.nothing)
    target, width = of_gaussian.given(far, above, i)
    large += int((channel.divergence((target - mean) / std, width / std) > 4.0).sum())
    above = z
  assert coded.large == large > 0


def test_a_network_that_is_not_finite_is_refused_by_both_methods(sent):
  broken = model.Model(lambda z, level, cond=None: oracles.Gaussian(0.0, STD)(z * np.nan, level),
                       PROCESS, exact_decoder, lambda x: x, lambda x: x, lambda batch: None,
                       (4, 4, 1))
  of_broken = kernels.kernels(broken, 256, np.linspace(0.0, 1.0, 3), true_variances(20))
  with pytest.raises(InputError, match='no finite kernel at step 2'):
    diffc.encode(of_broken, data(1, 16), progress=False)
  with pytest.raises(InputError, match='no finite kernel at step 2'):
    uqdm.calibrate(of_broken, data(1, 16))


def test_blocks_are_as_few_as_have_at_most_four_bits_and_one_large_pixel_each():
  few = np.full(64, 0.25)
  assert diffc._blocks(few, 4.0) == 4
  few[[0, 4]] = 6.0, 7.0  # dealt to 4 blocks, both would be in the first
  assert diffc._blocks(few, 4.0) == 5
  assert diffc._blocks(np.full(3, 5.0), 4.0) == 3


def test_along_the_curve_pixels_are_in_quarters():
  curve = diffc.along_curve((8, 8, 1))
  np.testing.assert_array_equal(np.sort(curve), np.arange(64))
  rows, columns = curve[:16] // 8, curve[:16] % 8
  assert rows.max() == columns.max() == 3


# -------------------------------------------------------------------- UQDM


@pytest.mark.parametrize('bits, published', [
    (0.001, 0.0280), (0.01, 0.0889), (0.1, 0.2901), (0.5, 0.7508), (1, 1.2544), (2, 2.2546),
    (4, 4.2546)])
def test_the_rate_of_universal_quantisation_is_that_of_the_table(bits, published):
  """By quadrature; and by the coder, on Gaussian numbers of the variance (4^R - 1) / 12."""
  assert uqdm.rate(bits) == pytest.approx(published, abs=0.002)
  rng, std = np.random.default_rng(0), np.sqrt((4.0**bits - 1.0) / 12.0)
  m, u = std * rng.standard_normal(40_000), rng.uniform(-0.5, 0.5, 40_000)
  k, y = uqdm.quantise(m, u)
  assert np.abs(y - m).max() <= 0.5
  assert np.corrcoef(y - m, m)[0, 1] == pytest.approx(0.0, abs=4.0 / 200.0)
  writer = Writer()
  writer.integers(k, u, np.full(40_000, std))
  assert writer.bits / 40_000 == pytest.approx(published, abs=0.02)


def test_at_a_large_rate_the_excess_is_that_of_a_uniform_noise():
  """1/2 log2(2 pi e / 12): a cube's second moment against a ball's of infinite dimension."""
  assert uqdm.rate(8.0) - 8.0 == pytest.approx(0.5 * np.log2(2.0 * np.pi * np.e / 12.0), abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('steps, published', [(1, 8.847), (4, 9.551)])
def test_the_rate_of_a_chain_grows_with_its_steps(steps, published):
  """N(0, 1/4), log-SNR 13.3 to -5, whose Gaussian rate is 8.5927 bits at any T."""
  of_gaussian = of(np.linspace(0.0, 1.0, steps + 1), (16, 16, 1))
  scales = uqdm.calibrate(of_gaussian, data(64, 256, 1))
  x = data(64, 256)
  coded = uqdm.encode(of_gaussian, x, scales, progress=False)
  # Scales are a quarter of an octave apart: 0.011 bits a step at most.
  assert coded.cost.sum() / x.size == pytest.approx(published, abs=0.02 + 0.011 * steps)
  levels = list(uqdm.decode(of_gaussian, coded.words, scales, 64))
  assert [i for i, _ in levels] == list(range(steps, -1, -1))
  for i, z in levels[1:]:
    noise = (z - of_gaussian.alpha[i] * x) / of_gaussian.sigma[i]
    assert np.square(noise).mean() == pytest.approx(1.0, abs=0.05)
  # The last level differs from the mean of q by a uniform number, of its variance.
  mean, std = of_gaussian.given(x, levels[-2][1], 0)
  off = (levels[-1][1] - mean) / (UNIFORM * std)
  assert np.abs(off).max() < 0.5 + 1e-3
  assert stats.kstest(np.ravel(off) + 0.5, 'uniform').pvalue > 1e-4


@pytest.mark.long
def test_a_prefix_of_uqdm_has_its_levels():
  of_gaussian, x = of(np.linspace(0.0, 1.0, 5), (16, 16, 1)), data(64, 256)
  scales = np.zeros((4, 256), int)
  coded = uqdm.encode(of_gaussian, x, scales, progress=False)
  whole = list(uqdm.decode(of_gaussian, coded.words, scales, 64))
  part = list(uqdm.decode(of_gaussian, coded.words[:coded.ends[1]], scales[:2], 64))
  for (i, z), (j, same) in zip(part, whole, strict=False):
    assert i == j
    np.testing.assert_array_equal(z, same)


def test_levels_end_where_the_noise_is_a_grey_level_and_where_nothing_is_seen():
  times = kernels.levels_between(processes.GaussianProcess(schedules.Linear(20.0, -12.0)), 16, 4)
  logsnr = 20.0 - 32.0 * times
  assert logsnr[0] == pytest.approx(np.log(12.0 * 8.0**2), abs=1e-3)
  np.testing.assert_allclose(np.diff(logsnr), (-6.0 - logsnr[0]) / 4.0, rtol=1e-4)


def test_a_model_that_draws_latents_is_refused():
  latent = model.Model(oracles.Gaussian(), PROCESS, exact_decoder, lambda x: x, lambda x: x,
                       lambda batch: None, (4, 4, 1), is_latent=True)
  with pytest.raises(InputError, match='draws latents'):
    kernels.kernels(latent, 256, np.linspace(0.0, 1.0, 3), true_variances(2))
