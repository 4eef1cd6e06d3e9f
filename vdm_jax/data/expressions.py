"""Pictures of expressions by a formula: markup as a task (Deng et al. 2023), 12 x 24 pixels.

An expression names one object, or joins two of them, and determines its picture:

  red disk                       large, on the left
  red disk left of blue square   both are large
  red disk above blue square     both are small, in the middle
  red disk in blue square        a small one in the middle of a large one, on the left; the colours
                                 differ

An object has one of the 6 colours and 4 shapes of `shapes`, on white.  So there are 24 + 576 + 576
+ 480 = 1,656 expressions, and all their pictures are different.  A fifth of the expressions, 331,
are for testing.  The others are for training.  Each word of the test expressions is known from
training, but a model must compose them anew.
"""
import functools
from typing import NamedTuple

import numpy as np

from vdm_jax.data import fields, random, tokenisers
from vdm_jax.data.fields import CAPTION, IMAGE, LABEL, Batch, Field
from vdm_jax.data.shapes import COLOURS, GROUNDS, SHAPES
from vdm_jax.data.sources import Source, Store

HEIGHT, WIDTH = 12, 24
LARGE, SMALL = 5, 2  # r of a shape, in pixels
LEFT, RIGHT, UPPER, LOWER = (6, 6), (6, 18), (3, 12), (9, 12)  # rows and columns of centres
TEST = 331  # expressions
NAME = 'expressions'


class Expression(NamedTuple):
  """One object, or two of them and how they are joined.  An object is (colour, shape)."""
  first: tuple[str, str]
  relation: str = ''                   # 'left of', 'above', 'in', or '' for one object
  second: tuple[str, str] = ('', '')

  def __str__(self) -> str:
    return ' '.join(word for word in (*self.first, self.relation, *self.second) if word)


OBJECTS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
EXPRESSIONS = (
    *map(Expression, OBJECTS),
    *(Expression(a, relation, b) for relation in ('left of', 'above', 'in') for a in OBJECTS
      for b in OBJECTS if relation != 'in' or a[0] != b[0]))
TEXTS = tuple(map(str, EXPRESSIONS))
# Where the first and the second object are drawn, by the relation: the centre and the size.
PLACES = {'': ((LEFT, LARGE),), 'left of': ((LEFT, LARGE), (RIGHT, LARGE)),
          'above': ((UPPER, SMALL), (LOWER, SMALL)), 'in': ((LEFT, SMALL), (LEFT, LARGE))}


def draw(expression: Expression) -> np.ndarray:
  """The picture of an expression, uint8 [12, 24, 3]."""
  image = np.full((HEIGHT, WIDTH, 3), GROUNDS['white'], np.uint8)
  objects = (expression.first, expression.second)
  drawn = zip(objects, PLACES[expression.relation], strict=False)
  for (colour, shape), ((y, x), r) in reversed(list(drawn)):  # the first object covers the second
    dy, dx = np.arange(HEIGHT)[:, None] - y, np.arange(WIDTH) - x
    image[SHAPES[shape](dy, dx, r)] = COLOURS[colour]
  return image


@functools.cache
def images() -> np.ndarray:
  """The pictures of `EXPRESSIONS`, uint8 [1656, 12, 24, 3], read-only."""
  out = np.stack([draw(expression) for expression in EXPRESSIONS])
  out.flags.writeable = False
  return out


def open_expressions(texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The store of `expressions`: an image, the number of its expression as a label, and its text.

  The order is random and always the same, so any first rows of a split are a fair sample.
  """
  caption = tokenisers.field(CAPTION, texts, TEXTS)
  order = random.permutation(0, 0, len(EXPRESSIONS))
  train, test = (Source(split, len(part), functools.partial(_read, part, caption),
                        part.astype(np.int32))
                 for split, part in (('train', order[TEST:]), ('test', order[:TEST])))
  return Store(train, test, (fields.integers(IMAGE, (HEIGHT, WIDTH, 3), 256),
                             fields.label(len(EXPRESSIONS)), caption), '',
               lambda: {f'{NAME} {source.name}': source.length for source in (train, test)})


def _read(order: np.ndarray, caption: Field, rows: np.ndarray) -> Batch:
  numbers = order[rows]
  return {IMAGE: images()[numbers], LABEL: numbers.astype(np.int32),
          CAPTION: tokenisers.of(caption).encode([TEXTS[i] for i in numbers], cut=True)}
