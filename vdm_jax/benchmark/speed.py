"""The speed of training, of evaluating, of sampling, of reading data and of compiling.

Training and evaluation are measured on random images of the data's shape, because their speed does
not depend on what the images show.

Work is counted by XLA, on a version of the step without loops that keeps all that the backward pass
needs.  With loops, XLA would count a loop's body once, whatever the loop's length.  Without the
kept arrays, XLA would count a second computation, which is not useful work.  XLA counts only the
products of a convolution that fall inside the image: for 3x3 at 32x32, they are 96 % of 9 H W C C'.
"""
import functools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxlib.mlir import ir

from vdm_jax import data as data_lib
from vdm_jax import random, samplers
from vdm_jax.benchmark import hardware, report, timing
from vdm_jax.benchmark.timing import say
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.likelihood import bounds
from vdm_jax.machine import devices, files
from vdm_jax.runs import needs, workdir
from vdm_jax.samplers import grids
from vdm_jax.samplers.drawing import draw
from vdm_jax.train import check, loop, metrics, parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment, Model, PyTree, Update

# Of `config.model`: the same numbers by a program in which XLA can count the work.
_WRITTEN_OUT = {'scan': False, 'remat': 'none', 'weight_gradient': 'xla', 'attention': 'xla'}


class Subject(NamedTuple):
  """The program that is timed."""
  experiment: Experiment
  config: ml_collections.ConfigDict
  file: Path                    # of the config
  params: PyTree | None = None  # of a run; None: as initialised


def of_config(file: str | Path, config: ml_collections.ConfigDict, *, blocks: int | None = None,
              features: int | None = None, batch_size: int | None = None,
              runs: bool = True) -> Subject:
  """The experiment of a config, whose data need not be there.

  blocks, features, batch_size: replace config.model.blocks, config.model.features and
  config.data.batch_size.  runs: whether its step is run here, so that the batch must fit.
  Raises InputError.
  """
  config = config.copy_and_resolve_references()
  for flag, value, group, field, least in [
      ('blocks', blocks, config.model, 'blocks', 0),
      ('features', features, config.model, 'features', 1),
      ('batch_size', batch_size, config.data, 'batch_size', 1)]:
    if value is not None:
      require_at_least(flag, value, least)
      if field not in group:
        raise InputError(flag, value, f'the network of {file} is a published one, and has no such '
                         'setting in its config', 'leave it out')
      group[field] = value
  size, count = config.data.batch_size, jax.device_count()
  if size % count:
    raise InputError('batch_size', size, f'it cannot be divided over {count} devices',
                     f'choose a multiple of {count}')
  loop.check(config)
  spec = data_lib.resolve(config.data)
  if runs:
    check.require_fits('config.data.batch_size' if batch_size is None else 'batch_size', size,
                       spec.shape, count)
  config.data.update(spec.to_config())
  try:
    subject = Subject(workdir.import_config(file).build(config), config, Path(file))
    check.experiment(subject.experiment, lambda rows: random_batch(subject, len(rows)), config,
                     trained=False)
    return subject
  except InputError as error:
    if features is None:
      raise
    raise InputError('features', features, f'{error}') from None


def of_run(directory: str | Path, *, batch_size: int | None = None, data_dir: str = '',
           data_name: str = '') -> Subject:
  """The averaged weights of the run in `directory`.  Raises InputError."""
  directory = files.run_directory('workdir', directory)
  trained = workdir.load_trained(directory, data_dir=data_dir, data_name=data_name)
  if batch_size is not None:
    require_at_least('batch_size', batch_size, 1)
    trained.config.data.batch_size = batch_size
  return Subject(trained.experiment, trained.config, directory / 'config.py', trained.params)


def on_accelerators(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of `config` with XLA's weight gradient, which `auto` chooses on accelerators."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.get('weight_gradient') == 'auto':
      config.model.weight_gradient = 'xla'
  return config


def denoising(subject: Subject, params) -> Model:
  """The subject's model at these parameters.  Raises InputError if it does not denoise."""
  return needs.require(subject.experiment.model(params), 'benchmark', subject.file, 'config')


def x_shape(subject: Subject) -> tuple[int, ...]:
  """The shape of the x that the subject denoises: of the data, or of their latents."""
  nothing = lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
  shapes = jax.eval_shape(lambda: initial_params(subject))
  return denoising(subject, jax.tree.map(nothing, shapes)).shape


def random_batch(subject: Subject, size: int) -> dict[str, np.ndarray]:
  """A batch like a batch of training, but of random numbers: [size, ...]."""
  return subject.experiment.data.spec.random(size)


def batch_shapes(subject: Subject, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of `random_batch`."""
  return {field.name: jax.ShapeDtypeStruct((size, *field.shape), field.dtype)
          for field in subject.experiment.data.spec.fields}


def initial_params(subject: Subject) -> PyTree:
  if subject.params is not None:
    return subject.params
  return jax.jit(subject.experiment.init)(random.key(subject.config.seed))


def initial_state(subject: Subject) -> step_lib.TrainState:
  e = subject.experiment
  return step_lib.init(initial_params(subject), e.tx, e.ema, e.aux)


def make_update(subject: Subject, accumulate: int = 1) -> Update:
  return step_lib.update_of(subject.experiment, accumulate)


# -------------------------------------------------------------------- work


def written_out(subject: Subject) -> Subject:
  config = subject.config.copy_and_resolve_references()
  with config.unlocked():
    config.model.update(_WRITTEN_OUT)
  return Subject(workdir.import_config(subject.file).build(config), config, subject.file)


def _flop(lowered: jax.stages.Lowered) -> float:
  analysis = lowered.cost_analysis()
  if not analysis or 'flops' not in analysis:
    raise InputError(problem='XLA counts no floating-point operations on this backend')
  return float(analysis['flops'])


def lowered_step(subject: Subject) -> jax.stages.Lowered:
  """The training step on the global batch as a program of one device; nothing is computed."""
  update = make_update(subject)
  return jax.jit(lambda *args: update(*args, parallel.Axis())).lower(
      jax.eval_shape(lambda: initial_state(subject)),
      batch_shapes(subject, subject.config.data.batch_size),
      jax.eval_shape(lambda: random.key(0)))


def step_flop(subject: Subject) -> float:
  """Floating-point operations of a training step on the global batch."""
  return _flop(lowered_step(written_out(subject)))


def evaluation_flop(subject: Subject, size: int) -> float:
  """Floating-point operations of one evaluation of the network for `size` images."""
  subject = written_out(subject)

  def evaluate(params, z, batch, key):
    m = denoising(subject, params)
    if m.latent is not None:
      m = m.latent(random.per_example(key, jnp.arange(size)))
    return m.denoise(z, m.process(jnp.float32(0.5)), m.cond(batch))

  return _flop(jax.jit(evaluate).lower(
      jax.eval_shape(lambda: initial_params(subject)),
      jax.ShapeDtypeStruct((size, *x_shape(subject)), jnp.float32), batch_shapes(subject, size),
      jax.eval_shape(lambda: random.key(0))))


def rates(flop: float, seconds: float, peak_tflops: float = 0.0) -> dict:
  """Floating-point operations per second, and their share of the peak of all devices.

  peak_tflops: the peak of one device, if it is not the stated peak.
  """
  known = hardware.peak(jax.devices()[0].device_kind)
  of_one = 1e12 * peak_tflops or (known.flop_per_second if known else None)
  peak = of_one and of_one * jax.device_count()
  return {'flop_per_second': flop / seconds, 'peak_flop_per_second': peak,
          'share_of_peak': flop / seconds / peak if peak else None}


# ------------------------------------------------------------------- train


class Training:
  """The step of `config.train.layout`, with the state that the step updates."""

  def __init__(self, subject: Subject):
    run = subject.config.train
    # What `loop` makes of 0 depends on the cadences of a run; here it is one step at a time.
    self.steps = run.steps_per_dispatch or 1
    self.layout = loop.LAYOUTS[run.layout](
        make_update(subject, run.get('accumulate', 1)), steps=self.steps)
    rows = subject.config.data.batch_size // jax.process_count()
    batch = random_batch(subject, rows)
    if self.steps > 1:
      batch = jax.tree.map(lambda u: np.stack([u] * self.steps), batch)
    self.batch = self.layout.place(batch)
    self.key = random.key(subject.config.seed)
    say('initialising')
    self.state = self.layout.put(initial_state(subject))

  def compiled(self) -> timing.Compiled:
    say('compiling the step')
    return timing.compiled(self.layout.step, self.state, self.batch, self.key)

  def __call__(self, batch: PyTree = None) -> PyTree:
    """Makes the step (or steps) with this batch, by default a random batch; returns the metrics."""
    self.state, out = self.layout.step(self.state, self.batch if batch is None else batch, self.key)
    return out


def train(subject: Subject, *, repetitions: int | None = None, warm_up: int = 1, cold: bool = False,
          peak_tflops: float = 0.0, budget: float = timing.BUDGET) -> dict:
  """The seconds of a training step, its work, and the seconds that compiling its program takes.

  Args:
    repetitions: the number of measured dispatches.  None: as many as fit into `budget` seconds.
    cold: compile without the persistent cache.
  """
  with timing.no_cache(cold):
    training = Training(subject)
    with timing.events() as seen:
      program = training.compiled()
      timed = timing.measure(training, repetitions=repetitions, warm_up=warm_up, budget=budget,
                             label='training steps')
  peak = timing.peak_memory()  # before the work is counted, which takes memory of its own
  timed = timed.per(training.steps)
  say('counting the work')
  flop = step_flop(subject)
  return {**report.about(subject.file, subject.config), 'command': 'train',
          'seconds_per_step': timed.median, 'spread': timed.spread,
          'repetitions': timed.repetitions,
          'images_per_second': subject.config.data.batch_size / timed.median,
          'compile_seconds': program.seconds, 'compiled_from_cache': program.cached,
          'compilations': timing.compilations(seen), 'steps_per_dispatch': training.steps,
          'flop_per_step': flop, **rates(flop, timed.median, peak_tflops),
          'peak_memory_bytes': peak, 'program_memory': timing.program_memory(program.executable)}


# ---------------------------------------------------------- eval and sample


def evaluate(subject: Subject, *, times: int = 32, repetitions: int | None = None, warm_up: int = 1,
             peak_tflops: float = 0.0, budget: float = timing.BUDGET) -> dict:
  """Images per second of the bound in continuous time, with `times` evaluations for each image.

  The number of images in a call is chosen so that their evaluations make one batch.
  """
  require_at_least('times', times, 1)
  images = devices.global_batch_size(max(1, subject.config.data.batch_size // times))
  estimator, model = bounds.at_times(0, times), functools.partial(denoising, subject)
  key = random.key(0)
  program = devices.over_rows(lambda params, xs: estimator(
      model(params), xs[0], random.per_example(key, xs[1])))
  params = devices.replicate(initial_params(subject))
  rows = devices.local_rows(np.arange(images, dtype=np.int32))
  batch = random_batch(subject, len(rows))
  say('compiling the bound')
  compiled = timing.compiled(program, params, devices.place((batch, rows)))
  timed = timing.measure(
      lambda: jax.device_get(program(params, devices.place((batch, rows)))),
      repetitions=repetitions, warm_up=warm_up, budget=budget, label='batches of the bound')
  peak = timing.peak_memory()
  flop = evaluation_flop(subject, images * times)
  return {**report.about(subject.file, subject.config), 'command': 'eval',
          'evaluations_per_image': times, 'images_per_batch': images,
          'seconds_per_batch': timed.median, 'spread': timed.spread,
          'repetitions': timed.repetitions,
          'images_per_second': images / timed.median,
          'evaluations_per_second': images * times / timed.median,
          'compile_seconds': compiled.seconds, 'compiled_from_cache': compiled.cached,
          'flop_per_evaluation': flop / (images * times), **rates(flop, timed.median, peak_tflops),
          'peak_memory_bytes': peak}


def sample(subject: Subject, *, sampler_steps: int = 250, repetitions: int | None = None,
           warm_up: int = 1, peak_tflops: float = 0.0, budget: float = timing.BUDGET) -> dict:
  """Seconds of an evaluation of the network, and of an image, by the ancestral sampler."""
  require_at_least('sampler_steps', sampler_steps, 1)
  size = devices.global_batch_size(subject.config.data.batch_size)
  params = initial_params(subject)
  batches = draw(functools.partial(denoising, subject), params, samplers.ancestral,
                 times=grids.uniform(sampler_steps), start=0, stop=2**30, seed=0, batch_size=size,
                 cond=denoising(subject, params).conditions)
  say('compiling the sampler, and the first batch')
  start = time.perf_counter()
  evaluations = next(batches).evaluations
  first = time.perf_counter() - start
  timed = timing.measure(lambda: next(batches).data, repetitions=repetitions,
                         warm_up=max(warm_up - 1, 0), budget=budget, label='batches of samples')
  peak = timing.peak_memory()
  flop = evaluation_flop(subject, size) * evaluations
  return {**report.about(subject.file, subject.config), 'command': 'sample',
          'sampler': 'ancestral', 'evaluations_per_image': evaluations, 'images_per_batch': size,
          'seconds_per_evaluation': timed.median / evaluations,
          'seconds_per_image': timed.median / size, 'seconds_per_batch': timed.median,
          'spread': timed.spread, 'repetitions': timed.repetitions,
          'images_per_second': size / timed.median,
          'compile_seconds': max(first - timed.median, 0.0),
          'flop_per_evaluation': flop / (size * evaluations),
          **rates(flop, timed.median, peak_tflops), 'peak_memory_bytes': peak}


# -------------------------------------------------------------------- data


def data(subject: Subject, *, repetitions: int | None = None, warm_up: int = 1,
         budget: float = timing.BUDGET) -> dict:
  """Images per second of the input and of training, and the shares of a step that the input takes.

  input_share_of_step is the time of the input alone, as if nothing overlapped.
  waiting_share_of_step is an upper bound on the time that devices wait for input.  It counts the
  seconds of the batches that were not ready when the step before them ended.  Where processes read
  the batches, these come in bursts, so means count here, not medians.
  """
  size = subject.config.data.batch_size
  if subject.config.train.steps_per_dispatch > 1:
    raise InputError('config.train.steps_per_dispatch', subject.config.train.steps_per_dispatch,
                     'this measurement dispatches every step', 'set it to 0 or 1')
  say(subject.experiment.data.describe())
  training = Training(subject)
  place = training.layout.place
  stream = lambda: subject.experiment.data.stream(0, jax.process_index(), jax.process_count())
  batches = stream()
  start = time.perf_counter()
  jax.block_until_ready(place(next(batches)))
  first = time.perf_counter() - start
  read = timing.measure(lambda: place(next(batches)), repetitions=repetitions, warm_up=0,
                        budget=budget / 4, label='batches of input')
  batches.close()

  program = training.compiled()
  computed = timing.measure(training, repetitions=repetitions, warm_up=warm_up, budget=budget / 2,
                            label='training steps')
  batches, waited = stream(), []
  ahead = place(next(batches))

  def fed():
    nonlocal ahead
    out = training(ahead)
    start = time.perf_counter()
    ahead = jax.block_until_ready(place(next(batches)))
    waited.append(time.perf_counter() - start if out['loss'].is_ready() else 0.0)
    return out

  both = timing.measure(fed, repetitions=repetitions, warm_up=warm_up, budget=budget / 2,
                        label='training steps, with input')
  batches.close()
  per_batch = sum(read.seconds) / read.repetitions
  return {**report.about(subject.file, subject.config), 'command': 'data',
          'first_batch_seconds': first, 'input_seconds_per_batch': per_batch,
          'input_images_per_second': size / per_batch,
          'seconds_per_step': computed.median, 'spread': computed.spread,
          'compute_images_per_second': size / computed.median,
          'seconds_per_step_with_input': both.median, 'spread_with_input': both.spread,
          'repetitions': both.repetitions, 'compile_seconds': program.seconds,
          'input_share_of_step': per_batch / computed.median,
          'waiting_share_of_step': sum(waited[-both.repetitions:]) / sum(both.seconds)}


# ----------------------------------------------------------------- compile


def program_size(lowered: jax.stages.Lowered) -> tuple[int, int]:
  """(bytes of the StableHLO text, operations) of a program."""
  operations = 0

  def count(_):
    nonlocal operations
    operations += 1
    return ir.WalkResult.ADVANCE

  lowered.compiler_ir('stablehlo').operation.walk(count)
  return len(lowered.as_text()), operations


def compilation(subjects: Sequence[Subject], *, start: dict | None = None) -> dict:
  """The size of the training step's program, and the seconds of compiling it, for several depths.

  The persistent cache is not used.  start: the result of `start_to_first_step`, which is added to
  the report.
  """
  rows = []
  for subject in subjects:
    say(f'blocks {subject.config.model.blocks}')
    with timing.no_cache():
      program = Training(subject).compiled()
    size, operations = program_size(program.lowered)
    rows.append({'blocks': subject.config.model.blocks, 'trace_seconds': program.trace_seconds,
                 'lower_seconds': program.lower_seconds, 'xla_seconds': program.xla_seconds,
                 'compile_seconds': program.seconds, 'hlo_bytes': size,
                 'hlo_operations': operations,
                 'program_memory': timing.program_memory(program.executable)})
  last = subjects[-1]
  return {**report.about(last.file, last.config), 'command': 'compile',
          'compile_seconds': rows[-1]['compile_seconds'],
          'peak_memory_bytes': timing.peak_memory(), **(start or {}), 'depths': rows}


def start_to_first_step(command: Sequence[str], limit: float = 1800.0) -> dict:
  """Seconds from the start of a training to the end of its first step, measured twice.

  The first training finds the compilation cache as it is, and the second finds it warm.

  command: scripts/train.py with its config.  The training runs in a directory of its own, and is
  killed after its first step.  Call this function before this process takes the accelerator.

  Raises InputError if the training ends earlier, with the last line that it printed.  Raises
  InputError also after `limit` seconds.
  """
  first = _first_step(command, limit)
  return {'start_to_first_step_seconds': first,
          'start_to_first_step_warm_seconds': _first_step(command, limit)}


def _first_step(command: Sequence[str], limit: float) -> float:
  with tempfile.TemporaryDirectory() as folder, open(Path(folder) / 'said', 'w+') as said:
    directory = Path(folder) / 'run'
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, f'--workdir={directory}', '--config.train.log_every=1',
         '--config.train.steps_per_dispatch=0'], stdout=said, stderr=said, start_new_session=True)
    try:
      while not metrics.read(directory):
        if process.poll() is not None:
          said.seek(0)
          last = ' '.join(said.read().strip().splitlines()[-1:])
          mistake = last.startswith('error: ')  # a bad input, which the other parts need mended too
          raise InputError(problem='start to first step: '
                           f'{last.removeprefix("error: ").rstrip(".")}',
                           remedy='' if mistake else 'leave it out by --nostart')
        if time.perf_counter() - start > limit:
          raise InputError(problem=f'start to first step: there is none within {limit:g} s',
                           remedy='leave it out by --nostart')
        time.sleep(0.01)
      return time.perf_counter() - start
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # with the readers of its data
      process.wait()

