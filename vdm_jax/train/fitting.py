"""Training in two lines, for notebooks and small programs: no config, no directory, no checkpoint.

The step is the step of a run (`train.step`).  `train.loop` adds everything else.
"""
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
import tqdm
from absl import logging

from vdm_jax import random
from vdm_jax.errors import require
from vdm_jax.train import step as step_lib
from vdm_jax.train.parallel import jit_layout
from vdm_jax.train.window import IN_FLIGHT, Window, headline
from vdm_jax.typing import Loss, PyTree

__all__ = ['fit']


def fit(loss: Loss, params: PyTree, tx: optax.GradientTransformation, batches: Iterable[PyTree], *,
        ema: float = 0.999, seed: int = 0, raw: bool = False, progress: bool = True) -> PyTree:
  """The averaged parameters after one step for each batch; `params` stay as they are.

  The batch is split over all devices.  The times are stratified over the batch.  As in a run, every
  example of every step has its own key, so the result does not depend on the number of devices.

    params = train.fit(loss, net.init(key, z, t), optax.adam(1e-3), batches)

  Args:
    loss: (params, batch, Context) -> ([B], {name: [B]}), usually nats; the mean is minimised.
    tx: the optimiser.
    batches: pytrees with leaves [B, ...], NumPy or JAX, one for each step.  Cut an endless stream
      with itertools.islice.
    ema: the rate of the average; 0 for the parameters themselves.
    seed: the random seed of times and noise.
    raw: whether to return (averaged, last) parameters.
    progress: whether to show a bar, with the mean loss of the last steps.

  Raises InputError: no batch; a batch that the devices do not divide; a rate outside of [0, 1).
  Raises window.Diverged, with the step and the terms, if the loss or its gradient is not finite.
  """
  layout = jit_layout(step_lib.make_step(loss, tx, {'ema': ema}))
  own = jax.tree.map(jnp.array, params)  # a step takes its state's memory
  state = layout.put(step_lib.init(own, tx))
  key, window, looked, done = random.key(seed), Window(IN_FLIGHT), time.monotonic(), 0
  with tqdm.tqdm(batches, unit='step', dynamic_ncols=True,
                 disable=not progress or jax.process_index() != 0) as bar:
    for batch in bar:
      _require_divisible(batch)
      state, metrics = layout.step(state, layout.place(batch), key)
      window.add(done, metrics)
      done += 1
      if time.monotonic() - looked > 1.0:
        name, value = headline(window.take())
        bar.set_postfix_str(f'{name} {value:.4f}')
        looked = time.monotonic()
  require(done > 0, 'batches', None, 'there is none', 'give a list, or a fresh iterator: one that '
          'has been gone through is empty')
  window.take()  # which finds that the last steps diverged
  if warning := step_lib.caution('ema', ema, done):
    logging.warning(warning)
  state = layout.view(state)
  return (state.ema['ema'], state.params) if raw else state.ema['ema']


def _require_divisible(batch: PyTree) -> None:
  rows = {len(leaf) for leaf in jax.tree.leaves(batch)}
  devices = jax.local_device_count()
  require(len(rows) == 1 and max(rows) % devices == 0, 'batches', None,
          f'a batch has leaves of {sorted(rows)} examples, for {devices} devices',
          f'give every leaf the same number of examples, a multiple of {devices}')
