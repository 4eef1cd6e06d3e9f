"""Slices of a head: which are for what, their grids, and the real head if its package is there."""
import sys
from pathlib import Path

import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import brain, prepare
from vdm_jax.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'applications' / 'mni152_16x48x48.npz'
SHAPE = 192, 200, 160


def numbered():
  """A head whose number is its z, from 0 to 1: 152, the last slice of the volume, is 1."""
  return np.broadcast_to(np.arange(SHAPE[2]) / 152.0, SHAPE).astype(np.float32)


@pytest.fixture(scope='module')
def made():
  return brain.collect(numbered())


def z_of(pictures):
  """The numbers of the slices of a numbered head."""
  return np.round(152.0 / 255.0 * pictures.reshape(len(pictures), -1)[:, 0]).astype(int)


def test_the_volume_and_its_neighbours_are_in_no_picture_of_training(made):
  volume, train = z_of(made.volume), z_of(made.train)
  assert volume.tolist() == list(range(32, 153, 8))
  assert np.abs(volume[:, None] - train[:-brain.VALIDATION]).min() == 2
  assert set(train[:-brain.VALIDATION] % 8) == {2, 3, 5, 6}
  assert set(train[-brain.VALIDATION:] % 8) == {4} and set(z_of(made.test)) == set(volume)
  assert z_of(made.validation_volume).tolist() == list(range(36, 149, 8))
  # 18 groups of eight slices from 8 on, and 16 pictures of each slice.
  assert (len(made.train), brain.VALIDATION, len(made.test)) == (18 * 5 * 16, 18 * 16, 16 * 16)


def test_pictures_of_a_slice_are_all_grids_of_4_mm():
  """A level is 255 times the ratio to the largest number of the volume, and at most 255."""
  x, y = np.mgrid[:SHAPE[0], :SHAPE[1]]
  found = brain.collect(np.broadcast_to((16 * (x % 4) + y % 4)[..., None] + 20.0, SHAPE))
  want = [min(255, round(255 * (16 * i + j + 20) / 20)) for i in range(4) for j in range(4)]
  for pictures in (found.train, found.test):
    np.testing.assert_array_equal(pictures[:16, 5, 7, 0], want)
    assert (pictures == pictures[:, :1, :1]).all()
  far = np.zeros(SHAPE)
  far[4 * 47, 4 * 3, 96] = 1.0
  assert np.argwhere(brain.collect(far).volume).tolist() == [[8, 47, 3]]


def test_the_data_set_has_splits_by_slice_and_the_volumes_are_from_0_to_1(made, tmp_path):
  assert brain.write(made, str(tmp_path)) == str(tmp_path / 'brain')
  config = data.default_config()
  config.update(name='brain', data_dir=str(tmp_path), validation=brain.VALIDATION)
  d = data.Data(config)
  assert d.spec.x.shape == (48, 48, 1) and d.spec.x.levels == 256
  rests = {name: set(z_of(d.split(name).get(np.arange(len(d.split(name))))['image']) % 8)
           for name in ('train', 'validation', 'test')}
  assert rests == {'train': {2, 3, 5, 6}, 'validation': {4}, 'test': {0}}
  for file, u in zip(brain.FILES[1:], (made.volume, made.validation_volume), strict=True):
    with np.load(tmp_path / 'brain' / file) as arrays:
      np.testing.assert_allclose(arrays['volume'], u / 255.0, rtol=1e-6)


def test_the_nearest_pictures_have_a_known_error(made):
  """Errors of 3 and of 4, and a peak of 200; pictures of validation do not count."""
  flat = lambda *levels: np.tile(np.uint8(levels)[:, None, None], (1, 48, 48))
  train = np.concatenate([flat(0, 97, 204), np.tile(flat(200), (brain.VALIDATION, 1, 1))])
  found = brain.nearest(made._replace(train=train[..., None], volume=flat(100, 200)))
  assert abs(found - 10.0 * np.log10(200.0**2 / 12.5)) < 1e-9


def test_what_cannot_be_read_is_one_clear_line(tmp_path, monkeypatch):
  config = data.default_config()
  config.update(name='brain', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='run `python scripts/prepare_data.py brain'):
    data.Data(config).spec  # noqa: B018
  with pytest.raises(InputError, match=r'has the shape \(4, 4, 4\); give one of \(192, 192, 153'):
    brain.collect(np.zeros((4, 4, 4)))
  with pytest.raises(InputError, match='the volume is 0 everywhere'):
    brain.collect(np.zeros(SHAPE))
  monkeypatch.setitem(sys.modules, 'nilearn', None)
  with pytest.raises(InputError, match=r'nilearn, which is not installed.*vdm_jax\[brain\]'):
    prepare.prepare('brain', str(tmp_path))


@pytest.mark.long
@pytest.mark.filterwarnings('default')
def test_the_template_of_nilearn_gives_the_known_pictures(tmp_path):
  """Skipped without the package nilearn; the volume is also that of an independent program."""
  pytest.importorskip('nilearn.datasets')
  said = prepare.prepare('brain', str(tmp_path)).splitlines()
  assert [line.endswith('as expected') for line in said] == [False, True, True, False]
  if not SHARED.exists():
    pytest.skip(f'{SHARED.name}, made by an independent program, is not here')
  with np.load(SHARED) as file, np.load(tmp_path / 'brain' / 'volume.npz') as own:
    np.testing.assert_array_equal(np.round(255.0 * own['volume']), file['volume'])
