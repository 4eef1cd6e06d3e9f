"""Channel simulation and the queue: the law of what arrives, what it costs, and that it arrives."""
import numpy as np
import pytest
from scipy import stats

from vdm_jax.codec import channel
from vdm_jax.codec.queue import Reader, Writer

RNG = np.random.default_rng(0)


def block(bits, size=4):
  """(shift, ratio) of a q that is narrower than p, of this divergence together."""
  ratio = np.linspace(0.85, 0.95, size)
  direction = np.array([1.0, -0.5, 0.25, 0.7])
  rest = bits - channel.divergence(np.zeros(size), ratio).sum()
  return direction * np.sqrt(2.0 * np.log(2.0) * rest / (direction @ direction)), ratio


def along_the_mean(shift, ratio, count, draws):
  """The noise of so many samples in the direction of the mean: N(0, 1) if they are of q."""
  direction = shift / ratio / np.linalg.norm(shift / ratio)
  chosen = [channel.choose(shift, ratio, count, 1, stream) for stream in range(draws)]
  noise = np.array([(c.sample - shift) / ratio @ direction for c in chosen])
  return noise, np.array([c.number for c in chosen])


@pytest.mark.first(1)
@pytest.mark.parametrize('bits, draws', [(0.5, 2000), (2.0, 1000), (4.0, 300)])
def test_what_arrives_is_a_sample_of_q_at_the_price_of_its_divergence(bits, draws):
  shift, ratio = block(bits)
  assert channel.divergence(shift, ratio).sum() == pytest.approx(bits)
  noise, numbers = along_the_mean(shift, ratio, channel.count_for(bits), draws)
  assert stats.kstest(noise, 'norm').pvalue > 0.003
  writer, scale = Writer(), channel.scale_for(numbers.tolist())
  for number in numbers:
    writer.number(int(number), scale)
  assert writer.bits / draws <= bits + np.log2(bits + 1.0) + 1.2
  # E log2 n <= KL + log2(e) / e + 1: Li and El Gamal (2018).
  logs = np.log2(numbers)
  assert logs.mean() <= bits + 1.54 + 4.0 * logs.std() / draws**0.5


def test_few_candidates_are_biased_and_the_bias_is_seen():
  """With two bits of candidates beyond a divergence of 8 the mean falls short by a half."""
  shift, ratio = np.array([np.sqrt(2.0 * np.log(2.0) * 8.0)]), np.array([0.999])
  noise, _ = along_the_mean(shift, ratio, channel.count_for(8.0, spare=2), 200)
  assert -0.75 < noise.mean() < -0.3
  assert stats.kstest(noise, 'norm').pvalue < 1e-3


def test_the_divergence_is_that_of_a_numerical_integral():
  x = np.linspace(-12.0, 12.0, 40_001)
  q, p = stats.norm(0.7, 0.6).pdf(x), stats.norm(0.0, 1.0).pdf(x)
  with np.errstate(divide='ignore', invalid='ignore'):
    exact = np.nansum(q * np.log2(q / p)) * (x[1] - x[0])
  assert channel.divergence(np.array(0.7), np.array(0.6)) == pytest.approx(exact, rel=1e-6)


def test_a_candidate_is_drawn_again_from_its_number():
  shift, ratio = block(3.0)
  for stream in range(5):
    choice = channel.choose(shift, ratio, 5000, 7, stream)
    np.testing.assert_array_equal(channel.candidate(choice.number, 7, stream, 4), choice.sample)


def test_candidates_of_chunks_streams_and_seeds_are_apart_and_normal():
  draws = [channel._candidates(seed, stream, chunk, 3)
           for seed, stream, chunk in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
  assert stats.kstest(np.ravel(draws), 'norm').pvalue > 0.003
  correlation = np.corrcoef(np.reshape(draws, (4, -1)))
  assert np.abs(correlation[~np.eye(4, dtype=bool)]).max() < 4.0 / 3072**0.5


def test_the_candidates_of_a_digest_are_far_from_where_rounding_would_change_them():
  drawn = channel._candidates
  found = channel.sample_candidates()
  assert found.shape == (64,) and len(np.unique(found)) > 8
  for off in (-0.002, 0.002):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(channel, '_candidates', lambda *of, off=off: drawn(*of) + off)
      np.testing.assert_array_equal(channel.sample_candidates(), found)


def test_the_search_ends_once_no_later_candidate_can_win():
  """Of a bounded w: 2^22 candidates were allowed, and a few thousand decide."""
  shift, ratio = np.array([0.5]), np.array([0.5])
  assert max(channel.choose(shift, ratio, 1 << 22, 0, i).tried for i in range(20)) < 10_000


def test_cells_tile_the_numbers_and_have_the_mass_of_zipfs_law():
  numbers = [*range(1, 3000), 2**20, 2**20 + 12_345, 2**39 + 1]
  for number in numbers:
    cell, place, size = channel.cell_of(number)
    assert channel.number_of(cell, place) == number and 0 <= place < 1 << size
    assert channel.place_bits(cell) == size
  law, exponent = channel.zipf(3.5).astype(float), 1.0 + 1.0 / 3.5
  exact = np.bincount([channel.cell_of(n)[0] for n in range(1, 4096)],
                      weights=np.arange(1.0, 4096.0)**-exponent)
  np.testing.assert_allclose(law[:len(exact)] / law[0], exact, rtol=3e-3)
  assert law.sum() == pytest.approx(1.0, abs=1e-4)


def test_what_is_written_is_read_and_a_prefix_has_what_it_promises():
  writer, sizes = Writer(), []
  std = RNG.uniform(0.05, 4.0, 40)
  rows = [np.rint(RNG.normal(0.0, std)).astype(int) for _ in range(20)]
  rows[3][5], rows[4][0], rows[4][1] = 5000, -70, 34  # beyond the window, and at its edge
  mean = RNG.uniform(-0.5, 0.5, 40)
  numbers = [int(2.0**u) for u in RNG.uniform(0.0, 38.0, 20)]
  for row, number in zip(rows, numbers, strict=True):
    writer.integers(row, mean, std)
    writer.number(number, 3.0)
    sizes.append(writer.needed())
  words = writer.words()
  for kept, size in enumerate(sizes, 1):
    reader = Reader(words[:size])
    for row, number in zip(rows[:kept], numbers[:kept], strict=True):
      np.testing.assert_array_equal(reader.integers(mean, std), row)
      assert reader.number(3.0) == number


def test_an_integer_costs_the_logarithm_of_the_mass_of_its_bin():
  std, mean = np.full(4000, 2.5), np.full(4000, 0.3)
  values = np.rint(RNG.normal(mean, std)).astype(int)
  writer = Writer()
  writer.integers(values, mean, std)
  normal = stats.norm(0.3, 2.5)
  exact = -np.log2(normal.cdf(values + 0.5) - normal.cdf(values - 0.5)).sum()
  assert writer.bits == pytest.approx(exact, rel=2e-4)
