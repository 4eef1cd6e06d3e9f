"""Evaluates the likelihood of a run: its ledger, the bits of every image, two pictures, a page.

The main evaluation takes all test images and the newest weights of the default average.  Its files
are ledger.json, bits.npz, ...; the names of any other evaluation end in its differences (`Files`).
One report.html shows all evaluations of a directory (`reporting`).
"""
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vdm_jax import data, guidance, random
from vdm_jax.data import fields
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.ledger import families, measuring, relations, tables
from vdm_jax.ledger import family as family_lib
from vdm_jax.ledger.comparison import Evaluated
from vdm_jax.ledger.family import Family, Options, Request, TrainingStatistics, check_options
from vdm_jax.ledger.rows import Measured
from vdm_jax.ledger.tables import Ledger
from vdm_jax.likelihood import closed_forms, density, gaussian, replaced_schedules
from vdm_jax.likelihood.bounds import level_axes
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.machine import files
from vdm_jax.runs import evaluations, needs, pictures, reporting, workdir
from vdm_jax.runs.evaluations import Files
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.runs.sampling import variances_of
from vdm_jax.samplers import grids
from vdm_jax.schedules import check_decreasing
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.step import caution, default_average
from vdm_jax.typing import Experiment, Model
from vdm_jax.units import bits_per_dim


def _require_no_less(path: Path, about: Mapping, rows: Sequence[str], repeats: int,
                     times: int) -> None:
  """Raises InputError if the ledger in `path` has more rows or draws of the same evaluation."""
  try:
    old = json.loads(path.read_text())
    weights = lambda of: [of['checkpoint'][name] for name in ('step', 'average')]
    images = lambda of: of['dataset']['sha256']  # wherever they are by now
    same = images(old) == images(about) and weights(old) == weights(about)
    lost = [row['estimate'] for row in old['rows'] if row['estimate'] not in rows
            or row['repeats'] > repeats or (row['times_per_image'] or 0) > times]
  except FileNotFoundError:
    return
  except (ValueError, KeyError, TypeError):  # of an older version, or damaged
    return
  if same and lost:
    raise InputError('overwrite', False, f'{path} has rows that this evaluation lacks, or '
                     f'has with fewer draws: {", ".join(lost)}', 'ask for at least as much '
                     '(--estimates, --repeats, --times), write elsewhere (--out), or overwrite it')


def evaluate(directory: str | Path, *, split: str = 'test',
             estimates: Sequence[str | Family | Request | Estimator] = (), schedules: bool = False,
             average: str = '', step: int | str = 'latest', examples: int | None = None,
             data_dir: str = '', data_name: str = '', untold: bool = False,
             out: str | Path = '', overwrite: bool = False,
             show: Callable[[Ledger], None] = lambda ledger: None, **options) -> Ledger:
  """Estimates the likelihood of every image of a split; writes the ledger, the bits, two pictures.

  A row does not depend on the other rows.  A flow of coupled noise has the row 'ode' instead of
  'vlb', and no picture of the bits by noise level.

  The files are ledger.json, bits.npz, bits_by_noise.png, curves.png, and report.html, which shows
  the other four.  The names of these four end in the differences from the main evaluation: another
  split than test, a checkpoint before the newest, another average than the default, or fewer
  examples than all.  One such name is ledger_validation_raw_20_examples.json.

  Args:
    estimates: names and estimates of your own, as for `ledger.families.parse`.  The bound of
      continuous time, 'vlb', comes first.  A chain that begins at the data has its own bound first
      instead (`families.chain_estimates`), and a flow trained on coupled noise has 'ode'.  A model
      of indices of a codebook has the bits of the indices next (`families.index_estimates`).
    schedules: compute that bound also under other schedules with the same ends.
    examples: take only this number of images, from the first on.
    data_dir, data_name: where the data are now, as fields of config.data.
    untold: whether the label or text is dropped, as in a part of the training of a model that can
      be guided.  So the ledger has the bits of the images alone.
    out: the directory to write into.  Default: the run's.
    overwrite: also replace a ledger of the same name, weights and images that has more rows or
      draws.
    show: a function that gets the ledger when all rows are computed, even if writing fails.
    options: the fields of `ledger.Options`: times, repeats, batch_size, seed, ...

  Raises InputError before anything is computed if arguments, names or the kind of model are wrong,
  or if the files cannot be written.  Raises InputError at the end, when all else is written, for an
  estimate that is not finite.  Raises TypeError for a field that Options does not have.
  """
  directory = files.run_directory('workdir', directory)
  question = _ask(directory, split, estimates, schedules, Options(**options), average, step,
                  examples, {'data_dir': data_dir, 'data_name': data_name}, untold)
  written = _files(question, out, overwrite)
  statistics, measured, failed = _measure(question)
  bound, checks = _check(question, statistics, measured)
  ledger = Ledger(**question.about, rows=[m.row for _, m in measured],
                  config=question.trained.config.to_dict(), checks=checks,
                  provenance=provenance(), format=FORMAT)
  try:
    _write(written, question, ledger, [m for _, m in measured], bound)
  finally:
    show(ledger)
  if failed:
    raise InputError('estimates', [error.value for error in failed],
                     '; '.join(dict.fromkeys(error.problem for error in failed)),
                     '; '.join(dict.fromkeys(error.remedy for error in failed))
                     + f'; all other rows are in {written.ledger}')
  return ledger


class _Question(NamedTuple):
  """An evaluation of a run, with all that is known before anything is computed."""
  directory: Path
  trained: workdir.Trained
  model: Model
  requests: list[Request]
  options: Options
  schedules: list[str]         # other ones, for the bound
  read: set[str]               # of the training split, see `Family.needs`
  part: Any                    # the split
  count: int                   # of images
  ends: tuple[float, float]    # log-SNR at t = 0, of a chain after its first step, and at t = 1
  plain: bool                  # the bound is that of objectives.vlb, of one log-SNR for all pixels
  logsnr_at: Callable          # (params, t [n]) -> [n]
  about: dict                  # dataset and checkpoint

  @property
  def x(self) -> data.Field:
    return self.part.spec[self.model.field]


def _ask(directory, split, estimates, schedules, options, average, step, examples, where,
         untold: bool) -> _Question:
  """Checks the arguments of `evaluate`.  Weights are read, but no image.

  where: the place of the data now, as keywords of `workdir.load_trained`.
  """
  if split not in ('train', 'validation', 'test'):
    raise InputError('split', split, 'there is no such choice', 'choose train, validation or test')
  require_at_least('examples', examples)
  check_options(options)
  requests = families.parse(estimates)
  trained, model = _weights(directory, average, step, where, untold)
  workdir.say_what_changed(directory)
  experiment, spec = trained.experiment, data.resolve(trained.config.data)
  one = spec.zeros(1)
  # Of levels that differ from pixel to pixel, the mean.
  logsnr_at = jax.jit(lambda params, t: jnp.mean(
      experiment.model(params).process(t).logsnr.reshape(len(t), -1), axis=1))
  ends = [float(u) for u in logsnr_at(trained.params, jnp.array([0.0, 1.0]))]
  chain = bool(np.isposinf(ends[0]) and model.steps)  # which begins at the data themselves
  if chain:
    requests = families.chain_estimates(requests, options, model, one)
    ends[0] = float(logsnr_at(trained.params, jnp.array([1.0 / model.steps]))[0])
  if model.coupled:
    requests = families.flow_estimates(requests)
    logging.warning('This model is a flow of coupled noise: the ledger has %s, and no vlb, which '
                    'bounds an SDE that does not draw its data.', requests[0].name)
  if model.index_nats:
    requests = families.index_estimates(requests)
  read = families.needs(requests, options, model, one)
  if np.isinf(ends).any():
    raise InputError(problem=f'the log-SNR of this model runs from {ends[0]:g} to {ends[1]:g}, '
                     'where the bound has no value', remedy='give its schedule two finite ends in '
                     'the config (BetaLinear: t_min=1e-5)')
  if schedules and (chain or not replaced_schedules.has_replaceable_schedule(model)):
    raise InputError('schedules', None, 'this model has a bound or a process of its own, or a '
                     'schedule for each pixel, so its schedule cannot be replaced', 'leave it out')
  part = needs.split(trained, split)
  if not len(part):
    raise InputError('split', split, 'this run has no such examples', 'choose another')
  changed = workdir.changed_data(directory, experiment.data.fingerprint())
  if changed:
    logging.warning('--workdir=%s: the data have changed since this run began: %s.  The %s split '
                    'may hold examples that it was trained on.', directory, changed, split)
  count, x = min(len(part), examples or len(part)), part.spec[model.field]
  about = {'dataset': {'name': part.spec.name, 'version': part.version, 'split': split,
                       'source_split': part.source_split, 'examples': count, 'of': len(part),
                       'sha256': part.sha256(x.name),
                       'field': x.name, 'shape': list(x.shape), 'levels': x.levels},
           'checkpoint': {'step': trained.step, 'average': trained.average,
                          # The share of the first weights in it.
                          'first_weights': experiment.ema.get(trained.average, 0.0)**trained.step,
                          **({'untold': True} if untold else {})}}
  return _Question(directory, trained, model, requests, options,
                   list(replaced_schedules.SCHEDULES) if schedules else [], read, part, count,
                   (ends[0], ends[1]),
                   not (model.bound or model.coupled or level_axes(model) or chain),
                   logsnr_at, about)


def _weights(directory: Path, average: str, step: int | str, where: dict, untold: bool
             ) -> tuple[workdir.Trained, Model]:
  """A run's weights, and their model.  Raises InputError if the model has no likelihood."""
  trained = workdir.load_trained(directory, average=average, step=step, **where)
  of = trained.experiment.model
  needs.require(of(trained.params), 'evaluate', directory)
  if untold:
    trained = trained._replace(experiment=trained.experiment._replace(
        model=lambda params, keys=None: guidance.untold(of(params, keys))))
  rate = trained.experiment.ema.get(trained.average, 0.0)
  if warning := caution(trained.average, rate, trained.step):
    logging.warning(warning)
  needs.finite(trained)
  model = trained.experiment.model(trained.params)
  check_decreasing(model.process)  # a learned schedule may be anything by now
  needs.require_likelihood(model, directory)
  return trained, model


def _files(question: _Question, out: str | Path, overwrite: bool) -> Files:
  """The files to write.  Raises InputError if they cannot be written, or if rows would be lost."""
  trained, options, count = question.trained, question.options, question.count
  rows = ([family_lib.about(one, options)['estimate'] for one in question.requests]
          + [f'vlb ({name})' for name in question.schedules])
  newest, default = _newest(question.directory), default_average(trained.experiment.ema)
  written = Files.of(out or question.directory, evaluations.ending(
      question.about['dataset']['split'], None if trained.step == newest else trained.step,
      None if trained.average == default else trained.average,
      None if count == len(question.part) else count,
      untold='untold' in question.about['checkpoint']))
  try:
    files.probe(written.ledger.parent, (1 << 20) + 64 * count * options.repeats * len(rows))
  except OSError as error:
    raise InputError('out' if out else 'workdir', str(out or question.directory),
                     f'it cannot be written ({error.strerror})',
                     'give another directory (--out), or free some space') from None
  if not overwrite:
    _require_no_less(written.ledger, question.about, rows, options.repeats, options.times)
  return written


def _measure(question: _Question
             ) -> tuple[TrainingStatistics, list[tuple[Request, Measured]], list[InputError]]:
  """(statistics of the training split, the rows, the errors of the rows that are not finite)."""
  trained, options = question.trained, question.options
  experiment, x = trained.experiment, question.x
  statistics = TrainingStatistics(
      _moments(experiment, question.model, x.levels) if question.plain else None,
      variances_of(trained, grids.uniform(50), options.seed) if 'variances' in question.read
      else None)
  common = {'logsnr_max': question.ends[0], 'logsnr_min': question.ends[1], **question.about}
  jobs = [(one, experiment.model, common) for one in question.requests]
  jobs += [(question.requests[0], replaced_schedules.with_schedule(experiment.model, name),
            common | {'estimate': f'vlb ({name})', 'schedule': name})
           for name in question.schedules]
  measured, failed = [], []
  for request, model, row in jobs:
    try:
      measured.append((request, measuring.measure(
          request, options, model, trained.params, question.part, shape=x.shape,
          levels=x.levels, statistics=statistics, count=question.count, fields=row)))
    except InputError as error:  # what was measured before it is not lost
      if not measured:
        raise
      failed.append(error)
  return statistics, measured, failed


def _check(question: _Question, statistics: TrainingStatistics,
           measured: Sequence[tuple[Request, Measured]]
           ) -> tuple[density.Density | None, list[dict]]:
  """(the density of the bound's bits over noise levels, the checks of the rows).

  The density is None if no row is a bound.
  """
  x, rows = question.x, [m for _, m in measured]
  of_times = next((row.draws for row in rows if row.draws is not None), None)  # of 'vlb', the first
  bound = (None if of_times is None else
           density.density(of_times, x.shape, statistics.moments))
  draws = question.options.times * question.options.repeats
  checks = relations.ranges(rows, x.levels, question.model.data_space) + relations.check(
      rows, _closed_forms(question.part, x, question.count, draws, *question.ends)
      if question.plain and x.levels else None)
  checks += [one for request, m in measured for one in request.family.relations(m, rows) if one]
  return bound, checks + ([density.check(bound)] if bound is not None and question.plain else [])


def _write(written: Files, question: _Question, ledger: Ledger, measured: Sequence[Measured],
           bound: density.Density | None) -> None:
  """Writes the files, on the first process alone, and the pictures last."""
  if jax.process_index() != 0:
    return
  trained, split, row = question.trained, ledger.dataset['split'], ledger.rows[0]
  for path in written:
    path.unlink(missing_ok=True)  # until the rest is of one evaluation again
  files.save_npz(written.bits, times_per_image=question.options.times, split=split,
                 step=trained.step, **{f'{m.row["estimate"]}/{name}': u for m in measured
                                       for name, u in m.bits.items()})
  files.write_text(written.ledger, ledger.to_json())
  each = measured[0].bits['total'].mean(axis=0)
  if bound is not None:
    _draw(written.bits_by_noise, lambda: _bits_by_noise(
        bound, each, question.part, question.x, row))
  _draw(written.curves, lambda: _curves(question.directory, trained, question.logsnr_at, row,
                                        split))
  reporting.write(question.directory, written.ledger.parent)


def _draw(path: Path, picture: Callable) -> None:
  """Writes a picture.  If that fails, it only warns, because the computed numbers matter more."""
  try:
    pictures.save_png(path, picture())
  except Exception as error:
    logging.warning('%s was not drawn (%s: %s).', path, type(error).__name__, error)


def _bits_by_noise(bound: density.Density, each: np.ndarray, part, x: data.Field, row: dict):
  shown = pictures.extremes(each)
  return pictures.bits_by_noise(bound, each, part.get(shown)[x.name], each[shown], x, row)


def _curves(directory: Path, trained: workdir.Trained, logsnr_at: Callable, row: dict, split: str):
  t = np.linspace(0.0, 1.0, 201)
  key_init, *_ = jax.random.split(random.key(trained.config.seed), 3)
  initial = jax.jit(lambda key: logsnr_at(trained.experiment.init(key), t))
  return pictures.curves(metrics_lib.read(directory), t, np.asarray(initial(key_init)),
                         np.asarray(logsnr_at(trained.params, t)), row['bits_per_dim'], split,
                         tables.units(row['dataset'])[-1])


def _moments(experiment: Experiment, model: Model, levels: int | None) -> gaussian.Moments:
  """Mean and covariance of the training images, from 20,000 images at most."""
  part = experiment.data.split('train')
  return gaussian.fit(part, model.encode, levels, limit=20_000, field=model.field)


def _closed_forms(part, x: data.Field, count: int, draws: int, logsnr_max: float,
                  logsnr_min: float) -> dict[str, tuple[np.ndarray, float]]:
  """The end terms of each image, bits/dim [N], and the error of their mean over `draws` draws."""
  table, variance = closed_forms.reconstruction(fields.levels(part.spec, x), logsnr_max)
  pieces, of_all = [], 0.0
  for first in range(0, count, 1000):
    images = part.get(np.arange(first, min(first + 1000, count)))[x.name]
    pieces.append(closed_forms.end_terms(images, table, logsnr_min))
    of_all += variance[images].sum()
  errors = {'reconstruction': bits_per_dim(np.sqrt(of_all / draws) / count, x.shape), 'latent': 0.0}
  return {name: (bits_per_dim(np.concatenate([piece[name] for piece in pieces]), x.shape), error)
          for name, error in errors.items()}


def _newest(directory: str | Path) -> int | None:
  checkpoints = Checkpoints(directory, read_only=True)
  try:
    return max(checkpoints.steps(), default=None)
  finally:
    checkpoints.close()


def seeds(directory: str | Path) -> list[Path]:
  """The runs `seed_N` in a directory, in the order of N; [] if the directory is a run itself."""
  directory = Path(directory)
  if (directory / 'config.json').exists():
    return []
  names = {path.parent.name for path in directory.glob('seed_*/config.json')}
  numbers = [name.removeprefix('seed_') for name in names]
  return [directory / f'seed_{n}' for n in sorted(filter(str.isdecimal, numbers), key=int)]


def report(directory: str | Path, split: str = 'test', out: str | Path = '') -> Ledger:
  """The ledger of a run's main evaluation of a split.

  out: the directory of the ledger, if not the run's.

  Raises InputError if there is no such ledger, or if it is not of the newest checkpoint.
  """
  named = Files.of(out or directory, evaluations.ending(split, None, None, None))
  written, ledger = evaluations.read(named.ledger)
  newest = _newest(directory)
  if ledger.checkpoint['step'] != newest:
    raise InputError(problem=f'{written.ledger} is of step {ledger.checkpoint["step"]}, but the '
                     f'newest checkpoint is of step {newest}', remedy='evaluate it again')
  return ledger


def evaluated(where: Sequence[str | Path]) -> dict[str, Evaluated]:
  """The results of `evaluate` by name: a directory (its main evaluation), or the file of a ledger.

  Raises InputError.
  """
  out = {}
  for name in where:
    written, ledger = evaluations.read(name)
    with np.load(written.bits) as bits:
      if bits['step'] != ledger.checkpoint['step']:
        raise InputError(problem=f'{written.ledger.parent}: {written.bits.name} is of step '
                         f'{bits["step"]}, but {written.ledger.name} is of step '
                         f'{ledger.checkpoint["step"]}', remedy='evaluate it again')
      out[str(name).rstrip('/')] = Evaluated(ledger, {
          row['estimate']: bits[f'{row["estimate"]}/total'].mean(axis=0) for row in ledger.rows})
  return out
