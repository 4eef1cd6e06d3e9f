"""Samples guided by a dual encoder: the estimates by hand, and runs on disk."""
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import images_run
from vdm_jax import data, runs, schedules
from vdm_jax.data import fields, shapes, tokenisers
from vdm_jax.data.fields import CAPTION, Field, Texts
from vdm_jax.errors import InputError
from vdm_jax.evaluation import shapes as judge
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import captioning, steering, workdir
from vdm_jax.runs.steering import Clip, Steering
from vdm_jax.systems.guided.dual_encoder import DualEncoder
from vdm_jax.typing import Estimate, Model

PROCESS = GaussianProcess(schedules.Linear(20.0, -5.0))
FIELD = Field(CAPTION, (2,), 'int32', 3, Texts('words', ('east', 'north')))
WAYS = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # of the tokens


def encoder(params):
  """Images and texts are points in the plane: a text is its first word's direction."""
  return DualEncoder(lambda z, level: z, lambda tokens: WAYS[tokens[:, 0]], params['scale'],
                     PROCESS, lambda u: u.astype(jnp.float32), (2,), FIELD)


def model():
  """It estimates x = 0, and is conditioned on a number that it adds."""
  def denoise(z, level, cond):
    x = jnp.zeros_like(z) + cond[:, None]
    level = level.expand(z)
    return Estimate(x, (z - level.alpha * x) / level.sigma, {})
  return Model(denoise, PROCESS, None, None, None, lambda batch: batch['number'], (2,))


@pytest.mark.long
def test_a_text_moves_each_estimate_by_the_gradient_of_its_logit():
  """At z = (3, 4), cos(z, east) has the gradient (0.128, -0.096), and cos(z, north) the other."""
  tokens = np.array([[1, 0], [2, 0]], np.int32)
  steered = Steering(encoder, {'scale': jnp.float32(5.0)}, FIELD, tokens, None, (2.0, 1.0))
  guided = steered.of(model(), steered.params)
  batch = {'number': jnp.array([0.0, 1.0, 7.0]), **steered.batch(np.arange(3))}
  level = PROCESS(jnp.float32(0.8))
  z = jnp.tile(jnp.array([[3.0, 4.0]]), (3, 1))
  x = guided.denoise(z, level, guided.cond(batch)).x
  ratio = float(level.sigma**2 / level.alpha)
  east, north = np.array([0.128, -0.096]), np.array([-0.096, 0.072])
  want = np.array([[0.0], [1.0], [7.0]]) + 2.0 * 5.0 * ratio * np.array([east, north, east])
  np.testing.assert_allclose(x, want, rtol=1e-4)
  # The scale may be an argument, so that one program serves many.
  again = steered.of(model(), steered.params, scale=jnp.float32(0.0))
  np.testing.assert_allclose(again.denoise(z, level, again.cond(batch)).x[1], 1.0, atol=1e-6)


@pytest.mark.long
def test_a_picture_guides_as_the_text_that_it_resembles():
  """Near the data the reference has no noise: (2, 0) is `east`."""
  like = np.array([2, 0], np.int32)
  steered = Steering(encoder, {'scale': jnp.float32(5.0)}, FIELD, None, like, (0.0, 3.0))
  guided = steered.of(model(), steered.params)
  batch = {'number': jnp.zeros(1), **steered.batch(np.arange(1))}
  level = PROCESS(jnp.float32(0.0))
  x = guided.denoise(jnp.array([[3.0, 4.0]]), level, guided.cond(batch)).x
  want = 15.0 * float(level.sigma**2 / level.alpha) * np.array([[0.128, -0.096]])
  np.testing.assert_allclose(x, want, rtol=1e-3)


@pytest.mark.long
def test_a_style_guides_by_its_gram_matrix_and_adds_to_a_text_and_a_picture():
  """Of one pixel (3, 4) and the style of (2, 0): -(G - R) z / 2 = (-15.75, -25), by hand.

  A cosine with `east`, as a text or as the picture (2, 0), has the gradient (0.128, -0.096).
  """
  def staged(params):
    return encoder(params)._replace(stages=lambda z, level: [z[:, None, None]])
  picture = np.array([2, 0], np.int32)
  level = PROCESS(jnp.float32(0.0))
  ratio = float(level.sigma**2 / level.alpha)

  def moved(tokens, like):
    steered = Steering(staged, {'scale': jnp.float32(5.0)}, FIELD, tokens, like, (2.0, 3.0),
                       picture, 0.01)
    guided = steered.of(model(), steered.params)
    batch = {'number': jnp.zeros(1), **steered.batch(np.arange(1))}
    return guided.denoise(jnp.array([[3.0, 4.0]]), level, guided.cond(batch)).x / ratio
  style, east = np.array([-0.1575, -0.25]), np.array([0.128, -0.096])
  np.testing.assert_allclose(moved(None, None), style[None], rtol=1e-3)
  both = moved(np.array([[1, 0]], np.int32), picture)
  np.testing.assert_allclose(both, (style + (10.0 + 15.0) * east)[None], rtol=1e-3)


@pytest.mark.long
def test_a_model_given_its_latent_is_guided_too():
  """Such a model estimates another x; the gradient of the logit is added to its own estimate."""
  def given(keys):
    return model()._replace(denoise=lambda z, level, cond: model().denoise(z, level, cond + 5.0))
  steered = Steering(encoder, {'scale': jnp.float32(5.0)}, FIELD, np.array([[1, 0]], np.int32),
                     None, (2.0, 1.0))
  guided = steered.of(model()._replace(latent=given), steered.params).latent(None)
  batch = {'number': jnp.array([1.0]), **steered.batch(np.arange(1))}
  level = PROCESS(jnp.float32(0.8))
  x = guided.denoise(jnp.array([[3.0, 4.0]]), level, guided.cond(batch)).x
  ratio = float(level.sigma**2 / level.alpha)
  np.testing.assert_allclose(x, 6.0 + 10.0 * ratio * np.array([[0.128, -0.096]]), rtol=1e-4)


@pytest.mark.parametrize('scales, field, words', [
    ({'like': 'a.png', 'like_scale': 0.0}, 'like_scale', 'no effect'),
    ({'style': 'a.png', 'style_scale': 0.0}, 'style_scale', 'no effect'),
    ({'scale': float('nan')}, 'clip_scale', 'finite')])
def test_a_scale_without_effect_is_refused_before_anything_is_read(scales, field, words):
  with pytest.raises(InputError, match=words) as error:
    steering.steering(Clip('none', **scales), model(), None, np.linspace(1.0, 0.0, 3))
  assert error.value.field == field


def test_a_style_is_refused_of_an_encoder_without_stages(tmp_path, monkeypatch):
  config = data.default_config()
  config.update(data.Spec('one', (fields.integers('x', (2,), 256),)).to_config())
  run = workdir.Trained(types.SimpleNamespace(model=encoder), types.SimpleNamespace(data=config),
                        {'scale': 5.0}, 1, 'raw')
  monkeypatch.setattr(workdir, 'load_trained', lambda _: run)
  with pytest.raises(InputError, match='^style=.a.png.: the image network .* has no stages'):
    steering.steering(Clip(tmp_path, style='a.png'), model()._replace(field='x'), run,
                      np.linspace(1.0, 0.0, 3))


@pytest.mark.parametrize('made', [{'distilled': ('consistency', 1)}, {'coupled': True}])
def test_a_model_without_a_score_is_refused(made, tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, 'load_trained', lambda _: workdir.Trained(
      types.SimpleNamespace(model=encoder), None, {'scale': 5.0}, 1, 'raw'))
  with pytest.raises(InputError, match='^clip=.*has no score to which a gradient'):
    steering.steering(Clip(tmp_path), model()._replace(**made), None, np.linspace(1.0, 0.0, 3))


@pytest.mark.parametrize('levels, made', [(16, '16 levels'), (None, 'real numbers')])
def test_an_encoder_of_images_with_other_levels_is_refused_and_one_of_other_data_is_not(
    levels, made, tmp_path, monkeypatch):
  def run(name, levels):
    field = (fields.reals if levels is None else fields.integers)(
        'x', (2,), *[levels] * (levels is not None))
    config = data.default_config()
    config.update(data.Spec(name, (field,)).to_config() | {'name': name})
    return workdir.Trained(types.SimpleNamespace(model=encoder), types.SimpleNamespace(
        data=config), {'scale': 5.0}, 1, 'raw')
  monkeypatch.setattr(workdir, 'load_trained', lambda _: run('one', 256))
  named = model()._replace(field='x')
  lead = lambda levels: steering.steering(Clip(tmp_path), named, run('other', levels),
                                          np.linspace(1.0, 0.0, 3), ['north'])
  np.testing.assert_array_equal(lead(256).tokens, [[2, 0]])
  with pytest.raises(InputError, match=f'^clip=.*of 256 levels, and the model makes .*{made}'):
    lead(levels)


# ------------------------------------------------------------------ runs


DUAL = '''
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import inputs, schedules
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems.guided import dual_encoder


class Linear(nn.Module):
  @nn.compact
  def __call__(self, z, time):
    return nn.Dense(3)(z.reshape(len(z), -1))


def get_config():
  tower = TextTower(features=8, depth=1, attention_heads=2, levels=0, length=0, outputs=3)
  config = dual_encoder.default_config(tower, group=8)
  config.data.update(name='shapes', tokeniser='words', validation=8, batch_size=8)
  config.optimizer.update(warmup_steps=1)
  config.train.update(steps=1, log_every=1, validate_every=1, checkpoint_every=1,
                      pictures_every=0)
  return config


def build(config):
  return dual_encoder.experiment(config, net=Linear(), process=GaussianProcess(
      schedules.Linear(13.3, LOWEST)), inputs=inputs.logsnr)
'''


def encoder_run(folder, lowest):
  folder.mkdir()
  file = folder / 'dual.py'
  file.write_text(DUAL.replace('LOWEST', str(lowest)))
  runs.train(workdir.import_config(file).get_config(), file, folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('steering')
  return images_run.make_run(folder, 'shapes', False), encoder_run(folder / 'dual', -12.0)


@pytest.mark.long
def test_an_untold_model_draws_what_the_encoder_takes_for_the_text(made, tmp_path):
  run, dual = made
  draw = {'method': images_run.by(8), 'count': 32, 'batch_size': 32}
  runs.sample(run, tmp_path / 'plain.npz', **draw)
  prompts = ['a large red disk on grey', 'a small blue cross on white']
  runs.sample(run, tmp_path / 'led.npz', clip=Clip(dual, 50.0), prompts=prompts, **draw)
  trained = workdir.load_trained(dual)
  m = trained.experiment.model(trained.params)
  plain, led = np.load(tmp_path / 'plain.npz'), np.load(tmp_path / 'led.npz')
  assert tokenisers.of(m.caption).decode(led['caption']) == prompts * 16
  cosines = lambda images: np.asarray(jnp.sum(m.text(led['caption']) * m.image(
      m.encode(images), m.process(jnp.float32(0.0))), axis=1))
  difference = cosines(led['images']) - cosines(plain['images'])
  assert difference.mean() > 4 * difference.std(ddof=1) / 32**0.5


@pytest.mark.long
def test_captions_are_scored_at_scale_0_as_the_samples_of_the_model_alone(made, tmp_path):
  run, dual = made
  count = 2 * len(shapes.CAPTIONS)
  found, *_ = captioning.score_captions(run, tmp_path / 'x.png', clip=dual, weights=(0.0, 50.0),
                                        method=images_run.by(2), count=count, batch_size=count)
  runs.sample(run, tmp_path / 'plain.npz', method=images_run.by(2), count=count, batch_size=count)
  own = np.arange(count) % len(shapes.CAPTIONS)
  assert found[0.0].accuracy == judge.accuracy(np.load(tmp_path / 'plain.npz')['images'], own)
  assert list(found) == [0.0, 50.0]


@pytest.mark.long
def test_an_encoder_that_does_not_fit_is_refused_in_one_line(made, tmp_path):
  run, dual = made
  small = images_run.make_run(tmp_path, _pictures(tmp_path), False)
  near = encoder_run(tmp_path / 'near', 0.0)
  prompt = 'a large red disk on grey'
  for directory, clip, prompts, field, words in (
      (run, Clip(run), [prompt], 'clip', 'no dual encoder'),
      (run, Clip(dual), ['a large pink disk'], 'prompt', "no word 'pink'"),
      (run, Clip(dual), [], 'clip_scale', 'neither a text nor a picture'),
      (run, Clip(dual, like='none.png'), [prompt], 'like', 'no such file'),
      (run, Clip(near), [prompt], 'clip', 'it has learned log-SNR 0 .. 13.3'),
      (small, Clip(dual), [prompt], 'clip', r'reads images of \(16, 16, 3\)')):
    with pytest.raises(InputError, match=words) as caught:
      runs.sample(directory, tmp_path / 'x.npz', clip=clip, prompts=prompts,
                  method=images_run.by(4))
    assert caught.value.field == field
  assert not (tmp_path / 'x.npz').exists()


def _pictures(folder):
  np.savez(folder / 'data.npz', images=np.random.default_rng(0).integers(
      0, 256, (60, 4, 4, 1), np.uint8))
  return folder / 'data.npz'
