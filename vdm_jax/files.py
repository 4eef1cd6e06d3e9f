"""Files that are written whole or not at all."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
  """A path to write to, of the same ending, that takes the place of `path` when all is written.

  No reader ever sees half a file, and what was there stays where the writing fails.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{os.getpid()}.{path.name}')
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    if error.errno and not error.filename:  # a full disk does not say of what
      error.filename = os.fspath(path)
    raise
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
  with whole(path) as partial:
    partial.write_text(text)


def save_npz(path: str | Path, **arrays) -> None:
  """np.savez_compressed, whole or not at all."""
  with whole(path) as partial:
    np.savez_compressed(partial, **arrays)
