"""How a command starts and ends."""
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
  """absl's app.run; InputError and OSError are one line and exit code 2.

  Ctrl-C, SIGTERM and SIGHUP end it with one line.  A reader of its output that is gone does not.

  Args:
    main: of no arguments, or of the list of what follows the flags where `arguments` is set.  It
      runs when the other processes are there, if there are any.
    checkout: whose configs are listed and proposed.
    required: flags that have to be given, each with an example.
    alone: it has no use for other processes.
    resumes: without --config it takes the config of the run in --workdir.
    failures: errors that are one line and exit code 1.
    kept: what a signal leaves of its work, in a sentence.
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
