"""Whether samples of `shapes` show their captions, and how many places the shapes take.

Both are exact by the judge `evaluation.shapes`.  Guidance trades one for the other: with a larger
weight more samples show their caption, and fewer places remain.
"""
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.table
from matplotlib.figure import Figure, FigureBase

from vdm_jax.data import shapes
from vdm_jax.errors import require
from vdm_jax.evaluation.distances import Estimated, share
from vdm_jax.evaluation.shapes import Named

NAMES = ('w', 'caption accuracy', 'of new captions', 'bits of places')
MOST = float(np.log2(len(shapes.PLACES)))  # bits of places


class Followed(NamedTuple):
  """How well samples follow their captions."""
  accuracy: Estimated    # the share of samples that show their caption
  new: Estimated | None  # the same, of captions that training never had; None: there are none
  places: Estimated      # bits, see `bits_of_places`


def followed(named: Named, captions: np.ndarray, new: Collection[int] = ()) -> Followed:
  """named: n images, by the judge.  captions: their own, [n], numbers of `shapes.CAPTIONS`.

  new: the numbers of captions that training never had.  `accuracy` is then that of the others.
  Raises InputError if no caption has two images.
  """
  return Followed(*_shares(named.captions == captions, captions, new),
                  bits_of_places(named.places, captions))


def _shares(right: np.ndarray, captions: np.ndarray, new: Collection[int]
            ) -> tuple[Estimated, Estimated | None]:
  """The `accuracy` and `new` of samples; right: bool [n]."""
  never = np.isin(captions, list(new))
  return share(right[~never]), share(right[never]) if never.any() else None


class Chosen(NamedTuple):
  """The weight with the highest accuracy."""
  w: float
  followed: Followed  # shares of samples that did not choose the weight


def choose(named: Mapping[float, Named], captions: np.ndarray, new: Collection[int] = ()
           ) -> Chosen:
  """The weight that is best on the first half of the samples; its shares are of the second half.

  On the samples that chose it, the best of several weights looks better than it is.  The bits of
  places choose nothing, and are of all samples, as are the shares of a single weight.  Of equally
  good weights the least is chosen.

  named: {weight: n images, by the judge}.  captions, new: as for `followed`.
  """
  half = len(captions) // 2 if len(named) > 1 else 0
  right = {w: one.captions == captions for w, one in named.items()}
  seen = ~np.isin(captions[:half], list(new))
  w = max(sorted(named), key=lambda w: np.sum(right[w][:half] & seen))
  return Chosen(w, Followed(*_shares(right[w][half:], captions[half:], new),
                            bits_of_places(named[w].places, captions)))


def bits_of_places(places: np.ndarray, captions: np.ndarray) -> Estimated:
  """-log2 of the probability that two images of one caption have their shape at one place.

  This is Renyi's entropy of order 2 of the place, given the caption.  It is 6 bits if all 64 places
  are equally probable, and 0 bits if a caption has one place.  It is at most Shannon's entropy.
  The share of pairs at one place is estimated without bias from few images, so the estimate may
  exceed 6 bits by its error.  It is infinite if no pair is at one place.

  places, captions: numbers [n].  The standard error is over captions.
  Raises InputError if no caption has two images.
  """
  counts = np.zeros((len(shapes.CAPTIONS), len(shapes.PLACES)))
  np.add.at(counts, (captions, places), 1)
  count = counts.sum(axis=1)
  pairs = count * (count - 1.0)
  require(bool(pairs.any()), 'count', len(places), 'no caption has two images',
          f'draw at least {2 * len(shapes.CAPTIONS)}')
  at_one = (counts * (counts - 1.0)).sum(axis=1)
  share = at_one.sum() / pairs.sum()
  used = np.count_nonzero(pairs)
  # Of a ratio of sums over captions, which are independent.
  error = np.sqrt(np.sum((at_one - share * pairs)**2) * used / max(used - 1, 1)) / pairs.sum()
  if not share:
    return Estimated(np.inf, np.inf)
  return Estimated(float(-np.log2(share)), float(error / (share * np.log(2.0))))


# ------------------------------------------------------- table and picture


def figures(chosen: Chosen) -> dict[str, str]:
  """The measurements at the chosen weight as text by `NAMES`, for a row of a table."""
  return dict(zip(NAMES, [f'{chosen.w:g}', *map(_shown, chosen.followed)], strict=True))


def _shown(one: Estimated | None) -> str:
  return '-' if one is None else str(one)


def table(found: Mapping[float, Followed], count: int, chosen: Chosen) -> rich.table.Table:
  """A row for each weight, of all its samples; below, the accuracy at the chosen weight."""
  below = None if len(found) == 1 else (
      f'w = {chosen.w:g} is best on the first half of the samples; on the second half its accuracy '
      f'is {chosen.followed.accuracy}')
  out = rich.table.Table(*NAMES, title=f'{count:,} samples of each weight w', caption=below)
  for column in out.columns:
    column.justify = 'right'
  for w, one in found.items():
    out.add_row(f'{w:g}', *map(_shown, one))
  return out


def picture(found: Mapping[float, Followed], images: Mapping[float, np.ndarray],
            captions: Sequence[str]) -> Figure:
  """Accuracy and bits of places against the weight, and samples: a row for each caption.

  images: {weight: integers [len(captions), 16, 16, 3]}.
  """
  weights, tall = sorted(found), 0.5 * len(captions) + 0.3
  figure = Figure(figsize=(8.0, 2.6 + tall), layout='constrained')
  (curves,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.6, tall])
  left, right = curves.subplots(1, 2)
  lines = {'caption accuracy': [found[w].accuracy for w in weights]}
  if new := [one for w in weights if (one := found[w].new) is not None]:
    lines['of new captions'] = new
  for name, line in lines.items():
    left.errorbar(weights, [one.value for one in line], yerr=[one.error for one in line],
                  marker='o', ms=4, lw=1, label=name)
  left.set(xlabel='w', ylabel='share of samples', ylim=(0.0, 1.02))
  left.legend(loc='lower right')
  bits = [found[w].places for w in weights]
  right.errorbar(weights, [one.value for one in bits], yerr=[one.error for one in bits],
                 marker='o', ms=4, lw=1, color='C2')
  right.axhline(MOST, ls='--', color='grey')
  # The estimate can be above the most that is possible: it counts pairs, of which there are few.
  highest = max(MOST, *(one.value + one.error for one in bits if np.isfinite(one.value)))
  right.set(xlabel='w', ylabel='bits of places', ylim=(0.0, highest + 0.6))

  sheet(below, {f'w = {w:g}': images[w] for w in weights}, captions)
  return figure


def sheet(figure: FigureBase, columns: Mapping[str, np.ndarray], captions: Sequence[str]) -> None:
  """Draws images: a row for each caption, and a column for each kind of images.

  columns: {name: integers 0 .. 255 [len(captions), H, W, 3]}.
  """
  grid = figure.subplots(len(captions), len(columns), squeeze=False,
                         gridspec_kw={'wspace': 0.0, 'hspace': 0.0})
  for row, axes in enumerate(grid):
    for (name, images), one in zip(columns.items(), axes, strict=True):
      one.imshow(images[row].astype(np.uint8))
      one.set(xticks=[], yticks=[])
      if not row:
        one.set_title(name, fontsize=8)
    axes[0].set_ylabel(captions[row], rotation=0, ha='right', va='center', fontsize=7)
