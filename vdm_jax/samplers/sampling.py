"""Running a sampler down a grid of times."""
import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Sampler


def sample(sampler: Sampler, keys: Array, z: Array, times: Array) -> Array:
  """Runs `sampler` down `times` = [1 = t_N > ... > t_0] from z_1 = `z`: [B, ...] -> z at t_0.

  keys: [B]; image i depends on keys[i] alone, however many are drawn together.  A step with
  equal times is the identity, so a grid may be padded and one program serve every N.
  """
  def body(state, xs):
    i, t, s, plan = xs
    at_i = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    moved = sampler.step(at_i, state, t, s, plan)
    return jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, moved), None

  steps = jnp.arange(times.shape[0] - 1)
  xs = steps, times[:-1], times[1:], sampler.plan(times)
  state, _ = jax.lax.scan(body, sampler.init(z), xs)
  return sampler.value(state)
