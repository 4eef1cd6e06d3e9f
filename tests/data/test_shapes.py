"""Shapes by formula: the oracles are counts of the definition, and pictures drawn by hand."""
import collections

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import shapes, text
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError


def make(name='shapes', **given):
  config = data.default_config()
  config.update(name=name, **given)
  return data.Data(config)


def every(d, split):
  return d.split(split).get(np.arange(len(d.split(split))))


@pytest.mark.long
def test_the_pictures_have_the_counted_number_sum_and_second_moment():
  """Counted apart from this code: 9,216, 902,587,392 and 0.458510."""
  images = shapes.images()
  assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images) == 9216
  assert images.sum(dtype=np.int64) == 902_587_392
  x = Pixels(256).encode(jnp.asarray(images))
  assert float(jnp.mean(jnp.square(x))) == pytest.approx(0.458510, abs=5e-7)
  assert np.log2(len(images)) == pytest.approx(13.1699, abs=5e-5)
  assert np.log2(len(shapes.PLACES)) == 6.0


SMALL = {
    'square': ('#####', '#####', '#####', '#####', '#####'),
    'disk': ('.###.', '#####', '#####', '#####', '.###.'),
    'triangle': ('..#..', '..#..', '.###.', '.###.', '#####'),
    'cross': ('..#..', '..#..', '#####', '..#..', '..#..')}


@pytest.mark.parametrize('shape', SMALL)
def test_a_small_shape_is_what_is_drawn_here_by_hand(shape):
  """A disk of r = 2 has dy^2 + dx^2 <= 5.  A cross has min(|dy|, |dx|) = 0."""
  drawn = np.array([[pixel == '#' for pixel in line] for line in SMALL[shape]])
  number = shapes.CAPTIONS.index(f'a small orange {shape} on grey')
  image = shapes.images()[number * 64 + shapes.PLACES.index((5, 11))]
  np.testing.assert_array_equal(image[3:8, 9:14], np.where(drawn[..., None], (240, 140, 40), 128))
  image = image.copy()
  image[3:8, 9:14] = 128
  assert (image == 128).all()


@pytest.mark.long
def test_each_caption_is_told_of_its_64_places_and_captions_are_of_seventeen_words():
  d = make(batch_size=9)
  assert tuple(field[:4] for field in d.spec.fields) == (
      ('image', (16, 16, 3), 'uint8', 256), ('label', (), 'int32', 144),
      ('caption', (32,), 'int32', 257))
  for split in ('train', 'test'):
    batch = every(d, split)
    captions = text.decode(batch['caption'])
    assert set(collections.Counter(captions).values()) == {64}
    assert [shapes.CAPTIONS[i] for i in batch['label']] == captions
    assert len({word for caption in captions for word in caption.split()}) == 17
    ordered = lambda images: np.unique(images.reshape(len(images), -1), axis=0)
    np.testing.assert_array_equal(ordered(batch['image']), ordered(shapes.images()))
  assert {u: v.shape for u, v in d.batch(0).items()} == {
      'image': (9, 16, 16, 3), 'label': (9,), 'caption': (9, 32)}
  words = make(tokeniser='words')
  assert words.spec['caption'][1:4] == ((6,), 'int32', 18)
  tokens = every(words, 'test')['caption']
  assert tokens.min() == 1 and tokens.max() == 17 and len(np.unique(tokens, axis=0)) == 144
  short = every(make(text_length=7), 'test')
  assert set(text.decode(short['caption'])) == {'a small', 'a large'}


def test_the_first_rows_of_a_split_are_a_fair_sample():
  """All 64 places and 144 captions are equally probable: chi^2 of 1,440 rows, its mean and std."""
  labels = every(make(), 'test')['label'][:1440]
  counts = np.bincount(labels, minlength=144)
  # Without replacement, the variance of a count is smaller by (9216 - 1440) / 9215.
  chi2 = np.sum((counts - 10.0)**2 / 10.0) / ((9216 - 1440) / 9215)
  assert abs(chi2 - 143) < 4 * np.sqrt(2 * 143)
  order = lambda split: every(make(), split)['label']
  assert (order('train') != order('test')).any()


def test_held_out_captions_are_new_and_their_words_are_not():
  d = make('shapes:held_out', validation=640)
  parts = {split: [caption.split() for caption in text.decode(every(d, split)['caption'])]
           for split in ('train', 'validation', 'test')}
  assert {split: len(captions) for split, captions in parts.items()} == {
      'train': 7040, 'validation': 640, 'test': 1536}
  trained = {tuple(words) for words in parts['train'] + parts['validation']}
  new = {tuple(words) for words in parts['test']}
  assert (len(trained), len(new)) == (120, 24) and not trained & new
  pairs = lambda captions: {frozenset((a, b)) for words in captions for a in words for b in words}
  assert {tuple(sorted(pair)) for pair in pairs(new) - pairs(trained)} == {
      ('red', 'square'), ('disk', 'green'), ('blue', 'triangle'), ('cross', 'yellow')}
  assert d.spec.classes == 144 and 'without an image to train on: class' in d.describe()


def test_a_misspelt_name_is_answered_by_the_nearest():
  with pytest.raises(InputError, match='shapes'):
    make('shape').batch(0)
