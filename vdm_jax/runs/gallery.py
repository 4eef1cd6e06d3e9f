"""Systems of points in the plane, side by side: everything about them fits into a picture.

A row shows one run: its data, the data with noise, the flow that its network has learned, its
samples, and the distance of the samples from the data.
"""
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vdm_jax import random, runs
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.evaluation.distances import kernel_distance, sliced_wasserstein
from vdm_jax.processes import diffuse, time_of
from vdm_jax.runs import needs, pairing, workdir
from vdm_jax.samplers.drawing import draw, draw_own
from vdm_jax.typing import Model, PyTree, denoises

__all__ = ['FIELD', 'NOISY', 'GalleryRow', 'SIDE', 'extent', 'picture', 'row', 'samples']

NOISY = (4.0, 1.0)   # log-SNR at which the data are shown with noise; of x in each system's units
FIELD = 2.5          # log-SNR of the field
SIDE = 17            # arrows a side


class GalleryRow(NamedTuple):
  """One system.  Points are x, [N, 2]."""
  name: str
  data: np.ndarray                 # test data
  noisy: list[np.ndarray]          # z / sqrt(alpha^2 + sigma^2) at `NOISY`; [] without a flow
  grid: np.ndarray                 # [SIDE^2, 2]  where the arrows are; [0, 2] without
  field: np.ndarray                # [SIDE^2, 2]  minus dz/dt: the way that sampling goes
  samples: np.ndarray
  distance: float                  # sliced Wasserstein, of samples and test data in [-1, 1]
  floor: float                     # of as many training data and test data
  energy: tuple[float, float]      # the energy distance, and its standard error
  coupled: bool = False            # whether noise and data are coupled: see `Model.coupled`


def row(name: str, directory: str | Path, method: runs.Method, count: int = 2000) -> GalleryRow:
  """The panels of the run in `directory`.

  A run without a denoiser draws its own samples, and `method` is not used.  Such a run, and a
  student of few steps, has no flow that could be shown.  Raises InputError if the data of the run
  are not points in the plane.
  """
  trained = workdir.load_trained(directory)
  model, params = trained.experiment.model, trained.params
  m = needs.require(model(params), 'gallery', directory)
  if m.shape != (2,):
    raise InputError('workdir', str(directory), f'its data have shape {m.shape}, and are not '
                     'points in the plane', needs.NEEDS['gallery'].remedy)
  points = lambda split: split.get(np.arange(min(count, len(split))))[m.field]
  truth = pairing.truth(trained.experiment.data)
  test, train = (points(truth.split(name)) for name in ('test', 'train'))
  coded = Pixels(trained.experiment.data.spec.levels).encode
  options = {'start': 0, 'stop': len(test), 'seed': 0, 'batch_size': min(500, len(test))}
  if denoises(m):
    drawn = draw(model, params, method.make, times=method.times(m.process), cond=m.conditions,
                 **options)
    encode = m.encode
  else:
    drawn, encode = draw_own(model, params, **options), coded
  # A student has learned the levels of its few steps, and no flow.
  if denoises(m) and not m.distilled:
    noisy, grid, field = _on_the_way(model, params, test)
  else:
    noisy, grid, field = [], np.zeros((0, 2)), np.zeros((0, 2))
  integers = np.concatenate([batch.data for batch in drawn])
  # Distances are in one coding for all systems, whatever units their x has.
  tested, training, generated = (np.asarray(coded(jnp.asarray(u))) for u in (test, train, integers))
  key = random.key(0)
  return GalleryRow(name, np.asarray(encode(jnp.asarray(test))), noisy, grid, field,
                    np.asarray(encode(jnp.asarray(integers))),
                    sliced_wasserstein(key, generated, tested),
                    sliced_wasserstein(key, training, tested),
                    tuple(kernel_distance(generated, tested)), m.coupled)


def _on_the_way(model: Callable[[PyTree], Model], params: PyTree, test: np.ndarray
                ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
  """The test data with noise, and the field on a grid: `GalleryRow.noisy`, `grid` and `field`."""
  m = model(params)
  x = m.encode(jnp.asarray(test))
  data = np.asarray(x)
  eps = random.normal(random.per_example(random.key(0), jnp.arange(len(data))), x)
  noisy = []
  at = lambda process, logsnr: process(time_of(process, jnp.float32(logsnr)))
  for logsnr in NOISY:
    level = at(m.process, logsnr)
    noisy.append(np.asarray(diffuse(x, eps, level) / jnp.hypot(level.alpha, level.sigma)))

  level = at(m.process, FIELD)
  scale = jnp.hypot(level.alpha, level.sigma)
  axis = extent(data) * np.linspace(-0.95, 0.95, SIDE, dtype=np.float32)
  grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
  estimate = jax.jit(lambda params, z: model(params).denoise(z, at(model(params).process, FIELD)))(
      params, scale * grid)
  field = -(level.dalpha * estimate.x + level.dsigma * estimate.eps)
  return noisy, grid, np.asarray(field)


def extent(data: np.ndarray) -> float:
  """How far a picture of these points reaches."""
  return 1.6 * float(np.abs(data).max())


def picture(rows: list[GalleryRow]) -> Figure:
  """A row for each system.  Its columns: data, noise at two levels, the learned flow, samples."""
  titles = ['data', *(f'log-SNR {u:g}' for u in NOISY), f'learned flow, log-SNR {FIELD:g}',
            'samples']
  figure = Figure(figsize=(2.4 * len(titles), 2.55 * len(rows) + 0.3), layout='constrained')
  axes = figure.subplots(len(rows), len(titles), squeeze=False)
  for one, line in zip(rows, axes, strict=True):
    clouds = [one.data, *(one.noisy or [None] * len(NOISY)), None, one.samples]
    for place, cloud in zip(line, clouds, strict=True):
      _points(place, cloud, extent(one.data))
    if len(one.grid):
      arrows = one.field / np.maximum(np.linalg.norm(one.field, axis=1, keepdims=True), 1e-9)
      line[3].quiver(*one.grid.T, *arrows.T, np.linalg.norm(one.field, axis=1), scale=26,
                     width=0.006, cmap='viridis')
    line[0].set_ylabel(one.name)
    _distances(line[-1], one)
  for place, title in zip(axes[0], titles, strict=True):
    place.set_title(title, fontsize='medium')
  return figure


def samples(rows: list[GalleryRow], across: int = 5) -> Figure:
  """The samples of each system alone, `across` systems in a line."""
  down = -(-len(rows) // across)
  figure = Figure(figsize=(2.0 * across, 2.4 * down), layout='constrained')
  places = figure.subplots(down, across, squeeze=False).ravel()
  for one, place in zip(rows, places[:len(rows)], strict=True):
    _points(place, one.samples, extent(one.data))
    place.set_title(one.name, fontsize=9)
    _distances(place, one)
  for place in places[len(rows):]:
    place.axis('off')
  return figure


def _points(place: Axes, cloud: np.ndarray | None, reach: float) -> None:
  """A square panel that reaches this far, with these points, if any."""
  place.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
  if cloud is not None:
    place.scatter(cloud[:, 0], cloud[:, 1], s=1, lw=0, color='C0')


def _distances(place: Axes, row: GalleryRow) -> None:
  place.set_xlabel(f'distance {row.distance:.3f} (data {row.floor:.3f})', fontsize=8)
