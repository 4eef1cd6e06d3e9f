"""Denoiser -> Denoiser: reads and changes the attention maps of its network while it is called.

A layer that attends calls its method `attended` with its maps (`nn.blocks.layers.Attends`), and
here that method is intercepted.  So no network has an option for this, and no weights change.

Both functions act when the network is traced.  So wrap a denoiser that is not under a `jax.jit` of
its own, whose program may be older than the wrapper.  Under the `jit` of a whole sampler they work.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util

from vdm_jax.errors import InputError, require
from vdm_jax.typing import Array, Denoiser, Level, PyTree

_METHOD, _KEPT = 'attended', 'attention'


class Layer(NamedTuple):
  """Where attention maps come from."""
  path: tuple[str, ...]  # of the layer in its network
  told: int              # so many columns, the first, are tokens of the condition; the rest are
                         # positions of the image


# (maps [B, heads, positions, read], layer, level, cond) -> maps of the same shape
Edit = Callable[[Array, Layer, Level, PyTree], Array]


def edited(denoise: Denoiser, edit: Edit, told: bool = False) -> Denoiser:
  """`denoise`, where each layer multiplies edit(maps, layer, level, cond) by its values.

  The network computes its maps in the open, as it always does outside of fused kernels.  So an edit
  that returns `maps` changes nothing.

  told: whether the edit needs attention to tokens of the condition.

  Raises InputError when it is called: if the network has no such attention; if a fused kernel
  computes it; or if the edit returns another shape.
  """
  def wrapped(z, level, cond=None):
    layers = []

    def change(call, args, kwargs, context):
      if context.method_name != _METHOD:
        return call(*args, **kwargs)
      maps, layer = call(*args, **kwargs), Layer(context.module.path, _told(*args, **kwargs))
      layers.append(layer)
      new = edit(maps, layer, level, cond)
      require(new.shape == maps.shape, 'edit', None, f'it returns maps {list(new.shape)} for '
              f'{list(maps.shape)} of {"/".join(layer.path)}', 'keep the shape')
      return new

    with nn.intercept_methods(change):
      estimate = denoise(z, level, cond)
    _require_layers(layers, told)
    return estimate
  return wrapped


def captured(denoise: Denoiser, read: Callable[[dict[str, Array]], PyTree]) -> Denoiser:
  """`denoise`, whose estimate has extra['attention'] = read({name: maps}).

  Wrappers keep `extra`, so guidance by `classifier_free` passes on the maps of its conditional
  half.  A map is [B, heads, positions, columns].  Its name is the layer's path and 'told' (columns
  are tokens of the condition) or 'own' (columns are positions): 'mid_attention/block_0/cross/told'.
  If `denoise` is `edited`, the maps are those after the edit.

  Raises InputError when it is called: if no layer shows maps, or if one is in a stack of blocks
  (`nn.blocks.stack`), whose maps can be edited but not captured.
  """
  def wrapped(z, level, cond=None):
    kept: dict[str, Array] = {}
    layers, inside = [], []

    def keep(call, args, kwargs, context):
      module = context.module
      if context.method_name == _METHOD:
        told = _told(*args, **kwargs)
        maps = call(*args, **kwargs)
        layers.append(Layer(module.path, told))
        parts = {'told': maps[..., :told], 'own': maps[..., told:]}
        for name, part in parts.items():
          if part.shape[-1] and not module.sow(_KEPT, name, part):
            raise InputError('denoise', None, f'{"/".join(module.path) or type(module).__name__} '
                             'is in a stack of blocks, whose maps can be edited but not captured',
                             'take a network whose blocks are not stacked, e.g. '
                             'nn.unets.latent.LatentUNet')
        return maps
      if inside:
        return call(*args, **kwargs)
      # The outermost module runs anew, as a function that also returns what its layers keep.  So
      # maps also leave a layer whose backward pass is computed again (`nn.remat`).
      inside.append(module)
      try:
        alone, variables = module.unbind()
        out, state = alone.apply(variables, *args, method=context.method_name, mutable=[_KEPT],
                                 **kwargs)
      finally:
        inside.pop()
      flat: dict[Any, Any] = dict(traverse_util.flatten_dict(dict(state).get(_KEPT, {})))
      for path, values in flat.items():
        kept['/'.join(path)] = values[-1]
      return out

    with nn.intercept_methods(keep):
      estimate = denoise(z, level, cond)
    _require_layers(layers, False)
    return estimate._replace(extra={**(estimate.extra or {}), 'attention': read(kept)})
  return wrapped


def _told(maps: Any, told: int = 0) -> int:
  return told


def _require_layers(layers: list[Layer], told: bool) -> None:
  what = 'attention to tokens' if told else 'attention'
  require(any(layer.told for layer in layers) if told else bool(layers), 'denoise', None,
          f'its network shows no {what}: it has none, or a fused kernel computes it, or the '
          'denoiser runs a program that was compiled before',
          f"take a network that has {what}, set attention='xla', and wrap a denoiser without a jit "
          'of its own')
