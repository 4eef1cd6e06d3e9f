"""Compares samplers of one model: their distance to the test data, by number of evaluations.

Two distances that need no download are measured on x itself: the sliced Wasserstein distance and
the energy distance.  The floor is the distance of equally many training examples from the
test data.  Samples of a perfect model would have this distance.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
import tqdm
from matplotlib.figure import Figure

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.evaluation.distances import Estimated, kernel_distance, sliced_wasserstein
from vdm_jax.samplers import grids
from vdm_jax.samplers.drawing import draw
from vdm_jax.typing import Model, Process, PyTree, SamplerMaker


class Entrant(NamedTuple):
  """A sampler, and the grid [N + 1] on which it is judged with N steps."""
  make: SamplerMaker
  times: Callable[[Process, int], np.ndarray] = lambda process, steps: grids.uniform(steps)


class Quality(NamedTuple):
  """Distances of a set of samples from the test data."""
  sliced: float
  kernel: Estimated


class Comparison(NamedTuple):
  """The result of `compare`."""
  results: dict[str, dict[int, Quality]]  # name -> most evaluations for a sample -> quality
  refused: dict[str, dict[int, str]]      # name -> evaluations asked for -> why there is no result
  floor: Quality                          # of the training data
  evaluations: tuple[int, ...]            # that were asked for
  count: int                              # samples drawn with each


def compare(model: Callable[[PyTree], Model], params: PyTree, entrants: Mapping[str, Entrant], *,
            evaluations: Sequence[int], count: int, test: np.ndarray, train: np.ndarray,
            cond: Callable[[np.ndarray], PyTree], seed: int = 0, batch_size: int = 100
            ) -> Comparison:
  """The quality of `count` samples of each sampler after each number of evaluations.

  evaluations: the evaluations of the network for one sample; a sampler takes as many steps as these
  allow, and its result stands at the most evaluations that these steps may take.  test, train:
  integers [n, ...]; the first `count` of train give the floor.  cond, seed, batch_size: as for
  `drawing.draw`; all samplers start from the same noise.

  Raises InputError if a sampler chooses its number of evaluations itself.
  """
  m = model(params)
  features = lambda images: np.asarray(m.encode(jnp.asarray(images))).reshape(len(images), -1)
  reference = features(test)

  def quality(images):
    x = features(images)
    return Quality(sliced_wasserstein(random.key(0), x, reference),
                   kernel_distance(x, reference))

  results, refused = {name: {} for name in entrants}, {name: {} for name in entrants}
  costs = {}
  for name, entrant in entrants.items():
    sampler = entrant.make(m.denoise, m.process)
    if not sampler.evaluations:
      raise InputError('samplers', name, 'it chooses its evaluations itself', 'leave it out')
    costs[name] = sampler.evaluations, sampler.extra_evaluations
  with tqdm.tqdm(total=len(entrants) * sum(evaluations), unit='evaluation', dynamic_ncols=True,
                 disable=jax.process_index() != 0) as bar:
    for name, entrant in entrants.items():
      each, extra = costs[name]
      for budget in evaluations:
        bar.set_description(f'{name}, {budget}')
        steps = max(budget - extra, 0) // each
        try:
          if not steps:
            raise InputError(problem=f'one step may take {each + extra} evaluations')
          batches = draw(model, params, entrant.make, times=entrant.times(m.process, steps),
                         start=0, stop=count, seed=seed, batch_size=batch_size, cond=cond)
          images = np.concatenate([batch.data for batch in batches])
          results[name][steps * each + extra] = quality(images)
        except InputError as error:  # fewer steps than the method needs, or too few to stay finite
          refused[name][budget] = str(error)
        bar.update(budget)
  return Comparison(results, refused, quality(train[:count]), tuple(evaluations), count)


def table(comparison: Comparison) -> rich.table.Table:
  """One row for each sampler and number of evaluations, and the floor; then notes on empty rows."""
  out = rich.table.Table('sampler', 'evaluations', 'sliced Wasserstein', 'energy distance',
                         title=f'{comparison.count} samples of each against the test data')
  for column in out.columns[1:]:
    column.justify = 'right'
  shown = lambda q: (f'{q.sliced:.4f}', f'{q.kernel.value:.5f} ± {q.kernel.error:.5f}')
  for name, qualities in comparison.results.items():
    rows = {**dict.fromkeys(comparison.refused[name], ('-', '-')),
            **{evaluations: shown(q) for evaluations, q in qualities.items()}}
    for evaluations, cells in sorted(rows.items()):
      out.add_row(name, str(evaluations), *cells)
    out.add_section()
  out.add_row('training data', '', *shown(comparison.floor))
  reasons = [f'{name}, {budget}: {why}' for name, of in comparison.refused.items()
             for budget, why in of.items()]
  out.caption = '\n'.join(reasons) or None
  return out


def picture(comparison: Comparison) -> Figure:
  """Both distances against the number of evaluations, a line for each sampler, and the floor.

  An energy distance may be estimated below 0.  Its point then leaves the picture at the bottom, and
  the floor is drawn at its standard error.
  """
  figure = Figure(figsize=(12, 5), layout='constrained')
  left, right = figure.subplots(1, 2)
  drawn = {name: qualities for name, qualities in comparison.results.items() if qualities}
  for i, (name, qualities) in enumerate(drawn.items()):
    x = sorted(qualities)
    style = {'label': name, 'marker': 'osv^Dx+*'[i // 10 % 8], 'color': f'C{i % 10}', 'ms': 5,
             'lw': 1}
    left.plot(x, [qualities[n].sliced for n in x], **style)
    right.errorbar(x, [qualities[n].kernel.value for n in x],
                   yerr=[qualities[n].kernel.error for n in x], **style)
  figure.legend(*left.get_legend_handles_labels(), loc='outside right upper')

  sliced, (value, error) = comparison.floor
  for axes, name, height, text in (
      (left, 'sliced Wasserstein', sliced, f'{sliced:.3g}'),
      (right, 'energy', max(value, error), f'{value:.2g} ± {error:.2g}')):
    line = axes.axhline(height, ls='--', color='grey', label=f'training data: {text}')
    axes.legend(handles=[line], loc='upper right')
    axes.set(xscale='log', xlabel='evaluations of the network',
             title=f'{name} distance to test data')
    axes.set_xticks(comparison.evaluations, map(str, comparison.evaluations))
    axes.minorticks_off()
    axes.set_yscale('log', nonpositive='clip')
  right.set_ylim(bottom=0.5 * error)
  return figure
