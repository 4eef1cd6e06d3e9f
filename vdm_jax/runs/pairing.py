"""Pairs of noise and sample of a run, for reflow and for distillation: see `data.pairs`."""
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from vdm_jax import data
from vdm_jax.data import pairs
from vdm_jax.data.conditions import digest
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation.features import checksum
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.processes import compared_levels, prior_std
from vdm_jax.runs import needs, workdir, writing
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.drawing import check_pairs, draw_pairs
from vdm_jax.train import check

__all__ = ['check_start', 'make_pairs', 'truth']


def make_pairs(directory: str | Path, out: str | Path, *, method: Method, count: int = 10_000,
               seed: int = 0, batch_size: int = 256, average: str = '',
               step: int | str = 'latest', condition: Mapping[str, Any] | None = None,
               guided: Guidance | None = None) -> Path:
  """Draws `count` pairs (z_1, x) of the run in `directory` into the folder `out`, which it returns.

  A deterministic sampler turns z_1 into x.  Each batch is written whole, and only one batch is in
  memory.  After an interruption, the same call continues with the next batch.  The pairs are bit
  for bit the same, because pair i depends only on (seed, i) and the batch size.  pairs.json records
  what the pairs depend on, with a checksum of the weights.

  The last line that is printed tells the pairs in a second, the evaluations of the network for a
  pair, and the cost E|x - z_1|^2 (`data.pairs.cost`).  The rate is of all batches but the first,
  which is compiled, and includes the writing to the disk.

  Args:
    condition: values of the fields that the model is conditioned on, by name, the label among them.
      The pairs keep these fields.
    guided: classifier-free guidance, of a model that has `null`.

  Raises InputError for a sampler that draws noise on the way, or a grid that does not begin at the
  noise of t = 1.  Raises InputError also for a run without a denoiser, a folder that holds anything
  but these pairs, or a folder that another process writes.
  """
  require(not method.variances, 'sampler', method.name, 'it takes variances that are estimated on '
          'images', 'choose another')
  for name, value in {'count': count, 'batch_size': batch_size}.items():
    require_at_least(name, value)
  require(count <= 2**30, 'count', count, 'pairs have numbers below 2^30', 'ask for fewer')
  directory, out = files.run_directory('workdir', directory), files.user_path('out', out)
  require(jax.process_count() == 1, 'workdir', str(directory), 'pairs are made by one process',
          'start one, and let it have all devices')
  trained = workdir.load_trained(directory, average=average, step=step)
  spec, at = data.resolve(trained.config.data), trained.experiment.model
  model = needs.require(at(trained.params), 'make_pairs', directory)
  require(not model.is_latent, 'workdir', str(directory), 'its samples are latents',
          'name a run that samples its data')
  require(model.data_space, 'workdir', str(directory), 'it diffuses the latents of an '
          'autoencoder', 'name a run that diffuses the data themselves')
  require(not catalogue.draws_noise(method, model.shape), 'sampler', method.name, 'it draws noise '
          'on the way, so that x is no function of z_1', 'choose a deterministic one '
          '(adaptive_ode, heun, dpmpp_2m, ddim)')
  x = needs.data_field(model, spec)
  check.require_fits('batch_size', min(batch_size, count), x.shape, jax.device_count())
  times = method.times(model.process)
  check_pairs(model, times)
  cond = lambda numbers: model.conditions(numbers, **(condition or {}))
  told = pairs.conditions_of(spec, cond(np.arange(1)))
  drawn_by = (lambda params: guided.of(at(params))) if guided else at
  drawn_by(trained.params)  # refused now
  about = {'weights': checksum(trained.params), 'checkpoint': trained.step,
           'average': trained.average, **_origin(trained.config.data), 'field': x.name,
           'prior_std': None if model.prior else round(float(prior_std(model.process)), 6),
           'sampler': method.name,
           'times': hashlib.sha256(times.tobytes()).hexdigest()[:16], 'steps': len(times) - 1,
           'seed': seed, 'batch_size': batch_size, 'devices': jax.device_count()}
  if condition:
    about['condition'] = digest(cond, count)
  if guided:
    about['guidance'] = [str(u) for u in guided.recorded()]
  levels = compared_levels(model.process)  # a process of each pixel would fill the file
  writer = pairs.writer(out, about, count, pairs.fields_of(x, told),
                        process=levels.tolist() if levels.ndim == 2 else ())
  with writing.resumed(writer, 'pair') as bar:
    if bar is None:
      _tell(out, count)
      return out
    evaluations, done, began = 0, writer.done, time.monotonic()
    for drawn in draw_pairs(drawn_by, trained.params, method.make, times=times, start=writer.done,
                            stop=count, seed=seed, batch_size=batch_size, cond=cond):
      # Real numbers are kept once, as the network sees them.
      writer.write(writer.done, {**cond(drawn.numbers), x.name: drawn.data,
                                 pairs.SAMPLE: drawn.x, pairs.NOISE: drawn.z_1})
      bar.update(len(drawn.numbers))
      if not evaluations:  # the first batch is compiled
        done, began = writer.done, time.monotonic()
      evaluations = max(evaluations, drawn.evaluations)
  rate = (writer.done - done) / (time.monotonic() - began)
  _tell(out, count, evaluations * (2 if guided else 1), rate)
  return out


def _tell(out: Path, count: int, evaluations: int = 0, rate: float = 0.0) -> None:
  """Prints what the pairs are: their cost, and how they were made if they were made now."""
  parts, (mean, error) = [f'{count:,} pairs'], pairs.cost(out)
  if rate:
    parts.append(f'{rate:.4g} a second')
  if evaluations:
    parts.append(f'{evaluations} evaluations of the network for each')
  print(', '.join([*parts, f'E|x - z_1|^2 = {mean:.4g} +- {error:.2g}']))


def _origin(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The data that a model should draw, instead of its pairs: 'data', and 'image_size' if set."""
  if data.is_path(config.name) and pairs.is_pairs(config.name):
    said = pairs.record(config.name)['about']
    return {name: said[name] for name in ('data', 'image_size') if name in said}
  size = config.get('image_size', 0)
  return {'data': config.name} | ({'image_size': size} if size else {})


def truth(own: data.Data) -> data.Data:
  """The data to compare samples with.  If `own` are pairs, these are the data of their teacher.

  A student that learned its pairs perfectly is as far from these data as its teacher is.
  """
  if not (data.is_path(own.spec.name) and pairs.is_pairs(own.spec.name)):
    return own
  found, config = _origin(own.config), data.default_config()
  config.update(name=found['data'], image_size=found.get('image_size', 0),
                data_dir=own.config.data_dir)
  return data.Data(config)


def check_start(place: str, start: str | Path) -> None:
  """Raises InputError if the data are pairs that were not made by the weights in `start`.

  place: config.data.name.  start: the workdir whose averaged weights the training starts from.
  """
  if not (data.is_path(place) and pairs.is_pairs(place)):
    return
  said = pairs.record(place)['about']
  if said.get('weights') != checksum(workdir.load_trained(start).params):
    raise InputError('init_from', str(start), f'the pairs in {place} were made by other weights '
                     f'(step {said.get("checkpoint")}, average {said.get("average")!r})',
                     'start from the run that made them, or make pairs of this one')
