"""Samples judged by a dual encoder: directions in the plane, whose cosines are known."""
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdm_jax import data
from vdm_jax.data import conditions, tokenisers
from vdm_jax.data.fields import CAPTION, Field, Texts
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import clip_scores, workdir
from vdm_jax.schedules import Linear
from vdm_jax.systems.guided.dual_encoder import DualEncoder
from vdm_jax.typing import Estimate

PIXELS = Pixels(256)
NAMES = ['east', 'north', 'west', 'south']
WORDS = ('about', 'east', 'north', 'south', 'west')  # of the encoder: other tokens than the data
# The first row of an image is a direction: 45, 135, 225 and 315 degrees.
ROWS = np.array([[255, 255], [0, 255], [0, 0], [255, 0]], np.uint8)
PICTURES = np.broadcast_to(ROWS[:, None, :, None], (4, 2, 2, 1))
LEVELS = GaussianProcess(Linear(20.0, -8.0))


def encoder(words):
  """Texts point to 30, 120, 210 and 300 degrees; noisier images are turned."""
  numbers = tokenisers.of_words(words, 2).encode([name for name in NAMES if name in words])[:, 0]
  angles = np.zeros(len(words) + 1)
  angles[numbers] = np.pi / 2 * np.arange(len(numbers)) + np.pi / 6

  def image(z, level):
    angle = jnp.arctan2(z[:, 0, 1, 0], z[:, 0, 0, 0]) + 20.0 - level.logsnr
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

  def text(tokens):
    angle = jnp.asarray(angles, jnp.float32)[tokens[:, 0]]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return DualEncoder(image, text, jnp.float32(1.0), LEVELS, PIXELS.encode, (2, 2, 1),
                     Field(CAPTION, (2,), 'int32', len(words) + 1, Texts('words', words)))


def model_of(field, spec, told):
  """It draws the picture of its text, or of the text after it; without a text, x = 0."""
  tokens = jnp.asarray(tokenisers.of(field).encode(NAMES))

  def model(params):
    def denoise(z, level, cond):
      number = jnp.argmax((cond[:, None] == tokens).all(axis=-1), axis=1)
      x = PIXELS.encode(jnp.asarray(PICTURES))[(number + params['off']) % 4]
      x = jnp.where((cond == 0).all(axis=1)[:, None, None, None], 0.0, x)
      level = level.expand(z)
      return Estimate(x, (z - level.alpha * x) / level.sigma)
    return Model(denoise, LEVELS, PIXELS.log_prob, PIXELS.encode, PIXELS.decode,
                 lambda batch: batch[CAPTION], (2, 2, 1), steps=3, null=jnp.zeros_like,
                 conditions=conditions.of(spec, told))
  return model


@pytest.fixture
def score(tmp_path, monkeypatch):
  """(the offset of the drawn pictures, ...) -> the scores of a run and a picture."""
  rows = np.array([0, 1, 2, 3, 3, 2, 1, 0])
  file = tmp_path / 'ways.npz'
  np.savez(file, **{f'{name}_{split}': values for split in ('train', 'test') for name, values in (
      ('image', PICTURES[rows]), ('caption', np.array(NAMES)[rows]))})
  config = data.default_config()
  config.update(name=str(file), tokeniser='words', validation=2)
  d = data.Data(config)
  for name in ('run', 'dual'):
    (tmp_path / name).mkdir()

  def call(off=0, *, words=WORDS, told=(CAPTION,), reads=config, judge=None,
           **options):
    made = {'run': (types.SimpleNamespace(model=model_of(d.spec[CAPTION], d.spec, told), ema={},
                                          data=d), config, {'off': np.int32(off)}),
            'dual': (types.SimpleNamespace(model=lambda params: judge or encoder(words)), reads,
                     {'none': np.zeros(1)})}

    def load(place, **_):
      experiment, of, params = made[place.name]
      return workdir.Trained(experiment, types.SimpleNamespace(data=of), params, 1, 'raw')
    monkeypatch.setattr(workdir, 'load_trained', load)
    return clip_scores.score_clip(tmp_path / 'run', tmp_path / 'dual', **{'batch_size': 8,
                                                                         **options})
  return call


@pytest.mark.long
def test_the_scores_of_samples_and_of_real_images_are_the_known_cosines(score, tmp_path):
  """Images of their text are 15 degrees from it, and images of the next text 105 degrees."""
  found, out = score(weights=(0.0, 1.0))
  right, wrong = math.cos(math.pi / 12), math.cos(math.radians(105))
  assert list(found.samples) == [0.0, 1.0] and (found.count, found.texts) == (8, 4)
  for one in (found.real, *found.samples.values()):
    assert one.cosine == pytest.approx((right, 0.0), abs=2e-3)
    assert one.accuracy == (1.0, 0.0)
  assert out == tmp_path / 'run' / 'clip.png'
  with Image.open(out) as picture:
    assert min(picture.size) > 100
  with pytest.raises(InputError, match='there already'):
    score(weights=(0.0,))
  found, _ = score(1, weights=(0.0,), overwrite=True)
  assert found.samples[0.0].cosine.value == pytest.approx(wrong, abs=2e-3)
  assert found.samples[0.0].accuracy == (0.0, 0.0) and found.real.accuracy == (1.0, 0.0)


def test_what_cannot_be_judged_is_refused(score):
  other = data.default_config()
  other.update(name='made', shape=(2, 3, 1), levels=256, text_length=6,
               fields=('image', 'caption'))
  dark = data.default_config()
  dark.update(name='made', shape=(2, 2, 1), levels=5, text_length=6, fields=('image', 'caption'))
  for options, message in (
      ({'told': ()}, '^workdir: this model is told no text; name a run'),
      ({'words': ('east', 'north', 'west')}, "^clip=.*this encoder cannot read 'south': the texts "
       "of the data have no word 'south'.*; train"),
      ({'reads': other}, r'^clip=.*reads images of shape \(2, 3, 1\), and the model makes shape'),
      ({'reads': dark}, '^clip=.*reads images of levels 5, and the model makes levels 256'),
      ({'judge': types.SimpleNamespace()}, '^clip=.*and no dual encoder'),
      ({'count': 1}, 'count=1: it must be at least 2'), ({'split': 'all'}, "split='all'"),
      ({'weights': ()}, 'weights=0'), ({'weights': (-1.0,)}, 'one is negative')):
    with pytest.raises(InputError, match=message):
      score(**{'weights': (0.0,), **options})
