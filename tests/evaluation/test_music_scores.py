"""Scores of music against recordings of public code, against closed forms and the data page."""
import os
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from tests.support.recordings import shared
from vdm_jax.data import chorales
from vdm_jax.errors import InputError
from vdm_jax.evaluation import frechet, music
from vdm_jax.evaluation.features import statistics


def _recorded():
  data = shared('symbolic_music')
  normals = [data[f'oa/{name}'] for name in ('mu1', 'var1', 'mu2', 'var2')]
  proper = (normals[1] > 0) & (normals[3] > 0)
  return [u[proper] for u in normals], data['oa/published'][proper]


def test_the_published_area_is_that_of_the_public_code():
  normals, published = _recorded()
  np.testing.assert_allclose(music.published_overlap_area(*normals), published, atol=1e-6)


def test_the_overlap_area_is_that_of_the_standard_library():
  """Where the variances agree, the published area is 1 for any two means."""
  normals, published = _recorded()
  exact = [NormalDist(m, v**0.5).overlap(NormalDist(n, w**0.5))
           for m, v, n, w in zip(*normals, strict=True)]
  np.testing.assert_allclose(music.overlap_area(*normals), exact, atol=1e-12)
  equal = normals[1] == normals[3]
  assert (published[equal] == 1.0).all() and min(np.array(exact)[equal]) < 0.5


def test_points_overlap_with_themselves_alone():
  area = music.overlap_area([60, 60, 60], [0, 0, 0], [60, 61, 60], [0, 0, 1])
  np.testing.assert_array_equal(area, [1.0, 0.0, 0.0])


def test_distances_of_latents_are_those_of_the_public_code():
  data = shared('symbolic_music')
  real, fake = data['features/real'], data['features/fake']
  np.testing.assert_allclose(music.kernel_mmd(real, fake), data['mmd_rbf'], rtol=1e-12)
  np.testing.assert_allclose(music.kernel_mmd(real, fake, music.polynomial),
                             data['mmd_polynomial'], rtol=1e-12)
  np.testing.assert_allclose(frechet.distance(statistics(real), statistics(fake)),
                             data['frechet'], rtol=1e-9)


def test_notes_are_runs_of_one_pitch():
  voice = [60, 60, 0, 62, 62, 62, 60]
  np.testing.assert_array_equal(music.notes(np.array(voice)), [[0, 60, 2], [3, 62, 3], [6, 60, 1]])


def test_areas_of_a_periodic_voice_are_one_and_of_an_octave_apart_none():
  bar = np.array([60, 62, 64, 64])
  same = music.areas(np.tile(bar, 6), frame=8, hop=4)
  np.testing.assert_allclose(same, 1.0, atol=1e-12)
  apart = music.areas(np.concatenate([np.tile(bar, 2), np.tile(bar + 12, 2)]), frame=8, hop=8)
  # Pitches 60, 62, 64 twice: the standard deviation is sqrt(8/3), and the means are 12 apart.
  overlap = NormalDist(0, (8 / 3)**0.5).overlap(NormalDist(12, (8 / 3)**0.5))
  np.testing.assert_allclose(apart, [[overlap, 1.0]], atol=1e-9)


def test_real_music_is_consistent_with_itself():
  areas = np.array([[0.5, 0.8], [0.7, 0.9]])
  found = music.consistency(areas, areas)
  np.testing.assert_allclose(found.consistency, 1.0)
  np.testing.assert_allclose(found.variance, 1.0)
  half = music.consistency(areas / 2, areas)
  np.testing.assert_allclose(half.consistency, 0.5)
  np.testing.assert_allclose(half.variance, 0.25)
  with pytest.raises(InputError, match='there are none'):
    music.consistency(areas[:0], areas)


def test_an_ngram_discounts_and_interpolates():
  """By hand: the pairs a a, a b, a a of levels 2, discount 1/2."""
  symbols = np.array([0, 1, 0])
  ngram = music.NGram(symbols, np.zeros((3, 1), int), levels=2, discount=0.5)
  # p(0) = (1.5 + 0.5 2 0.5) / 3 = 2/3; p(0 | 0) = (1.5 + 0.5 2 2/3) / 3 = 13/18.
  bits = ngram.bits(np.array([0, 1, 0]), np.array([[0], [0], [-1]]))
  np.testing.assert_allclose(bits, -np.log2([13 / 18, 5 / 18, 2 / 3]), rtol=1e-12)
  with pytest.raises(InputError, match='discount'):
    music.NGram(symbols, np.zeros((3, 1), int), discount=1.0)


def test_the_odds_of_all_symbols_sum_to_one():
  rng = np.random.default_rng(0)
  symbols, contexts = rng.integers(0, 5, 40), rng.integers(0, 3, (40, 3))
  ngram = music.NGram(symbols, contexts, levels=7)
  for context in (*contexts[:3], np.array([9, 9, 9]), np.array([0, -1, 0])):
    bits = ngram.bits(np.arange(7), np.tile(context, (7, 1)))
    np.testing.assert_allclose(np.sum(2.0**-bits), 1.0, rtol=1e-12)


def test_a_grid_costs_what_its_voices_cost():
  """If all voices repeat one step, every note is certain after the first steps."""
  grid = np.tile([[72, 65, 60, 48]], (50, 1))
  bits = music.Voices.fit([grid] * 20).bits(grid)
  assert bits.shape == (50, 4) and bits[1:].max() < 0.02


@pytest.mark.skipif('VDM_JAX_CHORALES' not in os.environ and not (
    Path('~/tensorflow_datasets/chorales/grids.npz').expanduser().exists()),
                    reason='no prepared chorales (prepare_data.py chorales; VDM_JAX_CHORALES)')
@pytest.mark.parametrize('voice, step, wanted', [
    (0, 2, (3.784, 1.775, 1.656, 1.561, 1.644)), (0, 4, (3.776, 2.543, 2.463, 2.450, 2.373)),
    (3, 2, (4.082, 2.552, 2.303, 2.218, 2.536)), (3, 4, (4.020, 3.266, 3.189, 3.454, 3.538))])
@pytest.mark.long
def test_soprano_and_bass_have_the_bits_of_the_data_page(voice, step, wanted):
  """Bits of a note by n-grams of 1, 2, 3, 5 and 8 notes, as an independent program found them."""
  parts = chorales.splits(chorales.load(os.environ.get('VDM_JAX_CHORALES', '')), step)
  for n, bits in zip((1, 2, 3, 5, 8), wanted, strict=True):
    fitted, held = ([np.concatenate(u) for u in zip(*(
        (grid[:, voice].astype(int), music.histories(grid[:, voice], n - 1)) for grid in part),
        strict=True)] for part in parts)
    assert abs(music.NGram(*fitted).bits(*held).mean() - bits) < 6e-4
