"""The measurements, by their names on the command line."""
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from vdm_jax.benchmark import (
  coding,
  compiled,
  distillation,
  machines,
  memory,
  precision,
  scaling,
  speed,
  target_table,
)
from vdm_jax.errors import InputError, require

__all__ = ['MEASUREMENTS', 'Settings', 'measure']


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of all measurements.  Each measurement reads some of them."""
  config_file: str = ''
  config: ml_collections.ConfigDict | None = None
  workdir: str = ''                   # of a run, in the place of a config
  data_dir: str = ''
  data_name: str = ''                 # where the data of a run are now
  blocks: int | None = None           # in the place of the config's
  features: int | None = None
  batch_size: int | None = None
  repetitions: int | None = None      # None: what some seconds hold
  warm_up: int = 1
  cold: bool = False
  peak_tflops: float = 0.0
  times: int = 32
  sampler_steps: int = 250
  chain_steps: int = 20               # T of the codec
  depths: Sequence[int] = (1, 2, 4, 8)
  target: str = ''                    # a machine to compile for
  largest: bool = False               # with the largest batch that fits there
  training: Sequence[str] = ()        # the command of a training whose start is timed; (): none
  split: str = 'test'
  examples: int | None = None
  repeats: int = 1
  average: str = ''
  published: Path | None = None       # the folder of the configs of published models
  table: Path | None = None           # the file of the table of targets
  script: Path | None = None          # scripts/benchmark.py


def measure(name: str, settings: Settings) -> dict:
  """The numbers of the measurement called `name`, a key of `MEASUREMENTS`.  Raises InputError."""
  for field, value, readers in (('target', settings.target, ('compile', 'targets')),
                                ('largest', settings.largest, ('compile',))):
    require(not value or name in readers, field, value, f'{name} does not read it', 'leave it out')
  return MEASUREMENTS[name](settings)


def _of_config(settings: Settings, blocks: int | None = None, runs: bool = True
               ) -> speed.Subject:
  if settings.config is None:
    raise InputError('config', None, 'it is missing', 'name a config file' + (
        ', as this command takes no workdir' if settings.workdir else ''))
  return speed.of_config(settings.config_file, settings.config, features=settings.features,
                         batch_size=settings.batch_size, runs=runs,
                         blocks=settings.blocks if blocks is None else blocks)


def _of_run_or_config(settings: Settings) -> speed.Subject:
  if not settings.workdir:
    return _of_config(settings)
  require(settings.config is None and settings.blocks is None and settings.features is None,
          'workdir', settings.workdir, 'a run has its own config',
          'leave out config, blocks and features')
  return speed.of_run(settings.workdir, batch_size=settings.batch_size,
                      data_dir=settings.data_dir, data_name=settings.data_name)


def _repetitions(settings: Settings) -> dict:
  return {'repetitions': settings.repetitions, 'warm_up': settings.warm_up}


def _batch_size(settings: Settings) -> dict:
  return {} if settings.batch_size is None else {'batch_size': settings.batch_size}


def _train(settings: Settings) -> dict:
  return speed.train(_of_config(settings), cold=settings.cold, peak_tflops=settings.peak_tflops,
                     **_repetitions(settings))


def _evaluate(settings: Settings) -> dict:
  return speed.evaluate(_of_run_or_config(settings), times=settings.times,
                        peak_tflops=settings.peak_tflops, **_repetitions(settings))


def _sample(settings: Settings) -> dict:
  return speed.sample(_of_run_or_config(settings), sampler_steps=settings.sampler_steps,
                      peak_tflops=settings.peak_tflops, **_repetitions(settings))


def _distillation(settings: Settings) -> dict:
  return distillation.step(_of_config(settings), **_repetitions(settings))


def _pairs(settings: Settings) -> dict:
  return distillation.pairs(_of_run_or_config(settings), sampler_steps=settings.sampler_steps,
                            **_repetitions(settings))


def _codec(settings: Settings) -> dict:
  return coding.codec(_of_run_or_config(settings), steps=settings.chain_steps,
                      **_repetitions(settings))


def _data(settings: Settings) -> dict:
  return speed.data(_of_config(settings), **_repetitions(settings))


def _compile(settings: Settings) -> dict:
  if settings.target:
    return _compile_for(machines.machine(settings.target), settings)
  require(not settings.largest, 'largest', True, 'it needs a target', 'add --target')
  require(bool(settings.depths), 'depths', None, 'it is empty', 'name one or more')
  start = {}
  if settings.training and settings.config is not None:
    # Before this process takes the accelerator.
    start = speed.start_to_first_step(settings.training)
  return speed.compilation([_of_config(settings, depth) for depth in settings.depths], start=start)


def _compile_for(machine: machines.Machine, settings: Settings) -> dict:
  machines.require_compiler(machine)
  scaling.simulate(1)  # this process computes on the CPU
  if settings.config is not None:
    settings = dataclasses.replace(settings, config=speed.on_accelerators(settings.config))
  subject = _of_config(settings, runs=False)
  compiled.check(subject, machine, settings.largest)
  account = compiled.account(subject, machine, machines.devices(machine), settings.largest)
  loops, calls = account.get('unknown_loops', 0), account.get('unknown_calls') or {}
  require(settings.table is None or not (loops or calls), 'measured', f'{settings.table}',
          f'the counts are too low for a table: the program has {loops} loops of unknown length, '
          f'and calls of unknown work ({", ".join(calls) or "none"})', 'leave it out')
  return account


def _precision(settings: Settings) -> dict:
  require(bool(settings.workdir), 'workdir', None, 'it is missing', 'name a run')
  require(settings.config is None, 'workdir', settings.workdir, 'a run has its own config',
          'leave out config')
  return precision.compare(
      settings.workdir, split=settings.split, examples=settings.examples, repeats=settings.repeats,
      times=settings.times, average=settings.average, data_dir=settings.data_dir,
      data_name=settings.data_name, **_batch_size(settings))


def _memory(settings: Settings) -> dict:
  scaling.simulate(1)
  if settings.config is not None:
    name = Path(settings.config_file).stem
    return memory.memory({name: (settings.config_file, settings.config)})
  if settings.published is None:
    raise InputError('config', None, 'it is missing', 'name a config file')
  return memory.memory(memory.published(settings.published))


def _scaling(settings: Settings) -> dict:
  if settings.config is None:
    raise InputError('config', None, 'it is missing', 'name a config file')
  scaling.simulate(max(scaling.DEVICES))
  return scaling.scaling(settings.config_file, settings.config, blocks=settings.blocks,
                         features=settings.features, **_batch_size(settings))


def _targets(settings: Settings) -> dict:
  if settings.table is None:
    raise InputError('measured', None, 'it is missing', 'name the file of the table')
  if settings.published is None or settings.script is None:
    raise InputError(problem='the scripts of a checkout are needed', remedy='call benchmark.py')
  return target_table.fill(settings.table, settings.script, settings.published, settings.target)


MEASUREMENTS: dict[str, Callable[[Settings], dict]] = {
    'train': _train, 'distillation': _distillation, 'eval': _evaluate, 'sample': _sample,
    'pairs': _pairs, 'codec': _codec, 'data': _data, 'compile': _compile, 'precision': _precision,
    'memory': _memory, 'scaling': _scaling, 'targets': _targets}
