"""Voices to given notes: a model that knows one window, the scores, a stop, and bad input."""
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from vdm_jax import data
from vdm_jax.data import chorales
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.evaluation import music
from vdm_jax.machine import files
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import harmonising, restoring, workdir
from vdm_jax.samplers import conditioned
from vdm_jax.schedules import Linear
from vdm_jax.typing import Estimate

PITCHES = Pixels(128)
SHORT = {'steps': 4, 'count': 3, 'batch_size': 2}


def _pieces(seed=0):
  """Twelve pieces of 80 sixteenths, whose voices walk up and down."""
  rng = np.random.default_rng(seed)
  walks = rng.integers(-2, 3, (12, 40, 4)).cumsum(axis=1) + np.array([72, 67, 60, 48])
  return chorales.Pieces(walks.repeat(2, axis=1).reshape(-1, 4).astype(np.int16),
                         np.full(12, 80, np.int32), np.zeros(12, np.int16))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run whose model estimates the first test window, whatever it sees."""
  chorales.write(_pieces(), str(tmp_path))
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
  of = ml_collections.ConfigDict({'data': config.copy_and_resolve_references()})
  made = types.SimpleNamespace(model=model, ema={}, data=d)
  monkeypatch.setattr(workdir, 'load_trained', lambda *args, **_: workdir.Trained(
      made, of, {'off': np.float32(0.0)}, 1, 'raw'))
  (tmp_path / 'run').mkdir()

  def harmonise(name='chorales', **options):
    of.data.name = name
    return harmonising.harmonise(tmp_path / 'run', tmp_path / 'out.png', **{**SHORT, **options})
  return harmonise


def test_a_model_of_one_window_draws_it_and_keeps_what_is_known_of_others(run, tmp_path):
  found = run(samples=tmp_path / 'all.npz')
  assert list(found.grids) == ['the data', 'samples', 'soprano', 'bass', 'ends']
  windows, first = found.grids['the data'], found.grids['the data'][0]
  assert windows.shape == (3, 32, 4) and not (windows == first).all()
  np.testing.assert_array_equal(found.grids['samples'], np.stack([first] * 3))
  np.testing.assert_array_equal(found.grids['soprano'][..., 0], windows[..., 0])
  np.testing.assert_array_equal(found.grids['soprano'][..., 1:], np.stack([first[:, 1:]] * 3))
  np.testing.assert_array_equal(found.grids['ends'][:, :8], windows[:, :8])
  np.testing.assert_array_equal(found.grids['ends'][0], first)
  assert {one.kept for one in found.scores.values()} == {None, 1.0}
  with np.load(tmp_path / 'all.npz') as file:
    np.testing.assert_array_equal(file['the_data'], windows)
  assert 'soprano' in Image.open(tmp_path / 'out.png').text['rows']
  assert not (tmp_path / 'out.png.parts').exists()
  assert [row[0] for row in harmonising.cells(found)] == list(found.grids)


def test_new_notes_are_scored_and_known_ones_are_not():
  rng = np.random.default_rng(1)
  train = _pieces(2).each(step=2)
  real = np.stack([one[:32] for one in _pieces(3).each(step=2)[:5]])
  drawn = real.copy()
  drawn[:, :, 3] += rng.integers(1, 3, (5, 32))        # the bass is another one
  found = harmonising.score({'the data': real, 'soprano': drawn, 'bass': drawn}, train)
  assert found['the data'].areas.consistency.tolist() == [1.0, 1.0]
  assert found['soprano'].kept == 1.0 and found['bass'].kept == 0.0
  assert found['soprano'].same == pytest.approx(2 / 3) and found['bass'].same == 1.0
  ngram = music.Voices.fit(train)
  own = lambda grids, voices: np.mean([ngram.bits(one)[:, voices].mean() for one in grids])
  assert found['soprano'].bits.value == pytest.approx(own(drawn, [1, 2, 3]))
  assert found['soprano'].bits_of_data.value == pytest.approx(own(real, [1, 2, 3]))
  assert found['bass'].bits_of_data.value == pytest.approx(own(real, [0, 1, 2]))


def test_a_stopped_command_goes_on_to_the_same_notes(run, tmp_path, monkeypatch):
  options = {'method': conditioned.RePaint(2, 2), 'given': ('soprano', 'bass')}
  whole = run(**options)
  (tmp_path / 'out.png').unlink()
  count = [0]

  def stopped(path, make, real=files.kept):
    count[0] += 1
    if count[0] == 2:
      raise KeyboardInterrupt
    return real(path, make)
  monkeypatch.setattr(restoring.files, 'kept', stopped)
  with pytest.raises(KeyboardInterrupt):
    run(**options)
  assert len(list((tmp_path / 'out.png.parts').glob('*.npz'))) >= 2
  again = run(**options)
  for name, grid in whole.grids.items():
    np.testing.assert_array_equal(again.grids[name], grid)


@pytest.mark.parametrize('options,match', [
    ({'name': 'digits'}, 'its data are digits'), ({'given': ['tenor']}, 'tenor'),
    ({'split': 'all'}, 'all'), ({'count': 0}, 'count=0'), ({'steps': 0}, 'steps=0'),
    ({'method': conditioned.PiGDM()}, 'pigdm'), ({'samples': 'out.wav'}, 'out.wav')])
def test_wrong_input_is_refused(run, tmp_path, options, match):
  with pytest.raises(InputError, match=match):
    run(**options)
  assert not (tmp_path / 'out.png').exists()
