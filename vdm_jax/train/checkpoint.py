"""Checkpoints: written whole or not at all, verified when read, resumed exactly.

Orbax writes a checkpoint asynchronously, and renames it into place when it is finished.  So a kill
at any moment leaves only whole checkpoints.  Checksums of the finished files are kept beside them.
They detect later damage of the disk.
"""
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vdm_jax.errors import InputError
from vdm_jax.machine import devices, files, sharing
from vdm_jax.train.step import TrainState
from vdm_jax.typing import PyTree

_SOUND, _DAMAGED, _UNSEALED = range(3)


class Corrupted(Exception):
  """A checkpoint whose content has changed since it was written."""


class Restored(NamedTuple):
  step: int
  state: TrainState


def finished_files(directory: str | Path, step: int | None = None) -> Iterator[Path]:
  """All files of the finished checkpoints in `directory` that this process sees.

  step: that of the one checkpoint to look at.  Default: all.
  """
  for found in Path(directory).glob('[0-9]*' if step is None else f'{step}'):
    if found.name.isdigit():
      for folder, _, names in os.walk(found):
        yield from (Path(folder, name) for name in names)


def _digest(directory: Path) -> dict[str, int]:
  """CRC-32 of every file of a finished checkpoint, by the file's relative path."""
  digest = {}
  for path in sorted(p for p in directory.rglob('*') if p.is_file()):
    crc = 0
    with path.open('rb') as f:
      while block := f.read(1 << 24):
        crc = zlib.crc32(block, crc)
    digest[str(path.relative_to(directory))] = crc
  return digest


class _Best(preservation_policy.PreservationPolicy):
  """Preserves the checkpoint with the lowest finite validation loss after step `settled`."""

  def __init__(self, settled: int):
    self._settled = settled

  def of(self, metrics: Mapping[int, Any]) -> int | None:
    """The best step, the later one of equals; None if no step qualifies.  metrics: by step."""
    losses = {step: found['validation'] for step, found in metrics.items()
              if step > self._settled and found and math.isfinite(found['validation'])}
    return min(losses, key=lambda step: (losses[step], -step), default=None)

  def should_preserve(self, checkpoints, *, context):
    best = self.of({checkpoint.step: checkpoint.metrics for checkpoint in checkpoints})
    return [checkpoint.step == best for checkpoint in checkpoints]


class Checkpoints:
  """The checkpoints of one run, in `workdir/checkpoints/STEP`.

  Keeps the newest `keep` checkpoints and the one with the lowest validation loss.  Only the
  validation slice of the training split may choose: a likelihood of the test split is no test if
  the test split chose the checkpoint.

  Args:
    read_only: nothing is written, and each process reads by itself: none waits for another, except
      for the verdict of process 0 on the files; see `restore_weights`.
    settled: the last step whose loss is of another quantity; a step up to it is never the best.
  """

  def __init__(self, workdir: str | Path, keep: int = 3, read_only: bool = False,
               settled: int = 0):
    workdir = files.run_directory('workdir', workdir).absolute()
    self.directory = workdir / 'checkpoints'
    self._checksums = workdir / 'checksums'
    self._aside = workdir / 'corrupted'
    self._read_only = read_only
    self._best = _Best(settled)
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    self._options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy([
            preservation_policy.LatestN(keep), self._best]),
        best_fn=lambda m: m['validation'], best_mode='min',  # else metrics are not read back
        cleanup_tmp_directories=not read_only, create=not read_only, save_root_metadata=False,
        multiprocessing_options=alone if read_only else ocp.options.MultiprocessingOptions())
    if read_only or jax.process_index() == 0:
      self._check_losses()
    if not read_only:
      self._see_alike()
    self._manager = ocp.CheckpointManager(
        self.directory, options=self._options,  # without handlers it could tell no shapes
        item_handlers={item: ocp.StandardCheckpointHandler() for item in ('params', 'ema', 'rest')})

  def _see_alike(self) -> None:
    """Waits until all processes see the same checkpoints."""
    sharing.see_alike('workdir', self.directory, lambda: finished_files(self.directory))

  def _check_losses(self) -> None:
    """Finds checkpoints whose validation loss is unreadable; Orbax would fail as it opens them."""
    for directory in self.directory.glob('[0-9]*'):
      if not directory.name.isdigit():
        continue  # half-written
      try:
        float(json.loads((directory / 'metrics' / 'metrics').read_text())['validation'])
      except (OSError, ValueError, KeyError, TypeError) as error:
        if not self._read_only:
          self._set_aside(int(directory.name), 'its validation loss cannot be read')
        elif not isinstance(error, FileNotFoundError):  # which a run may be deleting
          raise InputError(problem=f'{directory} is corrupted: its validation loss cannot be read',
                           remedy='remove it, or continue the training, which moves it to '
                                  'corrupted/') from None

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, validation: float = math.inf) -> None:
    """Starts an asynchronous write of `state`: numpy, or arrays over the devices of all processes.

    Each process writes its own part.  The state may be donated as soon as this returns.
    validation: the loss that selects the best checkpoint; infinite if it was not measured at this
    step.  A checkpoint with an infinite or NaN loss is never the best.
    """
    self.seal()
    step = int(state.step)
    if step in self.steps():
      return
    items = {'params': state.params, 'ema': state.ema,
             'rest': {'step': state.step, 'opt': state.opt, 'aux': state.aux}}
    self._manager.save(
        step, args=ocp.args.Composite(**{k: ocp.args.StandardSave(v) for k, v in items.items()}),
        metrics={'validation': validation if math.isfinite(validation) else math.inf})

  def seal(self) -> None:
    """Waits for the write in progress, and records the checksums of finished checkpoints."""
    self._manager.wait_until_finished()
    if jax.process_index() != 0:
      return
    steps = set(self.steps())
    self._checksums.mkdir(exist_ok=True)
    for path in self._checksums.glob('*.json'):
      if int(path.stem) not in steps:
        path.unlink()
    for step in steps:
      path = self._checksums / f'{step}.json'
      if not path.exists():
        files.write_text(path, json.dumps(_digest(self.directory / str(step))))

  def close(self) -> None:
    if not self._read_only:
      self.seal()
    self._manager.close()

  def _judge(self, step: int) -> int:
    """The state of a finished checkpoint: _SOUND, _DAMAGED, or _UNSEALED without checksums."""
    path = self._checksums / f'{step}.json'
    if not path.exists():  # a kill may come between the end of a write and its checksums
      return _UNSEALED
    try:
      same = json.loads(path.read_text()) == _digest(self.directory / str(step))
    except OSError:
      if not self._read_only:
        raise
      return _UNSEALED  # its run may be deleting it; whoever reads it will see
    except ValueError:  # checksums that are not those of a seal
      return _DAMAGED
    return _SOUND if same else _DAMAGED

  def _read(self, step: int, items: Callable[[], dict], alone: bool = False):
    """The items of a checkpoint.  Raises Corrupted if its files are damaged, else other errors."""
    # One process reads the files and all go by what it says.
    verdict = (self._judge(step) if alone else
               devices.broadcast_from_first(lambda: self._judge(step)))
    if verdict == _DAMAGED:
      raise Corrupted('its files do not match their checksums')
    sealed = verdict == _SOUND
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items()))
    except (MemoryError, jax.errors.JaxRuntimeError):  # ours, not the file's
      raise
    except Exception as error:
      if sealed:
        raise
      raise Corrupted(str(error).partition('\n')[0] or type(error).__name__) from error

  def restore(self, like: TrainState) -> Restored | None:
    """The newest sound checkpoint in the structure of `like`, or None.

    like: with arrays, or with shapes and dtypes, the result is numpy.  With shardings, the arrays
    are placed by them, whatever layout and number of devices wrote the checkpoint.

    A torn or corrupted checkpoint is reported and moved to `workdir/corrupted`, and the one before
    it is used.  Raises InputError if a sound checkpoint belongs to another model or optimiser.
    """
    like = jax.tree.map(
        lambda u: u if getattr(u, 'sharding', None) else np.zeros(u.shape, u.dtype), like)
    items = {'params': like.params, 'ema': like.ema,
             'rest': {'step': like.step, 'opt': like.opt, 'aux': like.aux}}
    items = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
    for step in reversed(self.steps()):
      try:
        out = self._read(step, lambda: items)
      except Corrupted as error:
        self._set_aside(step, error)
        self._see_alike()
        self._manager.reload()
        continue
      except ValueError as error:
        raise self._of_another(step) from error
      state = TrainState(out['rest']['step'], out['params'], out['ema'], out['rest']['opt'],
                         out['rest']['aux'])
      if jax.tree.map(np.shape, state) != jax.tree.map(np.shape, like):
        raise self._of_another(step)
      return Restored(step, state)
    return None

  def _of_another(self, step: int) -> InputError:
    return InputError(problem=f'{self.directory / str(step)} holds the parameters of another model '
                      'or optimiser: has its code changed?',
                      remedy='choose another directory, or go back to that code')

  def _set_aside(self, step: int, reason) -> None:
    logging.error('Checkpoint %d is corrupted (%s); using the one before it.', step, reason)
    if jax.process_index() == 0:
      self._aside.mkdir(exist_ok=True)
      names = (self._aside / f'{step}{suffix}' for suffix in ('', *(f'.{i}' for i in range(99))))
      os.replace(self.directory / str(step), next(name for name in names if not name.exists()))
      (self._checksums / f'{step}.json').unlink(missing_ok=True)

  def best_step(self) -> int | None:
    """The kept step with the lowest validation loss; None if no loss was measured."""
    return self._best.of({step: self._manager.metrics(step) for step in self.steps()})

  def shapes(self, step: int) -> PyTree:
    """The shapes and types of the parameters of `step`.  No weights are read."""
    return jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype),
                        self._manager.item_metadata(step)['params'].tree)

  def restore_weights(self, step: int, average: str | None, alone: bool = False) -> PyTree:
    """The parameters of `step`, as numpy: the average with this name, or the raw ones for None.

    alone: only this process reads.  Otherwise, all processes call this.

    Raises Corrupted, and KeyError if the checkpoint has no such average.
    """
    item = 'params' if average is None else 'ema'

    def items():  # as numpy, whatever devices wrote it
      shapes = self._manager.item_metadata(step)[item].tree
      zeros = jax.tree.map(lambda u: np.zeros(u.shape, u.dtype), shapes)
      return {item: ocp.args.StandardRestore(zeros)}

    out = self._read(step, items, alone)[item]
    if average is not None and average not in out:
      raise KeyError(f'no average named {average!r}; there are {sorted(out)}')
    return jax.tree.map(np.asarray, out if average is None else out[average])
