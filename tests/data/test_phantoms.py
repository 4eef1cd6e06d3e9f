"""Volumes with a texture: what their formula promises, and volumes of an independent program."""
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data import phantoms, prepare
from vdm_jax.runs import volumes

OTHERS = Path(__file__).resolve().parents[3] / 'shared' / 'applications' / 'textured_phantoms.npz'


@pytest.fixture(scope='module')
def many():
  return phantoms.draw(60).astype(float)


def test_volumes_are_bodies_inside_the_circle(many):
  row, column = np.mgrid[:32, :32] - 16
  assert many.shape == (60, 12, 32, 32)
  assert not many[:, :, row**2 + column**2 > 16**2].any()
  assert many.min() == 0.0 and 1.0 < many.max() <= 1.5
  # The body, of semi-axes 0.8 and 0.65 times 15.5 pixels.  Dark ellipsoids may be 0.
  shares = (many > 0).mean(axis=(1, 2, 3))
  assert abs(np.median(shares) - np.pi * 0.8 * 0.65 * 15.5**2 / 32**2) < 0.01


def test_neighbouring_slices_are_alike_and_volumes_are_not(many):
  alike = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
  assert np.median([alike(x[:-1], x[1:]) for x in many]) > 0.9
  assert max(alike(many[i], many[i + 1]) for i in range(59)) < 0.9


def test_the_file_has_the_first_volumes_and_the_command_measures_them(many, tmp_path):
  assert str(tmp_path / 'phantoms' / 'volumes.npz') in prepare.prepare('phantoms', str(tmp_path))
  given = volumes.measured(tmp_path / 'phantoms' / 'volumes.npz', 32, views=4, peak=1.5)
  np.testing.assert_array_equal(given.truth[..., 0], many[:8].astype(np.float32))
  assert given.y.shape == (8, 12, 32, 4, 1) and not given.inside.all()


def test_volumes_of_an_independent_program_are_not_unusual(many):
  """Mean, spread, largest number, and differences of neighbours, beside those of 60 volumes.

  One number in 30 is below or above all of 60 others, if it has their law.
  """
  if not OTHERS.exists():
    pytest.skip(f'{OTHERS.name} is not here')
  with np.load(OTHERS) as file:
    others = file['volumes'].astype(float)

  def numbers(x):
    steps = [np.sqrt(np.square(np.diff(x, axis=axis)).mean()) for axis in range(3)]
    return np.array([x[x > 0].mean(), x[x > 0].std(), x.max(), *steps])
  ours, theirs = (np.stack([numbers(x) for x in u]) for u in (many, others))
  unusual = (theirs < ours.min(axis=0)) | (theirs > ours.max(axis=0))
  assert unusual.sum() <= 2, unusual
