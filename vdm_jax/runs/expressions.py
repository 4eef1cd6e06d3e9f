"""The work of scripts/score_expressions.py: how many expressions a run draws as they are."""
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.table
from matplotlib.figure import Figure

from vdm_jax import data
from vdm_jax.data import expressions
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import InputError, require_at_least, require_choice
from vdm_jax.evaluation import expressions as judge
from vdm_jax.evaluation.distances import Estimated, share
from vdm_jax.machine import files
from vdm_jax.runs import needs, pictures, sampling, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.drawing import draw

__all__ = ['Drawn', 'NAMES', 'figures', 'score_expressions', 'table']

KINDS = {'one object': '', 'left of': 'left of', 'above': 'above', 'in': 'in'}  # name -> relation
NAMES = ('drawn exactly', *KINDS, 'distance')
SHOWN = 12  # samples in the picture


class Drawn(NamedTuple):
  """How many samples show their expression."""
  exact: Estimated                         # the share of samples whose nearest picture is theirs
  by_kind: dict[str, Estimated | None]     # the same for each of `KINDS`; None: there are none
  distance: float                          # mean, of samples from their nearest picture
  count: int


def score_expressions(directory: str | Path, out: str | Path = '', *, split: str = 'test',
                      method: Method | None = None, count: int | None = None, seed: int = 0,
                      average: str = '', step: int | str = 'latest', batch_size: int = 128,
                      overwrite: bool = False) -> tuple[Drawn, Path]:
  """Draws each expression of a split once, and returns how many are right, and a picture's path.

  The samples are kept in DIRECTORY/expressions.npz, so after a stop the same call goes on.

  Args:
    out: the picture, a .png.  Default: expressions.png in the run's directory.
    method: the sampler and its grid.  Default: all ancestral steps of the run's chain.
    count: the number of expressions, the first ones.  Default: all.

  The other arguments are those of `runs.evaluate`.

  Raises InputError: for wrong arguments, a run of other data, and a model without texts.
  """
  require_choice('split', split, ('train', 'validation', 'test'))
  for name, value in {'count': count, 'batch_size': batch_size}.items():
    require_at_least(name, value)
  out = files.output('out', out or Path(directory, 'expressions.png'), '.png', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step)
  spec = data.resolve(trained.config.data)
  model = needs.require(trained.experiment.model(trained.params), 'score_expressions', directory)
  if spec.name != expressions.NAME:
    raise InputError('workdir', str(directory), f'its data are {spec.name}, and only samples of '
                     f'{expressions.NAME} can be judged', 'name a run of configs/text/markup.py')
  field = needs.text_field(model, spec, 'workdir')
  method = method or catalogue.method('ancestral', model.steps or None)
  catalogue.require_suited(method, model)
  part = needs.split(trained, split)
  told = part.get(np.arange(min(len(part), count or len(part))))
  cond = lambda numbers: model.conditions(numbers, **{field.name: told[field.name]})
  own, times = told[LABEL], method.times(model.process)
  pieces = lambda start: draw(
      trained.experiment.model, trained.params, method.make, times=times, start=start,
      stop=len(own), seed=seed, batch_size=batch_size, cond=cond)
  images = sampling.draw_kept(
      Path(directory, 'expressions.npz'), pieces, len(own), 256, trained=trained,
      about=sampling.settings(method, times, seed), cond=cond)
  if jax.process_index() == 0:
    pictures.save_png(out, picture(images[:SHOWN], own[:SHOWN]))
  return score(images, own), out


def score(images: np.ndarray, numbers: np.ndarray) -> Drawn:
  """images: [n, 12, 24, 3], integers.  numbers: [n], of `expressions.EXPRESSIONS`."""
  named = judge.name(images)
  right = named.numbers == numbers
  of = np.array([expressions.EXPRESSIONS[i].relation for i in numbers])
  return Drawn(share(right), {
      kind: share(right[of == relation]) if (of == relation).any() else None
      for kind, relation in KINDS.items()}, float(named.distances.mean()), len(numbers))


def figures(found: Drawn) -> dict[str, str]:
  """The measurements as text by `NAMES`, for a row of a table."""
  shares = [found.exact, *found.by_kind.values()]
  text = ['-' if one is None else str(one) for one in shares]
  return dict(zip(NAMES, [*text, f'{found.distance:.2f}'], strict=True))


def table(found: Drawn) -> rich.table.Table:
  """The measurements for the screen."""
  out = rich.table.Table(*NAMES, title=f'{found.count:,} expressions')
  out.add_row(*figures(found).values())
  return out


def picture(images: np.ndarray, numbers: np.ndarray) -> Figure:
  """Samples, each below its expression; a sample that shows another one says which."""
  figure = Figure(figsize=(9.0, 1.15 * -(-len(images) // 3)), layout='constrained')
  shown = judge.name(images).numbers
  axes = figure.subplots(-(-len(images) // 3), 3, squeeze=False).ravel()
  for one in axes:
    one.set_axis_off()
  for one, image, wanted, seen in zip(axes, images, numbers, shown, strict=False):
    one.imshow(image.astype(np.uint8))
    wrong = '' if wanted == seen else f'\nshows: {expressions.TEXTS[seen]}'
    one.set_title(f'{expressions.TEXTS[wanted]}{wrong}', fontsize=7, color='red' if wrong else 'k')
  return figure
