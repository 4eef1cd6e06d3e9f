"""Makes denoisers from networks that estimate a target, and moves denoisers to another curve."""
import jax.numpy as jnp

from vdm_jax.errors import require
from vdm_jax.inputs import Inputs, logsnr
from vdm_jax.targets import solve
from vdm_jax.typing import Curve, Denoiser, Target

__all__ = ['denoiser', 'on_curve']


def denoiser(net, target: Target, inputs: Inputs = logsnr, heads: tuple[str, ...] = ()) -> Denoiser:
  """The Denoiser of a network net(*inputs(z, level), cond) -> y.

  inputs: how the network reads z and the level; `vdm_jax.inputs` has the published conventions.
  heads: the names of further outputs.  The last axis of the output is then 1 + len(heads) times as
  long as the last axis of z, and Estimate.extra = {name: [B, ...]}.  'variance' is IDDPM's head.

  Raises InputError if the network's output has another shape, because that shape might broadcast.
  """
  def denoise(z, level, cond=None):
    y = net(*inputs(z, level), cond)
    expected = (*z.shape[:-1], (1 + len(heads)) * z.shape[-1])
    require(jnp.shape(y) == expected, None, None, f'the network returns {list(jnp.shape(y))} for '
            f'an input of {list(z.shape)} and heads = {heads}, where {list(expected)} is wanted',
            'let it return as many channels as it reads, and as many again for each head')
    if not heads:
      return solve(target, y, z, level)
    y, *rest = jnp.split(y, 1 + len(heads), axis=-1)
    return solve(target, y, z, level)._replace(extra=dict(zip(heads, rest, strict=True)))
  return denoise


def on_curve(denoise: Denoiser, curve: Curve) -> Denoiser:
  """A denoiser trained on `curve`, for use on any other process: z is rescaled at equal logsnr."""
  def moved(z, level, cond=None):
    alpha, sigma = curve(level.logsnr)
    # The derivatives stay those of the process in use; a target may not read them (see above).
    own = level._replace(alpha=alpha, sigma=sigma)
    # The factor own.alpha / level.alpha, through whichever coordinate does not vanish.
    scale = jnp.hypot(alpha, sigma) / jnp.hypot(level.alpha, level.sigma)
    return denoise(z * own._replace(alpha=scale).expand(z).alpha, own, cond)
  return moved
