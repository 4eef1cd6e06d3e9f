"""Five steps under every layout, from a state in a file: run by each of two processes.

DIRECTORY/start.npz -> DIRECTORY/LAYOUT_PROCESS.npz, rows_PROCESS.npz, and the arrays of the
checkpoint of DIRECTORY/run, restored as each layout wants them, in restored_LAYOUT_PROCESS.npz.
"""
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.support import sgd_config
from vdm_jax import cli
from vdm_jax.train import loop
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints

STEPS = 5


def initial(experiment):
  """Away from the initial state, where the last layer is zero and so are most gradients."""
  params = experiment.init(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [u + 0.01 * jax.random.normal(k, u.shape) for u, k in zip(leaves, keys, strict=True)]
  return jax.device_get(step_lib.init(jax.tree.unflatten(tree, leaves), experiment.tx,
                                      experiment.ema))


def trained(experiment, start, layout):
  """(state, metrics of each step, this process's rows) after STEPS steps."""
  state, metrics, rows = layout.put(start), [], []
  batches = experiment.data.stream(0, jax.process_index(), jax.process_count())
  for _ in range(STEPS):
    rows.append(next(batches)['image'])
    state, out = layout.step(state, layout.place({'image': rows[-1]}), jax.random.key(2))
    metrics.append(jax.device_get(out))
  batches.close()
  return whole(layout.view(state)), jax.tree.map(lambda *u: np.stack(u), *metrics), np.stack(rows)


def make_layout(experiment, name, devices=None):
  update = step_lib.make_step(experiment.loss, experiment.tx, experiment.ema)
  return loop.LAYOUTS[name](update, devices)


def whole(state):
  """numpy, of arrays that stand on the devices of several processes as well."""
  return jax.tree.map(
      lambda u: np.asarray(u if isinstance(u, np.ndarray) or u.is_fully_addressable else
                           multihost_utils.process_allgather(u, tiled=True)), state)


def main(arguments):
  directory, me = Path(arguments[0]), jax.process_index()
  experiment = sgd_config.build(sgd_config.get_config())
  like = initial(experiment)
  leaves, tree = jax.tree.flatten(like)
  with np.load(directory / 'start.npz') as file:
    start = jax.tree.unflatten(tree, [file[f'arr_{i}'] for i in range(len(leaves))])
  for name in loop.LAYOUTS:
    layout = make_layout(experiment, name)
    state, metrics, rows = trained(experiment, start, layout)
    np.savez(directory / f'{name}_{me}.npz', *jax.tree.leaves(state), **metrics)
    np.savez(directory / f'rows_{me}.npz', rows=rows)
    checkpoints = Checkpoints(directory / 'run')
    found = checkpoints.restore(layout.target(jax.eval_shape(lambda: like))).state
    sharded = [u for u in jax.tree.leaves(found)
               if isinstance(u, jax.Array) and not u.is_fully_replicated]
    np.savez(directory / f'restored_{name}_{me}.npz', *jax.tree.leaves(whole(found)),
             sharded=len(sharded))
    checkpoints.close()
    print(f'{name} done')


if __name__ == '__main__':
  cli.run(main, arguments=True)
