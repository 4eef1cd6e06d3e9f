"""Trajectories that straighten: independent, paired and learned couplings, and two reflows.

There are five flows of points in the plane.  The picture of a flow shows the lines along which the
noise becomes data, and the points that one Euler step gives.  All flows start from the same noise.
Straightness is int E|(z_1 - z_0) - v|^2 dt.  It is 0 if one step is exact
(`samplers.straightness`).
"""
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vdm_jax import random, runs
from vdm_jax.errors import require_at_least
from vdm_jax.machine import files
from vdm_jax.processes import sample_prior
from vdm_jax.runs import pictures, workdir
from vdm_jax.samplers import euler, sample
from vdm_jax.samplers.straightness import straightness
from vdm_jax.studies import toys

__all__ = ['Flow', 'picture', 'study', 'trajectories']

# Title; system of configs/plane/flows.py; the run whose pairs it is trained on.
FLOWS = {'ot': ('independent', 'ot', ''), 'minibatch_ot': ('minibatch OT', 'minibatch_ot', ''),
         'curvature': ('learned coupling', 'curvature', ''), 'reflow': ('reflow', 'reflow', 'ot'),
         'reflow_2': ('reflow twice', 'reflow', 'reflow')}
STEPS, POINTS, LINES = 100, 2000, 80


class Flow(NamedTuple):
  """A flow of the plane.  Points are z and x, [n, 2]."""
  title: str
  path: np.ndarray       # [STEPS + 1, LINES, 2]  from noise to data
  one: np.ndarray        # [POINTS, 2]  after one Euler step
  straightness: float    # the mean over POINTS
  error: float           # its standard error


def trajectories(title: str, directory: str | Path) -> Flow:
  """The flow of the run in `directory`."""
  trained = workdir.load_trained(directory)
  keys = random.per_example(random.key(0), jnp.arange(POINTS))

  @jax.jit
  def run(params):
    model = trained.experiment.model(params)
    z = sample_prior(model.process, keys, jnp.zeros((POINTS, 2)))
    times = np.linspace(1.0, 0.0, STEPS + 1)
    bent, _ = straightness(model.denoise, model.process, keys, z, times)
    flow = euler.euler(model.denoise, model.process)
    _, path = sample(flow, keys[:LINES], z[:LINES], times, trace=flow.value)
    return bent, path, sample(flow, keys, z, np.array([1.0, 0.0]))

  bent, path, one = map(np.asarray, run(trained.params))
  return Flow(title, path, one, float(bent.mean()), float(bent.std() / POINTS**0.5))


def picture(flows: list[Flow]) -> Figure:
  """A column for each flow: its lines from noise (grey) to data (blue), and one Euler step."""
  figure = Figure(figsize=(2.4 * len(flows), 5.2), layout='constrained')
  rows = figure.subplots(2, len(flows), squeeze=False)
  for flow, lines, points in zip(flows, *rows, strict=True):
    for place, reach in ((lines, 1.5), (points, 1.0)):
      place.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
    lines.plot(*np.moveaxis(flow.path, -1, 0), color='C0', lw=0.7, alpha=0.8)
    lines.scatter(*flow.path[0].T, s=3, color='0.6', zorder=3)
    lines.scatter(*flow.path[-1].T, s=3, color='C0', zorder=3)
    lines.set_title(flow.title, fontsize='medium')
    lines.set_xlabel(f'straightness {flow.straightness:.4f}', fontsize=8)
    points.scatter(*flow.one.T, s=1, lw=0, color='C0')
  rows[0][0].set_ylabel('trajectories')
  rows[1][0].set_ylabel('one Euler step')
  return figure


def study(directory: str | Path, out: str | Path, configs: Path, *,
          train_steps: int | None = None, pairs: int = toys.PAIRS, overwrite: bool = False
          ) -> list[Flow]:
  """Trains each flow that is not there yet, with its pairs, and draws all flows.

  Args:
    directory: the directory of the runs, DIRECTORY/NAME.  The toys of the same name share them.
    out: a .png.
    configs: the folder of configs.
    train_steps: the steps of training.  Default: as in the configs.
    pairs: the number of pairs that each reflow is trained on.

  Raises InputError if the file exists, unless `overwrite`.
  """
  files.output('out', out, '.png', overwrite=overwrite)
  require_at_least('train_steps', train_steps)
  require_at_least('pairs', pairs)
  flows, file = [], configs / 'plane' / 'flows.py'
  for name, (title, system, start) in FLOWS.items():
    config, place = workdir.import_config(file).get_config(system), Path(directory, name)
    toys.shorten(config, train_steps)
    if start:
      config.data.name = str(toys.pairs_of(Path(directory, start), pairs))
    print(f'{title}: {place}')
    runs.train(config, file, place, init_from=str(Path(directory, start)) if start else '')
    flow = trajectories(title, place)
    print(f'{title}: straightness {flow.straightness:.4f} +- {flow.error:.4f}')
    flows.append(flow)
  pictures.save_png(out, picture(flows))
  return flows
