"""Captions of runs: an exact model follows them all, and they are worth 7.17 bits."""
import functools
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import configs, exact_shapes_config, tiny_config
from vdm_jax import data, oracles, runs
from vdm_jax.data import conditions, shapes, tokenisers
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.machine import files
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import captioning, guided, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.schedules import Linear
from vdm_jax.typing import Estimate

ROOT = Path(__file__).parents[2]
PIXELS = Pixels(256)


@pytest.fixture(scope='module')
def exact(tmp_path_factory):
  out = tmp_path_factory.mktemp('exact')
  runs.train(exact_shapes_config.get_config(), exact_shapes_config.__file__, out)
  return out


@pytest.mark.long
def test_an_exact_model_shows_every_caption_at_places_of_six_bits(exact):
  """Its flow ends in a picture of its caption, and the place is as random as the noise."""
  found, chosen, out = captioning.score_captions(
      exact, weights=(0.0,), method=catalogue.method('dpmpp_2m', 12), count=576)
  assert list(found) == [0.0] and chosen == (0.0, found[0.0]) and out == exact / 'captions.png'
  assert found[0.0].accuracy == (1.0, 0.0) and found[0.0].new is None
  assert abs(found[0.0].places.value - 6.0) < 4 * found[0.0].places.error
  with Image.open(out) as picture:
    assert picture.size[0] == 880
  with pytest.raises(InputError, match='captions.png'):
    captioning.score_captions(exact, count=576)


def test_the_captions_in_the_picture_have_all_words_and_half_of_them_are_new_if_any_are():
  for new in ((), sorted(shapes.NEW)):
    shown = captioning.captions_shown(new)
    assert len(set(shown)) == 6
    assert [i in shapes.NEW for i in shown] == [False] * 3 + [True] * 3 or not new
    words = [word for i in shown for word in shapes.WORDS[i]]
    for kind, often in ((shapes.SIZES, {3}), (shapes.SHAPES, {1, 2}), (shapes.GROUNDS, {2})):
      assert {words.count(word) for word in kind} == often
    assert sum(word in words for word in shapes.COLOURS) == (6 if not new else 4)


def test_an_upsampler_is_told_the_small_images_and_their_captions(tmp_path, monkeypatch):
  """Without weights, because no image is drawn."""
  module, config = configs.read('text/cascade_shapes:upsampler')
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: types.SimpleNamespace(
      config=config, experiment=module.build(config), params={'net': {}}))
  small = np.random.default_rng(0).integers(0, 256, (288, 8, 8, 3)).astype(np.uint8)
  np.savez(tmp_path / 'small.npz', images=small, about='')
  score = functools.partial(captioning.score_captions, tmp_path, tmp_path / 'x.png', count=288)
  told = []

  def drawn(*_, cond, **others):
    told.append(cond(np.array([1, 145, 287])))
    raise StopIteration

  monkeypatch.setattr(guided, 'draw_each', drawn)
  with pytest.raises(StopIteration):
    score(condition={'low_res': str(tmp_path / 'small.npz'), 'low_res_noise': 0.1})
  np.testing.assert_array_equal(told[0]['low_res'], small[[1, 145, 287]])
  np.testing.assert_allclose(told[0]['low_res_noise'], 0.1)
  text = data.resolve(config.data)['caption']
  np.testing.assert_array_equal(told[0]['caption'], tokenisers.of(text).encode(
      [shapes.CAPTIONS[i] for i in (1, 1, 143)]))
  with pytest.raises(InputError, match='each sample has its own caption'):
    score(condition={'caption': 'a red disk'})
  with pytest.raises(StopIteration):
    score(condition={'low_res': small[:144]})
  np.testing.assert_array_equal(told[1]['low_res'], small[[1, 1, 143]])
  for rows in (143, 200):
    with pytest.raises(InputError, match=f'low_res={rows}: .*do not follow the captions.*288'):
      score(condition={'low_res': small[:rows]})


@pytest.mark.long
@pytest.mark.parametrize('flags, message', [
    ({'count': 287}, 'count=287: it must be at least 288'),
    ({'weights': (0.0, -1.0)}, r'weights=\[0.0, -1.0\]: one is negative'),
    ({'method': catalogue.method('analytic_dpm', 5)}, 'sampler=.analytic_dpm')])
def test_settings_that_measure_nothing_are_refused(exact, flags, message, tmp_path):
  with pytest.raises(InputError, match=message):
    captioning.score_captions(exact, tmp_path / 'captions.png', **flags)


@pytest.mark.long
def test_an_exact_model_needs_seven_bits_more_if_it_is_not_told_the_caption(exact):
  """log2 144 = 7.1699 bits; log-SNR 6 .. -10 holds all of the difference."""
  bits = []
  for untold in (False, True):
    ledger = runs.evaluate(exact, untold=untold, examples=96, times=32, batch_size=256)
    ending = '_untold' * untold + '_96_examples'
    assert (exact / f'ledger{ending}.json').exists()
    assert ledger.checkpoint.get('untold', False) == untold
    with np.load(exact / f'bits{ending}.npz') as file:
      bits.append(768 * file['vlb/total'].mean(axis=0))
  more = bits[1] - bits[0]  # image by image, of the same noise
  error = np.std(more, ddof=1) / np.sqrt(len(more))
  assert error < 1.0 and abs(more.mean() - np.log2(144)) < 4 * error


@pytest.mark.long
def test_runs_of_other_data_and_without_a_null_text_are_refused(tmp_path):
  config = tiny_config.get_config()
  config.train.update(steps=2, validate_every=2, checkpoint_every=2)
  runs.train(config, tiny_config.__file__, tmp_path)
  with pytest.raises(InputError, match='its data are swirl, and only samples of shapes'):
    captioning.score_captions(tmp_path)
  with pytest.raises(InputError, match='untold=True: this model has not learned to do without'):
    runs.evaluate(tmp_path, untold=True)


def test_a_model_that_is_told_labels_is_refused_in_the_name_of_a_flag_that_there_is(
    monkeypatch, tmp_path):
  config = data.default_config()
  config.update(name='shapes')
  model = Model(oracles.Gaussian(0.0, 1.0), GaussianProcess(Linear()), None, None, None,
                lambda batch: batch['label'], (16, 16, 3),
                conditions=conditions.of(data.resolve(config), ['label']))
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: workdir.Trained(
      types.SimpleNamespace(model=lambda params: model), types.SimpleNamespace(data=config), {}, 1,
      'raw'))
  for given, message in (({'clip': 'dual'}, "clip='dual': the model is told labels"),
                         ({}, 'workdir: this model is told no text; name a run')):
    with pytest.raises(InputError, match=f'^{message}'):
      captioning.score_captions(tmp_path, **given)


class Interrupted(Exception):
  pass


@pytest.fixture
def obedient(monkeypatch):
  """A run whose model draws the picture of its caption, without training."""
  config = data.default_config()
  config.update(name='shapes', tokeniser='words')
  spec = data.resolve(config)
  tokens = tokenisers.of(spec['caption']).encode(shapes.CAPTIONS)
  pictures = PIXELS.encode(jnp.asarray(shapes.images()[::len(shapes.PLACES)]))

  def denoise(z, level, cond):
    x = pictures[jnp.argmax((cond[:, None] == tokens).all(axis=-1), axis=1)]
    level = level.expand(z)
    return Estimate(x, (z - level.alpha * x) / level.sigma)
  model = Model(denoise, GaussianProcess(Linear(20.0, -8.0)), PIXELS.log_prob, PIXELS.encode,
                PIXELS.decode, lambda batch: batch['caption'], (16, 16, 3), null=lambda cond: cond,
                conditions=conditions.of(spec, ['caption']))
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: workdir.Trained(
      types.SimpleNamespace(model=lambda params: model), types.SimpleNamespace(data=config), {}, 1,
      'raw'))


@pytest.mark.long
def test_a_drawing_that_was_killed_goes_on_with_the_batches_that_it_kept(
    obedient, tmp_path, monkeypatch):
  save, draw, starts, written = files.save_npz, guided.draw, [], []

  def failing(path, **arrays):
    if len(written) == 4:  # two batches of w = 0, their file, and a batch of w = 1
      raise Interrupted
    written.append(path)
    save(path, **arrays)
  given = {'weights': (0.0, 1.0), 'method': catalogue.method('ddim', 2, 'uniform'), 'count': 288}
  with monkeypatch.context() as patched, pytest.raises(Interrupted):
    patched.setattr(files, 'save_npz', failing)
    captioning.score_captions(tmp_path, **given)
  monkeypatch.setattr(guided, 'draw', lambda *args, **kw: starts.append(kw['start']) or draw(
      *args, **kw))
  found, *_ = captioning.score_captions(tmp_path, **given)
  assert starts == [144]
  assert [one.accuracy for one in found.values()] == 2 * [(1.0, 0.0)]
  assert {path.name for path in (tmp_path / 'captions').iterdir()} == {'w_0.npz', 'w_1.npz'}
  captioning.score_captions(tmp_path, **given, overwrite=True)
  assert starts == [144]  # all are there
  captioning.score_captions(tmp_path, **{**given, 'weights': (1.0,)}, seed=1, overwrite=True)
  assert starts == [144, 0]  # other noise


@pytest.mark.long
def test_the_command_refuses_weights_that_are_no_numbers(tmp_path):
  done = subprocess.run([sys.executable, 'scripts/score_captions.py', f'--workdir={tmp_path}',
                         '--weights=0,one'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and '--weights=0,one: these are not numbers' in done.stderr
  assert len(done.stderr.splitlines()) == 1
