"""The judge of shapes: the oracles are its own pictures under noise, and bounds on its errors."""
import collections
import math

import numpy as np
import pytest
import scipy.stats

from vdm_jax.data import shapes
from vdm_jax.errors import InputError
from vdm_jax.evaluation import shapes as judge


@pytest.fixture(scope='module')
def distances():
  """Distances to pictures of other captions, in the coding -1 .. 1: nearest [9216], each, counts.
  """
  x = shapes.images().reshape(9216, -1).astype(np.float64)  # integers below 2^53: exact
  norms, nearest, counts = np.sum(x * x, axis=1), [], collections.Counter()
  for caption in range(144):
    rows = slice(64 * caption, 64 * caption + 64)
    squares = norms[rows, None] + norms - 2.0 * x[rows] @ x.T
    squares[:, rows] = np.inf
    nearest.append(squares.min(1))
    near = squares[squares < (10 * 127.5)**2]  # farther ones are never confused
    counts.update(dict(zip(*np.unique(near, return_counts=True), strict=True)))
  scaled = lambda squares: np.sqrt(np.array(squares)) / 127.5
  return scaled(nearest).ravel(), scaled(list(counts)), np.array(list(counts.values()))


def test_every_small_picture_names_itself():
  """8 x 8 means of 2 x 2 pixels.  The nearest of another caption is 0.3820 away."""
  rows = np.random.default_rng(1).choice(9216, 500, replace=False)
  every = shapes.images().astype(np.float64).reshape(9216, 8, 2, 8, 2, 3).mean((2, 4))
  named = judge.name(every[rows])
  np.testing.assert_array_equal(named.captions * 64 + named.places, rows)
  assert named.distances.max() < 0.5 / 127.5 * math.sqrt(192)  # they are rounded to levels
  x = every.reshape(9216, -1) / 127.5
  squares = np.sum(x[rows]**2, 1)[:, None] + np.sum(x**2, 1) - 2.0 * x[rows] @ x.T
  other = rows[:, None] // 64 != np.arange(9216) // 64
  assert math.sqrt(squares[other].min()) > 0.38


@pytest.mark.long
def test_pictures_of_other_captions_are_far(distances):
  assert distances[0].min() == pytest.approx(1.5283, abs=5e-5)


def test_every_picture_names_itself():
  rows = np.random.default_rng(0).choice(9216, 1000, replace=False)
  named = judge.name(shapes.images()[rows])
  np.testing.assert_array_equal(named.captions, rows // 64)
  np.testing.assert_array_equal(named.places, rows % 64)
  np.testing.assert_allclose(named.distances, 0.0, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('std', [0.3, 0.5])
def test_noise_makes_the_judge_err_as_often_as_the_distances_say(distances, std):
  """A picture at distance d is nearer with probability Q(d / 2 std).

  So the probability of another caption is between the largest of these numbers and their sum.
  """
  nearest, each, counts = distances
  tail = lambda d: scipy.stats.norm.sf(d / (2.0 * std))
  least, most = np.mean(tail(nearest)), np.sum(counts * tail(each)) / 9216
  rng, n = np.random.default_rng(0), 2000
  rows = rng.integers(0, 9216, n)
  noisy = shapes.images()[rows] + 127.5 * std * rng.standard_normal((n, 16, 16, 3))
  right = judge.accuracy(noisy, rows // 64)
  slack = lambda p: 4.0 * math.sqrt(p * (1.0 - p) / n)
  assert least - slack(least) <= 1.0 - right.value <= most + slack(most)
  assert {0.3: most < 2e-4, 0.5: 0.004 < least < 0.006 < most < 0.009}[std]
  errors = round(n * (1.0 - right.value))
  assert right.error == pytest.approx(math.sqrt(errors * (n - errors) / n**3), abs=1e-12)
  # The noise itself is the distance: |noise|^2 / std^2 is chi^2 of 768.
  squares = judge.name(noisy).distances**2 / std**2
  hit = judge.name(noisy).captions == rows // 64
  assert abs(squares[hit].mean() - 768) < 4 * math.sqrt(2 * 768 / hit.sum()) + 1.0


def test_a_moved_shape_is_no_longer_kept_and_a_recoloured_one_is():
  number = {c: i for i, c in enumerate(shapes.CAPTIONS)}
  at = lambda caption, place: shapes.images()[64 * number[caption] + shapes.PLACES.index(place)]
  originals = np.stack([at('a large red disk on grey', (7, 7))] * 4)
  edited = np.stack([at('a large blue disk on grey', (7, 7)),
                     at('a small red cross on white', (7, 7)),
                     at('a large red disk on grey', (7, 8)), originals[0]])
  assert judge.kept(edited, originals).value == 0.75
  blue, red = number['a large blue disk on grey'], number['a large red disk on grey']
  assert judge.accuracy(edited, np.array([blue, red, red, red])).value == 0.75


def test_the_overlap_of_masks_is_a_count_of_pixels():
  """A large square has 9 x 9 pixels, its neighbour's share is 8 x 9 of 10 x 9."""
  caption, place = shapes.CAPTIONS.index('a large red square on grey'), shapes.PLACES.index((7, 7))
  image = shapes.images()[64 * caption + place]
  square = lambda y, x: np.pad(np.ones((9, 9), bool), ((y, 7 - y), (x, 7 - x)))
  masks = np.stack([square(3, 3), square(3, 4), np.zeros((16, 16), bool)])
  np.testing.assert_allclose(judge.overlap(masks, np.stack([image] * 3)), [1.0, 0.8, 0.0])


def test_images_of_another_size_are_refused():
  with pytest.raises(InputError, match='pictures of these data are 16 x 16 x 3'):
    judge.name(np.zeros((2, 4, 4, 3)))


def test_an_ideal_edit_keeps_every_pixel_and_a_wrong_one_is_found():
  at = lambda caption, place: shapes.images()[64 * shapes.CAPTIONS.index(caption) + place]
  disk, square = 'a large red disk on grey', 'a large red square on grey'
  originals = np.stack(4 * [at(disk, 20)])
  noisy = np.clip(at(square, 20).astype(int) + 2, 0, 255)
  edits = np.stack([at(square, 20), at(disk, 20), at(square, 21), noisy])
  captions = np.full(4, shapes.CAPTIONS.index(square))
  found = judge.judge(edits, originals, captions)
  np.testing.assert_array_equal(found.right, [True, False, True, True])
  np.testing.assert_array_equal(found.in_place, [True, True, False, True])
  np.testing.assert_array_equal(found.same[[0, 1, 3]], [1.0, 1.0, 0.0])
  np.testing.assert_array_equal(found.difference[[0, 1, 3]], [0.0, 0.0, 2.0])
  # The disk dy^2 + dx^2 <= 18 leaves out in each corner of the square |dy|, |dx| <= 4 the pixels
  # (4, 4), (4, 3), (3, 4), (4, 2) and (2, 4).
  assert judge.to_change(originals, captions).sum(axis=(1, 2)).tolist() == 4 * [20]


def test_no_pixel_is_to_be_kept_if_the_edit_changes_them_all():
  black = shapes.images()[64 * shapes.CAPTIONS.index('a large red disk on black')][None]
  white = np.array([shapes.CAPTIONS.index('a large blue disk on white')])
  assert judge.to_change(black, white).all()
  assert np.isnan(judge.judge(black, black, white).same).all()
