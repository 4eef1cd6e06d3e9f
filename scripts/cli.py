"""What all scripts share: the package is found from a checkout, and a user's error is one line."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from vdm_jax.errors import InputError


def run(main, required=(), arguments: bool = False) -> None:
  """absl's app.run with `required` flags; InputError and OSError are one line and exit code 2.

  main: of no arguments, or of the list of what follows the flags where `arguments` is set.
  """
  def guarded(argv):
    if argv[1:] and not arguments:
      raise app.UsageError(f'{argv[1]!r} is no flag.')
    try:
      return main(argv[1:]) if arguments else main()
    except (InputError, OSError) as error:
      print(f'error: {error}', file=sys.stderr)
      return 2

  flags.mark_flags_as_required(list(required))
  logging.set_verbosity(logging.WARNING)  # libraries that report every file they touch
  app.run(guarded)
