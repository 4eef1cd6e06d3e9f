"""The relations that must hold between the rows of a ledger.

All rows are of the same images, so two rows are compared image by image.  The mean of the
differences has its own standard error, much smaller than the error of either row.

  max_k log w_k >= log 1/K sum_k w_k >= 1/K sum_k log w_k      the same K paths, exactly
  iw@K'xT <= iw@KxT, K' > K                    more paths tighten the bound
  iw@1xT = vlb@T                               the same bound, by whole paths and by single times
  codec@T <= vlb@T, to one percent             bits of a file; its bins cost a little
  immse = vlb                                  the same integral, by another formula and other draws
  vlb under any schedule of the same ends = vlb
  reconstruction and latent terms = their closed forms
  0 <= bits/dim <= what no network at all reaches, and terms >= 0         (`ranges`)
  vlb@nT <= vlb@T, vlb <= vlb@T                usual, but no theorem of a network: a warning
  vlb@T <= codec@T, to one percent             usual: an escape may cost less than a Gaussian's tail

The probability flow and the reverse SDE are the same model only if the score is exact (Song et al.
2021, `Maximum likelihood training`, section 4).  So rows of the flow are never compared with rows
of the SDE.  Rows of different images, or of different weights, are never compared either.
"""
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from vdm_jax.ledger.rows import Measured
from vdm_jax.likelihood.statistics import RARE, ROUNDING

__all__ = ['check', 'compare', 'ranges']

CODED = 0.01  # what the bins of a codec may cost, a share of the bound
FLOAT32_EPS = float(np.finfo(np.float32).eps)


def check(measured: Sequence[Measured],
          closed_forms: Mapping[str, tuple[np.ndarray, float]] | None = None) -> list[dict]:
  """All relations that these rows admit, as dicts for JSON.

  The entries: name; difference: of the means, in bits/dim, left side minus right side;
  standard_error: of the difference; passed; serious: False for a relation whose failure is only
  unusual; meaning: of a failure. closed_forms: terms of the bound in closed form, by name: bits/dim
  of each image [N], and the standard error of the mean of that many draws around them.
  """
  by = lambda **values: [m for m in measured
                         if all(m.row[name] == value for name, value in values.items())]
  kernel = 'steps', 'variance', 'decoder'
  iw, chains = by(family='iw'), [m for m in by(family='vlb') if m.row['steps']]
  continuous = by(family='vlb', steps=None, schedule=None)
  checks = []

  for m in iw:
    checks.append(_exact(f'{m.row["estimate"]} <= its paths one by one',
                         m.bits['total'] - m.bits['single'],
                         'the logarithm of a mean is no less than the mean of the logarithms'))
    checks.append(_exact(f'the best path of {m.row["estimate"]} <= it',
                         m.bits['best'] - m.bits['total'],
                         'a mean is no more than the largest: the weights were added and not '
                         'divided by their number, a -log K is missing'))
  for few, many in itertools.permutations(iw, 2):
    if _same(few, many, *kernel) and few.row['paths'] < many.row['paths']:
      checks.append(compare(many, '<=', few, 'more paths loosen the bound: p(data) is not the mean '
                            'of their weights'))
  for m, chain in itertools.product(iw, chains):
    if _same(m, chain, *kernel):
      checks.append(compare(m, '=', chain, 'whole paths and single times disagree on one bound: a '
                            'transition has another density in the one than in the other',
                            part='single', name=f'{m.row["estimate"]}, its paths one by one'))
  for m, chain in itertools.product(by(family='codec'), chains):
    if _same(m, chain, *kernel):
      checks.append(compare(m, '<=', chain, 'a file has more bits than the bound: a latent is '
                            'drawn from another density than it is paid for, or from bits that are '
                            'not random', within=CODED))
      checks.append(compare(chain, '<=', m, 'a file has fewer bits than the bound: latents lie so '
                            'far from where the network expects them that the codec has cheaper '
                            'words for them than a Gaussian, so it is not trained well at some '
                            'noise level', within=CODED, serious=False))
  for m, vlb in itertools.product(by(family='immse'), continuous):
    checks.append(compare(m, '=', vlb, 'two formulae of one integral, each with draws of its own, '
                          'disagree: the slope of the schedule does not lead from one of its ends '
                          'to the other, or one of the two is not drawn as it is weighted'))
  for m, vlb in itertools.product(by(family='vlb', steps=None), continuous):
    if m.row['schedule']:
      checks.append(compare(m, '=', vlb, 'the bound depends on more than the ends of the schedule: '
                            'the network is told t and not the log-SNR, or the derivative of a '
                            'schedule is wrong'))
  for m, (name, value) in itertools.product(continuous, (closed_forms or {}).items()):
    checks.append(_against(m, name, value))
  multiple = lambda n, of: n > of and n % of == 0  # its grid has all times of the other
  finer = [(fine, coarse) for fine, coarse in itertools.permutations(chains, 2)
           if _same(fine, coarse, *kernel[1:]) and multiple(fine.row['steps'], coarse.row['steps'])]
  limits = [(vlb, chain) for vlb, chain in itertools.product(continuous, chains)
            if chain.row['variance'] == 'small' and _same(vlb, chain, 'decoder')]
  for fine, coarse in [*finer, *limits]:
    checks.append(compare(fine, '<=', coarse, 'more steps loosen the bound: the network is not '
                          'trained well at some noise level', serious=False))
  return [one for one in checks if one is not None]


def compare(left: Measured, sign: str, right: Measured, meaning: str, *, part: str = 'total',
            name: str = '', serious: bool = True, within: float = 0.0) -> dict | None:
  """One relation as in `check`, for your own rows: left = right, or left <= right, in expectation.

  The result is None if the two rows have different images or weights, or a single draw.

  Args:
    sign: '=' or '<='.
    meaning: of a failure.
    part: of the left row.
    name: of the left side; by default its row's name.
    within: the share of the right side by which the two may differ in expectation.
  """
  if not _comparable(left, right):
    return None
  to = f', to {100 * within:g} %' if within else ''
  return _judged(f'{name or left.row["estimate"]} {sign} {right.row["estimate"]}{to}', sign,
                 left.bits[part] - right.bits['total'], meaning, serious,
                 margin=within * abs(float(np.mean(right.bits['total']))))


def ranges(measured: Sequence[Measured], levels: int | None, data_space: bool = True) -> list[dict]:
  """Checks that every row is in its range, and that terms which cannot be negative are not.

  The results are like the relations of `check`.  bits/dim of discrete data are at least 0.  They
  are at most log2(levels), the cost of equal odds for all levels, plus the diffusion term of a
  network that returns zeros, 1/2 E|eps|^2 = 1/2 at each log-SNR.  A network above this maximum is
  worse than none.  levels is None for real numbers; their density, and so the reconstruction, has
  no such range.  data_space: see `typing.Model`.  False for a model of the latents of images: its
  bits have no maximum, since an autoencoder may cost any number of bits.
  """
  checks = []
  for m in measured:
    if levels is not None:
      range_ = m.row['logsnr_max'] - m.row['logsnr_min']
      limit = math.log2(levels) + range_ / (2.0 * math.log(2.0))
      below, above = -m.bits['total'], m.bits['total'] - limit
      outside = max(below, above, key=np.mean) if data_space else below
      name, zeros = f'0 <= {m.row["estimate"]}', ''
      if data_space:
        name += f' <= {limit:.1f}'
        zeros = ', and a network that returns zeros costs no more than the upper limit'
      checks.append(_at_most_0(
          name, outside, f'data of so many levels have no probability above 1{zeros}: a formula is '
          'wrong, or data, decoder and network do not belong together'))
    # The density of what is continuous may be above 1.
    of_numbers = (levels is not None and data_space
                  and m.row['decoder'] != 'normal, of the dequantised')
    terms = [name for name in ('reconstruction', 'latent', 'diffusion')
             if name in m.bits and (of_numbers or name != 'reconstruction')]
    if terms:
      worst = min(terms, key=lambda name: np.min(m.bits[name]))
      checks.append(_at_most_0(
          f'terms of {m.row["estimate"]} >= 0', -m.bits[worst], f'the {worst} term is negative on '
          'some examples, but a divergence or a cost of coding on each: a schedule rises in t, or '
          'the decoder is none')
          | {'passed': bool(np.min(m.bits[worst]) >= -1e-3)})  # rounding, times T
  return checks


def _at_most_0(name, values, meaning):
  """`_judged`, with a verdict on a single draw too."""
  judged = _judged(name, '<=', values, meaning, True)
  if judged is not None:
    return judged
  mean = float(np.mean(values))
  return {'name': name, 'difference': mean, 'standard_error': None, 'passed': mean <= ROUNDING,
          'serious': True, 'meaning': meaning}


def _same(a: Measured, b: Measured, *names: str) -> bool:
  return all(a.row[name] == b.row[name] for name in names)


def _comparable(a: Measured, b: Measured) -> bool:
  """Whether two rows have the same images, by their checksum, and the same weights."""
  images = lambda m: tuple(m.row['dataset'][name] for name in ('sha256', 'examples'))
  return images(a) == images(b) and _same(a, b, 'checkpoint')


def _against(measured, name, expected):
  """The check of a term of a bound against its closed form."""
  value, error = expected
  return _judged(f'{name} term of {measured.row["estimate"]} = its closed form', '=',
                 measured.bits[name] - value,
                 f'at this end of the schedule the {name} term is another: the coding of the data, '
                 'the decoder or the prior is wrong, or the decoder is not decoders.Pixels', True,
                 scale=float(np.mean(value)), error=error)


def _exact(name, difference, meaning):
  """The check of a difference that is at most 0 for every image and every draw."""
  return {'name': name, 'difference': float(np.mean(difference)), 'standard_error': 0.0,
          'passed': bool(np.max(difference) <= ROUNDING), 'serious': True, 'meaning': meaning}


def _judged(name, sign, difference, meaning, serious, scale=1.0, error=None, margin=0.0):
  """difference: [R, N] bits/dim; for each image its mean is 0, or at most 0, up to `margin`.
  """
  mean = float(np.mean(difference))
  if error is None:
    error, freedom = _standard_error(difference)
    if error is None:
      return None
    # Few images or repetitions tell little of their own spread: Student's t, as rare as four
    # standard deviations of a normal.
    allowed = error * stats.t.isf(RARE, freedom)
  else:
    allowed = _rare_events(scale, error)
  # A log probability near 0 is rounded as 1 is.
  allowed += max(ROUNDING * abs(scale), FLOAT32_EPS) + margin
  passed = (abs(mean) if sign == '=' else mean) <= allowed
  return {'name': name, 'difference': mean, 'standard_error': error, 'passed': bool(passed),
          'serious': serious, 'meaning': meaning}


def _rare_events(mean: float, error: float) -> float:
  """The distance that a sum of rare events, with this mean and error, may have from its mean.

  If a Poisson number of events of one size is drawn, (mean / error)^2 events are expected, and
  error^2 / mean is their size.  With many events, the distance is four standard errors and one
  event.  With few events, a single event may be many standard errors.
  """
  if not (mean > 0.0 and error > 0.0):
    return 0.0
  expected = (mean / error)**2
  return error**2 / mean * (float(stats.poisson.isf(RARE, expected)) + 1.0 - expected)


def _standard_error(difference: np.ndarray) -> tuple[float | None, float]:
  """The error of the mean over these images, and its degrees of freedom; (None, inf) for one draw.

  Each image has its own expectation, so only the draws matter.  Their spread is taken from
  repetition to repetition, image by image.  With a single repetition it is taken from image to
  image, which includes the spread of the draws.
  """
  r, n = difference.shape
  if r > 1:
    return math.sqrt(np.sum(np.var(difference, axis=0, ddof=1)) / r) / n, n * (r - 1)
  if n > 1:
    return float(np.std(difference, ddof=1)) / math.sqrt(n), n - 1
  return None, math.inf
