"""Whether samples show their captions, and how many places they take: counts and entropies."""
import math

import numpy as np
import pytest

from vdm_jax.data import shapes
from vdm_jax.errors import InputError
from vdm_jax.evaluation import captions
from vdm_jax.evaluation import shapes as judge
from vdm_jax.evaluation.captions import Chosen, Followed
from vdm_jax.evaluation.distances import Estimated


def test_the_bits_of_places_are_a_count_of_pairs():
  """Places 1, 1, 2 of a caption, and 5, 5 of another: 2 of 4 pairs are at one place."""
  found = captions.bits_of_places(np.array([1, 1, 2, 5, 5, 9]), np.array([0, 0, 0, 3, 3, 4]))
  assert found.value == pytest.approx(1.0)
  one = captions.bits_of_places(np.arange(288) % 144 % 64, np.arange(288) % 144)
  assert one == (0.0, 0.0)


@pytest.mark.parametrize('places', [64, 4])
def test_equally_probable_places_have_the_logarithm_of_their_number(places):
  """Also the standard error is right: of 200 repetitions, the mean square of z is about 1."""
  rng, z = np.random.default_rng(0), []
  own = np.arange(1440) % 144
  for _ in range(200):
    found = captions.bits_of_places(rng.integers(0, places, 1440), own)
    z.append((found.value - math.log2(places)) / found.error)
  assert abs(np.mean(z)) < 4 / math.sqrt(200) + 0.1  # the logarithm has a small bias
  assert abs(np.mean(np.square(z)) - 1.0) < 4 * math.sqrt(2 / 200)


def named(rows):
  """The judge's names of these pictures of `shapes`."""
  return judge.name(shapes.images()[rows])


def test_samples_that_show_another_caption_are_counted_apart_for_new_captions():
  own = np.arange(288) % 144
  shown = own.copy()
  new = shapes.NEW
  wrong = [i for i in range(288) if own[i] in new][:12] + [i for i in range(288)
                                                           if own[i] not in new][:24]
  shown[wrong] = (own[wrong] + 1) % 144
  found = captions.followed(named(64 * shown + np.arange(288) % 64), own, new)
  assert found.new == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 48)))
  assert found.accuracy == pytest.approx((0.9, math.sqrt(0.9 * 0.1 / 240)))
  assert captions.followed(named(64 * shown), own).new is None


def made_up(new):
  of = lambda value, error: Estimated(value, error)
  return {w: Followed(of(a, 0.01), of(a / 2, 0.02) if new else None, of(6 - w, 0.1))
          for w, a in ((0.0, 0.5), (3.0, 0.9), (1.0, 0.9))}


def test_the_samples_that_choose_the_weight_do_not_measure_it():
  """Half as many of the second half are right at the weight that the first half finds best."""
  own = np.arange(576) % 144

  def samples(first, second):  # how many samples of each half show their caption
    wrong = np.r_[first:288, 288 + second:576]
    shown = own.copy()
    shown[wrong] = (own[wrong] + 1) % 144
    return named(64 * shown + np.arange(576) % 64)
  drawn = {3.0: samples(216, 108), 1.0: samples(216, 72), 0.0: samples(72, 288)}
  chosen = captions.choose(drawn, own)
  assert chosen.w == 1.0  # of equal ones the least
  assert chosen.followed.accuracy == pytest.approx((0.25, math.sqrt(0.25 * 0.75 / 288)))
  places = captions.followed(drawn[1.0], own).places
  assert chosen.followed.places == places
  assert list(captions.figures(chosen).values()) == ['1', '0.250 +- 0.026', '-', str(places)]
  alone = captions.choose({1.0: drawn[1.0]}, own)
  assert alone == (1.0, captions.followed(drawn[1.0], own))


def test_the_weight_is_not_chosen_by_new_captions():
  own, new = np.arange(288) % 144, list(shapes.NEW)
  known = np.flatnonzero(~np.isin(np.arange(144), new))
  picture = lambda shown: named(64 * shown)
  none_new = np.where(np.isin(own, new), (own + 1) % 144, own)
  one_wrong = own.copy()
  one_wrong[known[0]] = (own[known[0]] + 1) % 144
  chosen = captions.choose({0.0: picture(one_wrong), 2.0: picture(none_new)}, own, new)
  assert chosen.w == 2.0 and chosen.followed.accuracy == (1.0, 0.0)
  assert chosen.followed.new == (0.0, 0.0)


def test_the_table_has_a_row_for_each_weight_and_says_which_is_best():
  chosen = Chosen(1.0, made_up(False)[1.0])
  table = captions.table(made_up(False), 720, chosen)
  assert 'w = 1 is best on the first half' in table.caption and '0.900 +- 0.010' in table.caption
  columns = [list(column.cells) for column in table.columns]
  assert columns[0] == ['0', '3', '1'] and columns[2] == ['-'] * 3
  assert '720 samples' in str(table.title)


def test_the_picture_has_a_curve_for_each_share_and_a_column_of_samples_for_each_weight():
  images = {w: np.zeros((2, 16, 16, 3), int) for w in (0.0, 1.0, 3.0)}
  figure = captions.picture(made_up(True), images, ['a', 'b'])
  left, right, *samples = figure.axes
  np.testing.assert_array_equal(left.lines[0].get_xydata(), [[0, 0.5], [1, 0.9], [3, 0.9]])
  np.testing.assert_array_equal(right.lines[0].get_ydata(), [6, 5, 3])
  assert len(samples) == 6 and samples[3].get_ylabel() == 'b'
  assert [one.get_title() for one in samples[:3]] == ['w = 0', 'w = 1', 'w = 3']


def test_a_caption_needs_two_images():
  with pytest.raises(InputError, match='count=144: no caption has two images; draw at least 288'):
    captions.bits_of_places(np.zeros(144, int), np.arange(144))
