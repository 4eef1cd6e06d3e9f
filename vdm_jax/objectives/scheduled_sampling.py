"""Scheduled sampling: a diffusion model is trained at latents that its own network made.

Usually a network is trained at z_i made of the data, but used at z_i that follow from its own
estimates.  Here, with some probability, the network makes z_i: the data are noised to a later step,
and m estimates bring them back,

    z_(i+m) ~ q(z | x),    z_(j-1) ~ q(z_(j-1) | x_hat(z_j)),    j = i + m, ..., i + 1.

Each step draws its own noise, and does not use q(z_(j-1) | z_j, x_hat).  No gradient passes through
these steps.  The target at z_i is the noise that leads from the datum to z_i, eps = (z_i - alpha_i
x) / sigma_i.  Deng, Kojima and Rush (2023), `Markup-to-Image Diffusion Models with Scheduled
Sampling`; the steps follow their public code, which uses one m for a batch.

The method has a bias.  A perfect x_hat = E[x | z] has less variance than x, so a z_i that it makes
is not distributed as z_i of the data.  The loss of the perfect denoiser rises, and the network that
is best at such z_i shrinks towards the mean.  For N(0, 1/4) under the linear chain of 1,000 steps
the loss is 1.814 times as large with m = 1.  If a linear network is trained in this way with the
probability 0.8, its samples have the standard deviation 0.4256, instead of 0.4961.  There is no
bias where the condition leaves only one x, as markup leaves one picture.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import require_at_least
from vdm_jax.objectives import vlb
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, ArrayLike, Denoiser, Process, PyTree
from vdm_jax.units import sum_over_data


def rising(step: ArrayLike, steps: int, highest: float = 0.8) -> Array:
  """The probability at step `step` of a training of `steps`: linear, from 0 to `highest`, []."""
  return highest * jnp.clip(jnp.asarray(step, float) / steps, 0.0, 1.0)


def simple(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
           cond: PyTree = None, *, steps: int, probability: ArrayLike, rollout: int = 1,
           noise: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|eps - eps_hat|^2, a sum over the data, at z from the network or at z from the data.

  A draw decides for each example.  If fewer than `rollout` steps follow a step, the network makes
  all of them.

  Args:
    x: [B, ...].
    t, keys: [B].
    steps: T of the chain.
    probability: the probability that the network makes z, [] or [B]; see `rising`.
    rollout: m, 1 or more.
    noise: [m + 1, B, ...], for the later step and then for each step back; drawn if not given.

  Returns [B] and {'eps_error'}, which are equal.
  Raises InputError if `rollout` is below 1.
  """
  require_at_least('rollout', rollout)
  number = vlb.step_number(t, steps)
  own = random.bernoulli(random.stream(keys, 'own'),
                         jnp.broadcast_to(jnp.asarray(probability, t.dtype), t.shape))
  ahead = jnp.where(own, jnp.minimum(float(rollout), steps - number), 0.0)
  if noise is None:
    names = ['eps', *(f'eps_back_{j}' for j in range(rollout))]
    noise = jax.vmap(lambda of: random.normal(of, x))(random.streams(keys, names))

  def back(state, eps):
    z, at = state
    at_z = process(at / steps)
    x_hat = jax.lax.stop_gradient(denoise(z, at_z, cond).x)
    behind = jnp.maximum(at - 1.0, number)
    moved = diffuse(x_hat, eps, process(behind / steps))
    there = jnp.reshape(at > number, at.shape + (1,) * (x.ndim - 1))
    return (jnp.where(there, moved, z), behind), None

  late = number + ahead
  (z, _), _ = jax.lax.scan(back, (diffuse(x, noise[0], process(late / steps)), late), noise[1:])
  level = process(number / steps)
  at_z = level.expand(x)
  error = (z - at_z.alpha * x) / at_z.sigma - denoise(z, level, cond).eps
  loss = sum_over_data(jnp.square(error))
  return loss, {'eps_error': loss}
