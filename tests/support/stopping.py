"""Stops a procedure that keeps its parts, as a killed command would end."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vdm_jax.machine import files

_SAVE = files.save_npz


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int | None) -> list[tuple[Path, Any]]:
  """From now on, `number` files of arrays are written, and the next one is a stop; None: never.

  Returns what is written, as it is: the path and the arrays of each file.
  """
  written: list[tuple[Path, Any]] = []

  def stopping(path, **arrays):
    if len(written) == number:
      raise KeyboardInterrupt
    written.append((path, arrays))
    _SAVE(path, **arrays)
  monkeypatch.setattr(files, 'save_npz', stopping)
  return written


def stopped(owner: type, name: str, when: Callable[..., Any]) -> Callable[..., Any]:
  """That method of `owner`, which ends with Ctrl-C instead if when(self, *arguments) is true."""
  method = getattr(owner, name)

  def run(self, *arguments, **named):
    if when(self, *arguments):
      raise KeyboardInterrupt
    return method(self, *arguments, **named)
  return run
