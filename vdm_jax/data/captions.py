"""The digits with their names: a text field, `caption`, beside the image and the label."""
import functools

import numpy as np

from vdm_jax.data import records, tokenisers
from vdm_jax.data.fields import CAPTION, LABEL, Batch, Field
from vdm_jax.data.sources import Read, Store

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def open_digits(data_dir: str, image_size: int = 0,
                texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The store of `digits`, with the word for each image's label as tokens: see `tokenisers`."""
  store = records.open_records('digits', data_dir, image_size)
  caption = tokenisers.field(CAPTION, texts, WORDS)
  captioned = lambda source: source._replace(
      read=functools.partial(_read, source.read, caption))
  return store._replace(train=captioned(store.train), test=captioned(store.test),
                        fields=(*store.fields, caption))


def _read(digits: Read, caption: Field, rows: np.ndarray) -> Batch:
  batch = digits(rows)
  words = [WORDS[i] for i in batch[LABEL]]
  return {**batch, CAPTION: tokenisers.of(caption).encode(words, cut=True)}
