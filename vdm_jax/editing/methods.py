"""The edits of a trained model by name: each method is a value, and a function of a `Case`.

  prompt_to_prompt  other words, by attention maps; the image is inverted, or drawn
  null_text         the same, after null-text inversion: the source comes back under guidance
  diffedit          finds the region that changes, and keeps the rest
  sdedit            noise is added to the image, and removed as the text says
  inpaint           draws a region anew, by replacement or by RePaint

A method acts under `jit`, on n images at once.  Guidance is classifier-free: w = 0 is none.
"""
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.editing import attention, diffedit, null_text, prompt_to_prompt, sdedit
from vdm_jax.errors import (
  InputError,
  method_named,
  renamed,
  require,
  require_at_least,
  require_choice,
)
from vdm_jax.guidance import classifier_free, conditioned_on
from vdm_jax.samplers import drawing, first_order, inpainting
from vdm_jax.samplers.conditioned import SAMPLERS
from vdm_jax.samplers.sampling import sample
from vdm_jax.typing import Array, Denoiser, Model, PyTree, Sampler

__all__ = ['CHANGED', 'Case', 'DiffEdit', 'Edited', 'Inpaint', 'METHODS', 'Method', 'NullText',
           'PromptToPrompt', 'SAMPLERS', 'SDEdit', 'aligned', 'blending', 'layers', 'named']


class Case(NamedTuple):
  """The input of a method: n images, and texts as `Model.cond` returns them."""
  model: Model
  keys: Array                            # [n]
  x: Array | None                        # [n, ...]; None: the sources are drawn
  source: PyTree                         # the texts of the images
  target: PyTree                         # the texts that are asked for
  untold: PyTree                         # no text; it is not read where w is 0
  w: float
  steps: int
  mask: Array | None = None              # bool, broadcasts to x: where the image may change
  words: prompt_to_prompt.Words | None = None  # of n pairs
  columns: Array | None = None           # [2 n, L]  1 for the tokens of words to blend by
  maps: Array | None = None              # [n, H, W]  of DiffEdit: see `DiffEdit.find`

  def guided(self, told: Denoiser, times: int = 1) -> Denoiser:
    """`told` under guidance; times: how often the n texts are repeated."""
    if not self.w:
      return told
    nothing = _repeated(self.untold, times)
    return classifier_free(told, conditioned_on(self.model.denoise, lambda _: nothing), self.w)

  def told(self, cond: PyTree) -> Denoiser:
    """The denoiser with this condition."""
    return conditioned_on(self.model.denoise, lambda _: cond)

  def noise(self) -> Array:
    """z at t = 1."""
    return drawing.z_at_start(self.model, self.keys)

  @property
  def image(self) -> Array:
    """The images, which this method cannot do without."""
    assert self.x is not None
    return self.x

  def z(self) -> Array:
    """The images at t = 0, without noise."""
    return self.model.process(0.0).alpha * self.image

  def from_z(self, z: Array, times: np.ndarray, cond: PyTree) -> Array:
    """x of z at the last time."""
    return drawing.x_at_end(self.model, self.told(cond), z, times[-1])


class Edited(NamedTuple):
  """The result of a method."""
  x: Array                    # [n, ...]
  source: Array | None = None  # [n, ...]  the source that was sampled beside it, if one was
  mask: Array | None = None    # bool [n, H, W, 1]  where the image could change


def _repeated(tree: PyTree, times: int) -> PyTree:
  return jax.tree.map(lambda u: jnp.concatenate([u] * times), tree)


def _both(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)


def _keep(mask: Array, new: Array, x: Array) -> Array:
  """The edit in the mask, and the image itself elsewhere, to the last bit."""
  return jnp.where(mask, new, x)


def _require_time(name: str, value: float) -> None:
  require(0.0 < value <= 1.0, name, value, 'the time of noise is above 0, and at most 1',
          'give such a number')


class SDEdit(NamedTuple):
  """Meng et al. (2022): noise of the time `strength` is added, and removed as the text says."""
  strength: float = 0.6
  sampler: str = 'ancestral'

  def check(self) -> None:
    _require_time('strength', self.strength)
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> Edited:
    process, times = case.model.process, np.linspace(self.strength, 0.0, case.steps + 1)
    sampler = SAMPLERS[self.sampler](case.guided(case.told(case.target)), process)
    z = sdedit.edit(sampler, process, case.keys, case.image, times)
    return Edited(case.from_z(z, times, case.target))


class Inpaint(NamedTuple):
  """The region of the mask is drawn anew, from noise, and the rest of the image is known.

  by: 'replacement', Song et al. (2021); 'repaint', Lugmayr et al. (2022), which walks back by
  `jump` steps and visits each level `visits` times; or 'model', a model that is told the known part
  (Nichol et al. 2021, section 3.3; `systems.guided.inpainting`).
  """
  by: str = 'replacement'
  sampler: str = 'ancestral'
  jump: int = 5
  visits: int = 4

  def check(self) -> None:
    require_choice('by', self.by, ('replacement', 'repaint', 'model'))
    require_choice('sampler', self.sampler, SAMPLERS)
    require_at_least('jump', self.jump)
    require_at_least('visits', self.visits)

  def __call__(self, case: Case) -> Edited:
    assert case.mask is not None
    process, times = case.model.process, np.linspace(1.0, 0.0, case.steps + 1)
    sampler = SAMPLERS[self.sampler](case.guided(case.told(case.target)), process)
    if self.by == 'repaint':
      with renamed({'length': 'jump'}):
        path = inpainting.jumps(times, self.jump, self.visits)
      z = inpainting.repaint(sampler, process, case.keys, case.noise(), path, case.image,
                             ~case.mask)
    else:
      if self.by == 'replacement':
        sampler = inpainting.replacement(sampler, process, case.image, ~case.mask)
      z = sample(sampler, case.keys, case.noise(), times)
    x = _keep(case.mask, case.from_z(z, times, case.target), case.image)
    return Edited(x, mask=case.mask)


class DiffEdit(NamedTuple):
  """Couairon et al. (2023): see `editing.diffedit`.

  noise: the time of the noise at which the texts are compared; noises: how many; ratio: of the
  threshold; strength: the time to which the image is inverted.
  """
  strength: float = 0.8
  noise: float = 0.5
  ratio: float = 3.0
  noises: int = 10

  def check(self) -> None:
    _require_time('strength', self.strength)
    _require_time('noise', self.noise)
    require(self.ratio > 0.0, 'ratio', self.ratio, 'it must be above 0')
    require_at_least('noises', self.noises)

  def find(self, case: Case) -> Array:
    """How much the texts differ at each pixel: `diffedit.difference`, [n, H, W]."""
    return diffedit.difference(
        case.told(case.target), case.told(case.source), case.model.process, case.image,
        diffedit.noises(case.keys, case.image, self.noises), self.noise)

  def __call__(self, case: Case) -> Edited:
    assert case.maps is not None
    process, times = case.model.process, np.linspace(self.strength, 0.0, case.steps + 1)
    source, target = case.told(case.source), case.told(case.target)
    mask = diffedit.mask(case.maps, self.ratio)
    z = diffedit.edit(case.guided(target), source, process, case.keys, case.z(), mask, times)
    return Edited(_keep(mask, case.from_z(z, times, case.target), case.image), mask=mask)


Change = Literal['replace', 'refine']
CHANGED = '@changed'


class PromptToPrompt(NamedTuple):
  """Hertz et al. (2022): see `editing.prompt_to_prompt`.

  An image is inverted by DDIM without guidance, and its source is sampled again beside the target.

  change: 'replace' or 'refine'; cross: the share of the time, from noise, in which attention to
  words is the source's; own: such a share for attention among positions; weights: (word of the
  target, c) pairs; blend: words of either text, if only the pixels that attend to them may change;
  threshold: of this attention.  A word `CHANGED` in weights or blend stands for the words by which
  the two texts of a pair differ.
  """
  change: str = 'replace'
  cross: float = 0.8
  own: float = 0.4
  weights: tuple[tuple[str, float], ...] = ()
  blend: tuple[str, ...] = ()
  threshold: float = 0.3

  def check(self) -> None:
    require_choice('change', self.change, get_args(Change))
    for name in ('cross', 'own', 'threshold'):
      require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name),
              'it is a share', 'give a number from 0 to 1')

  def __call__(self, case: Case) -> Edited:
    assert case.words is not None
    process, times = case.model.process, np.linspace(1.0, 0.0, case.steps + 1)
    start = case.noise() if case.x is None else null_text.invert(
        case.told(case.source), process, case.keys, case.z(), times)[0]
    told = _edited(case, self.own)
    if case.columns is None:
      sampler = first_order.ddim(case.guided(told, 2), process)
    else:
      size = _size(case)
      read = prompt_to_prompt.word_maps(case.columns, size)
      told = attention.captured(told, read)
      sampler = prompt_to_prompt.local_blend(case.guided(told, 2), process, size, self.threshold)
    return _pair(case, sampler, start, times)


class NullText(NamedTuple):
  """Mokady et al. (2023): prompt-to-prompt, with an untold embedding that is tuned at each step.

  So the source comes back under guidance.  updates: the most updates of the embedding in a
  step.  All that a network is told of the empty text is tuned: for GLIDE, the pooled vector too.
  """
  change: str = 'replace'
  cross: float = 0.8
  own: float = 0.4
  weights: tuple[tuple[str, float], ...] = ()
  updates: int = 10

  def check(self) -> None:
    PromptToPrompt(self.change, self.cross, self.own).check()
    require_at_least('updates', self.updates)

  def __call__(self, case: Case) -> Edited:
    process, times = case.model.process, np.linspace(1.0, 0.0, case.steps + 1)
    null, restored = _vector(case.untold)
    untold = lambda z, level, null: case.model.denoise(z, level, restored(null))
    told = case.told(case.source)
    path = null_text.invert(told, process, case.keys, case.z(), times)
    nulls = null_text.optimise(told, untold, case.w, process, path, times, null, self.updates)
    sampler = null_text.with_nulls(_edited(case, self.own), untold, case.w, process,
                                   jnp.concatenate([nulls, nulls], axis=1))
    return _pair(case, sampler, path[0], times)


Method = SDEdit | Inpaint | DiffEdit | PromptToPrompt | NullText
METHODS: dict[str, Any] = {
    'prompt_to_prompt': PromptToPrompt, 'null_text': NullText, 'diffedit': DiffEdit,
    'sdedit': SDEdit, 'inpaint': Inpaint}


def named(method: str, **fields: Any) -> Method:
  """The method of a name, with these numbers.

  Raises InputError: no such method; a field that the method does not have, or does not read with
  these numbers; a wrong number.
  """
  made = method_named(METHODS, method, **fields)
  for field in fields:
    require(field not in ('jump', 'visits') or made.by == 'repaint', field, fields[field],
            'only RePaint walks back', "leave it out, or set by to 'repaint'")
    require(field != 'threshold' or made.blend, field, fields[field], 'it is the threshold of '
            'blend, which names no words', 'leave it out, or give words to blend by')
  return made


def layers(model: Model, cond: PyTree) -> list[tuple[int, int]]:
  """(tokens of the text, positions) of each attention of the network.  Nothing is computed.

  cond: the condition of one example.  Raises InputError if no layer attends to tokens.
  """
  found = []

  def look(maps, layer, level, cond):
    found.append((layer.told, maps.shape[2]))
    return maps

  def call(z, cond):
    return attention.edited(model.denoise, look, told=True)(z, model.process(jnp.ones(1)), cond).x
  try:
    jax.eval_shape(call, jnp.zeros((1, *model.shape)), cond)
  except InputError as error:
    if error.field != 'denoise':
      raise
    raise InputError('method', None, f'this model cannot be edited by attention: {error.problem}',
                     'choose diffedit, sdedit or inpaint; or a network that attends to tokens '
                     '(nn.unets.adm.UNet with a text, nn.unets.latent.LatentUNet)') from None
  return found


# ------------------------------------------------------------------ of prompt-to-prompt


def aligned(method: PromptToPrompt | NullText, source: prompt_to_prompt.Prompt,
            target: prompt_to_prompt.Prompt, length: int) -> prompt_to_prompt.Words:
  """The words of a pair.  length: the tokens that the network reads, with padding.

  Raises InputError as `prompt_to_prompt.replace` does, and for a weight of a word that the target
  does not have.
  """
  make = {'replace': prompt_to_prompt.replace, 'refine': prompt_to_prompt.refine}[method.change]
  words, weights = make(source, target, length, method.cross), dict(method.weights)
  if CHANGED in weights:
    new = prompt_to_prompt.changed(source, target)[1]
    require(bool(new), 'weights', CHANGED, 'the target has no word that the source lacks',
            'name a word of the target')
    weights = dict.fromkeys(new, weights.pop(CHANGED)) | weights
  try:
    return prompt_to_prompt.reweight(words, target, weights)
  except InputError as error:
    raise InputError('weights', error.value, error.problem, error.remedy) from None


def blending(method: PromptToPrompt, source: prompt_to_prompt.Prompt,
             target: prompt_to_prompt.Prompt, length: int) -> np.ndarray:
  """1 for the tokens of the words that a pair is blended by: float32 [2, length], source first.

  Raises InputError: a word that neither text has; a text without any of the words.
  """
  pair, columns = (source, target), np.zeros((2, length), np.float32)
  for word in method.blend:
    words = prompt_to_prompt.changed(*pair) if word == CHANGED else ([word], [word])
    found = [(half, pair[half].columns(one)) for half in range(2) for one in words[half]
             if one in pair[half].words]
    require(bool(found), 'blend', word, 'neither text has such a word', 'give words of a text')
    for half, places in found:
      columns[half, places] = 1.0
  for name, row in zip(('source', 'target'), columns, strict=True):
    only = f': no word of it was changed for {CHANGED}' if CHANGED in method.blend else ''
    require(bool(row.any()), 'blend', method.blend, f'the {name} has none of these words{only}',
            'also give a word that both texts have, such as the object that is edited')
  return columns


def _edited(case: Case, own: float) -> Denoiser:
  """The denoiser of n sources and their n targets, which have the sources' maps."""
  assert case.words is not None
  told = case.told(_both(case.source, case.target))
  return attention.edited(told, prompt_to_prompt.edit(case.words, own), told=True)


def _pair(case: Case, sampler: Sampler, start: Array, times: np.ndarray) -> Edited:
  """Source and target from one z at t = 1."""
  z = sample(sampler, _repeated(case.keys, 2), _repeated(start, 2), times)
  x = case.from_z(z, times, _both(case.source, case.target))
  source, target = jnp.split(x, 2)
  return Edited(target, source)


def _size(case: Case) -> int:
  """The side of the finest attention to tokens of at most 16 x 16 positions."""
  one = jax.tree.map(lambda u: u[:1], case.target)
  fits = {positions for told, positions in layers(case.model, one) if told and positions <= 256}
  sides = [side for side in range(1, 17) if side**2 in fits]
  require(bool(sides), 'blend', None, 'no attention to tokens has a square of at most 16 x 16 '
          'positions', 'leave it out')
  return max(sides)


def _vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
  """The real numbers of a condition as [n, D], and the function back.  Raises InputError."""
  leaves, structure = jax.tree.flatten(tree)
  real = [jnp.issubdtype(u.dtype, jnp.floating) for u in leaves]
  require(any(real), 'method', 'null_text', 'this model reads tokens, and has no embedding of a '
          'text to tune', 'choose prompt_to_prompt, or a model with an encoder of texts')
  moving = [u for u, is_real in zip(leaves, real, strict=True) if is_real]
  ends = np.cumsum([np.prod(u.shape[1:], dtype=int) for u in moving])[:-1]

  def restored(vector):
    parts = iter(jnp.split(vector, ends, axis=1))
    return jax.tree.unflatten(structure, [
        next(parts).reshape(-1, *u.shape[1:]) if is_real else
        jnp.concatenate([u] * (len(vector) // len(u)))
        for u, is_real in zip(leaves, real, strict=True)])
  return jnp.concatenate([u.reshape(len(u), -1) for u in moving], axis=1), restored
