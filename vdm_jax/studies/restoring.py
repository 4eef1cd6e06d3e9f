"""Restorations of a run's test images, beside those with a Gaussian prior (Wiener).

The Gaussian prior has the moments of the training images, and its posterior is exact.  So a model
is a better prior only if its restorations are better than these.  One sample for each image has the
law of the data if both the model and the method are exact: its energy distance is measured to
training images, of which the truth does not depend.
"""
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.table

from vdm_jax.errors import require_at_least
from vdm_jax.evaluation.distances import Estimated, kernel_distance
from vdm_jax.machine import files
from vdm_jax.runs import pictures, restoring, workdir
from vdm_jax.runs.restoring import Restored, Result
from vdm_jax.samplers.conditioned import Method
from vdm_jax.train import metrics

__all__ = ['Measured', 'TASKS', 'picture', 'study', 'table']

TASKS = {'inpaint': 'centre missing', 'keep:0.3': '30 % of pixels kept',
         'downsample:2': 'means of 2 x 2'}
_TRAINING = 1500  # images, of the energy distance
_SHOWN = 3        # images of each task in the picture


class Measured(NamedTuple):
  """The restorations of one task."""
  title: str
  result: Result
  law: Estimated          # the energy distance of a sample of each image to training images
  wiener_law: Estimated


def study(directory: str | Path, out: str | Path, method: Method, *, images: int = 300,
          count: int = 16, steps: int = 100, noise: float = 0.1, seed: int = 0,
          batch_size: int = 64, average: str = '', step: int | str = 'latest',
          overwrite: bool = False, data_dir: str = '', data_name: str = ''
          ) -> tuple[list[Measured], rich.table.Table]:
  """Restores the first `images` test images of a run in three tasks, and compares with Wiener.

  Whole batches of samples are kept beside `out` until it is written, so a stopped study goes on.

  Args:
    out: a .png of the first images of each task.
    count: the samples of each image.

  Raises InputError as `runs.restoring.restore` does, and for fewer than 2 images.
  """
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.png', overwrite=overwrite)
  require_at_least('images', images, 2)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  parts, found = out.with_name(f'{out.name}.parts'), []
  training = _flat(restoring.training_images(trained, _TRAINING))
  for task, title in TASKS.items():
    result = restoring.restoration(
        directory, trained, task, method, [f'data:test:0-{images - 1}'], parts, noise=noise,
        count=count, steps=steps, wiener=True, seed=seed, batch_size=batch_size)
    assert result.wiener is not None and result.x is not None
    laws = [kernel_distance(_flat(of.samples[:, 0]), training)
            for of in (result.restored, result.wiener)]
    found.append(Measured(title, result, *laws))
    print('\n'.join(restoring.report(result)))
  images_themselves = found[0].result.x
  assert images_themselves is not None
  truth = kernel_distance(_flat(images_themselves), training)
  pictures.save_png(out, picture(found))
  shown = table(found, truth, str(trained.config.data.name), steps)
  metrics.show(shown)
  if parts.is_dir():
    shutil.rmtree(parts)
  return found, shown


def _flat(x: np.ndarray) -> np.ndarray:
  return x.reshape(len(x), -1)


def table(found: list[Measured], truth: Estimated, data: str, steps: int) -> rich.table.Table:
  """Two rows for each task.  Errors are over images.

  truth: the energy distance of the test images themselves.
  """
  n, count = found[0].result.restored.samples.shape[:2]
  columns = ['by', 'a sample, dB', 'posterior mean, dB', 'more than Wiener, dB', 'its SSIM',
             'energy distance of the samples',
             f'truth outside of all samples, % (calibrated: {200 / (count + 1):.1f})',
             'evaluations, products with J^T']
  out = rich.table.Table('task', *(rich.table.Column(name, justify='right') for name in columns),
                         title=f'{n:,} restored test images of {data}, {count} samples of each, '
                         f'{steps:,} steps')

  def row(title: str, by: str, of: Restored, more: str, law: Estimated, cost: str):
    quality = of.quality
    assert quality is not None
    ssim = '' if quality.mean.ssim is None else f'{quality.mean.ssim:.3f}'
    outside = Estimated(100 * quality.outside.value, 100 * quality.outside.error)
    out.add_row(title, by, *(f'{Estimated(scores.psnr, scores.error):.2f}'
                             for scores in (quality.one, quality.mean)), more, ssim, f'{law:.3f}',
                f'{outside:.1f}', cost)

  for each in found:
    result = each.result
    assert result.wiener is not None and result.x is not None
    more = restoring.gain(result.restored.estimate, result.wiener.estimate, result.x)
    row(each.title, result.method, result.restored, f'{more:.2f}',
        each.law, '{:,}, {:,}'.format(*result.cost))
    row(each.title, 'Wiener', result.wiener, '', each.wiener_law, '')
  out.add_row('none', 'the images themselves', '', '', '', '',
              f'{truth:.3f}', '', '')
  return out


def picture(found: list[Measured]) -> np.ndarray:
  """uint8 [H, W, 3]: the first images of each task, under its name."""
  return np.concatenate([pictures.captioned(restoring.picture(each.result, _SHOWN), each.title)
                         for each in found])
