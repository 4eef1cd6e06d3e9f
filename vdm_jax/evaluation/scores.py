"""All scores of a set of samples, and everything that they depend on, as one result.

Two scores are comparable if the extractor's checksum, the reference's hash and the number of
samples agree.  So these are part of the result.
"""
import json
import math
from typing import NamedTuple

import numpy as np
import rich.table

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.evaluation import features as features_lib
from vdm_jax.evaluation import frechet, manifold
from vdm_jax.evaluation.distances import (
  blocked_kernel_distance,
  energy,
  jackknifed_sliced_wasserstein,
)
from vdm_jax.evaluation.features import Extractor
from vdm_jax.evaluation.references import Reference, digest

MOST_COMPARED = 10_000  # of each set at most, for the scores that compare pairs
K_RECALL, K_COVERAGE = 3, 5  # neighbours, as published
BLOCKS = 20  # of the jackknife of the sliced distance


class Scores(NamedTuple):
  """The result of `score`; a field is None if it needs features that the reference lacks.

  `energy` and `sliced` are of real numbers alone.  Of real numbers, images are examples.
  """
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
  energy: float | None     # the energy distance, in the units of the data
  energy_error: float | None      # one standard error
  sliced: float | None     # the sliced Wasserstein distance; None too for fewer than `BLOCKS`
  sliced_error: float | None      # one standard error
  warning: str             # '' where nothing is doubtful


def score(samples: np.ndarray, reference: Reference, extractor: Extractor, name: str) -> Scores:
  """The scores of samples with features [N, D], called `name`.

  Raises InputError if D differs from the reference's D, if features are not finite, or if either
  set is too small for the number of neighbours.
  """
  count, dimensions = samples.shape
  of_reference = len(reference.statistics.mean)
  if dimensions != of_reference:
    raise InputError('features', None, f'a sample has {dimensions} features, but an example of the '
                     f'reference has {of_reference}',
                     'make the statistics of the reference with the same features')
  if not np.all(np.isfinite(samples)):
    raise InputError('features', None, 'the features of the samples are not finite',
                     'check that the weights belong to these features')
  for flag, n in {'samples': count, 'reference': len(reference.features)}.items():
    if n <= K_COVERAGE and (n or flag == 'samples'):
      raise InputError(flag, None, f'{n} examples are too few for the {K_COVERAGE} nearest '
                       'neighbours of each', f'take at least {K_COVERAGE + 1}, better thousands')
  moments = features_lib.statistics(samples)
  compared = min(count, len(reference.features), MOST_COMPARED)
  kernel = near = cover = by_energy = sliced = (None,) * 2
  if compared:
    data = reference.features[:compared]  # in random order already
    drawn = samples[features_lib.some(count, compared)]
    kernel = blocked_kernel_distance(drawn, data)
    near = manifold.precision_recall(data, drawn, K_RECALL)
    cover = manifold.density_coverage(data, drawn, K_COVERAGE)
    if extractor.levels is None:
      by_energy = blocked_kernel_distance(drawn, data, energy)
      if compared >= BLOCKS:
        sliced = jackknifed_sliced_wasserstein(random.key(0), drawn, data, blocks=BLOCKS)
  return Scores(
      name, count, extractor.name, extractor.checksum, dimensions, reference.name,
      reference.statistics.count, digest(reference),
      frechet.distance(moments, reference.statistics),
      frechet.extrapolated(samples, reference.statistics), compared, *kernel, *near, *cover,
      *by_energy, *sliced,
      frechet.warning(dimensions, samples=count,
                      **{'examples of the reference': reference.statistics.count}))


def table(scores: Scores) -> rich.table.Table:
  """The circumstances of the scores, a row for each score, and doubts below."""
  s = scores
  out = rich.table.Table(show_header=False)
  out.add_column()
  out.add_column(justify='right', overflow='fold')
  shown = lambda value: '-' if value is None else f'{value:.5g}'
  with_error = lambda value, error: shown(value) + ('' if value is None else f' ± {error:.2g}')
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
  out.add_row('kernel distance', with_error(s.kernel, s.kernel_error))
  if s.energy is not None:
    out.add_row('energy distance', with_error(s.energy, s.energy_error))
    out.add_row('sliced Wasserstein', with_error(s.sliced, s.sliced_error))
  for name in ('precision', 'recall', 'density', 'coverage'):
    out.add_row(name, shown(getattr(s, name)))
  notes = [] if s.compared else ['The reference holds no features to compare with one by one.']
  out.caption = '\n'.join([*notes, *filter(None, [s.warning])]) or None
  return out


NAMES = ('Fréchet', 'to infinity', 'kernel distance', 'precision', 'recall', 'density', 'coverage',
         'energy distance', 'sliced Wasserstein', 'reached here')


def figures(scores: Scores) -> dict[str, str]:
  """The scores as text by `NAMES`, for a row of a table.  'reached here' is the first, in words."""
  s = scores
  shown = lambda value: '-' if value is None else f'{value:.2f}'
  kernel = shown(s.kernel) + ('' if s.kernel is None else f' +- {s.kernel_error:.2f}')
  each = [shown(getattr(s, name)) for name in NAMES[3:7]]
  small = lambda value, error: '-' if value is None else f'{value:.4f} +- {error:.4f}'
  return dict(zip(NAMES, [
      shown(s.frechet), shown(s.frechet_infinity), kernel, *each,
      small(s.energy, s.energy_error), small(s.sliced, s.sliced_error),
      f'Fréchet distance {s.frechet:.2f} of {s.count:,} samples' if s.sliced is None else
      f'sliced Wasserstein {s.sliced:.3f} of {s.count:,} samples'], strict=True))


def to_json(scores: Scores) -> str:
  """The fields by name; a number that is not finite is null."""
  finite = lambda u: None if isinstance(u, float) and not math.isfinite(u) else u
  return json.dumps({name: finite(u) for name, u in scores._asdict().items()}, indent=2) + '\n'
