"""Blocks of one kind, one after another: their parameters are stacked, [depth, ...] each.

The blocks run as one loop (`lax.scan`), whose program does not grow with the depth, or they are
written out one by one.  The parameters are the same in both forms, and so are the checkpoints.  The
choice `remat` says how much of a block the backward pass keeps:

  'none'    all that the backward pass needs
  'dots'    results of convolutions and dense layers.  The rest is computed again: it is cheap, or
            it is large (the attention's scores)
  'block'   only the block's input, so the whole block is computed again
"""
from collections.abc import Callable, Collection
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks import convolution, layers
from vdm_jax.typing import Array, PyTree

Remat = Literal['none', 'dots', 'block']

_POLICIES = {
    'dots': jax.checkpoint_policies.save_from_both_policies(
        # Not the attention's scores, [B, positions, positions].
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(convolution.NAME, layers.MASK, layers.NORM)),
    'block': None}


def parameters(owner: nn.Module, name: str, block: nn.Module, depth: int, *args) -> PyTree:
  """The parameters of `depth` copies of a block that is called as block(*args).

  `owner` holds them under this name.  Each copy has its own initial values.
  """
  def init(key):
    return jax.vmap(lambda key: block.init(key, *args)['params'])(jax.random.split(key, depth))
  if not owner.is_initializing():  # which would trace `init` once more to compare the shapes
    return owner.get_variable('params', name)
  return owner.param(name, init)


def run(apply: Callable[[PyTree, Array, dict], Array], params: PyTree, h: Array, each: dict,
        scan: bool, remat: Remat) -> tuple[Array, Array | list[Array]]:
  """h <- apply(params_i, h, each_i) for i = 0, 1, ...: the last h, and the h of all blocks.

  params: leaves [depth, ...].  each: {name: value}, where a value is [depth, ...] or None.  Without
  `scan` a value may also be a list of arrays.  The h of all blocks are an array [depth, ...] from a
  loop, and otherwise a list.  So no program takes apart an array that it has just put together.
  """
  if remat != 'none':
    apply = jax.checkpoint(apply, policy=_POLICIES[remat], prevent_cse=not scan)
  if scan:
    def body(h, xs):
      h = apply(xs[0], h, xs[1])
      return h, h
    return jax.lax.scan(body, h, (params, each))
  outs = []
  for i, layer in enumerate(apart(params)):
    h = apply(layer, h, {name: None if u is None else u[i] for name, u in each.items()})
    outs.append(h)
  return h, outs


def rematerialised(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
  """The module class with the same parameters, whose backward pass keeps as much as `remat` says.

  It is for networks whose blocks differ, and so cannot be stacked.
  """
  return block if remat == 'none' else nn.remat(block, policy=_POLICIES[remat])


def apart(params: PyTree) -> list[PyTree]:
  """Leaves [depth, ...] -> the parameters of each block.

  The leaves are split, because the gradient of a split is one concatenation.  The gradient of
  indexing is a sum of `depth` arrays.
  """
  leaves, treedef = jax.tree.flatten(params)
  split = [jnp.split(leaf, leaf.shape[0]) for leaf in leaves]
  return [jax.tree.unflatten(treedef, [u[0] for u in block]) for block in zip(*split, strict=True)]


def unrolled(params: PyTree, stacks: Collection[str]) -> PyTree:
  """Stacked blocks one by one, as published checkpoints name them: 'a' [depth, ...] -> 'a_0', ...

  stacks: the paths of the stacks of blocks, 'a' at the root of the tree, or 'b/a'.
  """
  out = {}
  for name, part in params.items():
    if name in stacks:
      out |= {f'{name}_{i}': block for i, block in enumerate(apart(part))}
    else:
      below = _below(stacks, name)
      out[name] = unrolled(part, below) if below else part
  return out


def stacked(params: PyTree, stacks: Collection[str]) -> PyTree:
  """The inverse of `unrolled`."""
  out, blocks = {}, {}
  for name, part in params.items():
    stem, _, number = name.rpartition('_')
    if stem in stacks:
      blocks.setdefault(stem, {})[int(number)] = part
    else:
      below = _below(stacks, name)
      out[name] = stacked(part, below) if below else part
  for stem, parts in blocks.items():
    out[stem] = jax.tree.map(lambda *rows: jnp.stack(rows), *(parts[i] for i in range(len(parts))))
  return out


def _below(stacks: Collection[str], name: str) -> list[str]:
  """The paths of the stacks in the part `name` of a tree."""
  return [path.removeprefix(f'{name}/') for path in stacks if path.startswith(f'{name}/')]
