"""Neighbours of given images by the model of a run, and the distance as a score of anomaly.

Luzi et al. (2022), Boomerang: noise of the time t* and the way back give an image near the given
one, and t* chooses how near.  An image unlike the training data comes back farther away.
"""
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
import tqdm

from vdm_jax import random
from vdm_jax.errors import require, require_at_least
from vdm_jax.evaluation import anomalies
from vdm_jax.evaluation.distances import Estimated, mean
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import devices, files
from vdm_jax.runs import pictures
from vdm_jax.runs.purifying import Setting, classifier_of, grid, ready, returning
from vdm_jax.runs.workdir import Trained
from vdm_jax.samplers import around
from vdm_jax.samplers.catalogue import Method, draws_noise
from vdm_jax.train import metrics

__all__ = ['Neighbours', 'neighbours', 'picture', 'table']

SHOWN = 8  # images in the picture


class Neighbours(NamedTuple):
  """Neighbours of n images from one t*."""
  t: float
  images: np.ndarray          # integers [draws, n, ...]
  distances: np.ndarray       # [n]  the root of the mean of (x' - x)^2 over pixels and draws, as a
                              # share of the range of grey levels
  same: np.ndarray | None     # bool [draws, n]  whether a classifier sees the class of the image
  anomaly: Estimated | None   # the AUROC of the distances, for the odd class


def neighbours(directory: str | Path, out: str | Path, *, times: Sequence[float] = (),
         distances: Sequence[float] = (), classifier: str | Path | None = None,
         odd: int | None = None, method: Method | None = None, count: int = 100, draws: int = 4,
         split: str = 'test', seed: int = 0, batch_size: int = 100, average: str = '',
         step: int | str = 'latest', data_dir: str = '', data_name: str = '',
         overwrite: bool = False) -> tuple[list[Neighbours], rich.table.Table]:
  """Draws neighbours of the first `count` images of a split; a table, and a picture.

  Batches are kept in DIRECTORY/neighbours, so after a stop the same call goes on.

  Args:
    directory: of a run of an unconditional diffusion model.
    out: a .png.
    times: the t* of the noise.  Default, without distances: 0.1, 0.2, 0.4, 0.6.
    distances: instead, the distances at which neighbours are wanted, as shares of the range of grey
      levels.  Their t* are those of Gaussian pixels (`samplers.around.time_at`) of the images'
      standard deviation.  The table has the distances that come out.
    classifier: the directory of a run of a classifier, which says whether the class is kept.
    odd: a class that the model was trained without (config.data.left_out).  The table has the
      AUROC of the distance, as a score that tells this class from the others.
    method: the sampler of the way back and its number of steps, which are equal in time.
    draws: neighbours of each image.

  Raises InputError: times and distances together; a class that is not among the images; a file that
  is there, unless `overwrite`; as `purifying.ready` and `classifier_of` do.
  """
  out = files.output('out', out, '.png', overwrite=overwrite)
  for flag, value in {'draws': draws, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  require(not (times and distances), 'distances', list(distances), 'times are given too',
          'leave one of them out')
  directory = files.run_directory('workdir', directory)
  given = tuple(times) or (0.1, 0.2, 0.4, 0.6)
  setting = ready(directory, method, given, count=count, split=split, average=average, step=step,
                  data_dir=data_dir, data_name=data_name)
  if distances:
    given = tuple(_times(setting, distances))
  if odd is not None:
    usual = setting.labels != odd
    require(bool(usual.any() and not usual.all()), 'odd', odd, 'it is the class of '
            f'{int(np.sum(~usual))} of the {count} images', 'name a class that some have')
  judge = None if classifier is None else classifier_of(classifier, setting)
  results = [_measured(setting, t, levels, seen if judge else None, odd)
             for t, levels, seen in _drawn(setting, directory / 'neighbours', given, judge, draws,
                                           seed, min(batch_size, count))]
  pictures.save_png(out, picture(setting, results))
  return results, table(setting, results, odd)


def _times(setting: Setting, distances: Sequence[float]) -> list[float]:
  """The t* of each distance, for Gaussian pixels.  Raises InputError."""
  levels = setting.pixels.levels
  std = float(np.sqrt(np.mean(np.var(setting.images.astype(np.float64), axis=0)))) / (levels - 1)
  noise = draws_noise(setting.method, setting.model.shape)
  unit = 2.0 * (levels - 1) / levels  # of a share of the range, in x
  for distance in distances:
    require(0.0 < distance < 2**0.5 * std, 'distances', distance, 'neighbours of these images have '
            f'distances above 0 and below {2**0.5 * std:.3g}', 'give such distances')
  return [around.time_at(setting.model.process, unit * distance, unit * std, noise=noise)
          for distance in distances]


def _drawn(setting: Setting, folder: Path, times: Sequence[float], judge: Trained | None,
           draws: int, seed: int, size: int) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
  """For each t*: the neighbours in grey levels [draws, n, ...], and their classes [draws, n]."""
  back, pixels = returning(setting), setting.pixels

  def program(shared, batch):
    numbers, images = batch
    keys = random.per_example(shared['key'], numbers)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, shared['draw']))(keys)
    x = back(shared['of'], keys, pixels.encode(images), shared['times'])
    levels = pixels.unrounded(x)
    if judge is None:
      return levels, jnp.zeros(len(numbers), int)
    logits = judge.experiment.model(shared['judge']).logits(levels)
    return levels, jnp.argmax(logits, axis=-1)

  run, count = devices.over_rows(program), len(setting.images)
  shared = {'of': setting.trained.params, 'judge': judge and judge.params, 'key': random.key(seed)}
  about = {'sampler': setting.method.name, 'steps': setting.steps, 'seed': seed,
           'weights': checksum(setting.trained.params), 'classifier': judge and checksum(
               judge.params)}
  batches = list(devices.padded_rows(0, count, devices.global_batch_size(size)))
  with tqdm.tqdm(total=len(times) * draws * len(batches), desc='neighbours', unit='batch',
                 dynamic_ncols=True) as bar:
    for t in times:
      found = []
      for draw in range(draws):
        for rows, mask in batches:
          batch = rows, setting.images[rows]

          def make(t=t, draw=draw, batch=batch):
            given = devices.replicate({**shared, 'draw': np.int32(draw), 'times': np.float32(
                grid(t, setting.steps))})
            levels, seen = jax.device_get(run(given, devices.place(batch)))
            return {'levels': np.float32(levels), 'seen': seen}
          asked = {**about, 't': t, 'draw': draw, 'rows': checksum(list(batch))}
          arrays = files.kept(folder / f'{files.digest(asked)[:24]}.npz', make)
          found.append((arrays['levels'][mask], arrays['seen'][mask]))
          bar.update()
      levels, seen = (np.concatenate(parts).reshape(draws, count, *parts[0].shape[1:])
                      for parts in zip(*found, strict=True))
      yield t, levels, seen


def _measured(setting: Setting, t: float, levels: np.ndarray, seen: np.ndarray | None,
              odd: int | None) -> Neighbours:
  """What the table says of the neighbours of one t*."""
  change = (levels - setting.images) / (setting.pixels.levels - 1)
  distances = np.sqrt(np.mean(change**2, axis=(0, *range(2, change.ndim))))
  same = None if seen is None else seen == setting.labels
  score = None if odd is None else anomalies.auroc(distances, setting.labels == odd)
  nearest = np.clip(np.rint(levels), 0, setting.pixels.levels - 1).astype(np.int32)
  return Neighbours(t, nearest, distances, same, score)


# ------------------------------------------------------------------------------ what is shown


def table(setting: Setting, results: Sequence[Neighbours], odd: int | None = None
          ) -> rich.table.Table:
  """A row for each t*.  Errors are over images; the AUROC has its own."""
  judged = results[0].same is not None
  names = ['log-SNR', 'distance, of the range', *['class kept, per cent'] * judged,
           *[f'AUROC of class {odd}'] * (odd is not None)]
  out = rich.table.Table('t*', *(rich.table.Column(name, justify='right') for name in names),
                         title=f'Neighbours of {len(setting.labels):,} images')
  for each in results:
    level = float(setting.model.process(jnp.asarray(each.t)).logsnr)
    cells = [f'{each.t:.3g}', f'{level:.1f}', f'{mean(each.distances):.3f}']
    if each.same is not None:
      cells.append(f'{mean(100.0 * each.same.mean(axis=0)):.0f}')
    if each.anomaly is not None:
      cells.append(f'{each.anomaly:.2f}')
    out.add_row(*cells)
  metrics.show(out)
  return out


def picture(setting: Setting, results: Sequence[Neighbours]) -> np.ndarray:
  """uint8 [H, W, 3]: the first images, one a row, and a neighbour from each t*, near ones first."""
  columns = [setting.images, *(each.images[0] for each in results)]
  shown = np.stack([column[:SHOWN] for column in columns])
  sheet = pictures.strip(shown, setting.pixels.levels)
  return pictures.labelled(sheet, ['image', *(f't* = {each.t:.3g}' for each in results)])
