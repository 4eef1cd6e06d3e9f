"""Quality against evaluations: one teacher of the digits, and the students distilled from it.

All runs are systems of configs/digits/distilled.py with one network, and each student makes as many
updates.  A point is a sampler of a run: the evaluations of the network that a sample takes, and the
Fréchet distance of the samples to the training images in the features of a classifier of the
digits.  Its standard error is a jackknife's.
"""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.table
from matplotlib import ticker
from matplotlib.figure import Figure

from vdm_jax import runs
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.evaluation import frechet
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.runs import pictures, scoring, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.studies import toys
from vdm_jax.systems.distilled import progressive
from vdm_jax.train import metrics

__all__ = ['POINTS', 'Point', 'RUNS', 'Result', 'Run', 'picture', 'study', 'table']

PAIRS, BATCH, SHOWN = 5000, 250, 10
MOST = 320_000  # evaluations of a point: a sampler of more than 32 draws fewer than 10,000 samples
WEIGHT = 1.0   # w of the guided points


class Run(NamedTuple):
  """A system of configs/digits/distilled.py, and what it is made from."""
  start: str = ''     # the run that it starts from, whose pairs it learns if it learns pairs
  pairs: tuple = ()   # the sampler of these pairs, and its steps
  passes: int = 3     # evaluations of a network for each image of an update; a gradient counts two


class Point(NamedTuple):
  """A sampler of a run."""
  line: str           # its line in the picture
  run: str
  sampler: str
  steps: int
  phase: float = 1.0  # how much of its updates the run has made
  w: float | None = None


class Result(NamedTuple):
  """A point as it was measured."""
  point: Point
  evaluations: int    # for a sample
  samples: int
  distance: float
  error: float        # one standard error
  images: np.ndarray  # the first ten


RUNS = {
    'teacher': Run(),
    'progressive': Run('teacher', passes=5),
    'consistency': Run('teacher', passes=6),
    'knowledge': Run('teacher', ('dpmpp_2m', 12)),
    'reflow': Run('teacher', ('dpmpp_2m', 12)),
    'one_step': Run('reflow', ('euler', 6)),
    'guided': Run('teacher', passes=5),
    'few_guided': Run('guided', passes=5),
}
POINTS = (
    *(Point('teacher, DDIM', 'teacher', 'ddim_to_x', n) for n in (1, 2, 4, 8, 16, 32)),
    *(Point('progressive', 'progressive', 'ddim_to_x', n, phase)
      for n, phase in ((4, 1 / 3), (2, 2 / 3), (1, 1.0))),
    *(Point('consistency', 'consistency', 'consistency', n) for n in (1, 2, 4)),
    Point('knowledge', 'knowledge', 'ddim_to_x', 1),
    *(Point('reflow, Euler', 'reflow', 'euler', n) for n in (1, 2, 4)),
    Point('reflow, then one step', 'one_step', 'ddim_to_x', 1),
    Point(f'teacher, w = {WEIGHT:g}', 'teacher', 'ddim_to_x', 8, w=WEIGHT),
    Point(f'guided, w = {WEIGHT:g}', 'guided', 'ddim_to_x', 8, w=WEIGHT),
    *(Point(f'guided and halved, w = {WEIGHT:g}', 'few_guided', 'ddim_to_x', n, phase, WEIGHT)
      for n, phase in ((4, 1 / 3), (2, 2 / 3), (1, 1.0))),
)


def study(directory: str | Path, out: str | Path, configs: Path, *,
          students: Sequence[str] = tuple(RUNS)[1:], train_steps: int | None = None,
          count: int = 10_000, most: int = MOST, pairs: int = PAIRS, overwrite: bool = False
          ) -> tuple[list[Result], rich.table.Table]:
  """Trains what is not there yet, draws the samples that are missing, and measures all points.

  After a stop the same call goes on, in the middle of a training as well.

  Args:
    directory: of the runs, DIRECTORY/NAME, with the samples and the pairs of each.
    out: a .png.
    configs: the folder of configs.
    students: of `RUNS`; those that another one starts from are trained as well.
    train_steps: of each run, in place of those in the configs.
    count: samples of a point.
    most: evaluations of a point, where `count` samples would take more.
    pairs: how many a student of pairs learns.

  Raises InputError: there is no such student; the file is there, or samples of other weights are,
  unless `overwrite`.
  """
  if unknown := [name for name in students if name not in RUNS]:
    raise InputError('students', unknown, 'there is no such choice',
                     f"choose one of {', '.join(RUNS)}")
  files.output('out', out, '.png', overwrite=overwrite)
  for name, value in {'train_steps': train_steps, 'pairs': pairs}.items():
    require_at_least(name, value)
  for name, value in {'count': count, 'most': most}.items():
    require_at_least(name, value, frechet.BLOCKS)
  root, wanted = Path(directory), {'teacher', *students}
  wanted |= {RUNS[name].start for name in wanted if RUNS[name].start}
  for name in ('classifier', *(name for name in RUNS if name in wanted)):
    _train(name, root, configs, train_steps, pairs)
  trained = workdir.load_trained(root / 'teacher').experiment.data.split('train')
  distance = scoring.jackknifed(f'classifier:{root / "classifier"}',
                                scoring.images_of(trained, trained.spec.x), batch_size=BATCH)
  results = [_measure(point, root, distance, count, most, overwrite) for point in POINTS
             if point.run in wanted]
  pictures.save_png(out, picture(results))
  return results, table(results, root, pairs)


def _train(name: str, root: Path, configs: Path, train_steps: int | None, pairs: int) -> None:
  """Trains the run `name`, or the rest of it, on pairs that are made before if need be."""
  run = RUNS.get(name, Run())
  file = configs / 'digits' / ('distilled.py' if name in RUNS else 'classifier.py')
  config = workdir.import_config(file).get_config(*[name] if name in RUNS else [])
  if train_steps is not None:
    toys.shorten(config, train_steps)
    if 'halving_updates' in config.model:
      config.model.halving_updates = max(train_steps // 3, 1)
      config.train.steps, config.optimizer.decay_steps = progressive.updates(config), 0
    config.train.checkpoint_every = max(config.train.steps // 3, 1)
  if workdir.steps_made(root / name) == config.train.steps:
    return
  start = root / run.start if run.start else ''
  if run.pairs:
    config.data.name = str(toys.pairs_of(root / run.start, pairs, catalogue.method(*run.pairs),
                                         BATCH))
  print(f'{name}: {root / name}')
  runs.train(config, file, root / name, init_from=str(start))


def _measure(point: Point, root: Path, distance: Callable, count: int, most: int,
             overwrite: bool) -> Result:
  """Draws the samples of a point, unless they are there, and compares them with the data.

  Their file is named by their number, so other numbers can be asked for later.
  """
  place = root / point.run
  name = f'{point.sampler}_{point.steps}'
  updates = round(point.phase * workdir.read_config(place).train.steps)
  told: dict[str, Any] = {}
  evaluations = point.steps
  if point.w:
    told, name = {'condition': {'w': point.w}}, f'{name}_w'
    if point.run == 'teacher':  # it is evaluated with and without the label
      told, evaluations = {'guided': Guidance(point.w)}, 2 * point.steps
  count = max(min(count, most // evaluations), frechet.BLOCKS)
  drawn = place / f'{name}_{count}.npz'
  runs.sample(place, drawn, method=catalogue.method(point.sampler, point.steps), count=count,
              step=updates if point.phase < 1.0 else 'latest', batch_size=BATCH,
              overwrite=overwrite, **told)
  images = np.load(drawn)['images']
  value, error = distance(images)
  print(f'{point.line}, {point.steps} steps: {value:.3f} +- {error:.3f}')
  return Result(point, evaluations, count, value, error, images[:SHOWN])


def cost(name: str, root: Path, pairs: int) -> tuple[int, float, float]:
  """(updates, evaluations of a network for an image in millions, minutes) of training a run.

  The runs that it starts from count as well, down to the teacher, which all students share.  The
  minutes are those of the updates, at their median rate: neither compiling nor pairs count.
  """
  run, config = RUNS[name], workdir.read_config(root / name)
  updates = config.train.steps
  evaluations = updates * config.data.batch_size * run.passes
  if run.pairs:
    evaluations += pairs * run.pairs[1]
  rates = [record['steps_per_second'] for record in metrics.read(root / name)
           if record['kind'] == 'train']
  own = updates, evaluations / 1e6, updates / np.median(rates) / 60
  if run.start in ('', 'teacher'):
    return own
  before = cost(run.start, root, pairs)
  return own[0] + before[0], own[1] + before[1], own[2] + before[2]


def table(results: list[Result], root: Path, pairs: int) -> rich.table.Table:
  """A row for each point; the cost of a run, see `cost`, stands in the first of its rows."""
  out = rich.table.Table('student', *(rich.table.Column(name, justify='right') for name in (
      'evaluations of a sample', 'Fréchet distance', 'samples', 'updates',
      'evaluations in training, millions', 'minutes')),
      title='Students of one teacher of the digits')
  told = set()
  for result in results:
    run = result.point.run
    updates, evaluations, minutes = cost(run, root, pairs)
    own = [f'{updates:,}', f'{evaluations:.2f}', f'{minutes:.1f}']
    out.add_row(result.point.line, f'{result.evaluations}',
                f'{result.distance:.2f} ± {result.error:.2f}', f'{result.samples:,}',
                *([''] * 3 if run in told else own))
    told.add(run)
  metrics.show(out)
  return out


def picture(results: list[Result]) -> Figure:
  """The distances against the evaluations, and beside this plot a row of samples for each point."""
  figure = Figure(figsize=(11, 6.5), layout='constrained')
  left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
  lines = dict.fromkeys(result.point.line for result in results)
  for i, line in enumerate(lines):
    own = sorted((r for r in results if r.point.line == line), key=lambda r: r.evaluations)
    left.errorbar([r.evaluations for r in own], [r.distance for r in own],
                  [r.error for r in own], fmt='os^vD*<>'[i % 8] + '-', color=f'C{i}', ms=5, lw=1,
                  capsize=2, label=line)
  ticks = sorted({result.evaluations for result in results})
  left.set(xscale='log', yscale='log', xlabel='evaluations of a sample',
           ylabel='Fréchet distance, features of a classifier')
  left.set_xticks(ticks, [str(tick) for tick in ticks])
  left.minorticks_off()
  left.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
  left.yaxis.set_major_formatter(ticker.ScalarFormatter())
  left.legend(fontsize=8)
  shown = [r for r in results if len(r.images)]
  rows = [np.pad(np.concatenate([np.pad(image[..., 0], ((0, 1), (0, 1))) for image in r.images],
                                axis=1), ((0, 1), (0, 0))) for r in shown]
  right.imshow(np.concatenate(rows), cmap='gray', vmin=0, aspect='equal')
  height = len(rows[0])
  right.set_yticks(height * (np.arange(len(rows)) + 0.5), [
      f'{r.point.line}: {r.evaluations}' for r in shown], fontsize=7)
  right.set_xticks([])
  return figure
