"""All scores of a set of samples, and everything that they depend on, as one result.

Two scores are comparable if the extractor's checksum, the reference's hash and the number of
samples agree.  So these are part of the result.
"""
import json
import math
from typing import NamedTuple

import numpy as np
import rich.table

from vdm_jax.errors import InputError
from vdm_jax.evaluation import features as features_lib
from vdm_jax.evaluation import frechet, manifold
from vdm_jax.evaluation.distances import blocked_kernel_distance
from vdm_jax.evaluation.features import Extractor
from vdm_jax.evaluation.references import Reference, digest

MOST_COMPARED = 10_000  # of each set at most, for the scores that compare pairs
K_RECALL, K_COVERAGE = 3, 5  # neighbours, as published


class Scores(NamedTuple):
  """The result of `score`; a field is None if it needs features that the reference lacks."""
  samples: str
  count: int
  extractor: str
  checksum: str            # of the extractor's weights, '' where it has none
  dimensions: int
  reference: str
  reference_count: int     # 0: its file does not say
  reference_hash: str
  frechet: float
  frechet_infinity: float | None  # extrapolated; None too for fewer samples than it needs
  compared: int            # of each set, in what follows
  kernel: float | None     # MMD^2 with the cubic polynomial kernel: on Inception's features, KID
  kernel_error: float | None      # one standard error
  precision: float | None
  recall: float | None
  density: float | None
  coverage: float | None
  warning: str             # '' where nothing is doubtful


def score(samples: np.ndarray, reference: Reference, extractor: Extractor, name: str) -> Scores:
  """The scores of samples with features [N, D], called `name`.

  Raises InputError if D differs from the reference's D, if features are not finite, or if either
  set is too small for the number of neighbours.
  """
  count, dimensions = samples.shape
  of_reference = len(reference.statistics.mean)
  if dimensions != of_reference:
    raise InputError('features', None, f'a sample has {dimensions} features, but an image of the '
                     f'reference has {of_reference}',
                     'make the statistics of the reference with the same features')
  if not np.all(np.isfinite(samples)):
    raise InputError('features', None, 'the features of the samples are not finite',
                     'check that the weights belong to these features')
  for flag, n in {'samples': count, 'reference': len(reference.features)}.items():
    if n <= K_COVERAGE and (n or flag == 'samples'):
      raise InputError(flag, None, f'{n} images are too few for the {K_COVERAGE} nearest '
                       'neighbours of each', f'take at least {K_COVERAGE + 1}, better thousands')
  moments = features_lib.statistics(samples)
  compared = min(count, len(reference.features), MOST_COMPARED)
  kernel, near, cover = (None,) * 2, (None,) * 2, (None,) * 2
  if compared:
    data = reference.features[:compared]  # in random order already
    drawn = samples[features_lib.some(count, compared)]
    kernel = blocked_kernel_distance(drawn, data)
    near = manifold.precision_recall(data, drawn, K_RECALL)
    cover = manifold.density_coverage(data, drawn, K_COVERAGE)
  return Scores(
      name, count, extractor.name, extractor.checksum, dimensions, reference.name,
      reference.statistics.count, digest(reference),
      frechet.distance(moments, reference.statistics),
      frechet.extrapolated(samples, reference.statistics), compared, *kernel, *near, *cover,
      frechet.warning(dimensions, samples=count,
                      **{'images of the reference': reference.statistics.count}))


def table(scores: Scores) -> rich.table.Table:
  """The circumstances of the scores, a row for each score, and doubts below."""
  s = scores
  out = rich.table.Table(show_header=False)
  out.add_column()
  out.add_column(justify='right', overflow='fold')
  shown = lambda value: '-' if value is None else f'{value:.5g}'
  out.add_row('samples', s.samples)
  out.add_row('  number', f'{s.count:,}')
  out.add_row('reference', s.reference)
  out.add_row('  number', f'{s.reference_count:,}' if s.reference_count else 'not in its file')
  out.add_row('  hash', s.reference_hash)
  out.add_row('features', s.extractor)
  out.add_row('  number', f'{s.dimensions:,}')
  out.add_row('  checksum', s.checksum or '-')
  out.add_section()
  out.add_row('Fréchet distance', shown(s.frechet))
  out.add_row('  n to infinity', shown(s.frechet_infinity))
  out.add_section()
  out.add_row('of each, below', f'{s.compared:,}')
  out.add_row('kernel distance', shown(s.kernel) + (
      '' if s.kernel is None else f' ± {s.kernel_error:.2g}'))
  for name in ('precision', 'recall', 'density', 'coverage'):
    out.add_row(name, shown(getattr(s, name)))
  notes = [] if s.compared else ['The reference holds no features to compare with one by one.']
  out.caption = '\n'.join([*notes, *filter(None, [s.warning])]) or None
  return out


NAMES = ('Fréchet', 'to infinity', 'kernel distance', 'precision', 'recall', 'density', 'coverage',
         'reached here')


def figures(scores: Scores) -> dict[str, str]:
  """The scores as text by `NAMES`, for a row of a table.  'reached here' is the first, in words."""
  s = scores
  shown = lambda value: '-' if value is None else f'{value:.2f}'
  kernel = shown(s.kernel) + ('' if s.kernel is None else f' +- {s.kernel_error:.2f}')
  each = [shown(getattr(s, name)) for name in NAMES[3:7]]
  return dict(zip(NAMES, [
      shown(s.frechet), shown(s.frechet_infinity), kernel, *each,
      f'Fréchet distance {s.frechet:.2f} of {s.count:,} samples'], strict=True))


def to_json(scores: Scores) -> str:
  """The fields by name; a number that is not finite is null."""
  finite = lambda u: None if isinstance(u, float) and not math.isfinite(u) else u
  return json.dumps({name: finite(u) for name, u in scores._asdict().items()}, indent=2) + '\n'
