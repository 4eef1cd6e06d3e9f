"""Flags that several commands have, with one meaning and one default each."""
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from vdm_jax.errors import InputError
from vdm_jax.machine import files

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


class _Path(flags.ArgumentParser):
  """A parser of a path, by `files.user_path` or another function of (field, path)."""

  def __init__(self, name: str, check: Callable[[str, str], Path]):
    self._name, self._check = name, check
    self.of_run = check is files.run_directory

  def parse(self, argument: str) -> str:
    return str(self._check(self._name, argument))

  def flag_type(self) -> str:
    return 'path'


def path(name: str, help_text: str) -> flags.FlagHolder:
  """Defines a flag of one path, with ~ expanded; None if it is not given."""
  return flags.DEFINE(_Path(name, files.user_path), name, None, help_text)


def run_directory(help_text: str = 'The directory of the run.', name: str = 'workdir'
                  ) -> flags.FlagHolder:
  """Defines a flag of one directory that holds, or will hold, a run."""
  return flags.DEFINE(_Path(name, files.run_directory), name, None, help_text)


def run_directories(argv: list[str]) -> dict[str, str]:
  """{flag: directory} of the flags of a command line that `run_directory` has defined."""
  parsers = {name: flags.FLAGS[name].parser for name in flags.FLAGS}
  names = [name for name, one in parsers.items() if isinstance(one, _Path) and one.of_run]
  with contextlib.suppress(flags.Error):  # which is said when all flags are read
    read_some(argv, names)
  return {name: value for name in names if (value := flags.FLAGS[name].value) is not None}


def read_some(argv: list[str], names: Iterable[str]) -> None:
  """Sets these flags alone by a command line.  Raises InputError, or absl's flags.Error."""
  some = flags.FlagValues()
  for name in names:
    some[name] = flags.FLAGS[name]
  some(argv, known_only=True)


def config_data_dir() -> flags.FlagHolder:
  """Defines --data_dir for a command that takes a config."""
  return path('data_dir', 'The folder that holds the data sets, as scripts/prepare_data.py or '
              'TFDS writes them (sets config.data.data_dir).')


def data_dir() -> flags.FlagHolder:
  """Defines --data_dir for a command that takes a run whose data sets have moved."""
  return path('data_dir', 'The folder that holds the data sets, if it has moved.')


def moved_data(help_text: str = "The run's data, if they have moved: ./photos or x.npz."
               ) -> flags.FlagHolder:
  """Defines --data_name for data that have moved.

  The value is a name as in config.data.name.  As a path, ./photos would lose its dot.
  """
  return flags.DEFINE_string('data_name', None, help_text)


def average(help_text: str = "Which average: a name in config.ema, or 'raw'.  Default: the slowest."
            ) -> flags.FlagHolder:
  """Defines --average, which chooses a run's weights."""
  return flags.DEFINE_string('average', '', help_text)


def step() -> flags.FlagHolder:
  """Defines --step, which chooses a run's checkpoint."""
  return flags.DEFINE_string('step', 'latest', "Which checkpoint: 'latest', 'best' or a step.")


def of_run() -> tuple[flags.FlagHolder, ...]:
  """Defines --average, --step, --data_dir and --data_name: the parts of a run to load."""
  return average(), step(), data_dir(), moved_data()


def seed(of: str) -> flags.FlagHolder:
  """Defines --seed.  of: the thing that is seeded, such as 'the samples'."""
  return flags.DEFINE_integer('seed', 0, f'Random seed of {of}.')


def batch_size(default: int, help_text: str = 'How many examples are processed at a time.'
               ) -> flags.FlagHolder:
  return flags.DEFINE_integer('batch_size', default, help_text)


def overwrite(help_text: str = 'Replace existing files.') -> flags.FlagHolder:
  return flags.DEFINE_bool('overwrite', False, help_text)


def values(*holders: flags.FlagHolder) -> dict[str, Any]:
  """{name: value} of these flags, without the flags that have no value."""
  return {holder.name: holder.value for holder in holders if holder.value is not None}


def integers(name: str, words: Sequence[str]) -> list[int]:
  """The numbers of a list flag.  Raises InputError."""
  try:
    return [int(word) for word in words]
  except ValueError:
    raise InputError(name, words, 'these are not whole numbers',
                     'give whole numbers, separated by commas') from None


def numbers(name: str, words: Sequence[str]) -> list[float]:
  """The real numbers of a list flag.  Raises InputError."""
  try:
    return [float(word) for word in words]
  except ValueError:
    raise InputError(name, words, 'these are not numbers',
                     'give numbers, separated by commas') from None
