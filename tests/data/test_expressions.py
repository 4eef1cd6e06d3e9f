"""Expressions: the oracles are counts, and pictures drawn by hand."""
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import expressions, text
from vdm_jax.errors import InputError
from vdm_jax.evaluation import expressions as judge

COLOURS = {'.': (235, 235, 235), 'r': (230, 40, 40), 'y': (235, 215, 50), 'g': (40, 180, 60),
           'o': (240, 140, 40)}
DRAWN = {
    'green cross above orange square': """
        ........................
        ............g...........
        ............g...........
        ..........ggggg.........
        ............g...........
        ............g...........
        ........................
        ..........ooooo.........
        ..........ooooo.........
        ..........ooooo.........
        ..........ooooo.........
        ..........ooooo.........""",
    'red square in yellow triangle': """
        ........................
        ......y.................
        ......y.................
        .....yyy................
        ....rrrrr...............
        ....rrrrr...............
        ....rrrrr...............
        ...yrrrrry..............
        ...yrrrrry..............
        ..yyyyyyyyy.............
        ..yyyyyyyyy.............
        .yyyyyyyyyyy............""",
    'yellow square left of green cross': """
        ........................
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.ggggggggggg
        .yyyyyyyyyyy.ggggggggggg
        .yyyyyyyyyyy.ggggggggggg
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg....
        .yyyyyyyyyyy.....ggg...."""}


def make(**given):
  config = data.default_config()
  config.update(name='expressions', **given)
  return data.Data(config)


def every(d, split):
  return d.split(split).get(np.arange(len(d.split(split))))


@pytest.mark.parametrize('expression', DRAWN)
def test_an_expression_is_what_is_drawn_here_by_hand(expression):
  lines = DRAWN[expression].split()
  wanted = np.array([[COLOURS[pixel] for pixel in line] for line in lines])
  image = expressions.images()[expressions.TEXTS.index(expression)]
  np.testing.assert_array_equal(image, wanted)


def test_there_are_1656_different_expressions_and_as_many_pictures():
  """24 objects; 24^2 beside and 24^2 above each other; 24 x 20 in one another."""
  assert len(set(expressions.TEXTS)) == 24 + 576 + 576 + 480 == 1656
  images = expressions.images()
  assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1656
  assert len({word for one in expressions.TEXTS for word in one.split()}) == 10 + 4


def test_the_nearest_pictures_differ_in_the_four_corners_of_a_small_yellow_and_orange_square():
  """A disk of r = 2 is a square of 5 x 5 without its corners."""
  pictures = expressions.images().reshape(1656, -1) / 127.5 - 1.0
  squares = np.sum(pictures**2, axis=1)
  distances = squares[:, None] + squares - 2.0 * pictures @ pictures.T
  np.fill_diagonal(distances, np.inf)
  apart = np.subtract((235, 215, 50), (240, 140, 40)) / 127.5
  np.testing.assert_allclose(distances.min(), 4.0 * np.sum(apart**2), rtol=1e-9)
  assert np.sqrt(distances.min()) == pytest.approx(1.1895, abs=5e-5)


def test_a_fifth_is_for_testing_and_its_words_are_known():
  d = make(validation=100)
  sizes = {split: len(d.split(split)) for split in ('train', 'validation', 'test')}
  assert sizes == {'train': 1225, 'validation': 100, 'test': 331}
  parts = [every(d, split) for split in sizes]
  texts = [text.decode(part['caption']) for part in parts]
  assert sorted(one for part in texts for one in part) == sorted(expressions.TEXTS)
  for part, own in zip(parts, texts, strict=True):
    assert [expressions.TEXTS[i] for i in part['label']] == own
    np.testing.assert_array_equal(part['image'], expressions.images()[part['label']])
  words = [{word for one in part for word in one.split()} for part in texts]
  assert words[2] <= words[0]
  assert make(tokeniser='words').spec['caption'][1:4] == ((6,), 'int32', 15)


def test_the_judge_names_pictures_with_a_little_noise_and_refuses_other_sizes():
  """Noise of std 0.1 moves a picture by about 2.9, in a direction of its own."""
  rng = np.random.default_rng(0)
  numbers = rng.permutation(1656)[:300]
  images = expressions.images()[numbers] + 12.75 * rng.standard_normal((300, 12, 24, 3))
  named = judge.name(images)
  np.testing.assert_array_equal(named.numbers, numbers)
  # The mean of 864 squares, whose standard error is sqrt(2 / 864) of it.
  np.testing.assert_allclose(named.distances.mean(), 0.1 * np.sqrt(864), rtol=0.02)
  with pytest.raises(InputError, match='12 x 24 x 3'):
    judge.name(images[:, :, :12])
