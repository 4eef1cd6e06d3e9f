"""A run's directory: the config it was made with, and the model that came of it.

    config.py         the config file, as it was when the run began
    config.json       its values, with what was read from the data filled in
    checkpoints/      see train/checkpoint.py
    metrics.jsonl, tensorboard/, ...
"""
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
from absl import logging

from vdm_jax import files
from vdm_jax.errors import InputError
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.step import default_average
from vdm_jax.typing import Experiment, Model, PyTree

# What may differ from one start of a run to the next: how it goes, not what it computes.
RUN_FIELDS = ('train.', 'data.data_dir', 'data.memory_gb', 'data.workers', 'model.scan',
              'model.remat', 'model.weight_gradient', 'model.attention')


class Trained(NamedTuple):
  """Weights of a run, and what they belong to."""
  experiment: Experiment
  config: ml_collections.ConfigDict
  params: PyTree
  step: int
  average: str


def _importable(folder: str | Path) -> None:
  """A user's config may import a neighbour of its own."""
  if str(folder) not in sys.path:
    sys.path.append(str(folder))


def import_config(path: str | Path):
  """The module of a config file, with its `get_config` and `build`."""
  path = Path(path)
  if not path.is_file():
    raise InputError(f'{path}: no such config file.')
  _importable(path.absolute().parent)
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for name in ('get_config', 'build'):
    if not hasattr(module, name):
      raise InputError(f'{path} has no `{name}`: a config file defines get_config() and '
                       'build(config).')
  return module


def _flat(tree: dict, prefix: str = '') -> dict:
  out = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      out.update(_flat(value, f'{prefix}{name}.'))
    else:
      out[prefix + name] = list(value) if isinstance(value, tuple) else value
  return out


def _differences(old: dict, new: dict) -> list[str]:
  old, new = _flat(old), _flat(new)
  return [f'  {name}: {old.get(name, "(absent)")} there, {new.get(name, "(absent)")} asked for'
          for name in sorted(old.keys() | new.keys())
          if old.get(name) != new.get(name) and not name.startswith(RUN_FIELDS)]


def prepare(workdir: str | Path, config: ml_collections.ConfigDict, config_file: str | Path
            ) -> None:
  """Makes `workdir` the directory of this run, or checks that it is.

  Raises InputError where it cannot be written, or has checkpoints of a run of another model, data
  or optimiser: the differences are listed.  Without a checkpoint there is nothing to go on with,
  and a corrected config takes the place of the first one.
  """
  workdir, source = Path(workdir), Path(config_file)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f'.probe.{jax.process_index()}.{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise InputError(f'--workdir={workdir} cannot be written ({error.strerror}): choose another '
                     'directory.') from None
  values, saved, code = config.to_dict(), workdir / 'config.json', workdir / 'config.py'
  if saved.exists() and any((workdir / 'checkpoints').glob('[0-9]*')):
    differences = _differences(json.loads(saved.read_text())['config'], values)
    if differences:
      raise InputError(f'--workdir={workdir} holds a run of another configuration:\n'
                       + '\n'.join(differences)
                       + '\nChoose another --workdir, or ask for the same.')
    if jax.process_index() == 0 and code.read_text() != source.read_text():
      logging.warning('%s has changed since the run in %s began; its values agree.', source,
                      workdir)
  if jax.process_index() == 0:
    files.write_text(code, source.read_text())
    files.write_text(saved, json.dumps({'config': values, 'from': str(source.absolute().parent)},
                                       indent=2))


def _tuples(value):
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_config(workdir: str | Path) -> ml_collections.ConfigDict:
  path = Path(workdir) / 'config.json'
  if not path.exists():
    raise InputError(f'--workdir={workdir} holds no run: it has no config.json.')
  return ml_collections.ConfigDict(_tuples(json.loads(path.read_text())['config']))


def load_trained(workdir: str | Path, *, average: str = '', step: int | str = 'latest',
                 data_dir: str = '') -> Trained:
  """The weights of the run in `workdir`.

  average: name of an EMA of the config, 'raw' for the parameters themselves, '' for the longest.
  step: 'latest', 'best' (by validation), or a number.  data_dir: where the data are now.
  Raises InputError where there is no such run, step or average.
  """
  workdir = Path(workdir)
  config = read_config(workdir)
  if data_dir:
    config.data.data_dir = data_dir
  origin = json.loads((workdir / 'config.json').read_text())['from']
  _importable(origin)
  experiment = import_config(workdir / 'config.py').build(config)
  average = average or default_average(experiment.ema)
  if average != 'raw' and average not in experiment.ema:
    raise InputError(f'--average={average}: this run has {", ".join(experiment.ema)} and raw.')
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    steps = checkpoints.steps()
    if not steps:
      raise InputError(f'--workdir={workdir} holds no checkpoint yet.')
    if step in ('latest', 'best'):
      chosen = steps[-1] if step == 'latest' else checkpoints.best_step()
      if chosen is None:
        raise InputError('--step=best: no checkpoint has been validated yet; say latest.')
    else:
      chosen = next((number for number in steps if str(number) == str(step)), None)
      if chosen is None:
        raise InputError(f'--step={step}: there are checkpoints of {", ".join(map(str, steps))}; '
                         'or say latest or best.')
    params = _weights(checkpoints, steps, chosen, None if average == 'raw' else average)
  finally:
    checkpoints.close()
  return Trained(experiment, config, params, chosen, average)


def _weights(checkpoints: Checkpoints, steps: list[int], chosen: int, average: str | None
             ) -> PyTree:
  """The weights at step `chosen`; InputError names the sound ones of `steps` if it is not."""
  def read(step):
    try:
      return checkpoints.restore_weights(step, average), ''
    except Exception as error:  # whatever the disk did to it
      return None, next(iter(str(error).splitlines()), type(error).__name__)
  params, reason = read(chosen)
  if reason:
    sound = [str(step) for step in steps if step != chosen and not read(step)[1]]
    raise InputError(f'The checkpoint of step {chosen} is corrupted ({reason}): ' + (
        f'choose --step={" or ".join(sound)}.' if sound else 'and no other is sound.'))
  return params


def load(workdir: str | Path, *, average: str = '', step: int | str = 'latest') -> Model:
  """The Model of the run in `workdir`, with its averaged weights; arguments of `load_trained`.

  Inside `jit` the weights become constants of the program.  For large networks jit a function
  of the parameters instead: `trained = load_trained(workdir); trained.experiment.model(params)`.
  """
  trained = load_trained(workdir, average=average, step=step)
  return trained.experiment.model(trained.params)
