"""Published parameters, {name: array}, put into a tree of parameters here, and back.

The module of each source has a function from the name here to the published name.  PyTorch's
layouts differ from Flax's:

    convolution   [out, in, height, width]     kernel  [height, width, in, out]
    linear map    [out, in] or [out, in, 1]    kernel  [in, out]
    norms         weight, bias                 scale, bias
"""
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np

from vdm_jax.errors import InputError, require
from vdm_jax.nn.blocks import stack
from vdm_jax.typing import Array, PyTree

HEAD = 64  # features of a head, in all published networks whose shapes do not tell it

Layout = Callable[[str, np.ndarray], np.ndarray]  # name here, published array -> array here


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
  """A PyTorch array in Flax's layout.  name: its name here, ending in kernel, scale, ..."""
  if not name.endswith('kernel'):
    return array
  if array.ndim == 3 and array.shape[2] == 1:
    array = array[:, :, 0]
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """The inverse of `from_torch`; a linear map is [out, in]."""
  if not name.endswith('kernel'):
    return array
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def renaming(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Callable[[str], str]:
  """The function of a name that applies these rules, one after another, to the whole name.

  rules: (pattern, replacement), as `re.sub` takes them.
  """
  compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

  def renamed(name: str) -> str:
    for pattern, replacement in compiled:
      name = pattern.sub(replacement, name)
    return name
  return renamed


def torch_leaf(name: str) -> str:
  """'a/b/kernel' -> 'a.b.weight': the last part is PyTorch's name for a parameter of a layer."""
  *path, leaf = name.split('/')
  return '.'.join([*path, {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}.get(
      leaf, leaf)])


def some(names: Collection[str]) -> str:
  """Names for an error, in alphabetical order: the first ten, and the number of the others."""
  return ', '.join(sorted(names)[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')


def depth(flat: Mapping[str, np.ndarray], pattern: str) -> int:
  """How many blocks `flat` has: one more than the largest number in the group of `pattern`.

  pattern: matched at the start of each name; 0 if none fits.
  """
  return max((int(found[1]) + 1 for name in flat if (found := re.match(pattern, name))), default=0)


def heads(features: int) -> int:
  """The number of heads of `HEAD` features each.  Raises InputError if they do not divide."""
  require(features % HEAD == 0, 'features', features, f'it is no multiple of {HEAD}, so no shape '
          'tells the number of heads', 'give the number of heads')
  return features // HEAD


def joined(flat: Mapping[str, np.ndarray], pattern: str, parts: Sequence[str],
           name: str) -> dict[str, np.ndarray]:
  """`flat` with arrays that it keeps apart, such as q, k and v, as one along the first axis.

  pattern: matches the whole name of a part, and has three groups: what stands before the part, the
  part, and what stands after it.  parts: in their order.  name: of the joined array, with {0} and
  {1} for what stands before and after.  All other arrays stay as they are.
  Raises InputError naming the part that is missing.
  """
  out, found = {}, {}
  for old, array in flat.items():
    match = re.fullmatch(pattern, old)
    if match and match[2] in parts:
      found.setdefault((match[1], match[3]), {})[match[2]] = array
    else:
      out[old] = array
  for ends, arrays in found.items():
    lack = [part for part in parts if part not in arrays]
    if lack:
      raise InputError(problem=f'{ends[0]} has no {lack[0]} for its {ends[1]}',
                       remedy='give a whole file')
    out[name.format(*ends)] = np.concatenate([arrays[part] for part in parts])
  return out


def fit(flat: Mapping[str, np.ndarray], like: PyTree, published: Callable[[str], str], *,
        layout: Layout = lambda name, array: array, hint: str = '',
        stacks: Collection[str] = ()) -> PyTree:
  """The published parameters `flat` as a tree like `like`, nested dicts of arrays or shapes.

  published: name here, joined by '/', -> published name.
  layout: changes the layout of an array, e.g. `from_torch`.
  hint: what the error tells the user to compare.
  stacks: the paths in `like` of stacks of blocks, which are apart in `flat`: the functions see the
  names of `nn.blocks.stack.unrolled`.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  names, leaves, treedef = named(jax.eval_shape(lambda u: stack.unrolled(u, stacks), like)
                                 if stacks else like)
  published_names = [published(name) for name in names]
  known = set(published_names)
  rows = list(zip(names, published_names, leaves, strict=True))
  wrong = [f'missing: {source} (here {name} {leaf.shape})'
           for name, source, leaf in rows if source not in flat]
  wrong += [f'left over: {name} {np.shape(flat[name])}' for name in flat if name not in known]
  arrays = {}
  for name, source, leaf in rows:
    if source not in flat:
      continue
    arrays[name] = layout(name, flat[source])
    if arrays[name].shape != leaf.shape:
      wrong.append(f'shape: {source} is {np.shape(flat[source])}, which does not fit {name} '
                   f'{leaf.shape}')
  if wrong:
    raise InputError(problem='the parameters do not fit this network'
                     + (f' ({hint})' if hint else '') + ':\n  ' + '\n  '.join(wrong))
  params = jax.tree.unflatten(treedef, [arrays[name] for name in names])
  return stack.stacked(params, stacks) if stacks else params


def flat(params: PyTree, published: Callable[[str], str], *,
         layout: Layout = lambda name, array: array, stacks: Collection[str] = ()
         ) -> dict[str, Array]:
  """The inverse of `fit`.  layout: the inverse layout, e.g. `to_torch`."""
  names, leaves, _ = named(stack.unrolled(params, stacks) if stacks else params)
  return {published(name): layout(name, leaf) for name, leaf in zip(names, leaves, strict=True)}


def named(params: PyTree) -> tuple[list[str], list, jax.tree_util.PyTreeDef]:
  """The names joined by '/', the leaves, and the structure of a tree of nested dicts."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  return ['/'.join(k.key for k in path) for path, _ in leaves], [u for _, u in leaves], treedef
