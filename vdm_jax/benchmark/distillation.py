"""What a student costs: a step of its training, and the pairs that it may learn from.

Both are ratios of programs that run in turn: a step of distillation beside a step of the same
network without a teacher, and pairs beside samples.
"""
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax import random, samplers
from vdm_jax.benchmark import report, speed, timing
from vdm_jax.benchmark.timing import say
from vdm_jax.data import pairs as pairs_lib
from vdm_jax.errors import require, require_at_least
from vdm_jax.machine import devices
from vdm_jax.objectives import ddpm
from vdm_jax.samplers import grids
from vdm_jax.samplers.drawing import DrawnPairs, draw, draw_pairs
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Model

__all__ = ['pairs', 'step']


def step(subject: speed.Subject, *, repetitions: int | None = None, warm_up: int = 1,
         budget: float = timing.BUDGET) -> dict:
  """Seconds of a step of distillation, of a plain step, and of an evaluation of the network.

  The plain step is of L_simple, by the same network, batch and optimiser, without a teacher.
  evaluations_above_plain_step: the difference of the two steps, in evaluations of the batch.
  Raises InputError: a config without a teacher.
  """
  made = subject.experiment
  require(made.teacher is not None, 'config', str(subject.file), 'it has no teacher',
          'name a config of students (configs/digits/distilled.py:progressive)')
  model = speed.denoising(subject, speed.initial_params(subject))
  plain = compose.loss_of(ddpm.simple, made.model, model.shape)
  without = made._replace(loss=plain, update=None, aux=None)
  steps = {name: speed.Training(subject._replace(experiment=experiment))
           for name, experiment in (('step', made), ('plain step', without))}
  compiling = sum(training.compiled().seconds for training in steps.values())
  seconds = timing.in_turn({**steps, 'evaluation': _evaluation(subject)}, label='steps',
                           repetitions=repetitions, warm_up=warm_up, budget=budget)
  seconds |= {name: seconds[name].per(training.steps) for name, training in steps.items()}
  own, other, one = (seconds[name].median for name in ('step', 'plain step', 'evaluation'))
  return {**report.about(subject.file, subject.config), 'command': 'distillation',
          'seconds_per_step': own, 'spread': seconds['step'].spread,
          'seconds_per_plain_step': other, 'spread_of_plain_step': seconds['plain step'].spread,
          'seconds_per_evaluation': one, 'spread_of_evaluation': seconds['evaluation'].spread,
          'evaluations_above_plain_step': (own - other) / one,
          'repetitions': seconds['step'].repetitions, 'compile_seconds': compiling,
          'peak_memory_bytes': timing.peak_memory()}


def _evaluation(subject: speed.Subject) -> Callable[[], Array]:
  """One evaluation of the network for a batch, as in sampling."""
  size = devices.global_batch_size(subject.config.data.batch_size)

  def evaluate(params, xs):
    batch, numbers = xs
    m = speed.denoising(subject, params)
    z = random.normal(random.per_example(random.key(0), numbers), m.encode(batch[m.field]))
    return m.denoise(z, m.process(jnp.full(len(numbers), 0.5)), m.cond(batch)).x

  program = devices.over_rows(evaluate)
  rows = devices.local_rows(np.arange(size, dtype=np.int32))
  params = devices.replicate(speed.initial_params(subject))
  xs = devices.place((speed.random_batch(subject, len(rows)), rows))
  return lambda: program(params, xs)


def pairs(subject: speed.Subject, *, sampler_steps: int = 250, repetitions: int | None = None,
          warm_up: int = 1, budget: float = timing.BUDGET) -> dict:
  """Seconds of a batch of pairs, and of a batch of samples by the same sampler.

  The sampler is DDIM.  Pairs are drawn and written into mapped arrays, and samples are only drawn.
  The writer puts the arrays on the disk once in `data.writers.SECONDS`.  If a
  batch takes much less time than that, the median leaves out the disk.  The rate that
  `runs.make_pairs` prints includes the disk.
  Raises InputError: a model whose samples are latents.
  """
  require_at_least('sampler_steps', sampler_steps, 1)
  size, params = devices.global_batch_size(subject.config.data.batch_size), (
      speed.initial_params(subject))
  model, of = speed.denoising(subject, params), functools.partial(speed.denoising, subject)
  require(not model.is_latent, 'config', str(subject.file), 'its samples are latents',
          'name a config whose model samples its data')
  grid: dict[str, Any] = {'times': grids.uniform(sampler_steps), 'start': 0, 'stop': 2**30,
                          'seed': 0, 'batch_size': size, 'cond': model.conditions}
  say('compiling the samplers')
  images = draw(of, params, samplers.ddim, **grid)
  with tempfile.TemporaryDirectory() as folder:
    written = _written(subject, model, draw_pairs(of, params, samplers.ddim, **grid), size,
                       Path(folder) / 'pairs')
    seconds = timing.in_turn(
        {'samples': lambda: next(images).data, 'pairs': lambda: next(written)}, label='batches',
        repetitions=repetitions, warm_up=warm_up, budget=budget)
  sampling, pairing = seconds['samples'], seconds['pairs']
  return {**report.about(subject.file, subject.config), 'command': 'pairs', 'sampler': 'ddim',
          'evaluations_per_pair': sampler_steps, 'pairs_per_batch': size,
          'seconds_per_batch': pairing.median, 'spread': pairing.spread,
          'seconds_per_batch_of_samples': sampling.median, 'spread_of_samples': sampling.spread,
          'pairs_per_second': size / pairing.median,
          'time_of_pairs_to_samples': pairing.median / sampling.median,
          'repetitions': pairing.repetitions, 'peak_memory_bytes': timing.peak_memory()}


def _written(subject: speed.Subject, model: Model, batches: Iterator[DrawnPairs], size: int,
             place: Path) -> Iterator[np.ndarray]:
  """Writes each batch of pairs over the one before it; yields its numbers."""
  spec = subject.experiment.data.spec
  x, told = spec[model.field], pairs_lib.conditions_of(spec, model.conditions(np.arange(1)))
  writer = pairs_lib.writer(place, {}, size, pairs_lib.fields_of(x, told))
  writer.begin()
  for drawn in batches:
    writer.write(0, {**model.conditions(drawn.numbers), x.name: drawn.data,
                     pairs_lib.SAMPLE: drawn.x, pairs_lib.NOISE: drawn.z_1})
    yield drawn.numbers
