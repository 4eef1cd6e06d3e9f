"""How well images agree with their texts, by the features of a dual encoder.

The mean cosine of an image and its own text is CLIPScore (Hessel et al. 2021, eq. 1) without its
factor 2.5 and its cut at 0.  The share of images whose own text is the likeliest of all texts is
CLIP's R-precision (Park et al. 2021), with R = 1.

A score belongs to its encoder, and the share also to the number of texts.  The same scores of real
images, by the same encoder, show what a perfect model could reach.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.table
from matplotlib.figure import Figure

from vdm_jax.errors import require
from vdm_jax.evaluation import captions
from vdm_jax.evaluation.distances import Estimated, mean, share

NAMES = ('w', 'cosine', 'retrieval accuracy', 'cosine of real images', 'accuracy of real images')


class Agreement(NamedTuple):
  """How well images agree with their texts; the standard errors are over images."""
  cosine: Estimated    # mean, of an image and its own text
  accuracy: Estimated  # the share of images whose own text has the largest cosine of all


class Scored(NamedTuple):
  """The scores of samples, and of the real images with the same texts."""
  samples: Mapping[float, Agreement]  # by the weight of guidance
  real: Agreement
  count: int                          # of samples, and of real images
  texts: int                          # different ones


def agreement(images: np.ndarray, texts: np.ndarray, own: np.ndarray) -> Agreement:
  """images: features [n, D], texts: features [K, D], all of length 1.  own: [n], rows of `texts`.

  If other texts have the same cosine as an image's own text, the first of them is the likeliest.
  Raises InputError for a single text.
  """
  require(len(texts) > 1, 'count', len(images), 'all these images have one text, and a retrieval '
          'needs others', 'give more images')
  cosines = np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
  return Agreement(mean(cosines[np.arange(len(own)), own]), share(cosines.argmax(axis=1) == own))


def best(found: Mapping[float, Agreement]) -> float:
  """The weight with the highest mean cosine; of equal ones the least."""
  return max(sorted(found), key=lambda w: found[w].cosine.value)


def figures(scored: Scored) -> dict[str, str]:
  """The scores at the best weight, and of the real images, by `NAMES`, for a row of a table."""
  w = best(scored.samples)
  return dict(zip(NAMES, [f'{w:g}', *map(str, scored.samples[w]), *map(str, scored.real)],
                  strict=True))


def table(scored: Scored) -> rich.table.Table:
  """A row for each weight, and one for the real images."""
  out = rich.table.Table('images', 'cosine', 'retrieval accuracy',
                         title=f'{scored.count:,} images of each kind, {scored.texts:,} texts')
  for column in out.columns[1:]:
    column.justify = 'right'
  for w, one in scored.samples.items():
    out.add_row(f'w = {w:g}', *map(str, one))
  out.add_row('real', *map(str, scored.real))
  return out


def picture(columns: Mapping[str, np.ndarray], texts: Sequence[str]) -> Figure:
  """Images with the same texts: a row for each text, and a column for each kind of images.

  columns: {name: integers 0 .. 255 [len(texts), H, W, 3]}.
  """
  figure = Figure(figsize=(4.2 + 0.6 * len(columns), 0.6 * len(texts) + 0.3), layout='constrained')
  captions.sheet(figure, columns, texts)
  return figure
