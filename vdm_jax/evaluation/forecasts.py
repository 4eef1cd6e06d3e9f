"""Scores of probabilistic forecasts: quantile losses, CRPS, CRPS_sum, energy score, coverage.

A forecast is a set of S paths of C series over H steps: samples [n, S, H, C] of n forecasts, beside
the target [n, H, C].  Every number is a plain function of the two arrays, in float64.

Papers on neural forecasts call the normalised quantile loss "CRPS", and its value for the sum of
the series "CRPS_sum" (`mean_wQuantileLoss` of gluonts).  These are
sums over 19 levels, so they are no CRPS: for a perfect normal forecast the quantile losses are
1.04826 times the CRPS.  `weighted_quantile_loss` is the number of the papers, and `crps` is the
integral itself.
"""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.table
from matplotlib.figure import Figure
from scipy.special import ndtr

from vdm_jax.errors import InputError, require
from vdm_jax.evaluation.distances import Estimated

__all__ = ['CENTRAL', 'LEVELS', 'NAMES', 'Scores', 'coverage', 'crps', 'crps_of_normal',
           'energy_score', 'fan', 'figures', 'mean', 'quantile_loss', 'quantiles', 'require_levels',
           'scores', 'table', 'weighted_quantile_loss']

LEVELS = tuple(i / 20 for i in range(1, 20))  # 0.05 ... 0.95
CENTRAL = (0.5, 0.9)                          # the central intervals whose coverage is reported
NAMES = ('CRPS', 'CRPS_sum', 'ND', 'NRMSE', '50 % interval', '90 % interval')


def require_levels(levels: Sequence[float]) -> None:
  """Raises InputError unless all levels of quantiles are in [0, 1]."""
  require(all(0.0 <= level <= 1.0 for level in levels), 'levels', list(levels),
          'a level of a quantile is from 0 to 1', 'give such numbers')


def quantiles(samples: np.ndarray, levels: Sequence[float] = LEVELS) -> np.ndarray:
  """The order statistics nearest to these levels: [n, S, ...] -> [n, Q, ...].

  Level q is the sample of rank round((S - 1) q), from 0, and a half is rounded to the even rank.
  gluonts has the same convention.  Raises InputError for a level outside [0, 1].
  """
  require_levels(levels)
  ranks = np.round((samples.shape[1] - 1) * np.asarray(levels, np.float64)).astype(int)
  return np.sort(samples, axis=1)[:, ranks]


def quantile_loss(target: np.ndarray, forecast: np.ndarray, level: float) -> np.ndarray:
  """2 |(forecast - y) (1[y <= forecast] - level)|, of every number: twice the pinball loss."""
  return 2.0 * np.abs((forecast - target) * ((target <= forecast) - level))


def weighted_quantile_loss(target: np.ndarray, samples: np.ndarray,
                           levels: Sequence[float] = LEVELS) -> float:
  """The mean over the levels of sum `quantile_loss` / sum |y|: the "CRPS" of papers on forecasts.

  target: [n, ...]; samples: [n, S, ...].  Raises InputError as `scores` does.
  """
  target, samples = _checked(target, samples)
  return _ratio(_mean_losses(target, samples, levels), target).value


def crps(target: np.ndarray, samples: np.ndarray) -> np.ndarray:
  """The CRPS of the ensemble for every number: [n, ...], in the units of the target.

  E|X - y| - E|X - X'| / 2, with both expectations over the S samples, X = X' included (Gneiting
  and Raftery 2007).  For S independent samples of the true distribution the mean is
  1 + 1/S times the CRPS of that distribution.
  """
  target, samples = _checked(target, samples)
  count = samples.shape[1]
  # sum_ij |x_i - x_j| = 2 sum_i (2 i - S - 1) x_(i), over the sorted samples, i = 1 ... S.
  ranks = (2.0 * np.arange(1, count + 1) - count - 1.0).reshape(-1, *(1,) * (target.ndim - 1))
  spread = (ranks * np.sort(samples, axis=1)).sum(axis=1) / count**2
  return np.abs(samples - target[:, None]).mean(axis=1) - spread


def crps_of_normal(target: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
  """The CRPS of N(mean, std^2) for every number.  Gneiting et al. (2005)."""
  u = (np.asarray(target, np.float64) - mean) / std
  density = np.exp(-0.5 * u**2) / math.sqrt(2.0 * math.pi)
  return std * (u * (2.0 * ndtr(u) - 1.0) + 2.0 * density - 1.0 / math.sqrt(math.pi))


def energy_score(target: np.ndarray, samples: np.ndarray) -> np.ndarray:
  """E|X - y| - E|X - X'| / 2 with the norm over the C series: [n, H].

  The CRPS of vectors: Gneiting and Raftery (2007), the energy score.  target: [n, H, C].
  """
  target, samples = _checked(target, samples)
  near = np.linalg.norm(samples - target[:, None], axis=-1).mean(axis=1)
  # A row of pairs at a time: all S^2 pairs at once would not fit into memory.
  apart = sum(np.linalg.norm(samples - samples[:, i:i + 1], axis=-1).mean(axis=1)
              for i in range(samples.shape[1])) / samples.shape[1]
  return near - 0.5 * apart


def coverage(target: np.ndarray, samples: np.ndarray, central: float) -> Estimated:
  """The share of the targets within the central interval that should hold this share.

  The interval is between the sample quantiles (1 -+ central) / 2, of ranks a and b.  S samples of
  the true distribution cover (b - a) / (S + 1): 0.485 and 0.881 for S = 100, and not 0.5 and 0.9.
  The standard error is over the n forecasts.  Raises InputError unless 0 < central < 1.
  """
  require(0.0 < central < 1.0, 'central', central, 'it is no share', 'give one between 0 and 1')
  target, samples = _checked(target, samples)
  low, high = np.moveaxis(quantiles(samples, [0.5 - central / 2, 0.5 + central / 2]), 1, 0)
  return mean((low <= target) & (target <= high))


def mean(values: np.ndarray) -> Estimated:
  """The mean of values [n, ...], with the standard error over the n forecasts; NaN for one."""
  each = np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1)
  return Estimated(float(each.mean()), _error(each))


class Scores(NamedTuple):
  """The scores of n forecasts.  Standard errors are over the forecasts."""
  crps: Estimated                    # the normalised quantile loss of all series
  crps_sum: Estimated                # the same of the sum of the series
  nd: float                          # sum |y - median| / sum |y|
  nrmse: float                       # root mean square of y - mean, divided by the mean of |y|
  coverage: dict[float, Estimated]   # {central share: the share of the targets inside}
  series: dict[str, Estimated]       # the normalised quantile loss of each series


def scores(target: np.ndarray, samples: np.ndarray, names: Sequence[str] = (),
           weights: np.ndarray | None = None) -> Scores:
  """The scores of forecasts.  target: [n, H, C]; samples: [n, S, H, C].

  Args:
    names: of the series.  Default: '0', '1', ...
    weights: factors of the series [C], e.g. 1 / mean |y|, so that series of different units count
      alike.  They change CRPS and CRPS_sum of the whole, but no score of one series.

  Raises InputError for arrays that do not fit each other or are not finite, and for targets that
  are all zero, since the scores are relative to their size.
  """
  target, samples = _checked(target, samples)
  require(target.ndim == 3, 'target', target.shape, 'it must have the axes of forecasts, steps and '
          'series', 'give [n, H, C]')
  if weights is not None:
    target, samples = target * weights, samples * weights
  names = list(names) or [str(i) for i in range(target.shape[-1])]
  require(len(names) == target.shape[-1], 'names', names, f'there are {target.shape[-1]} series',
          'give one name for each')
  losses, total, sums = _mean_losses(target, samples), target.sum(axis=-1), samples.sum(axis=-1)
  size = np.abs(target).mean()
  return Scores(
      _ratio(losses, target), _ratio(_mean_losses(total, sums), total),
      float(np.abs(target - quantiles(samples, [0.5])[:, 0]).mean() / size),
      float(np.sqrt(np.square(target - samples.mean(axis=1)).mean()) / size),
      {central: coverage(target, samples, central) for central in CENTRAL},
      {name: _ratio(losses[..., i], target[..., i]) for i, name in enumerate(names)})


def _checked(target: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Both in float64.  Raises InputError."""
  target, samples = np.asarray(target, np.float64), np.asarray(samples, np.float64)
  fits = (samples.ndim == target.ndim + 1 and samples.shape[0] == target.shape[0]
          and samples.shape[2:] == target.shape[1:] and samples.size > 0)
  require(fits, 'samples', samples.shape, f'the targets are {target.shape}',
          'give [n, S, H, C] for targets [n, H, C]')
  for name, array in (('target', target), ('samples', samples)):
    if not np.isfinite(array).all():
      raise InputError(name, None, 'it holds numbers that are not finite',
                       'leave these forecasts out')
  return target, samples


def _mean_losses(target: np.ndarray, samples: np.ndarray, levels: Sequence[float] = LEVELS
                 ) -> np.ndarray:
  """The mean of `quantile_loss` over the levels, of every number."""
  at_levels = np.moveaxis(quantiles(samples, levels), 1, 0)
  return np.mean([quantile_loss(target, forecast, level)
                  for level, forecast in zip(levels, at_levels, strict=True)], axis=0)


def _ratio(losses: np.ndarray, target: np.ndarray) -> Estimated:
  """sum(losses) / sum |target|, with the standard error of a ratio over the first axis."""
  above, below = (u.reshape(len(u), -1).sum(axis=1) for u in (losses, np.abs(target)))
  require(below.sum() > 0.0, 'target', None, 'all targets are 0, and the score is relative to '
          'their size', 'leave this series out')
  value = above.sum() / below.sum()
  return Estimated(float(value), _error(above - value * below) / float(below.mean()))


def _error(each: np.ndarray) -> float:
  """The standard error of the mean of [n]; NaN for one number."""
  return float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan


# ------------------------------------------------------- table and picture


def figures(found: Scores) -> dict[str, str]:
  """The measurements as text by `NAMES`, for a row of a table."""
  return dict(zip(NAMES, [_shown(found.crps), _shown(found.crps_sum), f'{found.nd:.4f}',
                          f'{found.nrmse:.4f}', *map(_shown, found.coverage.values())],
                  strict=True))


def _shown(one: Estimated) -> str:
  return f'{one.value:.4f} +- {one.error:.4f}'


def table(found: Scores, title: str = '') -> rich.table.Table:
  """A row for each measurement, and one for each series."""
  out = rich.table.Table('score', 'value', title=title or None)
  for name, text in figures(found).items():
    out.add_row(name, text)
  out.add_section()
  for name, one in found.series.items():
    out.add_row(f'CRPS of {name}', _shown(one))
  return out


def fan(history: np.ndarray, at_levels: Mapping[float, np.ndarray], names: Sequence[str],
        target: np.ndarray | None = None) -> Figure:
  """A fan chart: for each series its past, the median and the central intervals of `CENTRAL`.

  history: [P, C]; at_levels: {level: [H, C]}, with 0.5 and both ends of every interval; target:
  the observed values [H, C], if they are known.  Steps count from the forecast on, and the past is
  negative.
  """
  count = len(names)
  columns = 1 if count == 1 else 2
  rows = -(-count // columns)
  figure = Figure(figsize=(5.0 * columns, 2.0 * rows + 0.4), layout='constrained')
  axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
  ahead = np.arange(1, len(at_levels[0.5]) + 1)
  nearest = lambda level: at_levels[min(at_levels, key=lambda one: abs(one - level))]
  for i, (name, one) in enumerate(zip(names, axes, strict=False)):
    one.plot(np.arange(1 - len(history), 1), history[:, i], color='black', lw=1, label='past')
    for central in sorted(CENTRAL, reverse=True):
      one.fill_between(ahead, nearest(0.5 - central / 2)[:, i], nearest(0.5 + central / 2)[:, i],
                       color='C0', alpha=0.25, lw=0, label=f'{100 * central:.0f} %')
    one.plot(ahead, at_levels[0.5][:, i], color='C0', lw=1.2, label='median')
    if target is not None:
      one.plot(ahead, target[:, i], color='C3', lw=1, label='observed')
    one.axvline(0.5, color='grey', lw=0.5)
    one.set_title(name, fontsize=9)
  for one in axes[count:]:
    one.set_axis_off()
  for one in axes[max(count - columns, 0):count]:
    one.set_xlabel('steps ahead')
  axes[0].legend(fontsize=7, loc='upper left')
  return figure
