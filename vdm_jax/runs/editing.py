"""Edits images by the model of a run, as a text says."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import data, random
from vdm_jax.data import shapes, tokenisers
from vdm_jax.data.fields import Field
from vdm_jax.editing import diffedit, methods, prompt_to_prompt
from vdm_jax.editing.methods import Case, Inpaint, Method, NullText, PromptToPrompt
from vdm_jax.errors import require, require_at_least
from vdm_jax.evaluation import shapes as judge_of_shapes
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.runs import needs, pictures, reading, workdir
from vdm_jax.systems.guided.inpainting import KNOWN, MASK
from vdm_jax.typing import Array, Model

__all__ = ['Editor', 'Edits', 'Request', 'Result', 'edit', 'editor', 'picture', 'report',
           'require_editable']


class Request(NamedTuple):
  """n edits."""
  numbers: np.ndarray         # [n]  of the edits; each has its own randomness
  images: np.ndarray | None   # [n, ...]  data; None: the sources are drawn
  sources: Sequence[str]      # n texts
  targets: Sequence[str]      # n texts
  masks: np.ndarray | None = None  # bool [n, H, W, 1]  where the images may change
  maps: np.ndarray | None = None   # [n, h, w]  of DiffEdit: see `Editor.find`


class Edits(NamedTuple):
  """n edited images, as data."""
  images: np.ndarray          # [n, ...]
  sources: np.ndarray | None  # [n, ...]  those that were sampled beside them
  masks: np.ndarray | None    # bool [n, H, W, 1]  where the images could change
  maps: np.ndarray | None     # [n, h, w]  of DiffEdit: how much the texts differ


class Result(NamedTuple):
  """The edits of one image."""
  edits: Edits
  originals: np.ndarray       # [count, ...]  the image, or the sources that were drawn
  drawn: bool                 # whether the sources were drawn
  source: str
  target: str
  judged: bool                # whether a judge knows the data


# ------------------------------------------------------------------------ one method of a run


def require_editable(trained: workdir.Trained, method: Method, guidance: float,
                     directory: str | Path = '') -> tuple[Model, Field]:
  """The model, and the field of its text.

  Raises InputError: a model that is told no text, has latents of its own, or has no score; one that
  cannot be guided, with guidance; one without attention to tokens, for a method that reads it.
  """
  model = needs.require(trained.experiment.model(trained.params), 'edit', directory)
  field = needs.text_field(model, data.resolve(trained.config.data), 'target')
  for holds, problem in ((model.latent is None, 'it draws latents of its own'),
                         (not model.is_latent, 'its data are latents, not images'),
                         (not model.distilled, 'it is a student of a single sampler'),
                         (not model.coupled, 'it is a flow of coupled noise')):
    require(holds, 'workdir', str(directory), f'this model cannot be edited: {problem}',
            'name the run of another model')
  require(guidance >= 0.0, 'guidance', guidance, 'it is below 0', 'give 0 for none, or more')
  if guidance:
    Guidance(guidance).of(model)
  if isinstance(method, NullText):
    require(guidance > 0.0, 'guidance', guidance, 'null_text tunes the estimate without a text, '
            'which is then not read', 'give more than 0, or choose prompt_to_prompt')
  if isinstance(method, Inpaint) and method.by == 'model':
    require({KNOWN, MASK} <= model.conditions(np.arange(1)).keys(), 'by', method.by,
            'this model is not told a part of the image', 'choose replacement or repaint')
  if isinstance(method, (PromptToPrompt, NullText)):
    one = jax.eval_shape(model.cond, model.conditions(np.arange(1)))
    methods.layers(model, one)
  return model, field


def _aligned(method: PromptToPrompt | NullText, field: Field, request: Request
             ) -> tuple[prompt_to_prompt.Words, np.ndarray | None]:
  """The words of the pairs, and the columns of the words to blend by, [2 n, L].

  Raises InputError.
  """
  read = lambda text: prompt_to_prompt.Prompt(*tokenisers.apart(field, text))
  pairs = [(read(source), read(target)) for source, target in
           zip(request.sources, request.targets, strict=True)]
  length = field.shape[0]
  words = prompt_to_prompt.stack([methods.aligned(method, *pair, length) for pair in pairs])
  if isinstance(method, NullText) or not method.blend:
    return words, None
  columns = np.stack([methods.blending(method, *pair, length) for pair in pairs], axis=1)
  return words, columns.reshape(2 * len(pairs), length)


class Editor(NamedTuple):
  """Makes edits by one method.  It is compiled once for requests of one size."""
  make: Callable[[Request], Edits]
  # The maps by which DiffEdit finds its masks, [n, h, w]; None for another method.  They cost few
  # evaluations beside the edits, so an empty mask can be found before any edit is made.
  find: Callable[[Request], np.ndarray] | None

  def __call__(self, request: Request) -> Edits:
    if self.find is not None and request.maps is None:
      request = request._replace(maps=self.find(request))
    return self.make(request)


def editor(trained: workdir.Trained, method: Method, *, guidance: float = 0.0, steps: int = 50,
           seed: int = 0) -> Editor:
  """The function that makes edits by one method.

  Raises InputError, also when it is called: see `require_editable`, `prompt_to_prompt` and
  `tokenisers.tokens`.
  """
  require_at_least('steps', steps)
  model, field = require_editable(trained, method, guidance)

  def program(act: Callable[[Case], Any]) -> Callable[[Request], Any]:
    """A function of a request: `act` of its case."""
    @jax.jit
    def run(params, key, numbers, images, source, target, masks, words, columns, maps):
      m = trained.experiment.model(params)
      told, asked = m.cond(source), m.cond(target)
      untold = m.null(asked) if m.null is not None else None
      x = None if images is None else m.encode(images)
      mask = None if masks is None else _of_size(masks, m.shape)
      return act(Case(m, random.per_example(key, numbers), x, told, asked, untold, guidance,
                      steps, mask, words, columns, maps))

    def on(request: Request):
      rows = np.arange(len(request.numbers))  # which take the texts in turn
      part = {}
      if isinstance(method, Inpaint) and method.by == 'model':
        assert request.masks is not None
        part = {KNOWN: request.images, MASK: (~request.masks).astype(np.int32)}
      told = [tokenisers.tokens(field, texts, flag)
              for flag, texts in (('source', request.sources), ('target', request.targets))]
      conditions = [model.conditions(rows, **{field.name: tokens}, **part) for tokens in told]
      words = columns = None
      if isinstance(method, (PromptToPrompt, NullText)):
        words, columns = _aligned(method, field, request)
      return jax.device_get(run(
          trained.params, random.key(seed), request.numbers, request.images, *conditions,
          request.masks, words, columns, request.maps))
    return on

  def edited(case: Case):
    found, m = method(case), case.model
    again = None if found.source is None else m.decode(found.source)
    return m.decode(found.x), again, found.mask

  draw = program(edited)

  def make(request: Request) -> Edits:
    images, again, masks = draw(request)
    if masks is not None:
      masks = np.broadcast_to(_enlarged(masks, images.shape), (*images.shape[:3], 1))
    return Edits(images, again, masks, request.maps)
  return Editor(make, program(method.find) if isinstance(method, methods.DiffEdit) else None)


def _of_size(mask: Array, shape: tuple[int, ...]) -> Array:
  """The mask of pixels as one of x, which may be latents: where any pixel may change."""
  n, height, width, _ = mask.shape
  h, w = shape[:2]
  return mask.reshape(n, h, height // h, w, width // w, 1).any(axis=(2, 4))


def _enlarged(masks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return masks.repeat(shape[1] // masks.shape[1], 1).repeat(shape[2] // masks.shape[2], 2)


# ------------------------------------------------------------------------ one image


def edit(directory: str | Path, out: str | Path, method: Method, target: str, *, image: str = '',
         source: str = '', mask: str = '', count: int = 1, guidance: float = 2.0, steps: int = 50,
         seed: int = 0, batch_size: int = 16, judge: bool | None = None, average: str = '',
         step: int | str = 'latest', overwrite: bool = False, data_dir: str = '',
         data_name: str = '') -> Result:
  """Edits an image `count` times, and writes a picture of it beside the edits.

  Args:
    out: a .png.
    target: the text that the edit should show.
    image: a file, or data:SPLIT:INDEX for an image of the run's data.  '': the source is drawn,
      for prompt-to-prompt alone.
    source: the text of the image.  Default: its caption in the data.
    mask: a picture file, for `Inpaint`: white where the image may change.
    count: how many edits, each with noise of its own.
    guidance: the weight w of classifier-free guidance.
    judge: whether the judge of shapes names the edits.  None: if the data of the run are shapes.

  Raises InputError before anything is compiled; for an empty mask of DiffEdit, before any edit is
  made.
  """
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.png', overwrite=overwrite)
  for flag, value in {'count': count, 'steps': steps, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model, field = require_editable(trained, method, guidance, directory)
  spec = data.resolve(trained.config.data)
  x = needs.data_field(model, spec)
  shape = x.shape
  require(len(shape) == 3, 'workdir', str(directory), f'its data have the shape {shape}, and are '
          'no images', 'name the run of a model of images')
  judged = judge_of_shapes.is_asked(trained.config.data.name, shape, judge)
  given, caption = reading.image('image', image, trained, x, field) if image else (None, '')
  source = source or caption
  _check_inputs(method, given, source, mask, count)
  masks = _read_mask(mask, shape) if mask else None
  many = lambda u: None if u is None else np.broadcast_to(u, (count, *u.shape))
  request = Request(np.arange(count), many(given), [source or target] * count, [target] * count,
                    many(masks))
  make = editor(trained, method, guidance=guidance, steps=steps, seed=seed)
  size = min(batch_size, count)
  if isinstance(method, methods.DiffEdit) and make.find is not None:
    request = request._replace(maps=_in_batches(make.find, request, size, 'finding masks'))
    diffedit.mask(jnp.asarray(request.maps), method.ratio)  # an empty one is an error
  edits = _in_batches(make, request, size, 'editing')
  originals = edits.sources if request.images is None else request.images
  assert originals is not None
  result = Result(edits, originals, given is None, source, target, judged)
  pictures.save_png(out, picture(result, x.levels), {
      'method': type(method).__name__, **method._asdict(), 'source': source, 'target': target,
      'guidance': guidance, 'steps': steps, 'seed': seed, 'checkpoint': trained.step,
      'average': trained.average})
  return result


def _read_mask(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """bool [H, W, 1], where the file is white.  Raises InputError."""
  mask = reading.pixels('mask', name, 1) > 127
  require(mask.shape[:2] == shape[:2], 'mask', name, f'it has {mask.shape[0]} x {mask.shape[1]} '
          f'pixels, and the image has {shape[0]} x {shape[1]}', 'give a mask of that size')
  require(bool(mask.any()), 'mask', name, 'it is black everywhere, so nothing may change',
          'make the region white that may change')
  return mask


def _check_inputs(method: Method, image: np.ndarray | None, source: str, mask: str, count: int
                  ) -> None:
  """Raises InputError for inputs that the method lacks, or does not read."""
  draws = isinstance(method, PromptToPrompt)
  require(image is not None or draws, 'image', None, 'it is missing, and only prompt_to_prompt '
          'draws its source', 'give a picture, or an image of the data: data:test:0')
  if isinstance(method, (PromptToPrompt, NullText, methods.DiffEdit)):
    require(bool(source), 'source', None, 'it is missing: this method compares two texts',
            'give the text of the image')
  if image is not None and isinstance(method, (PromptToPrompt, NullText)):
    require(count == 1, 'count', count, 'this method draws no noise for a given image, so all its '
            'edits are the same', 'leave it out')
  if isinstance(method, Inpaint):
    require(bool(mask), 'mask', None, 'it is missing', 'give a picture that is white where the '
            'image may change')
  else:
    require(not mask, 'mask', mask, 'only inpaint reads it', 'leave it out')


def _in_batches(of: Callable[[Request], Any], request: Request, size: int, doing: str) -> Any:
  """of(request), `size` rows at a time; the last of them are repeated to fill the last batch."""
  count, parts = len(request.numbers), []
  for start in tqdm.tqdm(range(0, count, size), desc=doing, unit='batch', disable=count <= size,
                         dynamic_ncols=True):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    texts = lambda of, rows=rows: [of[i] for i in rows.tolist()]
    found = of(Request(request.numbers[rows], _rows(request.images, rows), texts(request.sources),
                       texts(request.targets), _rows(request.masks, rows),
                       _rows(request.maps, rows)))
    parts.append(jax.tree.map(lambda u, left=count - start: u[:left], found))
  return jax.tree.map(lambda *u: np.concatenate(u), *parts)


def _rows(u: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
  return None if u is None else u[rows]


# ------------------------------------------------------------------------ what is shown


def picture(result: Result, levels: int | None) -> np.ndarray:
  """uint8 [H, W, 3]: a row for each edit: the source, its mask if it has one, the edit."""
  edits, columns = result.edits, {'source': result.originals}
  if edits.masks is not None:
    top = 1.0 if levels is None else levels - 1
    columns['mask'] = np.broadcast_to(edits.masks * top, edits.images.shape)
  if edits.sources is not None and not result.drawn:
    columns['inverted and back'] = edits.sources
  columns['edit'] = edits.images
  return pictures.labelled(pictures.strip(np.stack(list(columns.values())), levels), list(columns))


def report(result: Result) -> list[str]:
  """Lines that say what was edited: the mask of DiffEdit, and the judge's words."""
  edits, lines = result.edits, []
  if edits.maps is not None and edits.masks is not None:
    lines += [f'mask of edit 0: {edits.masks[0].mean():.1%} of the image']
    if edits.masks.shape[1] <= 64:
      lines += [''.join('#' if pixel else '.' for pixel in row) for row in edits.masks[0, :, :, 0]]
  if edits.masks is not None:
    changed = np.any((edits.images != result.originals) & ~edits.masks, axis=-1).sum()
    lines.append(f'outside the mask {changed:,} pixels changed')
  if edits.sources is not None and not result.drawn:
    lost = np.abs(edits.sources.astype(np.float64) - result.originals).mean()
    lines.append(f'inverted and back, the source differs by {lost:.3g} levels on average')
  return lines + (_verdicts(result) if result.judged else [])


def _verdicts(result: Result) -> list[str]:
  """A line for each edit: the caption that it shows, the place, the pixels to keep."""
  images, originals = result.edits.images, result.originals
  named = judge_of_shapes.name(images)
  shown = [f'edit {i}: {shapes.CAPTIONS[c]}' for i, c in enumerate(named.captions)]
  if result.target not in shapes.CAPTIONS:
    return shown
  captions = np.full(len(images), shapes.CAPTIONS.index(result.target))
  found = judge_of_shapes.judge(images, originals, captions)
  lines = []
  for line, right, in_place, same, difference in zip(
      shown, found.right, found.in_place, found.same, found.difference, strict=True):
    line += ', as asked' if right else ', which is not what was asked'
    line += '; in its place' if in_place else '; moved'
    if np.isfinite(same):
      line += (f'; {same:.1%} of the pixels to keep are unchanged, mean change {difference:.3g} of '
               '255')
    lines.append(line)
  return lines
