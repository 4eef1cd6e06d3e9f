"""A run's directory: the config of the run, and the model that it trained.

    config.py         the config file, as it was when the run was last started
    config/           the modules that config.py imports from its own folder: see `config_files`
    config.json       the values of the config, also those that were read from the data; the
                      modules' names; the working directory, to which paths of the data are
                      relative; the data's fingerprint; every start of the run, with versions,
                      commit, date and command; the format of these files
    checkpoints/      see train/checkpoint.py
    merges.txt        a copy of config.data.merges, the file of a tokeniser, if there is one
    metrics.jsonl, tensorboard/, report.html, ...

The directory holds all that `load` needs.  It also holds all that a run needs to continue, except
the data: `--config=RUN/config.json` names the config file of a run.

Data that have moved are the same data if their fingerprint is the same, under any name.

What a run computes may not change between its starts, with one exception.  A learning rate that
falls to 0 at `optimizer.decay_steps` may be told to fall to 0 later (`extend`).  From the newest
step on, the rate then follows the longer curve.  `starts` in config.json records that step.
"""
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from vdm_jax import data
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError, require
from vdm_jax.machine import config_files, devices, files, sharing
from vdm_jax.runs.provenance import FORMAT, changed, provenance
from vdm_jax.train.checkpoint import Checkpoints, finished_files
from vdm_jax.train.optimizer import learning_rate
from vdm_jax.train.step import default_average
from vdm_jax.typing import Experiment, PyTree

__all__ = ['RUN_FIELDS', 'Trained', 'begun', 'changed_data', 'flat', 'import_config', 'load',
           'load_trained', 'made', 'open_config', 'prepare', 'read_config', 'record',
           'say_what_changed', 'see_alike', 'source', 'start_of', 'steps_made']

# What may differ from one start of a run to the next: how it goes, not what it computes.
RUN_FIELDS = ('train.', 'data.data_dir', 'data.found', 'data.memory_gb', 'data.workers',
              'data.latents',  # of the same autoencoder and images: see `encoding`
              'model.scan', 'model.remat', 'model.weight_gradient', 'model.attention',
              'data.merges',        # the run's own copy may not differ
              'model.vgg',          # whose weights the checkpoints have
              'model.autoencoder')  # its settings and its fingerprint may not differ

MERGES = 'merges.txt'


class Trained(NamedTuple):
  """Weights of a run, with their experiment, config, step and average."""
  experiment: Experiment
  config: ml_collections.ConfigDict
  params: PyTree
  step: int
  average: str


def source(path: str | Path) -> config_files.ConfigCode:
  """The config file at `path`, with the modules that it imports from its own folder.

  For the config.py of a run, these modules are the run's own copies.  A run's config.json stands
  for the config.py beside it.  Raises InputError; see `config_files.read`.
  """
  path = files.user_path('config', path)
  if path.name == 'config.json':
    path = path.with_name('config.py')
  if path.name != 'config.py' or not (path.parent / 'config.json').is_file():
    return config_files.read(path)
  saved, folder = record(path.parent), path.absolute().parent / 'config'
  if 'neighbours' in saved:
    return config_files.ConfigCode(path, path.read_text(), folder, {
        name: _read_neighbour(folder / name, saved['from']) for name in saved['neighbours']})
  began = Path(saved['from'])  # an older version kept no neighbours
  return config_files.read(path, began) if began.is_dir() else config_files.read(
      path, folder, lost=str(began))


def _read_neighbour(path: Path, began: str) -> str:
  try:
    return path.read_text()
  except FileNotFoundError:
    raise InputError('workdir', str(path.parent.parent), f'its config imports '
                     f'{path.parent.name}/{path.name}, which is missing', 'copy it back; it came '
                     f'from {began}') from None


def import_config(path: str | Path) -> ModuleType:
  """The module of a config file, or of a run's copy, with its `get_config` and `build`."""
  return source(path).module()


def open_config(name: str) -> ml_collections.ConfigDict:
  """The config of a name: 'FILE.py', 'FILE.py:VARIANT', or 'RUN/config.json' for a run's config.

  Raises InputError if there is no such file or variant, or if it sets a field that does not exist.
  """
  file, _, variant = name.partition(':')
  if Path(file).name == 'config.json':
    require(not variant, 'config', name, 'the config of a run has no variants',
            f'leave out :{variant}')
    return read_config(Path(file).parent)
  return config_files.get_config(import_config(file), name)


def flat(tree: dict, prefix: str = '') -> dict:
  """The fields of nested dictionaries by their dotted names; tuples become lists."""
  out = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{name}.'))
    else:
      out[prefix + name] = list(value) if isinstance(value, tuple) else value
  return out


def _differences(old: dict, new: dict, free: Sequence[str] = ()) -> list[str]:
  """A line for each field that differs, except RUN_FIELDS and the fields in `free`."""
  old, new = flat(old), flat(new)
  later = flat({'data': data.default_config().to_dict()})  # fields of `data` that old runs lack
  old = {name: later[name] for name in new.keys() & later.keys()} | old
  return [f'  {name}: {old.get(name, "(absent)")} there, {new.get(name, "(absent)")} asked for'
          for name in sorted(old.keys() | new.keys())
          if old.get(name) != new.get(name) and not name.startswith(RUN_FIELDS)
          and name not in free]


def see_alike(workdir: str | Path, field: str = 'workdir', *more: str) -> None:
  """Waits until all processes see the same files of a run, or of the runs `seed_N`.

  field: that named `workdir`.  more: further files of the directory that must be seen.

  Raises InputError if the processes still differ after `sharing.PATIENCE`.
  """
  directory = Path(workdir)
  runs = lambda: [directory, *directory.glob('seed_*')]
  sharing.see_alike(field, directory, lambda: [
      file for run in runs() for file in _read_by_all(run, more)])


def _read_by_all(run: Path, more: Sequence[str]) -> Iterator[Path]:
  """The files of a run that all processes read, as far as this process sees them."""
  yield from (run / name for name in ('config.json', 'config.py', MERGES, *more))
  yield from (run / 'config').rglob('*.py')
  yield from finished_files(run / 'checkpoints')


def begun(workdir: str | Path) -> bool:
  """Whether there is a checkpoint to resume, sound or not.  A half-written one does not count."""
  return steps_made(workdir) > 0


def steps_made(workdir: str | Path) -> int:
  """The step of the newest checkpoint; 0 if there is none."""
  return max((int(path.name) for path in (Path(workdir) / 'checkpoints').glob('[0-9]*')
              if path.name.isdigit()), default=0)


def start_of(workdir: str | Path) -> str:
  """The workdir that the run in `workdir` started from, as its first start since it began says.

  It is '' if there is none or no run, or if an older version began the run.
  """
  if not (Path(workdir) / 'config.json').exists():
    return ''
  return record(workdir).get('starts', [{}])[0].get('init_from', '')


def prepare(workdir: str | Path, config: ml_collections.ConfigDict,
            config_file: str | Path | config_files.ConfigCode,
            fingerprint: dict | None = None, extend: bool = False, start: str = '') -> None:
  """Makes `workdir` the directory of this run, or checks that it is.

  If `workdir` has no checkpoint, there is nothing to resume, and `config` replaces an earlier one.

  Args:
    config_file: the path of the config file, or its text as it was imported.  The text is kept.
    fingerprint: `Data.fingerprint()`.  A run continues only with its own data, wherever they are.
    extend: let the learning rate fall to 0 later than at the first start; see the module.
    start: the workdir of the run that this run starts from.  It is kept: see `start_of`.

  Raises InputError if `workdir` cannot be written, or if it has checkpoints of another model, data
  or optimiser.  The error lists the differences.
  """
  workdir, extended = files.run_directory('workdir', workdir), {}
  try:
    files.probe(workdir, 0)
  except OSError as error:
    raise InputError('workdir', f'{workdir}', f'it cannot be written ({error.strerror})',
                     'choose another directory') from None
  code = config_file if isinstance(config_file, config_files.ConfigCode) else source(config_file)
  values, old = config.to_dict(), {}
  merges = _merges(workdir, config)
  if (workdir / 'config.json').exists() and begun(workdir):
    old = record(workdir)
    changed = changed_data(workdir, fingerprint) if fingerprint else ''
    same_data = fingerprint and old.get('fingerprint') and not changed
    differences = _differences(old['config'], values, ('data.name',) * bool(same_data))
    if _later_decay(old['config'], values) and not changed and len(differences) == 1:
      if not extend:
        raise InputError(
            'config.optimizer.decay_steps', config.optimizer.decay_steps, f'the run in {workdir} '
            f'began with {old["config"]["optimizer"]["decay_steps"]}', 'ask for `extend`, and its '
            'learning rate follows the longer curve from now on; or choose another directory')
      extended, differences = _extended(workdir, old['config'], config), []
    if changed and not differences:
      raise InputError('workdir', str(workdir),
                       f'the data have changed since this run began: {changed}',
                       'restore them, or choose another directory')
    if differences:
      differences += [f'  the data: {changed}'] * bool(changed)
      raise InputError('workdir', f'{workdir}',
                       'it holds a run of another configuration:\n' + '\n'.join(differences)
                       + '\nChoose another directory, or ask for the same')
    edited = _edited(source(workdir / 'config.py'), code)
    if jax.process_index() == 0 and edited:
      logging.warning('%s changed since the run in %s began; the values of its config agree.',
                      ' and '.join(edited) + (' have' if len(edited) > 1 else ' has'), workdir)
    say_what_changed(workdir)
  if jax.process_index() == 0:
    began = str(code.path.absolute().parent)
    if code.path.absolute().parent == workdir.absolute():  # of the run itself
      began = old.get('from', began)
    for name, text in code.neighbours.items():
      files.write_text(workdir / 'config' / name, text)
    files.write_text(workdir / 'config.py', code.text)
    if merges:
      files.write_text(workdir / MERGES, merges)
    files.write_text(workdir / 'config.json', json.dumps({
        'format': FORMAT, 'config': values, 'from': began, 'neighbours': list(code.neighbours),
        'cwd': os.getcwd(),
        'fingerprint': fingerprint or old.get('fingerprint'),
        'starts': [*old.get('starts', ()),
                   provenance() | ({'init_from': start} if start else {}) | extended]}, indent=2))
    for file in (workdir / 'config').rglob('*.py'):  # of another start
      if str(file.relative_to(workdir / 'config')) not in code.neighbours:
        file.unlink()


def _merges(workdir: Path, config: ml_collections.ConfigDict) -> str:
  """The text of the tokeniser's file that the run keeps; '' if it has none.

  Raises InputError if there is no such file, or if the run in `workdir` began with another.
  """
  path = config.data.get('merges', '') if 'data' in config else ''
  if not path:
    return ''
  try:
    text, kept = tokenisers.read_text(path), workdir / MERGES
  except InputError as error:
    raise InputError('config.data.merges', path, error.problem, error.remedy) from None
  require(not (begun(workdir) and kept.is_file()) or kept.read_text(encoding='utf-8') == text,
          'config.data.merges', path, f'the run in {workdir} began with another file',
          'leave it out, since the run has a copy, or choose another directory')
  return text


def _later_decay(old: dict, new: dict) -> bool:
  """Whether a learning rate that falls to 0 does so at a later step in `new`."""
  before, after = (of.get('optimizer', {}).get('decay_steps', 0) for of in (old, new))
  return 0 < before < after


def _extended(workdir: Path, old: dict, config: ml_collections.ConfigDict) -> dict:
  """The entry of `starts` for a longer curve of the learning rate.  The change is also printed.

  Raises InputError if nothing is left to train.
  """
  done = steps_made(workdir)
  require(config.train.steps > done, 'config.train.steps', config.train.steps,
          f'the run has made {done} steps', 'set more to extend it')
  before = ml_collections.ConfigDict(old['optimizer'])
  rates = [float(np.asarray(learning_rate(of)(done))) for of in (before, config.optimizer)]
  ends = [before.decay_steps, config.optimizer.decay_steps]
  if jax.process_index() == 0:
    print(f'The learning rate falls to 0 at step {ends[1]:,}, no longer at {ends[0]:,}: at step '
          f'{done:,}, where the run goes on, it is {rates[1]:.3g} instead of {rates[0]:.3g}.')
  return {'extended': {'step': done, 'decay_steps': ends, 'learning_rate': rates}}


def changed_data(workdir: str | Path, fingerprint: dict) -> str:
  """A clause that says how the data have changed since the run began; '' without changes.

  It is also '' if the run keeps no fingerprint.
  """
  before = record(Path(workdir)).get('fingerprint')
  return data.changes(before, fingerprint) if before else ''


def _edited(old: config_files.ConfigCode, new: config_files.ConfigCode) -> list[str]:
  """The paths of the config's files that differ between `old` and `new`, or are in one only."""
  return [str(new.path)] * (old.text != new.text) + [
      str(new.folder / name) for name in sorted(old.neighbours.keys() | new.neighbours.keys())
      if old.neighbours.get(name) != new.neighbours.get(name)]


def say_what_changed(workdir: str | Path) -> None:
  """Warns in one line if the run in `workdir` was last started with another vdm_jax."""
  started = record(workdir).get('starts', [{}])[-1]
  difference = changed(started, provenance())
  if difference and jax.process_index() == 0:
    logging.warning('The run in %s was started with another library: %s.', workdir, difference)


def _tuples(value):
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_config(workdir: str | Path) -> ml_collections.ConfigDict:
  """The values of the run's config.  Raises InputError if there is no run.

  Relative paths of the data start at the directory in which the run was started, if the data are
  there.  Otherwise, they start at today's directory.
  """
  saved = record(workdir)
  config = ml_collections.ConfigDict(_tuples(saved['config']))
  if (began := saved.get('cwd', os.getcwd())) != os.getcwd() and 'data' in config:
    for field in ('name', 'data_dir', 'latents'):
      path = config.data.get(field, '')
      if path and (field != 'name' or data.is_path(path)):
        there = Path(began, Path(path).expanduser())
        config.data[field] = str(there) if there.exists() else path
  if (kept := Path(workdir) / MERGES).is_file():
    config.data.merges = str(kept)
  return config


def record(workdir: str | Path) -> dict:
  """The contents of config.json.  Raises InputError if it is missing, damaged or too new."""
  path = files.run_directory('workdir', workdir) / 'config.json'
  if not path.exists():
    raise InputError('workdir', f'{workdir}', 'it holds no run, as it has no config.json',
                     'name the directory of a run')
  return files.read_json(path, of=('config', 'from'), remedy='restore it, or remove it '
                         'and start the same training again, which writes it anew', newest=FORMAT)


def load_trained(workdir: str | Path, *, average: str = '', step: int | str = 'latest',
                 data_dir: str = '', data_name: str = '') -> Trained:
  """The weights of the run in `workdir`.

  Args:
    average: the name of an average in config.ema, or 'raw' for the parameters themselves.  Default:
      the slowest average.
    step: 'latest', 'best' (by validation), or a number.
    data_dir, data_name: where the data are now, as fields of config.data.

  Raises InputError if there is no such run, step or average, or if the config is too old.  Several
  processes raise the same error.
  """
  workdir = files.run_directory('workdir', workdir)
  see_alike(workdir)
  config, experiment, average = devices.on_all(
      lambda: _opened(workdir, average, data_dir, data_name))
  # A training may save more just now: process 0 chooses, and the others wait until they see it too.
  chosen, steps = devices.broadcast_from_first(lambda: _choose(workdir, step, experiment.settled))
  sharing.see_alike('workdir', workdir, lambda: finished_files(workdir / 'checkpoints', chosen))
  checkpoints = devices.on_all(lambda: Checkpoints(workdir, read_only=True))
  try:
    params = _weights(checkpoints, steps, chosen, None if average == 'raw' else average)
  finally:
    checkpoints.close()
  return Trained(experiment.after(chosen), config, params, chosen, average)


def _opened(workdir: Path, average: str, data_dir: str, data_name: str
            ) -> tuple[ml_collections.ConfigDict, Experiment, str]:
  """The config of a run, its experiment, and the name of an average; see `load_trained`."""
  config = read_config(workdir)
  if data_dir:
    config.data.data_dir = data_dir
  if data_name:
    config.data.name = data_name
  experiment = config_files.build(import_config(workdir / 'config.py'), config)
  average = average or default_average(experiment.ema)
  if average != 'raw' and average not in experiment.ema:
    raise InputError('average', average, 'this run has no such average',
                     f'choose one of {", ".join(experiment.ema)} and raw')
  return config, experiment, average


def _choose(workdir: Path, step: int | str, settled: int) -> tuple[int, list[int]]:
  """The number of the checkpoint `step`, and the numbers of all, as far as this process sees them.

  step, settled: see `load_trained` and `Checkpoints`.

  Raises InputError if there is no such checkpoint.
  """
  checkpoints = Checkpoints(workdir, read_only=True, settled=settled)
  try:
    steps = checkpoints.steps()
    best = checkpoints.best_step() if step == 'best' else None
  finally:
    checkpoints.close()
  require(bool(steps), 'workdir', f'{workdir}', 'it holds no checkpoint yet',
          'wait for the first, or train on')
  chosen = best if step == 'best' else steps[-1] if step == 'latest' else next(
      (number for number in steps if str(number) == str(step)), None)
  if chosen is not None:
    return chosen, steps
  if step == 'best':
    raise InputError('step', 'best', 'no checkpoint has a validation loss to be chosen by',
                     'give latest')
  raise InputError('step', step, 'there is no such checkpoint',
                   f'choose one of {", ".join(map(str, steps))}, latest or best')


def _weights(checkpoints: Checkpoints, steps: list[int], chosen: int, average: str | None
             ) -> PyTree:
  """The weights at step `chosen`.

  Raises InputError, in all processes, if that checkpoint is damaged for any of them.  The error
  names the sound ones among `steps`, as process 0 sees them.
  """
  def read(step, alone=False):
    try:
      return checkpoints.restore_weights(step, average, alone)
    except Exception as error:  # whatever the disk did to it
      raise InputError('step', chosen, next(iter(str(error).splitlines()), type(error).__name__)
                       ) from None

  def sound(step):
    try:
      read(step, alone=True)
    except InputError:
      return False
    return True

  try:
    return devices.on_all(lambda: read(chosen))
  except InputError as error:
    reason = error.problem
  others = devices.broadcast_from_first(lambda: [
      str(step) for step in steps if step != chosen and sound(step)])
  raise InputError('step', chosen, f'its checkpoint is corrupted ({reason})',
                   f'choose {" or ".join(others)}' if others else
                   'no other checkpoint is intact: train again from the start')


def made(directory: str | Path) -> Any:
  """The product of the run in `directory` with zeros as weights, to be asked for its capabilities.

  No weights are read and nothing is traced: the shapes of the weights come from the newest
  checkpoint.  None: the run has no checkpoint, so it has made nothing yet.
  """
  directory = files.run_directory('workdir', directory)
  if not (directory / 'config.json').exists() or not begun(directory):
    return None
  experiment = config_files.build(import_config(directory / 'config.py'), read_config(directory))
  step = steps_made(directory)
  checkpoints = Checkpoints(directory, read_only=True)
  try:
    shapes = checkpoints.shapes(step)
  finally:
    checkpoints.close()
  # A system may compute on its parameters where it makes its model, so they are arrays.
  unknown = jax.tree.map(lambda u: np.broadcast_to(np.zeros((), u.dtype), u.shape), shapes)
  return experiment.after(step).model(unknown)


def load(workdir: str | Path, *, average: str = '', step: int | str = 'latest') -> Any:
  """Loads the model that the run in `workdir` trained, with its averaged weights.

  The result is a `Model` (with `sample` and `nats`) if the run trained a diffusion model.  Other
  runs give an autoencoder, a classifier, ...; printing the result lists its parts.

  Inside `jit`, the weights become constants of the program.  For large networks, jit a function of
  the parameters instead: `trained = load_trained(workdir); trained.experiment.model(params)`.

  average, step: see `load_trained`.
  """
  trained = load_trained(workdir, average=average, step=step)
  return trained.experiment.model(trained.params)
