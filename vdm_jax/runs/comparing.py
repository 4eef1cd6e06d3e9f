"""Compares samplers on a run: a picture and a table of quality against network evaluations."""
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vdm_jax.errors import InputError, require_at_least
from vdm_jax.evaluation import comparison
from vdm_jax.machine import files
from vdm_jax.runs import needs, pairing, pictures, workdir
from vdm_jax.samplers import catalogue

__all__ = ['COMPARABLE', 'USUAL', 'compare_samplers']

# Those that need the network alone, and whose evaluations can be counted beforehand.
COMPARABLE = [name for name, entry in catalogue.SAMPLERS.items()
              if not entry.needs and entry.evaluations]
USUAL = ['ancestral', 'ddim', 'heun', 'edm', 'dpmpp_2m', 'dpmpp_2m_sde', 'deis_t2', 'unipc_2']


def compare_samplers(directory: str | Path, out: str | Path = '', *,
                     samplers: Sequence[str] = tuple(USUAL),
                     evaluations: Sequence[int] = (5, 10, 20, 50), count: int = 300, seed: int = 0,
                     average: str = '', step: int | str = 'latest', batch_size: int = 100,
                     data_dir: str = '', data_name: str = '', overwrite: bool = False
                     ) -> tuple[comparison.Comparison, Path]:
  """The distances of each sampler's images to a run's test images, and the path of the picture.

  Args:
    out: the picture, a .png.  Default: samplers.png in the run's directory.
    samplers: names in `COMPARABLE`, or FILE.py:NAME.
    evaluations: the numbers of evaluations of the network for one image.
    count: the number of images of each sampler, and the largest number of images of the data.
    batch_size: the number of images drawn at a time.

  Raises InputError.
  """
  entrants = _entrants(samplers)
  for field, least, value in [('evaluations', 1, min(evaluations, default=0)),
                              ('count', 2, count), ('batch_size', 1, batch_size)]:
    require_at_least(field, value, least)
  out = files.output('out', out or Path(directory, 'samplers.png'), '.png', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model = trained.experiment.model(trained.params)
  field = needs.require(model, 'compare_samplers', directory).field
  for name in samplers:
    catalogue.require_suited(catalogue.method(name), model, 'samplers')
  truth = pairing.truth(trained.experiment.data)
  test, train = (truth.split(name) for name in ('test', 'train'))

  def evenly(split):  # some data sets are sorted by class
    n = min(count, len(split))
    return split.get(np.arange(n) * len(split) // n)[field]

  def cond(numbers):  # what the test images have, in turn
    batch = test.get(numbers % len(test))
    return {name: value for name, value in batch.items() if name != field}

  result = comparison.compare(
      trained.experiment.model, trained.params, entrants, evaluations=evaluations, count=count,
      test=evenly(test), train=evenly(train), cond=cond, seed=seed, batch_size=batch_size)
  if jax.process_index() == 0:
    pictures.save_png(out, comparison.picture(result))
  return result, out


def _entrants(samplers: Sequence[str]) -> dict[str, comparison.Entrant]:
  entries = dict(catalogue.find(name, 'samplers') for name in samplers)
  unknown = [name for name, entry in entries.items() if entry.needs or not entry.evaluations]
  if unknown:
    raise InputError('samplers', unknown, 'there is no such choice',
                     f"choose one of {', '.join(COMPARABLE)}")
  return {name: comparison.Entrant(entry.make, entry.times) for name, entry in entries.items()}
