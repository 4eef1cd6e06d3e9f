"""One pass over a split, with any estimate of any quantity for each image.

An estimator is a plain function of some images, (model, batch, keys) -> {name: [n, ...]}: nats, or
other quantities, for each image.  For an image it may use only the image's own key.  So the result
for the image depends neither on its batch nor on the devices.  By convention 'nats' is the estimate
of -log p(image), and 'evaluations' counts the network's calls for it.
"""
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
import tqdm

from vdm_jax import random
from vdm_jax.machine import devices
from vdm_jax.typing import Array, Model, PyTree

Estimator = Callable[[Model, PyTree, Array], dict[str, Array]]
_Of = TypeVar('_Of')


def over_images(estimator: Callable[[_Of, PyTree, Array], dict[str, Array]],
                model: Callable[[PyTree], _Of], params: PyTree, split,
                key: Array, *, label: str, at_once: int, repeats: int = 1,
                count: int | None = None, progress: bool = True) -> dict[str, np.ndarray]:
  """{name: [R, N, ...]}: `estimator` on each of the first `count` (default: all) images of `split`,
  once in each of R = `repeats` repetitions, whose draws are independent.

  model: params -> Model, or the value that the estimator takes instead; split: `len`, and
  `get(rows)` -> batch; at_once: images at a time, rounded up to whole images on whole devices;
  label: the label of the progress bar.  One program serves all batches.
  """
  n = len(split) if count is None else min(count, len(split))
  images = devices.global_batch_size(min(n, max(1, at_once)))

  def evaluate(params, xs):
    batch, rows, r = xs
    keys = random.per_example(jax.random.fold_in(key, r[0]), rows)
    return estimator(model(params), batch, keys)

  evaluate = devices.over_rows(evaluate)
  params = devices.replicate(params)
  out: dict[str, np.ndarray] = {}
  with tqdm.tqdm(total=repeats * n, unit='example', dynamic_ncols=True, mininterval=0.5, desc=label,
                 disable=not progress or jax.process_index() != 0) as bar:
    for r in range(repeats):
      for rows, mask in devices.padded_rows(0, n, images):
        local = devices.local_rows(rows)
        xs = devices.place((split.get(local), local, np.full(len(local), r)))
        for name, values in jax.device_get(evaluate(params, xs)).items():
          if name not in out:
            # Sums over a split are taken in float64; arrays of many draws an image stay small.
            dtype = np.float64 if values.ndim == 1 else values.dtype
            out[name] = np.zeros((repeats, n, *values.shape[1:]), dtype)
          out[name][r, rows[mask]] = values[mask]
        bar.update(int(mask.sum()))
  return out
