"""The study of restorations: its table for errors that are known, and how it goes on."""
import numpy as np
import pytest
from PIL import Image

from tests.support import images_run, stopping
from vdm_jax import inverse
from vdm_jax.errors import InputError
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.runs.restoring import Restored, Result, score
from vdm_jax.samplers import conditioned
from vdm_jax.studies import restoring
from vdm_jax.studies.restoring import Measured


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('restorations')
  rng = np.random.default_rng(0)
  base = rng.normal(size=(60, 4, 4, 1))
  np.save(folder / 'data.npy', np.clip(128 + 40 * (base + np.roll(base, 1, 1)), 0, 255)
          .astype(np.uint8))
  return images_run.make_run(folder, folder / 'data.npy', False)


def study(run, out, **options):
  return restoring.study(run, out, conditioned.PiGDM(), **{
      'images': 3, 'count': 2, 'steps': 3, 'batch_size': 4, **options})


def lines(table):
  return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


@pytest.mark.long
def test_a_stopped_study_goes_on_to_the_same_table_and_picture(run, tmp_path, monkeypatch):
  _, whole = study(run, tmp_path / 'a.png')
  first = stopping.stop_at(monkeypatch, 3)  # in the second task: two batches are of the first
  with pytest.raises(KeyboardInterrupt):
    study(run, tmp_path / 'b.png')
  rest = stopping.stop_at(monkeypatch, None)
  _, again = study(run, tmp_path / 'b.png')
  written = [path for path, _ in first + rest]
  assert len(set(written)) == len(written) == 6
  assert lines(again) == lines(whole)
  assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'b.png']
  assert [row[:2] for row in lines(whole)] == [
      *([title, by] for title in restoring.TASKS.values() for by in ('pigdm', 'Wiener')),
      ['none', 'the images themselves']]
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.size[1] > 3 * 3 * 40
  with pytest.raises(InputError, match='it is there already'):
    study(run, tmp_path / 'a.png')
  with pytest.raises(InputError, match='images=1: '):
    study(run, tmp_path / 'c.png', images=1)


def test_the_table_has_the_numbers_of_restorations_that_are_known():
  """Errors of 0.2 and -0.2 in turn, and of 0.4; of the mean, of 0.02 and of 0.2: +20 dB."""
  x = np.zeros((4, 2, 2, 1))
  operator = inverse.kept(np.array([[True, False], [False, False]])[..., None])
  restored = lambda samples, mean: Restored(samples, mean, score(samples, x, operator, mean))
  ours = restored(np.stack([x + 0.2, x - 0.2], axis=1), x + 0.02)
  theirs = restored(np.stack([x + 0.4, x + 0.4], axis=1), x + 0.2)
  result = Result('inpaint', 'pigdm', x, x, x, ours, theirs, (1200, 2400))
  measured = Measured('centre', result, Estimated(0.25, 0.125), Estimated(1.0, 0.5))
  table = restoring.table([measured], Estimated(0.0, 0.125), 'toys', 1200)
  assert 'toys' in table.title and '2 samples' in table.title
  assert '66.7' in table.columns[7].header  # of 3 ranks, 2 are outside
  none = '± 0.00'
  assert lines(table) == [
      ['centre', 'pigdm', f'20.00 {none}', f'40.00 {none}', f'20.00 {none}', '', '0.250 ± 0.125',
       '0.0 ± 0.0', '1,200, 2,400'],
      ['centre', 'Wiener', f'13.98 {none}', f'20.00 {none}', '', '', '1.000 ± 0.500',
       '100.0 ± 0.0', ''],
      ['none', 'the images themselves', '', '', '', '', '0.000 ± 0.125', '', '']]
