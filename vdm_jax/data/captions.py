"""The digits with their names: a text field, `caption`, beside the image and the label."""
import functools

import numpy as np

from vdm_jax.data import records, text
from vdm_jax.data.fields import LABEL, Batch
from vdm_jax.data.sources import Read, Store

CAPTION = 'caption'
WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def open_digits(data_dir: str, image_size: int = 0, text_length: int = 0) -> Store:
  """The store of `digits`, with the word for each image's label as tokens: see `text`."""
  store = records.open_records('digits', data_dir, image_size)
  caption = text.field(CAPTION, text_length or text.longest(WORDS))
  captioned = lambda source: source._replace(
      read=functools.partial(_read, source.read, caption.shape[0]))
  return store._replace(train=captioned(store.train), test=captioned(store.test),
                        fields=(*store.fields, caption))


def _read(digits: Read, length: int, rows: np.ndarray) -> Batch:
  batch = digits(rows)
  return {**batch, CAPTION: text.encode([WORDS[i] for i in batch[LABEL]], length)}
