"""Attacks: small changes of an input that raise a loss, also through a random defence.

Projected gradient descent of Madry et al. (2018), with the expectation over the transformation
(EOT) of Athalye et al. (2018): the gradient is a mean over several draws of the defence's noise.  A
defence that is random looks stronger than it is if the attack ignores its noise.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import require, require_at_least, require_choice
from vdm_jax.typing import Array

__all__ = ['Attack', 'NORMS', 'pgd', 'project']

NORMS = ('linf', 'l2')


class Attack(NamedTuple):
  """The strength of an attack."""
  radius: float                  # the largest change, in the units of x
  norm: str = 'linf'             # of the change of an example: 'linf' or 'l2'
  steps: int = 10
  draws: int = 1                 # of the noise of the defence, for each gradient; 1: no EOT
  step_size: float | None = None  # in the units of x; None: 2.5 radius / steps

  def check(self) -> None:
    """Raises InputError for numbers that no attack has."""
    require_choice('norm', self.norm, NORMS)
    require(self.radius > 0.0, 'radius', self.radius, 'an attack needs a change above 0',
            'give such a number')
    require_at_least('attack_steps', self.steps)
    require_at_least('draws', self.draws)
    require(self.step_size is None or self.step_size > 0.0, 'step_size', self.step_size,
            'it must be above 0', 'leave it out, or give such a number')

  @property
  def size(self) -> float:
    """The length of a step."""
    return 2.5 * self.radius / self.steps if self.step_size is None else self.step_size


def _lengths(u: Array) -> Array:
  """The Euclidean norm of each example, [B, 1, ...], without an infinite gradient at 0."""
  square = jnp.sum(jnp.square(u), axis=range(1, u.ndim), keepdims=True)
  return jnp.sqrt(jnp.maximum(square, jnp.finfo(u.dtype).tiny))


def project(change: Array, attack: Attack) -> Array:
  """The nearest change within the radius.  change: [B, ...]."""
  if attack.norm == 'linf':
    return jnp.clip(change, -attack.radius, attack.radius)
  return change * jnp.minimum(1.0, attack.radius / _lengths(change))


def pgd(loss: Callable[[Array, Array], Array], keys: Array, x: Array, attack: Attack, *,
        low: float = -jnp.inf, high: float = jnp.inf, known: Array | None = None) -> Array:
  """x within `attack.radius` of the given x, where projected gradient ascent has raised the loss.

  Madry et al. (2018): a random start in the ball, and projected steps along the sign of the
  gradient (linf) or along the gradient (l2).  The result is the last iterate.  A gradient is the
  mean over `attack.draws` new draws of the noise.

  Args:
    loss: (x [B, ...], keys [B] of the noise of a defence) -> nats [B].
    keys: [B], of the attack; example i uses keys[i] alone.
    low, high: the range of x, which the result keeps.
    known: [B], keys of the defence that the attacker knows.  Every gradient takes these, so the
      defence is a fixed function.  None: the attacker does not know them.

  Raises InputError for numbers that no attack has.
  """
  attack.check()
  require(known is None or attack.draws == 1, 'draws', attack.draws, 'the noise is known, so all '
          'draws would be equal', 'take one')
  slope = jax.grad(lambda x, keys: jnp.sum(loss(x, keys)))
  inside = lambda y: jnp.clip(x + project(y - x, attack), low, high)

  def gradient(y, i):
    if known is not None:
      return slope(y, known)

    def add(total, j):
      drawn = jax.vmap(lambda key: jax.random.fold_in(key, i * attack.draws + j))(noise)
      return total + slope(y, drawn), None
    total, _ = jax.lax.scan(add, jnp.zeros_like(y), jnp.arange(attack.draws))
    return total / attack.draws

  def step(y, i):
    g = gradient(y, i)
    direction = jnp.sign(g) if attack.norm == 'linf' else g / _lengths(g)
    return inside(y + attack.size * direction), None

  noise = random.stream(keys, 'defence')
  start = _start(random.stream(keys, 'start'), x, attack)
  return jax.lax.scan(step, inside(start), jnp.arange(attack.steps))[0]


def _start(keys: Array, x: Array, attack: Attack) -> Array:
  """x and a uniform change of the ball: [B, ...]."""
  normal = random.normal(random.stream(keys, 'direction'), x)
  if attack.norm == 'linf':
    return x + attack.radius * (2.0 * jax.scipy.special.ndtr(normal) - 1.0)
  size = x[0].size
  share = random.uniform(random.stream(keys, 'length'), x) ** (1.0 / size)
  share = jnp.reshape(share, (-1,) + (1,) * (x.ndim - 1))
  return x + attack.radius * share * normal / _lengths(normal)
