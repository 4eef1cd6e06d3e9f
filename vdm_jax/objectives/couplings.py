"""Pairs the noise with the data of a batch: optimal transport within groups.

Tong et al. (2023), 2302.00482, eq. 17, minibatch OT: the noise and the data of a batch are paired
at the least total squared distance.  This straightens the paths, and keeps both marginals.  The
pairs are a permutation: the exact plan between equal numbers of points on both sides.  (The public
code draws pairs of indices from the plan with replacement: some data come twice, others never.)

Where data have labels, the plan of a whole batch would bias the noise that a label is trained with.
So noise is exchanged only within a label.  Every label keeps its own draws, whose distribution does
not depend on the label.
"""
import jax
import jax.numpy as jnp
import optax

from vdm_jax.errors import require
from vdm_jax.typing import Array


def cost(noise: Array, x: Array) -> Array:
  """|noise_i - x_j|^2: [n, ...], [n, ...] -> [n, n]."""
  noise, x = (u.reshape(len(u), -1) for u in (noise, x))
  return jnp.sum(jnp.square(noise[:, None] - x[None]), axis=-1)


def assignment(costs: Array) -> Array:
  """The row (noise) of each column (datum) at the least total cost: a permutation, [n, n] -> [n].
  """
  rows, columns = optax.assignment.hungarian_algorithm(costs)
  return jnp.zeros(len(costs), rows.dtype).at[columns].set(rows)


def optimal_transport(noise: Array, x: Array, labels: Array | None = None, *, group: int = 64
                      ) -> Array:
  """The noise of each datum, [B, ...]: `noise` permuted within groups of consecutive examples.

  Tong et al. (2023), eq. 17, the exact plan of each group.  labels: integers [B]; no noise is
  exchanged between two labels.  group: the number of examples that are paired together; the work
  for each example grows with the square of `group`.

  Raises InputError if `group` does not divide the batch.
  """
  require(group > 0 and len(x) % group == 0, 'group', group,
          f'it does not divide the {len(x)} examples of a batch', 'choose one that does')
  split = lambda u: u.reshape(-1, group, *u.shape[1:])

  def one(noise, x, labels):
    costs = cost(noise, x)
    # Dearer than any plan that stays within the labels, as the one that changes nothing does.
    apart = labels[:, None] != labels[None]
    costs = jnp.where(apart, 1.0 + group * (1.0 + jnp.max(costs)), costs)
    return noise[assignment(costs)]

  labels = jnp.zeros(len(x), jnp.int32) if labels is None else labels
  # One group after another: under vmap all would go on until the slowest is done.
  paired = jax.lax.map(lambda u: one(*u), (split(noise), split(x), split(labels)))
  return paired.reshape(noise.shape)
