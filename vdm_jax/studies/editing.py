"""Edits of shapes by every method, judged exactly.

An edit exchanges one word of the caption of a test image: the colour, the shape, the size or the
ground, in turn.  The ideal edit shows the new caption with the shape where it was.  So its pixels
are known, and so are the pixels to keep (`evaluation.shapes.judge`).
"""
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.table
import tqdm
from matplotlib.figure import Figure

from vdm_jax.data import shapes
from vdm_jax.editing.methods import (
  CHANGED,
  DiffEdit,
  Inpaint,
  Method,
  NullText,
  PromptToPrompt,
  SDEdit,
)
from vdm_jax.errors import InputError, renamed, require_at_least
from vdm_jax.evaluation import shapes as judge_of_shapes
from vdm_jax.evaluation.distances import percent
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.runs import editing, needs, pictures, workdir
from vdm_jax.train import metrics

__all__ = ['INPAINTER', 'KINDS', 'METHODS', 'Measured', 'Tasks', 'ideal', 'measure', 'painted',
           'picture', 'study', 'table', 'tasks']

KINDS = ('size', 'colour', 'shape', 'ground')  # in the order of the words of a caption
CHOICES = (tuple(shapes.SIZES), tuple(shapes.COLOURS), tuple(shapes.SHAPES), tuple(shapes.GROUNDS))
METHODS: dict[str, Method] = {
    'SDEdit, strength 0.3': SDEdit(0.3),
    'SDEdit, strength 0.5': SDEdit(0.5),
    'SDEdit, strength 1': SDEdit(1.0),
    'inpainting, replacement': Inpaint(),
    'inpainting, RePaint': Inpaint('repaint'),
    'DiffEdit, ratio 3': DiffEdit(),
    'DiffEdit, ratio 1.5': DiffEdit(ratio=1.5),
    'prompt-to-prompt': PromptToPrompt(),
    'prompt-to-prompt, new word x 2': PromptToPrompt(weights=((CHANGED, 2.0),)),
    'prompt-to-prompt, refine': PromptToPrompt('refine'),
    'prompt-to-prompt, local blend': PromptToPrompt(blend=(CHANGED,)),
    'prompt-to-prompt, null text': NullText(updates=5),
}
# The same by a model that is told the part to keep (Nichol et al. 2021, section 3.3).
INPAINTER = 'inpainting, by a model'
SHOWN = 8  # edits in the picture


class Tasks(NamedTuple):
  """n edits to make."""
  kinds: np.ndarray      # [n]  numbers of `KINDS`
  originals: np.ndarray  # uint8 [n, 16, 16, 3]
  places: np.ndarray     # [n]  numbers of `shapes.PLACES`
  sources: np.ndarray    # [n]  numbers of `shapes.CAPTIONS`
  targets: np.ndarray    # [n]

  def words(self, i: int) -> tuple[str, str]:
    """The word that task i exchanges, and the new word."""
    kind = self.kinds[i]
    return shapes.WORDS[self.sources[i]][kind], shapes.WORDS[self.targets[i]][kind]


class Measured(NamedTuple):
  """The edits of all tasks by one method, and the verdicts on them."""
  name: str
  edits: np.ndarray                  # uint8 [n, 16, 16, 3]
  masks: np.ndarray | None           # bool [n, 16, 16]
  judged: judge_of_shapes.Judged
  overlap: np.ndarray | None         # [n]  intersection over union with the true region; DiffEdit
  back: np.ndarray | None            # [n]  mean |change| of the source that was sampled beside it


def tasks(originals: np.ndarray, seed: int = 0) -> Tasks:
  """A task for each picture; the kinds take turns, and the new word is random."""
  rng = np.random.default_rng(seed)
  found = judge_of_shapes.name(originals)
  kinds = np.arange(len(originals)) % len(KINDS)
  targets = []
  for kind, caption in zip(kinds, found.captions, strict=True):
    words = list(shapes.WORDS[caption])
    others = [word for word in CHOICES[kind] if word != words[kind]]
    words[kind] = others[rng.integers(len(others))]
    targets.append(shapes.WORDS.index(tuple(words)))
  return Tasks(kinds, originals, found.places, found.captions, np.array(targets))


def ideal(of: Tasks) -> np.ndarray:
  """The edits as they are asked for: uint8 [n, 16, 16, 3]."""
  return shapes.pictures(of.targets, of.places)


def painted(of: Tasks) -> np.ndarray:
  """The masks that a person would paint for inpainting, bool [n, 16, 16, 1].

  The square around the shape, with a margin of one pixel; for another ground, all but the shape.
  So a mask does not tell which shape is asked for.
  """
  size = lambda captions: np.array([shapes.SIZES[shapes.WORDS[c][0]] for c in captions])
  half = np.maximum(size(of.sources), size(of.targets)) + 1
  centres, pixels = np.array(shapes.PLACES)[of.places], np.arange(shapes.SIDE)
  near = np.abs(pixels - centres[..., None]) <= half[:, None, None]  # [n, 2, 16]
  square = near[:, 0, :, None] & near[:, 1, None, :]
  ground = (of.kinds == KINDS.index('ground'))[:, None, None]
  return np.where(ground, ~shapes.masks(of.sources, of.places), square)[..., None]


def measure(name: str, of: Tasks, edits: np.ndarray, masks: np.ndarray | None = None,
            found: bool = False, sources: np.ndarray | None = None) -> Measured:
  """The verdicts on edits.

  masks: bool [n, 16, 16, 1]; found: whether the method found them itself; sources: [n, 16, 16, 3],
  those that were sampled beside the edits.
  """
  judged = judge_of_shapes.judge(edits, of.originals, of.targets)
  flat = None if masks is None else masks[..., 0]
  overlap = None
  if found and flat is not None:
    true = judge_of_shapes.to_change(of.originals, of.targets)
    overlap = np.sum(flat & true, axis=(1, 2)) / np.sum(flat | true, axis=(1, 2))
  back = None if sources is None else np.mean(
      np.abs(np.float64(sources) - of.originals), axis=(1, 2, 3))
  return Measured(name, edits, flat, judged, overlap, back)


def study(directory: str | Path, out: str | Path, *, count: int = 64, guidance: float = 1.0,
          steps: int = 30, seed: int = 0, batch_size: int = 32, average: str = '',
          step: int | str = 'latest', overwrite: bool = False, inpainting: str | Path = '',
          methods: Mapping[str, Method] = METHODS) -> tuple[list[Measured], rich.table.Table]:
  """Edits test images of a run by every method, judges the edits, and draws the first of them.

  Every batch of edits is kept in DIRECTORY/edits, so after a stop the same call goes on.

  Args:
    directory: of a run whose data are shapes with captions.
    out: a .png.
    count: how many edits by each method.
    guidance: the weight w.
    inpainting: a run of shapes whose model is told a part of the image, for the row `INPAINTER`.
      Its edits are kept in its own directory.  '': no such row.

  Raises InputError: a run of other data, a file that is there, unless `overwrite`, or as
  `runs.editing.editor` does.
  """
  out = files.output('out', out, '.png', overwrite=overwrite)
  for flag, value in {'count': count, 'steps': steps, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  directory = files.run_directory('workdir', directory)
  trained = workdir.load_trained(directory, average=average, step=step)
  _require_shapes('workdir', directory, trained)
  rows = [(title, method, trained, directory) for title, method in methods.items()]
  if inpainting:
    other = files.run_directory('inpainting', inpainting)
    with renamed({'workdir': 'inpainting', 'by': 'inpainting'}):
      told = workdir.load_trained(other)
      editing.require_editable(told, Inpaint('model'), guidance, other)
    _require_shapes('inpainting', other, told)
    last = max((i for i, row in enumerate(rows) if isinstance(row[1], Inpaint)), default=-1)
    rows.insert(last + 1, (INPAINTER, Inpaint('model'), told, other))
  part = needs.split(trained, 'test')
  if count > len(part):
    raise InputError('count', count, f'there are {len(part):,} test images', 'ask for fewer')
  of = tasks(part.get(np.arange(count))[part.spec.x.name], seed)
  measured = []
  for title, method, run, place in rows:
    measured.append(_measured(title, method, of, run, place / 'edits', guidance, steps, seed,
                              min(batch_size, count)))
    judged = measured[-1].judged
    print(f'{title}: {judged.right.mean():.1%} show their caption, {judged.in_place.mean():.1%} '
          'in its place')
  pictures.save_png(out, picture(of, measured))
  return measured, table(of, measured)


def _require_shapes(flag: str, directory: Path, trained: workdir.Trained) -> None:
  """Raises InputError about the flag unless the data of the run are shapes."""
  name = trained.config.data.name
  if name not in shapes.NAMES:
    raise InputError(flag, str(directory), f'its data are {name}, which no judge knows',
                     f'name a run of {" or ".join(shapes.NAMES)}')


def _measured(title: str, method: Method, of: Tasks, trained: workdir.Trained, folder: Path,
              guidance: float, steps: int, seed: int, size: int) -> Measured:
  """The edits by one method, of which batches that are there are not made again."""
  about = {'method': type(method).__name__, 'settings': method._asdict(), 'guidance': guidance,
           'steps': steps, 'seed': seed, 'weights': checksum(trained.params)}
  count, parts = len(of.kinds), []
  # Nothing is compiled where all batches are there.
  edit = functools.cache(lambda: editing.editor(trained, method, guidance=guidance, steps=steps,
                                                seed=seed))
  masks = painted(of) if isinstance(method, Inpaint) else None
  for start in tqdm.tqdm(range(0, count, size), desc=title, unit='batch', dynamic_ncols=True):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    # Of the tasks too: a batch that was filled up has other rows where more edits are asked for.
    asked = checksum([rows, of.originals[rows], of.sources[rows], of.targets[rows]])
    tag = files.digest(about | {'tasks': asked})

    def edited(rows=rows):
      edits = edit()(editing.Request(
          rows, of.originals[rows], [shapes.CAPTIONS[i] for i in of.sources[rows]],
          [shapes.CAPTIONS[i] for i in of.targets[rows]], None if masks is None else masks[rows]))
      return {field: u for field, u in edits._asdict().items() if u is not None}
    kept = files.kept(folder / f'{tag[:16]}_{start:06d}.npz', edited)
    parts.append({field: u[:count - start] for field, u in kept.items()})
  whole = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
  return measure(title, of, whole['images'], whole.get('masks'), isinstance(method, DiffEdit),
                 whole.get('sources'))


# ------------------------------------------------------------------ what is shown


def _mean(values: np.ndarray | None, scale: float = 1.0, digits: int = 1) -> str:
  """A mean and its standard error over images; '' for None."""
  if values is None:
    return ''
  error = np.std(values, ddof=1) / len(values)**0.5 if len(values) > 1 else 0.0
  return f'{scale * np.mean(values):.{digits}f} ± {scale * error:.{digits}f}'


def table(of: Tasks, measured: list[Measured]) -> rich.table.Table:
  """A row for each method.  Shares are in per cent.

  The distance is that to the nearest picture of any caption, where 0 .. 255 is coded as -1 .. 1.
  """
  columns = ['caption as asked', *(f'if {kind}' for kind in KINDS), 'shape in its place',
             'distance to a picture', 'pixels to keep unchanged', 'their mean change, of 255',
             'IoU of the mask', 'empty masks', 'source back, of 255']
  out = rich.table.Table('method', *(rich.table.Column(name, justify='right') for name in columns),
                         title=f'Edits of shapes, {len(of.kinds):,} by each method')
  for row in measured:
    right = row.judged.right
    kinds = [percent(right[of.kinds == i]) if (of.kinds == i).any() else ''
             for i in range(len(KINDS))]
    found = row.overlap is not None and row.masks is not None
    empty = ''
    if found and row.masks is not None:
      empty = percent(np.asarray(~row.masks.any(axis=(1, 2))))
    out.add_row(row.name, percent(right), *kinds, percent(row.judged.in_place),
                _mean(row.judged.distances, digits=2), _mean(row.judged.same, 100.0),
                _mean(row.judged.difference), _mean(row.overlap, digits=2), empty,
                _mean(row.back))
  metrics.show(out)
  return out


def picture(of: Tasks, measured: list[Measured]) -> Figure:
  """A column for each edit: the source, the ideal edit, the masks, and the edits of each method.

  Red frames show other captions.
  """
  shown = min(SHOWN, len(of.kinds))
  rows: list[tuple[str, np.ndarray, np.ndarray | None]] = [
      ('source', of.originals, None), ('as asked', ideal(of), None),
      ('mask by hand', np.where(painted(of), 255, 0), None)]
  for each in measured:
    if each.overlap is not None and each.masks is not None:
      rows.append(('mask that it finds', np.where(each.masks[..., None], 255, 0), None))
    rows.append((each.name, each.edits, each.judged.right))
  figure = Figure(figsize=(0.8 * shown + 1.9, 0.8 * len(rows) + 0.3), layout='constrained')
  for axes, (name, images, right) in zip(figure.subplots(len(rows), shown, squeeze=False), rows,
                                         strict=True):
    axes[0].set_ylabel(name.replace(', ', ',\n'), rotation=0, ha='right', va='center', fontsize=8)
    for i, place in enumerate(axes):
      pixels = np.broadcast_to(images[i], (*images.shape[1:3], 3)).astype(np.uint8)
      place.imshow(pixels, interpolation='nearest')
      place.set(xticks=[], yticks=[])
      wrong = right is not None and not right[i]
      for line in place.spines.values():
        line.set(color='red' if wrong else '0.7', linewidth=2.5 if wrong else 0.5)
      if name == 'source':
        place.set_title('{}\nto {}'.format(*of.words(i)), fontsize=8)
  return figure
