"""Prompt-to-prompt: an image is edited by the attention to the words of its text.

Hertz et al. (2022).  A source and its target are sampled together, from one z_1.  The target reads
other words, but at first it takes the attention maps of the source, and so keeps its layout.  A
batch is [2 n, ...]: n sources, then their n targets.

    words = stack([replace(source, target, length)])          # once for each pair
    told = attention.edited(denoise, edit(words), told=True)
    guided = guidance.classifier_free(told, conditioned_on(denoise, null), w)

Under guidance, only the conditional half is edited.  M_s and M_t are the maps of source and target,
their columns are tokens, and A says which tokens of the source each token of the target reads.
Section 3.2 of the paper has three edits:

  replace   M_t <- M_s A             words are exchanged, one for one
  refine    M_t[:, j] <- M_s[:, a(j)]  where token j is also in the source; else M_t[:, j]
  reweight  M_t[:, j] <- c_j times that

A row of the result need not sum to 1: the published code does not renormalise, and neither do we.

One thing differs from the published code.  There, if exchanged words have different numbers of
tokens, all tokens after the last of these words read the column of their own number in the source,
which is another token.  Here they read their own token.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.editing.attention import Edit, Layer
from vdm_jax.errors import InputError, require
from vdm_jax.samplers.first_order import transition
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree, Sampler
from vdm_jax.values import value

# ------------------------------------------------------------------------ texts


class Prompt(NamedTuple):
  """A text as words, and the tokens of each word."""
  words: tuple[str, ...]
  tokens: tuple[tuple[int, ...], ...]  # of each word
  start: tuple[int, ...] = ()          # the tokens before the first word
  end: tuple[int, ...] = ()            # the tokens after the last word, without padding

  def ids(self) -> list[int]:
    """All tokens in order, without padding."""
    return [*self.start, *(token for word in self.tokens for token in word), *self.end]

  def places(self) -> list[list[int]]:
    """The columns of the tokens of each word."""
    out, at = [], len(self.start)
    for word in self.tokens:
      out.append(list(range(at, at + len(word))))
      at += len(word)
    return out

  def columns(self, word: str) -> list[int]:
    """The columns of a word, wherever it is in the text.  Raises InputError if it is not."""
    require(word in self.words, 'word', word, f'the text is "{" ".join(self.words)}"',
            'give one of its words')
    return [i for own, places in zip(self.words, self.places(), strict=True)
            for i in places if own == word]


def prompt(text: str, encode: Callable[[str], Sequence[int]], start: Sequence[int] = (),
           end: Sequence[int] = ()) -> Prompt:
  """The words of a text between spaces, each with its tokens encode(word).

  start, end: tokens that the text encoder sees before and after the words.
  """
  words = tuple(text.split())
  return Prompt(words, tuple(tuple(encode(word)) for word in words), tuple(start), tuple(end))


def align(source: Sequence, target: Sequence) -> list[int]:
  """For each symbol of `target` its place in `source`, or -1, by Needleman and Wunsch (1970).

  A pair of equal symbols scores 1, of different symbols -1, and a gap scores 0.  So only equal
  symbols are paired, in order, and as many as possible.
  """
  best = np.zeros((len(source) + 1, len(target) + 1), int)
  for i, a in enumerate(source):
    for j, b in enumerate(target):
      best[i + 1, j + 1] = max(best[i + 1, j], best[i, j + 1], best[i, j] + (1 if a == b else -1))
  out = [-1] * len(target)
  i, j = len(source), len(target)
  while i and j:
    if best[i, j] == best[i, j - 1]:
      j -= 1
    elif best[i, j] == best[i - 1, j]:
      i -= 1
    else:
      i, j = i - 1, j - 1
      out[j] = i
  return out


def changed(source: Prompt, target: Prompt) -> tuple[list[str], list[str]]:
  """The words of source and of target that `align` pairs with no word of the other text."""
  pairs = align(source.tokens, target.tokens)
  return ([word for i, word in enumerate(source.words) if i not in pairs],
          [word for word, i in zip(target.words, pairs, strict=True) if i < 0])


# ------------------------------------------------------------------------ edits


@value
class Words:
  """What each token of a target reads of its source.  [...] is empty, or [n] after `stack`."""
  matrix: Array   # [..., L, L]  A: from tokens of the source (rows) to those of the target
  aligned: Array  # [..., L]     1 where A is used; 0 where the target keeps its own map
  weight: Array   # [..., L]     c
  until: Array    # [..., L]     the share of the time, from noise, in which the token is edited


def _words(pairs: Mapping[int, Mapping[int, float]], source: Prompt, target: Prompt, length: int,
           cross: float, by_word: Mapping[str, float]) -> Words:
  """pairs: column of the target -> {column of the source: share}.  Padding is paired here."""
  sizes = len(source.ids()), len(target.ids())
  require(max(sizes) <= length, 'length', length, f'the texts have {sizes[0]} and {sizes[1]} '
          'tokens', 'give the number of tokens that the network reads, with padding')
  matrix, aligned = np.zeros((length, length), np.float32), np.zeros(length, np.float32)
  padding = {j: {j: 1.0} for j in range(max(sizes), length)}
  for j, column in {**pairs, **padding}.items():
    for i, share in column.items():
      matrix[i, j] = share
    aligned[j] = 1.0
  until = np.full(length, cross, np.float32)
  for word, share in by_word.items():
    until[target.columns(word)] = share
  require(bool(((until >= 0.0) & (until <= 1.0)).all()), 'cross', cross,
          'a share of the time is from 0 to 1', 'give such a number, for every word')
  return Words(*map(jnp.asarray, (matrix, aligned, np.ones(length, np.float32), until)))


def _ends(source: Prompt, target: Prompt) -> dict[int, dict[int, float]]:
  """The tokens before and after the words, paired in order."""
  n, m = len(source.ids()), len(target.ids())
  firsts = min(len(source.start), len(target.start))
  lasts = min(len(source.end), len(target.end))
  return {**{i: {i: 1.0} for i in range(firsts)},
          **{m - k: {n - k: 1.0} for k in range(1, lasts + 1)}}


def replace(source: Prompt, target: Prompt, length: int, cross: float = 0.8,
            by_word: Mapping[str, float] = {}) -> Words:
  """Words are exchanged, one for one: M_t <- M_s A; Hertz et al. (2022), "word swap".

  Tokens of a word are paired in order if source and target have equally many.  Otherwise each of
  its m tokens reads all tokens of the source's word, 1 / m of each.  Padding reads padding.

  length: tokens that the network reads, with padding.  cross: the share of the time, from noise, in
  which maps are edited.  by_word: the share for words of the target, if it is another.
  Raises InputError: texts of different numbers of words or of too many tokens; a wrong share.
  """
  require(len(source.words) == len(target.words), 'target', ' '.join(target.words),
          f'it has {len(target.words)} words, and the source has {len(source.words)}',
          'exchange words one for one, or add words by --change=refine')
  pairs = _ends(source, target)
  for old, new in zip(source.places(), target.places(), strict=True):
    if len(old) == len(new):
      pairs |= {j: {i: 1.0} for i, j in zip(old, new, strict=True)}
    else:
      pairs |= {j: dict.fromkeys(old, 1.0 / len(new)) for j in new}
  return _words(pairs, source, target, length, cross, by_word)


def refine(source: Prompt, target: Prompt, length: int, cross: float = 0.8,
           by_word: Mapping[str, float] = {}) -> Words:
  """Words are added: words of both texts read the source's map, and new words keep their own.

  Hertz et al. (2022), "adding a new phrase"; the words are paired by `align`.  The arguments and
  errors are those of `replace`, but the numbers of words may differ.
  """
  pairs = _ends(source, target)
  old, new = source.places(), target.places()
  for i, columns in zip(align(source.tokens, target.tokens), new, strict=True):
    if i >= 0:
      pairs |= {b: {a: 1.0} for a, b in zip(old[i], columns, strict=True)}
  return _words(pairs, source, target, length, cross, by_word)


def reweight(words: Words, target: Prompt, weights: Mapping[str, float]) -> Words:
  """`words`, with the maps of some words of the target times c: {'red': 2.0}; c may be negative.

  Hertz et al. (2022), "attention re-weighting".  For a text that does not change, `words` is
  replace(target, target, length).  Raises InputError for a word that is not in the text.
  """
  weight = words.weight
  for word, c in weights.items():
    weight = weight.at[jnp.array(target.columns(word))].set(c)
  return Words(words.matrix, words.aligned, weight, words.until)


def stack(pairs: Sequence[Words]) -> Words:
  """The Words of n pairs as one value, whose arrays begin with [n]."""
  return jax.tree.map(lambda *each: jnp.stack(each), *pairs)


def _begun(level: Level, pairs: int, until: Array) -> Array:
  """Whether less than this share of the time has passed, from t = 1; until: [n, ...]."""
  t = jnp.broadcast_to(level.t, (2 * pairs,))[pairs:]
  # A step that begins at the very end of the share is not edited, however t is rounded.
  return jnp.reshape(t, (pairs,) + (1,) * (until.ndim - 1)) > 1.0 - until + 1e-6


def edit(words: Words, own: float = 0.4, positions: int = 256) -> Edit:
  """The edit of `attention.edited`: the maps of targets, given those of their sources.

  words: of n pairs, see `stack`.  own: the share of the time, from noise, in which a target also
  takes the source's self-attention.  positions: only layers with at most so many, as finer maps
  would copy the texture; 16 x 16 in diffusers, 32 x 32 in the authors' code.

  Raises InputError when it is called: a batch or a text of another size.
  """
  n, length = words.until.shape

  def change(maps: Array, layer: Layer, level: Level, cond: PyTree) -> Array:
    require(len(maps) == 2 * n, 'words', None, f'there are {n} pairs, and the batch has '
            f'{len(maps)} examples', 'put n sources before their n targets')
    require(layer.told in (0, length), 'words', None, f'they are of {length} tokens, and the '
            f'network reads {layer.told}', 'give this number as their length')
    source, target = jnp.split(maps, 2)
    told, parts = layer.told, []
    if told:
      row = lambda u: u[:, None, None]
      moved = jnp.einsum('bhps,bst->bhpt', source[..., :told], words.matrix,
                         precision=jax.lax.Precision.HIGHEST)
      mine = target[..., :told]
      new = row(words.weight) * jnp.where(row(words.aligned) > 0.0, moved, mine)
      parts.append(jnp.where(row(_begun(level, n, words.until)), new, mine))
    if told < maps.shape[-1]:
      mine = target[..., told:]
      early = _begun(level, n, jnp.full((n, 1, 1, 1), own))
      small = maps.shape[2] <= positions
      parts.append(jnp.where(early, source[..., told:], mine) if small else mine)
    return jnp.concatenate([source, jnp.concatenate(parts, axis=-1)])
  return change


# ------------------------------------------------------------- local blending


def word_maps(columns: Array, size: int = 16) -> Callable[[dict[str, Array]], Array]:
  """The `read` of `attention.captured`: the attention to some tokens, [B, size, size].

  The sum over the tokens' columns, and the mean over heads and layers of size x size positions.

  columns: [B, L], 1 for tokens of the words that change, and 0 else.
  Raises InputError when it is called: if no layer attends to tokens at this size.
  """
  def read(maps):
    found = [u for name, u in maps.items() if name.endswith('told') and u.shape[2] == size**2]
    require(bool(found), 'size', size, f'no layer attends to tokens from {size} x {size} positions',
            f'choose one of {sorted({round(u.shape[2]**0.5) for u in maps.values()})}')
    each = [jnp.mean(jnp.einsum('bhpt,bt->bhp', u, columns), axis=1) for u in found]
    return jnp.reshape(sum(each) / len(each), (-1, size, size))
  return read


def blend_mask(maps: Array, like: Array, threshold: float = 0.3) -> Array:
  """Where source or target attend to the words that change: bool [n, H, W, 1].

  Each map is enlarged by a maximum over 3 x 3 positions, and scaled to the size of `like` and to a
  maximum of 1.  Hertz et al. (2022), "local editing".  maps: [2 n, h, w]; like: [2 n, H, W, C].
  """
  wide = nn.max_pool(maps[..., None], (3, 3), padding='SAME')
  wide = jax.image.resize(wide, (len(maps), *like.shape[1:3], 1), 'nearest')
  source, target = jnp.split(wide > threshold * jnp.max(wide, axis=(1, 2), keepdims=True), 2)
  return source | target


class BlendState(NamedTuple):
  z: Array     # [2 n, H, W, C]
  maps: Array  # [2 n, size, size]  the sum over the steps


def local_blend(denoise: Denoiser, process: Process, size: int = 16,
                threshold: float = 0.3) -> Sampler:
  """DDIM; after each step, a target becomes its source wherever `blend_mask` is False.

  Hertz et al. (2022), "local editing".  The maps are summed over the steps so far.

  denoise: its estimates have extra['attention'], by `attention.captured` with
  word_maps(columns, size).  A sampler for [2 n, H, W, C].
  """
  def init(z):
    require(len(z) % 2 == 0, 'z', None, f'the batch has {len(z)} examples',
            'put n sources before their n targets')
    return BlendState(z, jnp.zeros((len(z), size, size), z.dtype))

  def step(keys, state, t, s, _):
    at_t, at_s = process(t), process(s)
    estimate = denoise(state.z, at_t)
    if not isinstance(estimate.extra, dict) or 'attention' not in estimate.extra:
      raise InputError('denoise', None, 'its estimates have no attention maps',
                       'wrap it: attention.captured(denoise, word_maps(columns))')
    maps = state.maps + estimate.extra['attention']
    source, target = jnp.split(transition(estimate, at_t, at_s), 2)
    target = jnp.where(blend_mask(maps, state.z, threshold), target, source)
    return BlendState(jnp.concatenate([source, target]), maps)

  return Sampler(step, init, lambda state: state.z)
