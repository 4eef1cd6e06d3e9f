"""The loss on a whole split: every example is used equally often, and no batch is dropped."""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tqdm

from vdm_jax import random
from vdm_jax.machine import devices
from vdm_jax.typing import Array, Context, Loss


def make_validate(loss: Loss, split, key: Array, batch_size: int, repeats: int
                  ) -> Callable[..., dict[str, float]]:
  """validate(params, step, ema, aux) -> {'loss' and the loss's own terms: means over `split`}.

  The last argument of `validate`, look, is called after each batch.  If it raises, the validation
  ends.  The context is the context of training at this step, without dropout.

  Example i has its own keys and times, the same at every call.  So two calls differ by their
  parameters, not by their draws.  The times of one example are evenly spread over its `repeats`, to
  1 / n.  The times of all examples together are evenly spread too.
  """
  n = len(split)

  def sums(shared, xs):
    params, key, step, ema, aux = shared  # the key too, so that several seeds share the program
    batch, i, mask, r = xs
    r = r[0]
    # All n * repeats times make one even grid, whatever factors n and repeats share: each
    # repetition begins elsewhere within the strata, and shifts its examples by whole ones.
    t = random.stratified(random.unit(key) + r / (repeats * n),
                          i + jnp.round(r * (n / repeats)), n)
    keys = random.per_example(jax.random.fold_in(key, r), i)
    context = Context(t, keys, step, ema, aux, train=False)
    losses, terms = loss(params, batch, context)
    return jax.tree.map(lambda u: jnp.sum(jnp.where(mask, u, 0.0)), {'loss': losses, **terms})

  sums = devices.over_rows(sums)

  def validate(params, step=0, ema=None, aux=None, look=lambda: None):
    shared = devices.replicate((params, key, jnp.asarray(step, jnp.int32), ema, aux))
    parts: dict[str, list[float]] = {}
    size = devices.global_batch_size(batch_size)
    batches = tqdm.tqdm(devices.padded_rows(0, n, size), total=-(-n // size), desc='validation',
                        unit='batch', leave=False, delay=2.0, dynamic_ncols=True,
                        disable=jax.process_index() != 0)
    for rows, mask in batches:
      rows, mask = devices.local_rows(rows), devices.local_rows(mask)
      batch = split.get(rows)
      for r in range(repeats):
        xs = devices.place((batch, rows, mask, jnp.full(len(rows), r)))
        for name, value in jax.device_get(sums(shared, xs)).items():
          parts.setdefault(name, []).append(float(value))
        look()
    return {name: math.fsum(values) / (n * repeats) for name, values in parts.items()}

  return validate
