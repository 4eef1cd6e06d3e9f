"""The writing of a folder of rows by one process, which may be interrupted and resumed."""
import contextlib
from collections.abc import Iterator

import tqdm

from vdm_jax.data.writers import Writer
from vdm_jax.train import lock

__all__ = ['resumed']


@contextlib.contextmanager
def resumed(writer: Writer, unit: str, each: int = 1) -> Iterator[tqdm.tqdm | None]:
  """A context in which this process alone writes the rows that are missing.

  Its value is a progress bar, or None if all rows are there.  At the end of the context, the folder
  takes its final name.  If the context ends early, the rows that are written are kept.

  unit: what the bar counts; each: the rows of a unit.

  Raises InputError if another process writes the folder.
  """
  with contextlib.ExitStack() as stack:
    if not writer.complete:
      stack.enter_context(lock.exclusive(writer.part, 'out', f'makes {writer.kind.rows}'))
    if writer.path.exists():
      if not writer.complete:  # another process has ended between the two looks
        (writer.part / 'lock').unlink(missing_ok=True)
        with contextlib.suppress(OSError):
          writer.part.rmdir()  # unless others have put something there
      yield None
      return
    writer.begin()
    stack.callback(writer.keep)
    yield stack.enter_context(tqdm.tqdm(
        total=writer.count // each, initial=writer.done // each, unit=unit, desc=writer.kind.rows,
        dynamic_ncols=True))
    writer.close()
    (writer.path / 'lock').unlink(missing_ok=True)  # which moved with the folder
