"""The statistics of an autoencoder's latents, and their picture.

A latent diffusion is trained on s y, the latents y divided by their standard deviation.  The
picture shows how far s y is from N(0, 1), the prior that the KL term of an autoencoder pulls to.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vdm_jax import data
from vdm_jax.likelihood.passes import over_images
from vdm_jax.systems.latent.autoencoder import Autoencoder
from vdm_jax.typing import Array, PyTree

__all__ = ['Statistics', 'Usage', 'draw', 'picture', 'statistics', 'usage']

DRAWN = 1 << 26  # numbers of latents, at most: 256 MiB
BINS = 60        # of a histogram
CHANNELS = 8     # in a picture
WITHIN = 0.999   # of all numbers lie on the axis of the histograms
LEAST = 4.0      # how far this axis reaches at least


class Statistics(NamedTuple):
  """Of s y, over the images and the positions h, w of a latent.  Vectors have one position."""
  scale: float          # s = 1 / the standard deviation of all numbers of y
  images: int
  mean: np.ndarray      # [C]
  std: np.ndarray       # [C]
  edges: np.ndarray     # [bins + 1], symmetric about 0
  density: np.ndarray   # [C, bins]; numbers beyond the edges count too, so its area is at most 1
  mean_at: np.ndarray   # [h, w, C], over the images
  std_at: np.ndarray    # [h, w, C], over the images


class Usage(NamedTuple):
  """How often the entries of a codebook occur."""
  share: np.ndarray     # [entries], decreasing; they sum to 1
  used: int             # entries that occur
  perplexity: float     # exp of the entropy of the shares: as many entries of equal share have it


def draw(model: Callable[[PyTree], Autoencoder], params: PyTree, part: data.Split, key: Array, *,
         count: int, at_once: int) -> np.ndarray:
  """y [n, ...], a latent of each of the first n = `count` images, or of fewer if they are large.

  The draws are those of the first repetition of `over_images` with the same key.
  """
  size = math.prod(model(params).latent_shape)
  return over_images(lambda of, batch, keys: {'y': of.draw(batch[of.field], keys)[0]}, model,
                     params, part, key, label='latents', at_once=at_once,
                     count=min(count, max(1, DRAWN // size)))['y'][0]


def statistics(y: np.ndarray) -> Statistics:
  """The statistics of latents [n, h, w, C], or [n, T, C], or [n, C]."""
  y = y.reshape(len(y), *(1,) * (4 - y.ndim), *y.shape[1:])
  std = float(y.std(dtype=np.float64))
  scale = 1.0 / std if std > 0.0 else 1.0
  each = scale * y.reshape(-1, y.shape[-1])
  reach = max(LEAST, float(np.quantile(np.abs(each), WITHIN)))
  edges = np.linspace(-reach, reach, BINS + 1)
  counts = np.stack([np.histogram(u, edges)[0] for u in each.T])
  over = lambda axes: (scale * y.mean(axes, np.float64), scale * y.std(axes, np.float64))
  (mean, std), (mean_at, std_at) = over((0, 1, 2)), over(0)
  return Statistics(scale, len(y), mean, std, edges, counts / (len(each) * np.diff(edges)),
                    mean_at, std_at)


def usage(index: np.ndarray, entries: int) -> Usage:
  """How often each entry of a codebook occurs among these indices, of any shape."""
  share = np.sort(np.bincount(index.ravel(), minlength=entries) / index.size)[::-1]
  return Usage(share, int(np.count_nonzero(share)), float(np.exp(stats.entropy(share))))


def picture(found: Statistics, data_name: str, codebook: Usage | None = None) -> Figure:
  """A column for each of the first channels: its histogram, and its mean and std by position.

  data_name: names the images in the title.  codebook: a panel below shows how often its entries
  occur.
  """
  height, width, channels = found.mean_at.shape
  shown, at_positions = min(channels, CHANNELS), height * width > 1
  heights = [1.0] + 2 * [0.9 * min(max(height / width, 0.6), 2.0)] * at_positions
  heights += [0.8] * (codebook is not None)
  figure = Figure(figsize=(2.3 * max(shown, 2) + 1.6, 2.2 * sum(heights) + 1.3),
                  layout='constrained')
  grid = figure.add_gridspec(len(heights), shown, height_ratios=heights)
  row = lambda i: [figure.add_subplot(grid[i, c]) for c in range(shown)]
  _histograms(row(0), found)
  if at_positions:
    reach = np.nanmax(np.abs(found.mean_at[..., :shown])) or 1.0
    _maps(figure, row(1), found.mean_at, 'mean', (-reach, reach), 'RdBu_r')
    top = np.nanmax(found.std_at[..., :shown]) or 1.0
    _maps(figure, row(2), found.std_at, 'std', (0.0, top), 'viridis')
  if codebook is not None:
    _entries(figure.add_subplot(grid[-1, :]), codebook)
  of = f', the first {shown} channels' if shown < channels else ''
  shape = f'{height} x {width} x {channels}' if at_positions else f'{channels}'
  figure.suptitle(f'{data_name}: latents y ({shape}) of {found.images:,} examples{of}\n'
                  f'scaled by s = 1 / (standard deviation of y) = {found.scale:.3g}, '
                  'as a latent diffusion sees them', fontsize='medium')
  return figure


def _histograms(row: list, found: Statistics) -> None:
  """For each channel, the histogram of s y over images and positions, and N(0, 1)."""
  at = np.linspace(found.edges[0], found.edges[-1], 201)
  normal = stats.norm.pdf(at)
  top = 1.1 * max(normal.max(), np.nanmax(found.density[:len(row)]))
  for c, axes in enumerate(row):
    axes.stairs(found.density[c], found.edges, fill=True, color='C0', alpha=0.6, label='s y')
    axes.plot(at, normal, color='black', lw=1, label='N(0, 1)')
    axes.set(xlim=(at[0], at[-1]), ylim=(0.0, top), xlabel='s y', xticks=[-3, 0, 3], yticks=[],
             title=f'channel {c}\nmean {found.mean[c]:.2f}, std {found.std[c]:.2f}')
    axes.title.set_fontsize('medium')
  row[0].set_ylabel('density')
  row[0].legend(fontsize='small', loc='upper left', frameon=False, handlelength=1.0)


def _maps(figure: Figure, row: list, values: np.ndarray, name: str, limits: tuple[float, float],
          colours: str) -> None:
  """A heat map [h, w] of each channel, in common colours."""
  for c, axes in enumerate(row):
    drawn = axes.imshow(values[..., c], vmin=limits[0], vmax=limits[1], cmap=colours)
    axes.set(xticks=[], yticks=[])
  row[0].set_ylabel(f'{name}\nby position')
  figure.colorbar(drawn, ax=row, label=f'{name} of s y', fraction=0.05)


def _entries(axes, codebook: Usage) -> None:
  """The shares of a codebook's entries, the most frequent first."""
  entries = len(codebook.share)
  axes.stairs(codebook.share, np.arange(entries + 1), fill=True, color='C0', alpha=0.6)
  axes.axhline(1.0 / entries, color='black', lw=1, label='equal shares')
  axes.set(xlim=(0, entries), ylim=(0.0, None), ylabel='share of positions',
           xlabel='entries of the codebook, most frequent first',
           title=f'{codebook.used:,} of {entries:,} entries occur; perplexity '
           f'{codebook.perplexity:,.1f}')
  axes.title.set_fontsize('medium')
  axes.legend(fontsize='small', frameon=False)
