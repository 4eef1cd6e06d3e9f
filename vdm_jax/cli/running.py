"""Starts a command, and ends it with one line if it fails."""
import faulthandler
import functools
import logging as python_logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import app, logging

from vdm_jax.cli import parsing
from vdm_jax.cli.messages import fail
from vdm_jax.errors import InputError
from vdm_jax.machine import distributed, output, signals


def run(main: Callable, checkout: Path | None = None, *, required: Mapping[str, str] | None = None,
        arguments: bool = False, alone: bool = False, resumes: bool = False,
        failures: tuple[type[Exception], ...] = (),
        kept: str = 'Nothing of this command is kept.') -> None:
  """Runs `main` by absl's app.run; InputError and OSError give one line and exit code 2.

  Ctrl-C, SIGTERM and SIGHUP end the command with one line.  The command goes on if the reader of
  its output leaves.

  Args:
    main: a function.  If `arguments` is true, it receives the words after the flags; otherwise
      nothing.  It runs when all other processes have joined, if there are any.
    checkout: the folder whose configs are listed and proposed.
    required: the flags that must be given, each with an example.
    alone: the command does not run in several processes.
    resumes: without --config, the command takes the config of the run in --workdir.
    failures: the errors that give one line and exit code 1.
    kept: a sentence that says what a signal leaves of the command's work.
  """
  def guarded(argv):
    faulthandler.enable(2)  # absl has set it up; to where C++ writes, which `distributed` reads
    try:
      if argv[1:] and not arguments:
        raise InputError(problem=f'{argv[1]!r} is not a flag', remedy="begin one with '--'")
      return main(argv[1:]) if arguments else main()
    except (InputError, OSError) as error:
      fail(error)
    except failures as error:
      print(f'error: {error}', file=sys.stderr)
      return 1
    except Exception as error:
      distributed.fail(error)
      raise

  for name in ('stdout', 'stderr'):
    if stream := getattr(sys, name):  # not closed from the start
      setattr(sys, name, output.lasting(stream))
  logging.set_verbosity(logging.WARNING)  # libraries that report every file they touch
  # Orbax prints the tracebacks of its threads, and raises the same error where it is waited for.
  logging.get_absl_logger().addFilter(
      lambda record: 'orbax' not in record.pathname or record.levelno < python_logging.ERROR)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  command = parsing.Command(required or {}, alone, resumes, checkout and checkout / 'configs')
  with signals.ending(kept):
    app.run(guarded, flags_parser=functools.partial(parsing.read, command=command))
