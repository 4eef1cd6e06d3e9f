"""Scores of music: of a file, of a model of one window, of an autoencoder, and bad input."""
import types
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import chorales
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.evaluation import music
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import music_scores, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.schedules import Linear
from vdm_jax.typing import Estimate

PITCHES = Pixels(128)


class Autoencoder(NamedTuple):
  """It gives the first test window back, whatever it is given."""
  window: object
  field: str = 'pitches'

  def reconstruct(self, pitches, keys):
    return jnp.broadcast_to(self.window, pitches.shape)

  def quality(self, batch, keys):
    return {}


@pytest.fixture
def pieces(tmp_path):
  """Twelve pieces of 80 sixteenths, whose voices walk up and down."""
  rng = np.random.default_rng(0)
  walks = rng.integers(-2, 3, (12, 40, 4)).cumsum(axis=1) + np.array([72, 67, 60, 48])
  made = chorales.Pieces(walks.repeat(2, axis=1).reshape(-1, 4).astype(np.int16),
                         np.full(12, 80, np.int32), np.zeros(12, np.int16))
  chorales.write(made, str(tmp_path))
  return made


@pytest.fixture
def score(pieces, tmp_path, monkeypatch):
  """`score_music` of a run whose model estimates the first test window, or gives it back."""
  config = data.default_config()
  config.update(name='chorales', data_dir=str(tmp_path), fields=('pitches',), validation=2)
  d = data.Data(config)
  first = jnp.asarray(d.split('test').get(np.arange(1))['pitches'])

  def model(params):
    def denoise(z, level, cond=None):
      x = jnp.broadcast_to(PITCHES.encode(first), z.shape) + params['off']
      level = level.expand(z)
      return Estimate(x, (z - level.alpha * x) / level.sigma)
    return Model(denoise, GaussianProcess(Linear(20.0, -8.0)), PITCHES.log_prob, PITCHES.encode,
                 PITCHES.decode, lambda batch: None, (32, 4, 1), field='pitches',
                 conditions=lambda rows, **_: {}, steps=4)

  def scored(name='chorales', autoencoder=False, **options):
    of = ml_collections.ConfigDict({'data': config.copy_and_resolve_references()})
    of.data.name = name
    made = types.SimpleNamespace(
        model=(lambda params: Autoencoder(first)) if autoencoder else model, ema={}, data=d)
    monkeypatch.setattr(workdir, 'read_config', lambda _: of)
    monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: workdir.Trained(
        made, of, {'off': np.float32(0.0)}, 1, 'raw'))
    (tmp_path / 'run').mkdir(exist_ok=True)
    return music_scores.score_music(**{'directory': tmp_path / 'run', **options})
  return scored


def _bits(pieces, grids):
  """Bits of a step, by the n-gram of the training pieces."""
  ngram = music.Voices.fit(chorales.splits(pieces, 2)[0])
  return sum(ngram.bits(one).sum() for one in grids) / sum(map(len, grids))


@pytest.mark.parametrize('autoencoder', [False, True])
def test_what_a_run_makes_is_scored_beside_the_data(score, pieces, autoencoder):
  """The model draws the first window, and the autoencoder decodes all windows as it."""
  options = {} if autoencoder else {'method': catalogue.method('ancestral', 3), 'count': 3}
  found = score(autoencoder=autoencoder, **options)
  made = 'after the autoencoder' if autoencoder else 'samples'
  assert list(found) == ['test windows', 'test pieces', 'shuffled windows', made]
  _, test = chorales.splits(pieces, 2)
  windows = chorales.windows(test)[..., 0]
  wanted = {'test windows': windows, 'test pieces': test, made: windows[:1]}
  for name, grids in wanted.items():
    assert found[name].step.value == pytest.approx(_bits(pieces, grids), rel=1e-12)
  assert found[made].count == (len(windows) if autoencoder else 3)
  assert found[made].step.error == pytest.approx(0.0, abs=1e-12)
  np.testing.assert_allclose(found['test windows'].areas, 1.0)
  assert [row[0] for row in music_scores.cells(found)] == list(found)
  assert music_scores.figures(found).keys() <= set(music_scores.NAMES)


@pytest.mark.parametrize('key, shape', [('images', (-1, 32, 4, 1)), ('samples', (-1, 32, 4))])
def test_a_file_is_scored_without_a_checkpoint_and_without_a_run(score, pieces, tmp_path, key,
                                                                 shape):
  windows = chorales.windows(chorales.splits(pieces, 2)[1])
  np.savez(tmp_path / 'drawn.npz', **{key: windows.reshape(shape)})
  of_data = score(directory='', data='chorales', data_dir=str(tmp_path),
                  samples=tmp_path / 'drawn.npz')
  assert of_data['samples'].step == of_data['test windows'].step
  of_run = score(samples=tmp_path / 'drawn.npz')
  assert music_scores.cells(of_run) == music_scores.cells(of_data)


def test_parts_are_exchanged_and_none_is_lost():
  windows = np.arange(6 * 32 * 4).reshape(6, 32, 4)
  found = music_scores._shuffled(windows, 1)
  parts = lambda u: {tuple(part.ravel()) for part in u.reshape(-1, 8, 4)}
  assert parts(found) == parts(windows) and not (found == windows).all()


@pytest.mark.parametrize('options, match', [
    ({'name': 'digits'}, 'its data are digits'), ({'directory': ''}, 'workdir: a run or'),
    ({'data': 'chorales'}, 'and not both'), ({'count': 1}, 'count=1'),
    ({'directory': '', 'data': 'digits'}, "data='digits': these are no chorales"),
    ({'samples': 'gone.npz'}, 'there is no such file'),
    ({'autoencoder': True, 'method': catalogue.method('ddim', 2)}, "sampler='ddim'")])
def test_wrong_input_is_refused(score, options, match):
  with pytest.raises(InputError, match=match):
    score(**options)


@pytest.mark.parametrize('arrays', [
    {'images': np.zeros((3, 8, 8, 1), int)}, {'images': np.zeros((3, 8, 4, 1))},
    {'images': np.full((3, 8, 4), 128)}, {'x': np.zeros((3, 8, 4), int)},
    {'samples': np.zeros((0, 8, 4), int)}])
def test_files_without_pitches_are_refused(score, tmp_path, arrays):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(InputError, match='it holds no pitches'):
    score(samples=tmp_path / 'x.npz')
