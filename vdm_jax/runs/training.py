"""Trains a config in a run's directory."""
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.table
from absl import logging

from vdm_jax import data, random, samplers
from vdm_jax.data import episodes, pairs, series
from vdm_jax.errors import InputError, renamed, require, require_at_least
from vdm_jax.machine import config_files, files
from vdm_jax.nn import lpips
from vdm_jax.runs import (
  encoding,
  forecasting,
  pairing,
  pictures,
  planning,
  reconstructing,
  reporting,
  scoring,
  stages,
  workdir,
)
from vdm_jax.runs.needs import by_name, data_field, draws_data, misfits
from vdm_jax.samplers import catalogue, grids
from vdm_jax.samplers.drawing import draw, draw_own
from vdm_jax.schedules import check_decreasing
from vdm_jax.train import check, lock, loop
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.typing import Experiment, Forecasts, Plans, PyTree, Reconstructs, denoises


def train(config: ml_collections.ConfigDict, config_file: str | Path, directory: str | Path, *,
          init_from: str = '', profile: int = 0, extend: bool = False, frechet: str = '',
          frechet_samples: int = 1000) -> dict[str, float]:
  """Trains `config` in `directory`, or resumes the run there.  Returns the last validation's means.

  Writes report.html at the end; see `reporting`.

  Args:
    init_from: a workdir whose averaged weights a new run starts from.  A run that has begun keeps
      the workdir that it started from, which is read if all checkpoints are lost.
    profile: the number of steps to profile; 0 profiles none.
    extend: let a learning rate that falls to 0 do so later, at a larger
      config.optimizer.decay_steps.
    frechet: the features (`scoring.FEATURES`) of a Fréchet distance that is recorded with each
      picture.  It is the distance between samples and the training split.  '' records none.
    frechet_samples: the number of samples for that distance.

  Raises InputError before the step is compiled or anything is written.  The reasons are parts of
  the config that do not fit each other, the data or the run in `directory`, or a fixed schedule
  that rises.
  """
  require(profile >= 0, 'profile', profile, 'it must be a number of steps, or 0 for none')
  if frechet:
    require_at_least('frechet_samples', frechet_samples, 2)
    require(config.train.pictures_every > 0, 'frechet', frechet, 'config.train.pictures_every is 0',
            'set it to the number of steps between two distances')
  directory = files.run_directory('workdir', directory)
  loop.check(config)
  spec = data.resolve(config.data)
  check.require_fits('config.data.batch_size', config.data.batch_size, spec.shape,
                     jax.device_count())
  # What was read from the data becomes part of the run: later commands need no data for it.
  config = config.copy_and_resolve_references()
  with config.unlocked():  # that of a run which began before a field existed has it not
    config.data.update(spec.to_config())
    if (windows := series.settings(config.data)).history:  # later commands read other files too
      config.data.series.columns = series.column_names(
          str(Path(config.data.name).expanduser()), windows)
    if (plans := episodes.settings(config.data)).horizon:
      config.data.episodes.update(episodes.found(config.data.name, plans, config.data.validation))
  init_from = init_from and str(files.run_directory('init_from', init_from).absolute())
  first_stage = stages.settle(config, spec, directory, init_from)
  code = workdir.source(config_file)
  experiment = config_files.build(code.module(), config)
  description = experiment.data.describe()
  check.experiment(experiment, experiment.data.split('train').get, config)
  _check_schedule(experiment)
  read = None
  own = code.path.absolute().parent == directory.absolute()  # the run itself names its config
  if workdir.begun(directory):
    init_from = _kept_start(directory, init_from)
  elif own and not init_from:
    init_from = workdir.start_of(directory)
  if init_from or experiment.needs_start:
    read = functools.cache(lambda: _start(experiment, spec, config, init_from))
    if not workdir.begun(directory):  # a run that goes on needs it no more
      read()
  if experiment.first_stage and not workdir.begun(directory):
    stages.check(experiment, config.model.scale, first_stage, read)
  if config.data.get('latents'):
    encoding.check(config, experiment)
  measures = (_distance(experiment, spec, config.seed, frechet, frechet_samples)
              if frechet else None)
  with lock.exclusive(directory):
    workdir.prepare(directory, config, code, experiment.data.fingerprint(), extend, init_from)
    workdir.see_alike(directory, 'workdir', 'metrics.jsonl')
    begin = _beginning(experiment, read, first_stage)
    means = _train(experiment, spec, description, config, directory, begin, profile, measures)
    reporting.write(directory)
    return means


def _kept_start(directory: Path, asked: str) -> str:
  """The workdir that the begun run in `directory` started from; warns if `asked` is another one."""
  start = workdir.start_of(directory)
  if asked not in ('', start) and jax.process_index() == 0:
    logging.warning('--init_from=%s is not read: the run in %s has begun from %s.', asked,
                    directory, start or 'weights of its own')
  return start


def _start(experiment: Experiment, spec, config: ml_collections.ConfigDict,
           directory: str | Path) -> workdir.Trained:
  """The run in `directory`, to start from.  Raises InputError if no run is named."""
  if not directory:
    raise InputError('init_from', None, experiment.needs_start,
                     'name the workdir of the run that it starts from')
  with renamed({'workdir': 'init_from'}):
    pairing.check_start(config.data.name, directory)
    start = workdir.load_trained(directory)
  _check_start(experiment, spec, start, directory)
  return start


def _check_start(experiment: Experiment, spec, start: workdir.Trained, directory: str | Path
                 ) -> None:
  """Raises InputError if a needed start lacks weights, or if the teacher cannot teach."""
  if not experiment.needs_start:
    return
  shapes = jax.eval_shape(experiment.init, random.key(0))
  missing = [name for name in _missing(shapes, start.params)
             if not set(name.split('/')) & set(experiment.adds)]
  if missing:
    more = f', nor {len(missing) - 1} others' if missing[1:] else ''
    raise InputError('init_from', str(directory), f'it has no {missing[0]} of this shape{more}, '
                     f'and {experiment.needs_start}', 'name a run of the same network, or set the '
                     'fields of config.model that the run has')
  if experiment.teacher is None:
    return
  experiment.teacher(start.experiment.model(start.params), start.params)
  if pairs.NOISE in spec:  # these data are not the teacher's own, and `check_start` read their hash
    return
  changed = workdir.changed_data(directory, experiment.data.fingerprint())
  own = data_field(experiment.model(start.params), spec)
  its = start.experiment.data.spec
  if changed or own.name not in its or its[own.name] != own:
    raise InputError('init_from', str(directory), f'that run learned {its.name}, but the data here '
                     f'are {spec.name}{": " * bool(changed)}{changed}',
                     'distil on the data of the teacher (--config.data.name)')


def _check_schedule(experiment: Experiment) -> None:
  """Raises InputError if a fixed schedule rises in t.  A learned schedule is not checked yet.

  A fixed schedule does not depend on the parameters, so it gives numbers even if they are all NaN.
  """
  def unknown(leaf):
    nan = np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
    return np.broadcast_to(np.array(nan, leaf.dtype), leaf.shape)

  shapes = jax.eval_shape(experiment.init, random.key(0))
  model = experiment.model(jax.tree.map(unknown, shapes))
  if denoises(model) and model.latent is None and not np.isnan(model.process(0.5).logsnr).any():
    check_decreasing(model.process)


def _beginning(experiment: Experiment, read: Callable[[], workdir.Trained] | None,
               first_stage: Callable[[], workdir.Trained] | None
               ) -> Callable[[PyTree], PyTree] | None:
  """From fresh parameters to those that a run begins with; None: it begins with the fresh ones.

  It is also called for a run that has begun, if none of its checkpoints is sound.
  """
  put = experiment.first_stage
  if read is None and (first_stage is None or put is None):
    return _without_autoencoder if put else None

  def begin(params):
    if read is not None:
      params = transfer(params, read().params)
    if first_stage is None or put is None:
      return params
    return put(params, first_stage().params, experiment.data.batch(0))
  return begin


def _without_autoencoder(params: PyTree) -> PyTree:
  raise InputError('config.model.autoencoder', None, 'this run has lost its own copy of its '
                   'autoencoder, and does not know the run that the copy came from', 'name that '
                   'run; if the weights were imported, import them again')


def _train(experiment, spec, description, config, directory, initial, profile, measures
           ) -> dict[str, float]:
  if jax.process_index() == 0:
    print(description)
    if 0 < config.optimizer.get('decay_steps', 0) < config.train.steps:
      print(f'The learning rate is 0 from step {config.optimizer.decay_steps:,} on '
            '(--config.optimizer.decay_steps): later steps move the averages alone, unless '
            '--extend lets it fall later.')
    if line := _without_lpips(config, spec.shape):
      print(line)
  return loop.train(experiment, config, directory, initial=initial, profile=profile,
                    measures=measures,
                    pictures=lambda params, step: _preview(experiment.after(step), spec, params,
                                                           config))


def _without_lpips(config: ml_collections.ConfigDict, shape: tuple[int, ...]) -> str:
  """A line if an autoencoder is trained without LPIPS, else ''.  shape: of an image."""
  if config.get('model', {}).get('perceptual', 1.0):  # only an autoencoder has that field
    return ''
  what = 'LPIPS is off: --config.model.perceptual is 0'
  if not lpips.compares(shape):
    return (f'{what}.  It compares images of 1 or 3 channels with sides of 16 or more, and these '
            f'are {" x ".join(map(str, shape))}.')
  return (f'{what}.  To use it, set 1, and name the files of its weights: '
          '--config.model.vgg=vgg16-397923af.pth,vgg.pth.')


def _missing(params: PyTree, other: PyTree) -> list[str]:
  """The names of the parameters that `other` lacks, or has with another shape."""
  wrong = misfits(params, other)
  return [name for name in by_name(params) if name in wrong]


def transfer(params: PyTree, other: PyTree) -> PyTree:
  """`params` with the values of `other` wherever name and shape agree.

  A warning lists the parameters that differ.  Raises InputError if no parameter agrees.  If an
  experiment needs all parameters of its start, they are checked earlier.
  """
  own, values, missing = by_name(params), by_name(other), _missing(params, other)
  if len(missing) == len(own):
    raise InputError('init_from', None, 'none of its parameters has a name and shape of this model',
                     'choose another run')
  out = [leaf if name in missing else jnp.asarray(values[name], leaf.dtype)
         for name, leaf in own.items()]
  for what, names in (('missing there or of another shape, initialised afresh', missing),
                      ('left over', [name for name in values if name not in own])):
    if names:
      logging.warning('--init_from: %s: %s', what, ', '.join(names))
  return jax.tree.unflatten(jax.tree.structure(params), out)


def _samples(experiment: Experiment, params: PyTree, count: int, seed: int, batch_size: int
             ) -> np.ndarray | None:
  """`count` samples of 64 ancestral steps, integers [count, ...]; None for a model without samples.

  A distilled model, and a flow of coupled noise, draw samples by `catalogue.usual`.  A model of
  latents has no samples here, because latents are not data.
  """
  model = experiment.model(params)
  options = {'start': 0, 'stop': count, 'seed': seed, 'batch_size': batch_size}
  if not draws_data(model):
    return None
  if denoises(model):
    make, times = samplers.ancestral, grids.uniform(64)
    if model.distilled or model.coupled:
      method = catalogue.usual(model)
      make, times = method.make, method.times(model.process)
    parts = draw(experiment.model, params, make, times=times, cond=model.conditions, **options)
  else:
    parts = draw_own(experiment.model, params, **options)
  return np.concatenate([part.data for part in parts])


def _preview(experiment: Experiment, spec, params: PyTree, config: ml_collections.ConfigDict
             ) -> np.ndarray | None:
  """A few samples, uint8 [H, W, 3]: enough to see whether training goes anywhere.

  Of an autoencoder, originals of the validation split, each with its reconstruction beside it.  Of
  an agent, plans beside windows of the validation split, and of a forecaster a forecast of one.
  """
  model = experiment.model(params)
  if isinstance(model, Plans):
    return planning.preview(experiment, params, config.seed)
  if isinstance(model, Forecasts):
    return forecasting.preview(experiment, params, config.seed, config.data.series.columns)
  if isinstance(model, Reconstructs):
    return reconstructing.picture(experiment, params, experiment.data.split('validation'),
                                  config.seed)
  count = 2000 if len(spec.shape) == 1 else 16
  drawn = _samples(experiment, params, count, config.seed, count)
  if drawn is None:
    return None
  return pictures.of_samples(drawn, data_field(experiment.model(params), spec))


def _distance(experiment: Experiment, spec, seed: int, by: str, count: int
              ) -> Callable[[PyTree, int], dict[str, float]]:
  """A function from parameters and their step to the Fréchet distance of `count` samples.

  It is the distance to the training split.  If the data are pairs, the split is of the data that
  their teacher learned; see `pairing.truth`.

  Raises InputError for a model without samples, and for features of other images.
  """
  model = experiment.model(jax.eval_shape(experiment.init, random.key(0)))
  require(draws_data(model), 'frechet', by, 'this model draws no data', 'leave it out')
  x = data_field(model, spec)
  part = pairing.truth(experiment.data).split('train')
  with renamed({'features': 'frechet'}):
    distance = scoring.frechet(by, scoring.images_of(part, x))

  def measure(params, step):
    drawn = _samples(experiment.after(step), params, count, seed, min(count, 100))
    assert drawn is not None  # as the check above has it
    return {'frechet': distance(drawn)}

  return measure


def train_seeds(config: ml_collections.ConfigDict, config_file: str | Path, directory: str | Path,
                seeds: Sequence[int], **options) -> None:
  """Trains one run for each seed, in `directory/seed_N`, and shows a table of the last validations.

  Raises InputError; also for a seed that is given twice, because it would be the same run again.
  """
  if len(set(seeds)) < len(seeds):
    twice = next(seed for seed in seeds if list(seeds).count(seed) > 1)
    raise InputError('seeds', list(seeds), f'{twice} is there twice, and would be the same run '
                     'again', 'give each seed once')
  directory, results = files.run_directory('workdir', directory), {}
  for seed in seeds:
    config.seed = seed
    results[seed] = train(config, config_file, directory / f'seed_{seed}', **options)
  names = list(results[seeds[0]])
  table = rich.table.Table('seed', *names, title='validation')
  for seed, values in results.items():
    table.add_row(str(seed), *(f'{values[name]:.4f}' for name in names))
  table.add_section()
  columns = [[results[seed][name] for seed in seeds] for name in names]
  table.add_row('mean', *(f'{np.mean(column):.4f}' for column in columns))
  if len(seeds) > 1:
    table.add_row('std', *(f'{np.std(column, ddof=1):.4f}' for column in columns))
  metrics_lib.show(table)
