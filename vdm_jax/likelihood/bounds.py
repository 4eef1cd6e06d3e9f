"""The variational bound on every image of a split.

Each image has `times` draws of (t, eps, eps_0), its times evenly spread over [0, 1) from a uniform
offset of its own; a repetition is an independent set of all draws.  Draws belong to
(repetition, image, number), so the result depends neither on the batch size nor on the devices.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import devices, random
from vdm_jax.objectives import vlb
from vdm_jax.typing import Array, Model, PyTree

TERMS = ('reconstruction', 'latent', 'diffusion')


class BoundSamples(NamedTuple):
  """Nats; R repetitions, N images, K times."""
  terms: dict[str, np.ndarray]  # name of a term -> [R, N], means over K
  logsnr: np.ndarray            # [R, N, K]  at the times drawn; a chain's grid point is the next
  diffusion: np.ndarray         # [R, N, K]  one-draw estimates of the diffusion term there
  steps: int                    # T; 0: continuous time

  @property
  def total(self) -> np.ndarray:
    """The bound on -log p of each image: [R, N]."""
    return sum(self.terms[name] for name in TERMS)


def evaluate_bound(model: Callable[[PyTree], Model], params: PyTree, split, key: Array, *,
                   steps: int = 0, times: int = 32, repeats: int = 1, batch_size: int = 256,
                   count: int | None = None, progress: bool = True) -> BoundSamples:
  """The bound on each of the first `count` (default: all) images of `split`, once a repetition.

  model: params -> Model; split: `len`, and `get(rows)` -> batch; steps: T, 0 for continuous time;
  batch_size: evaluations of the network at a time, rounded to whole images on whole devices.
  """
  n = len(split) if count is None else min(count, len(split))
  images = devices.whole_batch(min(n, max(1, batch_size // times)))

  def evaluate(params, xs):
    batch, rows, r = xs
    m = model(params)
    at_image = random.per_example(jax.random.fold_in(key, r[0]), rows)
    offset = jax.vmap(jax.random.uniform)(at_image)
    # [n, K] draws, flat: the network sees n K examples.
    k = jnp.arange(times)
    t = random.stratified(offset[:, None], k, times).reshape(-1)
    keys = jax.vmap(lambda key: random.per_example(key, k + 1))(at_image).reshape(-1)
    batch = jax.tree.map(lambda u: jnp.repeat(u, times, axis=0), batch)
    x = m.encode(batch['image'])
    given = {'data': batch['image'], 'decoder': m.decoder}
    args = m.denoise, m.process, x, t, keys, m.cond(batch)
    if steps:
      _, terms = vlb.discrete(*args, steps=steps, **given)
    else:
      _, terms = vlb.continuous(*args, **given)
    by_image = lambda u: u.reshape(-1, times)
    return ({name: by_image(u).mean(axis=1) for name, u in terms.items()},
            by_image(m.process(t).logsnr), by_image(terms['diffusion']))

  evaluate = devices.over_rows(evaluate)
  params = devices.replicate(params)
  out = BoundSamples({name: np.zeros((repeats, n)) for name in TERMS},
                     np.zeros((repeats, n, times), np.float32),
                     np.zeros((repeats, n, times), np.float32), steps)
  bar = tqdm.tqdm(total=repeats * n, unit='image', dynamic_ncols=True, mininterval=0.5,
                  desc=f'bound at T = {steps}' if steps else 'bound, continuous time',
                  disable=not progress or jax.process_index() != 0)
  with bar:
    for r in range(repeats):
      for rows, mask in devices.padded_rows(0, n, images):
        local = devices.mine(rows)
        xs = devices.place((split.get(local), local, np.full(len(local), r)))
        terms, logsnr, diffusion = jax.device_get(evaluate(params, xs))
        where = rows[mask]
        for name in TERMS:
          out.terms[name][r, where] = terms[name][mask]
        out.logsnr[r, where], out.diffusion[r, where] = logsnr[mask], diffusion[mask]
        bar.update(len(where))
  return out


def bits_by_noise(samples: BoundSamples, edges: np.ndarray) -> np.ndarray:
  """The diffusion term's nats per unit of logsnr, between consecutive `edges`: [len(edges) - 1].

  It integrates to the diffusion term, up to what lies outside of the edges.
  """
  total, _ = np.histogram(samples.logsnr, edges, weights=samples.diffusion.astype(np.float64))
  return total / samples.logsnr.size / np.diff(edges)
