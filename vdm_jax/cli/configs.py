"""The flag --config: the file that it names, and the fields of the config as flags."""
import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm_jax.errors import InputError
from vdm_jax.machine import files

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


class _ConfigFile(flags.ArgumentParser):
  """FILE.py or FILE.py:VARIANT -> its config, locked, so that a flag cannot add a field."""

  def parse(self, argument: str) -> ConfigDict:
    from vdm_jax.runs import workdir
    try:
      return workdir.open_config(argument).lock()
    except (TypeError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise RuntimeError(f'--config={argument}') from error  # absl would hide where it was raised


def config_flag() -> flags.FlagHolder:
  """Defines --config, --config.FIELD for all fields of the config, and --print_config."""
  flags.DEFINE_bool('print_config', False, "Print the fields of the config as flags, and exit.")
  holder = config_flags.DEFINE_config_file('config', None, 'The config file, FILE.py or '
                                           'FILE.py:VARIANT.')
  flags.FLAGS['config'].parser = _ConfigFile()
  return holder


def config_name() -> str:
  """The value of --config: FILE.py or FILE.py:VARIANT."""
  flag: Any = flags.FLAGS['config']
  return flag.config_filename


def config_file() -> str:
  """The path that --config names, without a variant."""
  return config_name().partition(':')[0]


def config() -> ConfigDict:
  """The config that --config names, with the data that --data_dir and --data_name name."""
  changed = flags.FLAGS.config
  for flag, field in (('data_dir', 'data_dir'), ('data_name', 'name')):
    if flag in flags.FLAGS and flags.FLAGS[flag].value:
      changed.data[field] = flags.FLAGS[flag].value
  return changed


def listed(folder: Path | None) -> dict[str, str]:
  """{path: first line} of the config files in a checkout's folder, with paths as seen from here."""
  if folder is None:
    return {}
  first = lambda file: file.read_text().strip().strip('"').partition('\n')[0]
  inside = Path.cwd().is_relative_to(folder.parent)
  return {os.path.relpath(file) if inside else str(file): first(file)
          for file in sorted(folder.rglob('*.py'))}


def named(argv: list[str]) -> bool:
  """Whether the command line has a --config."""
  return any(re.match('--?config(=|$)', argument) for argument in argv)


def expanded(argv: list[str], folder: Path | None) -> list[str]:
  """argv, with ~ expanded in the path of --config.

  Raises InputError if there is no such file.  The error proposes configs in `folder`.
  """
  out = list(argv)
  for i, argument in enumerate(argv):
    if argument == '--config' and i + 1 < len(argv):
      i, before, text = i + 1, '', argv[i + 1]
    elif argument.startswith('--config='):
      before, text = '--config=', argument.removeprefix('--config=')
    else:
      continue
    name, colon, variant = text.partition(':')
    file = files.user_path('config', name)
    if not file.is_file():
      known = listed(folder)
      near = difflib.get_close_matches(
          str(file), {*known, *map(str, file.parent.glob('*.py'))}, n=3)
      raise InputError(
          'config', text, 'there is no such file', 'there is ' + ' and '.join(near) if near else
          'choose a file of your own' + (f', or one of {", ".join(known)}' if known else ''))
    out[i] = f'{before}{file}{colon}{variant}'
  return out


def resumed(argv: list[str]) -> list[str]:
  """argv; if it names no config, with the config of the run in --workdir, if there is a run."""
  if named(argv):
    return argv
  own = flags.FlagValues()
  own['workdir'] = flags.FLAGS['workdir']
  with contextlib.suppress(flags.Error):  # which is said when all are read
    own(argv, known_only=True)
    if own.workdir and (kept := Path(own.workdir, 'config.json')).is_file():
      return [argv[0], f'--config={kept}', *argv[1:]]
  return argv


def fields(values: ConfigDict, prefix: str = '--config') -> Iterator[str]:
  """The fields of a config, written as the flags that would set them."""
  for name, value in values.items():
    if isinstance(value, ConfigDict):
      yield from fields(value, f'{prefix}.{name}')
    else:
      text = str(value)
      plain = "'" in text and not set(text) & set('"$`!\\')
      yield f'{prefix}.{name}=' + (f'"{text}"' if plain else shlex.quote(text) if text else '')
