"""The diffusion term of the bound as a density over log-SNR, which shows where the bits are.

  diffusion term = int 1/2 E|eps - eps_hat|^2 dlogsnr

In any interval of log-SNR, the draws made there add up to the term of that interval.  The best
*linear* denoiser belongs to a Gaussian with the moments of the data (`gaussian`).  So a trained
network's density stays below the density of the Gaussian, whose mean over an interval is exact.
The moments come from a sample, and fit the sample better than other images.  So with few images the
Gaussian's density is a little too low.
"""
from typing import NamedTuple

import numpy as np
from scipy import stats

from vdm_jax.likelihood.bounds import BoundSamples
from vdm_jax.likelihood.gaussian import Moments
from vdm_jax.likelihood.statistics import RARE, ROUNDING
from vdm_jax.units import bits_per_dim


class Density(NamedTuple):
  """A density in M intervals of logsnr; errors are standard errors over images, 0 for one image."""
  edges: np.ndarray            # [M + 1]  increasing
  mean: np.ndarray             # [M]      bits/dim per unit of logsnr
  error: np.ndarray            # [M]
  running: np.ndarray          # [M + 1]  bits/dim of the diffusion above an edge and of the terms
                               #          at the data; the latent term joins at the lowest edge
  running_error: np.ndarray    # [M + 1]
  gaussian: np.ndarray | None  # [M]      upper bound on that of the optimal denoiser
  above: np.ndarray            # [M]      whether the mean is beyond that by more than its error


def by_image(samples: BoundSamples, edges: np.ndarray) -> np.ndarray:
  """Nats per unit of logsnr of each image, between consecutive `edges`: [N, M].

  Draws outside the edges count towards the nearest interval.
  """
  images, bins = samples.logsnr.shape[1], len(edges) - 1
  place = np.clip(np.searchsorted(edges, samples.logsnr, side='right') - 1, 0, bins - 1)
  place += bins * np.arange(images)[:, None]
  total = np.bincount(place.ravel(), samples.diffusion.astype(np.float64).ravel(), images * bins)
  draws = samples.logsnr.size / images
  return total.reshape(images, bins) / draws / np.diff(edges)


def density(samples: BoundSamples, shape: tuple[int, ...], moments: Moments | None = None
            ) -> Density:
  """The density of the images in `samples`.

  moments: moments of the training data; needed only if a level depends on nothing but z.
  """
  bins = int(np.clip(samples.logsnr.size // 200, 8, 60))
  low, high = samples.logsnr.min(), samples.logsnr.max()
  if low == high:  # of a single draw
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, bins + 1, dtype=np.float64)
  each = bits_per_dim(by_image(samples, edges), shape)
  terms = {name: bits_per_dim(u.mean(axis=0), shape) for name, u in samples.terms.items()}
  at_data = sum(u for name, u in terms.items() if name not in ('diffusion', 'latent'))
  running = np.cumsum(np.column_stack([at_data, (each * np.diff(edges))[:, ::-1]]), axis=1)
  running[:, -1] += terms['latent']
  mean, error = _over_images(each)
  gaussian, above = None, np.zeros(bins, bool)
  if moments is not None:
    error_there = moments.eps_error_between(edges[:-1], edges[1:])
    gaussian = bits_per_dim(0.5 * np.asarray(error_there, np.float64), shape)
    if len(each) > 1:
      above = mean - gaussian > stats.t.isf(RARE, len(each) - 1) * error + ROUNDING
  return Density(edges, mean, error, *_over_images(running[:, ::-1]), gaussian, above)


def _over_images(values):
  """Mean and standard error over the first axis."""
  n = len(values)
  error = np.std(values, axis=0, ddof=1) / n**0.5 if n > 1 else np.zeros(values.shape[1])
  return values.mean(axis=0), error


def check(bound: Density) -> dict:
  """A check like `ledger.relations.check`, for the interval with the largest doubt."""
  excess = bound.mean - bound.gaussian
  worst = int(np.argmax(np.where(bound.above, excess, -np.inf) if bound.above.any() else excess))
  low, high = bound.edges[worst], bound.edges[worst + 1]
  return {'name': 'density of vlb <= best linear denoiser',
          'difference': float(excess[worst]), 'standard_error': float(bound.error[worst]),
          'passed': not bound.above.any(), 'serious': False,
          'meaning': f'a linear denoiser does better, most of all at log-SNR {low:.1f} to '
                     f'{high:.1f}: the network is not trained there, or is not given what it was '
                     'trained on'}
