"""Where a run writes its measurements: `metrics.jsonl`, TensorBoard, PNGs of samples, the screen.

Each line is one JSON object: {"step", "kind", name: number, ...}.  kind is 'train' or the name of
the split that was evaluated.  Process 0 writes, and the other processes write nothing.
"""
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from PIL import Image
from tensorboardX import SummaryWriter

from vdm_jax.machine import files
from vdm_jax.train.window import headline
from vdm_jax.typing import PyTree


def read(workdir: str | Path) -> list[dict]:
  """All records of `workdir/metrics.jsonl`, in order; none if there is no such file."""
  return _sound_lines(Path(workdir) / 'metrics.jsonl')


def validations(workdir: str | Path) -> list[list[str]]:
  """A run's measurements on its validation split as cells: a header, then a row for each step."""
  records = [record for record in read(workdir) if record['kind'] == 'validation']
  names = [name for name in (records[-1] if records else {}) if name not in ('step', 'kind')]
  rows = [[f'{record["step"]:,}', *(f'{record[name]:.4g}' if name in record else '-'
                                    for name in names)] for record in records]
  return [['step', *names], *rows]


def minutes(workdir: str | Path) -> float:
  """The minutes that the updates of a run took, by its record, with their compilation.

  Validation, pictures and checkpoints are not counted, and neither are the pauses of a run that was
  stopped.
  """
  train = [record for record in read(workdir) if record['kind'] == 'train']
  steps = [0, *(record['step'] for record in train)]
  return sum((step - before) / record['steps_per_second'] for before, step, record in zip(
      steps, steps[1:], train, strict=False)) / 60.0


def reached(workdir: str | Path) -> str:
  """The last bits/dim of a run as text: on its test split if training measured it there.

  Otherwise it is of the last validation, which the text says.  A run without bits/dim has its
  accuracy or its loss instead, which is named.
  """
  records = {record['kind']: record for record in read(workdir)}
  last = records.get('test') or records['validation']
  name, value = headline(last)
  if 'accuracy' in last:
    text = f'accuracy {last["accuracy"]:.3f}'
  else:
    text = f'{value:.3f}' if name == 'bits/dim' else f'{name} {value:.4g}'
  if 'K_bits' in last:  # the bound of Sohl-Dickstein et al. (2015), who publish it
    text += f', K = {last["K_bits"]:.3f} bits'
  return text if 'test' in records else f'{text} (validation)'


class Writer:
  """Appends records; a run that resumes at `step` first drops all later records."""

  def __init__(self, workdir: str | Path, step: int):
    self._on = jax.process_index() == 0
    if not self._on:
      return
    self._workdir = Path(workdir)
    path = self._workdir / 'metrics.jsonl'
    records = [record for record in _sound_lines(path) if record['step'] <= step]
    files.write_text(path, ''.join(json.dumps(record) + '\n' for record in records))
    self._file = path.open('a', buffering=1)
    self._board = SummaryWriter(str(self._workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, kind: str, **values: float) -> None:
    if not self._on:
      return
    self._file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
    for name, value in values.items():
      self._board.add_scalar(f'{kind}/{name}', value, step)

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes `workdir/NAME/step_N.png`, and the image for TensorBoard.  image: uint8 [H, W, 3]."""
    if self._on:
      self._board.add_image(name, image, step, dataformats='HWC')
      with files.atomic_write(self._workdir / name / f'step_{step}.png') as partial:
        Image.fromarray(image).save(partial, format='png')

  def close(self) -> None:
    if self._on:
      self._file.close()
      self._board.close()


def _sound_lines(path: Path) -> list[dict]:
  """The records of a file, whose last line may be torn by a kill."""
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def parameter_table(params: PyTree) -> rich.table.Table:
  """The parameters by block: their count, and their present root mean square."""
  groups: dict[str, list[tuple[int, float]]] = {}  # sizes, and sums of squares
  # On the devices, of which each may have a part of the parameters.
  squares = jax.device_get(jax.jit(lambda params: jax.tree.map(
      lambda u: jnp.sum(jnp.square(u.astype(jnp.float32))), params))(params))
  for (path, leaf), square in zip(jax.tree_util.tree_flatten_with_path(params)[0],
                                  jax.tree.leaves(squares), strict=True):
    names = [entry.key for entry in path]
    groups.setdefault('/'.join(names[:2]), []).append((leaf.size, float(square)))
  table = rich.table.Table('block', 'tensors', 'parameters', 'rms', title='Parameters')
  total = 0
  for name, leaves in groups.items():
    count, square = map(sum, zip(*leaves, strict=True))
    table.add_row(name, str(len(leaves)), f'{count:,}', f'{math.sqrt(square / max(count, 1)):.3g}')
    total += count
  table.add_section()
  table.add_row('total', '', f'{total:,}', '')
  for column in table.columns[1:]:
    column.justify = 'right'
  return table


def show(table: rich.console.RenderableType) -> None:
  """Prints a table, or a group of tables, on process 0."""
  if jax.process_index() == 0:
    rich.console.Console(width=None).print(table)
