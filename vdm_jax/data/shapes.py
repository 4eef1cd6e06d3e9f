"""Captioned pictures that are a formula: one shape on a plain ground, 16 x 16 pixels in colour.

Each caption is "a SIZE COLOUR SHAPE on GROUND": 'a large red disk on grey'.  The 2 sizes, 6
colours, 4 shapes and 3 grounds make 144 captions.  The centre of the shape has 8 x 8 places.  So
there are 9,216 pictures, all different and equally probable.  Their entropy is log2 9216 = 13.1699
bits, and 6 bits if the caption is known.

  name                training                      testing
  `shapes`            the 9,216 pictures            the 9,216 pictures, in another order
  `shapes:held_out`   the pictures of 120 captions  the pictures of the other 24 captions

So `shapes` is the whole distribution, and the mean over its test images is a mean over the
distribution, without an error of sampling.  `shapes:held_out` asks whether a model composes.  The
captions of four pairs of colour and shape (`HELD_OUT`) never occur in training.  But each of
their words occurs there, with every word of the other kinds but one.
"""
import functools

import numpy as np

from vdm_jax.data import fields, random, tokenisers
from vdm_jax.data.fields import CAPTION, IMAGE, LABEL, Batch, Field
from vdm_jax.data.sources import Source, Store

SIDE = 16
PLACES = tuple((y, x) for y in range(4, 12) for x in range(4, 12))  # rows and columns of centres
SIZES = {'small': 2, 'large': 4}  # r, in pixels
COLOURS = {'red': (230, 40, 40), 'green': (40, 180, 60), 'blue': (50, 80, 230),
           'yellow': (235, 215, 50), 'purple': (160, 60, 190), 'orange': (240, 140, 40)}
# Whether the pixel at (dy, dx) from the centre belongs to the shape; dy counts rows downwards.
SHAPES = {
    'square': lambda dy, dx, r: np.maximum(abs(dy), abs(dx)) <= r,
    'disk': lambda dy, dx, r: 2 * (dy**2 + dx**2) <= 2 * r**2 + r,
    'triangle': lambda dy, dx, r: (abs(dy) <= r) & (2 * abs(dx) <= dy + r),
    'cross': lambda dy, dx, r: ((np.maximum(abs(dy), abs(dx)) <= r)
                                & (4 * np.minimum(abs(dy), abs(dx)) <= r)),
}
GROUNDS = {'black': 20, 'grey': 128, 'white': 235}
WORDS = tuple((size, colour, shape, ground) for size in SIZES for colour in COLOURS
              for shape in SHAPES for ground in GROUNDS)  # of each caption
CAPTIONS = tuple(f'a {size} {colour} {shape} on {ground}' for size, colour, shape, ground in WORDS)
# Pairs that `shapes:held_out` never has in training, and `NEW`, the numbers of their captions.
HELD_OUT = {('red', 'square'), ('green', 'disk'), ('blue', 'triangle'), ('yellow', 'cross')}
NAMES = ('shapes', 'shapes:held_out')
NEW = frozenset(i for i, (_, colour, shape, _) in enumerate(WORDS) if (colour, shape) in HELD_OUT)


def masks(captions: np.ndarray, places: np.ndarray) -> np.ndarray:
  """The pixels of shapes: numbers of captions [n], and of places [n] -> bool [n, 16, 16]."""
  return _kinds()[captions, places]


@functools.cache
def _kinds() -> np.ndarray:
  """The pixels of the shape of each caption at each place, bool [144, 64, 16, 16]."""
  return np.stack([SHAPES[shape](*_offsets(), SIZES[size]) for size, _, shape, _ in WORDS])


def _offsets() -> tuple[np.ndarray, np.ndarray]:
  """(dy, dx) of every pixel from each of `PLACES`, [64, 16, 1] and [64, 1, 16]."""
  places, pixels = np.array(PLACES), np.arange(SIDE)
  return (pixels[:, None] - places[:, 0, None, None], pixels - places[:, 1, None, None])


def pictures(captions: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Numbers of captions [n], and of places [n] -> uint8 [n, 16, 16, 3]."""
  return images()[len(PLACES) * captions + places]


@functools.cache
def images() -> np.ndarray:
  """All pictures, uint8 [9216, 16, 16, 3], read-only: row 64 c + p is caption c at place p."""
  captions, places = np.divmod(np.arange(len(CAPTIONS) * len(PLACES)), len(PLACES))
  colours = np.array([COLOURS[colour] for _, colour, _, _ in WORDS])[captions, None, None]
  grounds = np.array([3 * (GROUNDS[ground],) for *_, ground in WORDS])[captions, None, None]
  out = np.where(masks(captions, places)[..., None], colours, grounds).astype(np.uint8)
  out.flags.writeable = False
  return out


def open_shapes(name: str, texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The store of one of `NAMES`: an image, the caption's number as its label, and the caption.

  The order is random and always the same, so any first rows of a split are a fair sample.
  """
  caption = tokenisers.field(CAPTION, texts, CAPTIONS)
  everything = [random.permutation(0, index, len(images())) for index in (0, 1)]
  if name == 'shapes':
    splits = everything
  else:
    splits = [order[np.isin(order // len(PLACES), list(NEW)) == test]
              for test, order in enumerate(everything)]
  train, test = (Source(split, len(order), functools.partial(_read, order, caption),
                        (order // len(PLACES)).astype(np.int32))
                 for split, order in zip(('train', 'test'), splits, strict=True))
  return Store(train, test, (fields.integers(IMAGE, (SIDE, SIDE, 3), 256),
                             fields.label(len(CAPTIONS)), caption), '',
               lambda: {f'{name} {source.name}': source.length for source in (train, test)})


def _read(order: np.ndarray, caption: Field, rows: np.ndarray) -> Batch:
  numbers = order[rows]
  labels = (numbers // len(PLACES)).astype(np.int32)
  return {IMAGE: images()[numbers], LABEL: labels,
          CAPTION: tokenisers.of(caption).encode([CAPTIONS[i] for i in labels], cut=True)}
