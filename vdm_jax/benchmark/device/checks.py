"""What each stage of the check measures.  A check adds its points to the record one by one.

A check knows how many seconds are left to its stage.  It leaves out the points for which the time
is too short, and says so in the record, because its process is killed at the limit.
"""
import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import measured, random
from vdm_jax.benchmark import hardware, precision, timing
from vdm_jax.benchmark.device import images as images_lib
from vdm_jax.benchmark.device import model
from vdm_jax.benchmark.device.images import Images
from vdm_jax.benchmark.device.model import Computed, Size, Training
from vdm_jax.benchmark.device.stages import Record, Stage, one_line
from vdm_jax.errors import InputError
from vdm_jax.likelihood import ode
from vdm_jax.machine import files
from vdm_jax.samplers import ancestral, ddim, dpm_solver, grids, heun
from vdm_jax.samplers.drawing import from_keys
from vdm_jax.train.validate import make_validate
from vdm_jax.train.window import IN_FLIGHT, Window
from vdm_jax.typing import PyTree
from vdm_jax.units import bits_per_dim

ROOT = Path(__file__).resolve().parents[3]
TABLES = ROOT / 'docs' / 'measured'
PEAK = hardware.PEAKS['NVIDIA H200'].flop_per_second


class Sizes(NamedTuple):
  """How large everything is.  The defaults are for one H200."""
  network: Size = Size()
  small: Size = Size(blocks=4)              # of the stages that resume a training
  matrix: int = 8192
  copied: int = 2**32                       # bytes
  batch: int = 128
  sweep: tuple[tuple[int, Computed], ...] = (   # (images, how) in the order of their weight
      (128, Computed()), (128, Computed(scan=False, remat='none')), (128, Computed('float32')),
      (256, Computed()), (512, Computed()), (1024, Computed()), (128, Computed(remat='none')))
  seconds: float = 4.0                      # of timing, for each point
  resumed: int = 20                         # steps of a training that is resumed in its middle
  trained: int = 500                        # steps before the precisions are compared, at most
  compared: int = 256                       # test images with which precisions are compared
  times: int = 16                           # draws for each of them in each half
  drawn: int = 128                          # samples at a time
  samplers: tuple[tuple[str, int], ...] = (
      ('ancestral', 100), ('ddim', 50), ('dpmpp_2m', 20), ('heun', 18))
  flowed: int = 32                          # images of `ode` at a time
  methods: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
      ('25 steps', (('steps', 25),)), ('adaptive', (('rtol', 1e-4), ('atol', 1e-4))))
  validated: int = 1024                     # test images of the curve
  every: float = 20.0                       # seconds between two points of the curve
  steps: int = 10**6                        # of the last training, at most


# For a rehearsal: the same programs in seconds on a CPU.
TINY = Sizes(
    network=Size(0, 8, 4), small=Size(0, 8, 4), matrix=64, copied=2**20, batch=4,
    sweep=((4, Computed()), (4, Computed('float32')), (8, Computed())), seconds=0.1, resumed=4,
    trained=2, compared=4, times=2, drawn=2, samplers=(('ancestral', 2),), flowed=2,
    methods=(('2 steps', (('steps', 2),)),), validated=8, every=0.0, steps=4)


class Task(NamedTuple):
  """What a check is given."""
  stage: str
  record: Record
  left: Callable[[], float]   # seconds until the process of the stage is killed
  sizes: Sizes
  data_dir: str
  folder: Path                # for files that the stages of one call share

  def add(self, **point: Any) -> None:
    self.record.add(self.stage, **point)
    timing.say(f'  {self.stage}: {_line(point)}')

  def note(self, **values: Any) -> None:
    self.record.note(self.stage, **values)

  def images(self) -> Images:
    images = images_lib.read(self.data_dir)
    self.note(data=images.source, training_images=len(images.train))
    return images


def _line(point: Mapping[str, Any]) -> str:
  show = lambda u: f'{u:.4g}' if isinstance(u, float) else f'{u}'
  return ', '.join(f'{name.replace("_", " ")} {show(u)}' for name, u in point.items()
                   if not isinstance(u, dict | list))


# ------------------------------------------------------------------ machine


def machine(task: Task) -> None:
  """Devices, memory, and two rates that bound all others: matrix products and copies."""
  device = jax.devices()[0]
  task.note(device=hardware.device_name(), platform=device.platform, devices=jax.device_count(),
            memory_bytes=(device.memory_stats() or {}).get('bytes_limit'),
            driver=_driver(),
            matmul_precision=getattr(jax.config, 'jax_default_matmul_precision', None))
  n = task.sizes.matrix
  for dtype in ('bfloat16', 'float32'):
    pair = [jax.random.normal(key, (n, n), dtype) for key in jax.random.split(random.key(0))]
    product = jax.jit(jnp.matmul)
    timed = timing.measure(lambda pair=pair, product=product: product(*pair),
                           budget=task.sizes.seconds / 2, warm_up=3, label=f'products, {dtype}')
    rate = 2.0 * n**3 / timed.median
    task.add(name=f'matrix product, {dtype}', size=n, seconds=timed.median,
             flop_per_second=rate, share_of_peak=rate / PEAK)
  whole = jnp.zeros(task.sizes.copied // 4)
  shift = jax.jit(lambda u: u + 1.0)
  timed = timing.measure(lambda: shift(whole), budget=task.sizes.seconds / 4, warm_up=3,
                         label='copies')
  task.add(name='copy', bytes=2 * whole.nbytes, seconds=timed.median,
           bytes_per_second=2 * whole.nbytes / timed.median)


def _driver() -> str | None:
  try:
    done = subprocess.run(
        ['nvidia-smi', '--query-gpu=name,driver_version,memory.total,clocks.max.sm',
         '--format=csv,noheader'], capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() or None


# -------------------------------------------------------------------- tests


def gpu_tests(task: Task) -> None:
  """The tests that are marked `gpu`."""
  found = [path for path in sorted((ROOT / 'tests').rglob('test_*.py'))
           if re.search(r'^@pytest\.mark\.gpu$', path.read_text(), re.MULTILINE)]
  task.note(files=[str(path.relative_to(ROOT)) for path in found])
  with tempfile.TemporaryDirectory() as folder:
    report = Path(folder) / 'report.xml'
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider',
         '--continue-on-collection-errors', f'--junitxml={report}', *map(str, found)],
        cwd=ROOT, stdout=sys.stderr)
    cases = outcomes(report.read_text()) if report.exists() else []
  for case in cases:
    task.add(**case)
  task.note(exit_status=done.returncode, **{
      outcome: sum(case['outcome'] == outcome for case in cases)
      for outcome in ('passed', 'failed', 'skipped')})
  if done.returncode:
    raise RuntimeError(f'pytest ended with exit status {done.returncode}')


def outcomes(report: str) -> list[dict]:
  """The name, the outcome and the message of each test in a JUnit report."""
  cases = []
  for case in xml.etree.ElementTree.fromstring(report).iter('testcase'):
    bad = next((one for one in case if one.tag in ('failure', 'error', 'skipped')), None)
    outcome = 'passed' if bad is None else 'skipped' if bad.tag == 'skipped' else 'failed'
    message = '' if bad is None else (bad.get('message') or '').partition('\n')[0]
    cases.append({'name': case.get('name'), 'outcome': outcome, 'message': message})
  return cases


# -------------------------------------------------------------------- train


def train(task: Task) -> None:
  """The training step in several precisions, batch sizes and programs, beside the predictions."""
  images, slowest, per_image = task.images(), 0.0, None
  for i, (size, how) in enumerate(task.sizes.sweep):
    if task.left() < 1.3 * slowest:
      task.note(left_out=[_name(*one) for one in task.sizes.sweep[i:]])
      break
    begun = time.monotonic()
    try:
      point = _step(task, images, size, how)
    except Exception as error:  # such as a lack of memory: the next point may fit
      task.add(name=_name(size, how), **how._asdict(), batch_size=size, error=one_line(error))
      jax.clear_caches()
      continue
    task.add(**point)
    if per_image is None:
      per_image = model.step_flop_per_image(task.sizes.network)
      task.note(flop_per_image=per_image, peak_flop_per_second=PEAK)
    _with_rates(task, per_image)
    jax.clear_caches()
    slowest = max(slowest, time.monotonic() - begun)


def _step(task: Task, images: Images, size: int, how: Computed) -> dict:
  training = Training(model.experiment(task.sizes.network, how))
  batch = training.layout.place(images.batch(size))
  program = timing.compiled(training.layout.step, training.state, batch, training.key)
  timed = timing.measure(lambda: training(batch), budget=task.sizes.seconds, warm_up=2,
                         label=_name(size, how))
  memory = timing.program_memory(program.executable)
  return {'name': _name(size, how), **how._asdict(), 'batch_size': size,
          'seconds_per_step': timed.median, 'spread': timed.spread,
          'repetitions': timed.repetitions, 'images_per_second': size / timed.median,
          'compile_seconds': program.seconds, 'compiled_from_cache': program.cached,
          'program_bytes': memory and (memory['argument_bytes'] + memory['temp_bytes']
                                       + memory['output_bytes'] - memory['alias_bytes']),
          'peak_memory_bytes': timing.peak_memory(), **predicted(size, how)}


def _with_rates(task: Task, per_image: float) -> None:
  """Adds the rates of the last point, which need the work that is counted after the first one."""
  points = task.record.read()['stages'][task.stage]['points']
  point = points[-1]
  rate = per_image * point['images_per_second']
  point |= {'flop_per_second': rate, 'share_of_peak': rate / PEAK}
  if point.get('predicted_seconds'):
    point['measured_by_predicted'] = point['seconds_per_step'] / point['predicted_seconds']
  task.note(points=points)
  timing.say(f'  {task.stage}: {100 * rate / PEAK:.1f} % of {PEAK / 1e12:.0f} TFLOP/s')


def _name(size: int, how: Computed) -> str:
  changed = [f'{field}={value}' for field, value in how._asdict().items()
             if field != 'dtype' and value != Computed._field_defaults[field]]
  return ', '.join([f'{how.dtype}, {size} images', *changed])


def predicted(size: int, how: Computed, tables: Path = TABLES) -> dict:
  """The predictions for a step on one H200 from the tables of the docs; {} if there are none."""
  if how.dtype != 'bfloat16' or not tables.is_dir():
    return {}
  changed = _name(size, how).partition(' images')[2]
  rows = {'compiled': f'cifar10/vdm, {size} images, h200{changed}'}
  if not changed:
    rows['targets'] = 'cifar10/vdm on h200, jit'
  for name, row in rows.items():
    table = measured.read(tables / f'{name}.json')
    cells = next((dict(zip(table.columns, line, strict=True)) for line in table.rows
                  if line[0] == row), {})
    if not cells or cells.get('batch size', f'{size:,}') != f'{size:,}':
      continue
    number = lambda column, cells=cells: float(cells[column].partition(' ')[0])
    return {'predicted_in': f'docs/measured/{name}.json, {row}',
            'predicted_seconds': number('longest seconds'),
            'predicted_summed_seconds': number('summed seconds'),
            'predicted_share_of_peak': number('share of peak longest') / 100.0}
  return {}


# ---------------------------------------------------------------- precision


def bits(task: Task) -> None:
  """What bfloat16 costs in bits/dim on this device, after a short training."""
  images = task.images()
  training, until = Training(model.experiment(task.sizes.network)), task.left() / 3
  done = 0
  for batch in itertools.islice(images.batches(task.sizes.batch), task.sizes.trained):
    jax.block_until_ready(training(training.layout.place(batch)))
    done += 1
    if task.left() < 2 * until:
      break
  task.note(trained_steps=done)
  compare_precisions(task, training.state.params, images)


def compare_precisions(task: Task, params: PyTree, images: Images) -> None:
  """Adds the bound of test images in each precision, all with the same draws."""
  e = lambda dtype: model.experiment(task.sizes.network, Computed(dtype))

  def changed(dtype, change):
    def make(params):
      m = e(dtype).model(params)
      return m._replace(denoise=change(m.denoise))
    return make
  same = lambda denoise: denoise
  rows = precision.measure(
      {precision.FLOAT32: changed('float32', precision.exact),
       'float32, products by default': changed('float32', same),
       precision.TRUNK: changed('bfloat16', same),
       precision.NAIVE: changed('bfloat16', precision.naive)},
      params, images_lib.Rows(images.test), model.SHAPE, times=task.sizes.times,
      batch_size=task.sizes.drawn, count=task.sizes.compared)
  for row in rows:
    task.add(**row)


# ------------------------------------------------------------------- resume


def begin_run(task: Task) -> None:
  """A training that saves a checkpoint in its middle, and the same training a second time."""
  from vdm_jax.train.checkpoint import Checkpoints  # the other checks do without its packages
  e, images, half = model.experiment(task.sizes.small), task.images(), task.sizes.resumed // 2
  batches = list(itertools.islice(images.batches(task.sizes.batch), task.sizes.resumed))
  folder, states = task.folder / _kind(task), {}
  for name in ('first', 'second'):
    training = Training(e)
    for i, batch in enumerate(batches):
      training(training.layout.place(batch))
      if i + 1 == half and name == 'first':
        checkpoints = Checkpoints(folder)
        checkpoints.save(training.layout.view(training.state))
        checkpoints.close()
    states[name] = digests(training.state)
  files.write_text(folder / 'first.json', json.dumps(states['first']))
  task.add(name='the same training twice in one process', steps=len(batches),
           **differing(states['first'], states['second']))


def end_run(task: Task) -> None:
  """The second half of the training from its checkpoint, in a process of its own."""
  from vdm_jax.train.checkpoint import Checkpoints
  e, images = model.experiment(task.sizes.small), task.images()
  folder = task.folder / _kind(task)
  if not (folder / 'first.json').exists():
    raise InputError(problem='the first half of the training did not end',
                     remedy='run that stage too')
  training = Training(e)
  checkpoints = Checkpoints(folder, read_only=True)
  restored = checkpoints.restore(training.layout.target(training.shapes))
  checkpoints.close()
  if restored is None:
    raise RuntimeError('the checkpoint cannot be restored')
  training.state = training.layout.put(restored.state)
  for batch in itertools.islice(images.batches(task.sizes.batch), restored.step,
                                task.sizes.resumed):
    training(training.layout.place(batch))
  task.add(name='a training resumed in its middle', resumed_at=restored.step,
           steps=task.sizes.resumed,
           **differing(json.loads((folder / 'first.json').read_text()), digests(training.state)))


def _kind(task: Task) -> str:
  return task.stage.rpartition('_')[0]


def digests(state: PyTree) -> dict[str, str]:
  """A digest of the bytes of each array of a state, by its path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
          for path, leaf in leaves}


def differing(a: Mapping[str, str], b: Mapping[str, str]) -> dict:
  """How many arrays of two states differ in a bit."""
  names = [name for name in a.keys() | b.keys() if a.get(name) != b.get(name)]
  return {'arrays': len(a), 'arrays_that_differ': len(names), 'bit_for_bit': not names,
          'differ': sorted(names)[:5]}


# ----------------------------------------------------- samples, ode, the rest

SAMPLERS = {'ancestral': ancestral, 'ddim': ddim, 'dpmpp_2m': dpm_solver.dpm_solver_multistep,
            'heun': heun}


def samples(task: Task) -> None:
  """Samples per second of several samplers."""
  e = model.experiment(task.sizes.network)
  params, n = jax.jit(e.init)(random.key(0)), task.sizes.drawn
  flop = model.evaluation_flop_per_image(task.sizes.network)
  task.note(images_at_a_time=n, flop_per_evaluation=flop, trained_steps=0)
  for name, steps in task.sizes.samplers:
    times = jnp.asarray(grids.uniform(steps))

    def draw(params, keys, sampler=SAMPLERS[name], times=times):
      data, _, _, evaluations = from_keys(e.model(params), sampler, keys, times, {})
      return data, evaluations
    draw = jax.jit(draw)
    keys = random.each(random.key(1), n)
    program = timing.compiled(draw, params, keys)
    evaluations = int(draw(params, keys)[1])
    timed = timing.measure(functools.partial(draw, params, keys), warm_up=0,
                           budget=task.sizes.seconds, label=name)
    rate = evaluations * n / timed.median
    task.add(name=name, steps=steps, evaluations_per_image=evaluations,
             seconds_per_batch=timed.median, spread=timed.spread, repetitions=timed.repetitions,
             samples_per_second=n / timed.median, evaluations_per_second=rate,
             compile_seconds=program.seconds, flop_per_second=rate * flop,
             share_of_peak=rate * flop / PEAK)


def flow(task: Task) -> None:
  """Images per second of the estimate `ode`, in float32."""
  e = model.experiment(task.sizes.network, Computed('float32'))
  params = jax.jit(e.init)(random.key(0))
  images, n = task.images(), task.sizes.flowed
  batch = {'image': images.test[:n]}
  task.note(images_at_a_time=n, trained_steps=0)
  for name, method in task.sizes.methods:
    estimator = ode.estimator(**dict(method))
    estimate = jax.jit(lambda params, batch, keys, estimator=estimator: estimator(
        e.model(params), batch, keys))
    keys = random.each(random.key(2), n)
    program = timing.compiled(estimate, params, batch, keys)
    out = jax.device_get(estimate(params, batch, keys))
    timed = timing.measure(functools.partial(estimate, params, batch, keys), warm_up=0,
                           repetitions=1, label=f'ode, {name}')
    task.add(name=name, evaluations_per_image=float(out['evaluations'].mean()),
             bits_per_dim=float(bits_per_dim(out['nats'], model.SHAPE).mean()),
             seconds_per_batch=timed.median, repetitions=timed.repetitions,
             images_per_second=n / timed.median, compile_seconds=program.seconds)


def curve(task: Task) -> None:
  """Trains for the time that is left, with a curve, and compares the precisions at its end."""
  images, e = task.images(), model.experiment(task.sizes.network)
  training = Training(e)
  validate = make_validate(e.loss, images_lib.Rows(images.test[:task.sizes.validated]),
                           random.key(3), task.sizes.batch, 1)
  window, begun, looked, spent = Window(IN_FLIGHT), time.monotonic(), time.monotonic(), 0.0
  reserved = task.left() / 4  # for the comparison, which compiles a large program
  task.note(average=e.ema['ema'], batch_size=task.sizes.batch)
  for i, batch in enumerate(itertools.islice(images.batches(task.sizes.batch), task.sizes.steps)):
    window.add(i, training(training.layout.place(batch)))
    last = i + 1 == task.sizes.steps or task.left() < reserved
    if last or time.monotonic() - looked >= task.sizes.every:
      values = window.take()
      now = time.monotonic()
      state = training.layout.view(training.state)
      found = validate(state.ema['ema'], state.step)
      task.add(step=i + 1, seconds=now - begun - spent, loss=values['loss'],
               grad_norm=values['grad_norm'], validation=found['bits_per_dim'])
      looked = time.monotonic()
      spent += looked - now  # the seconds are those of training
    if last:
      break
  compare_precisions(task, training.state.ema['ema'], images)


def _with_flag(flag: str) -> dict[str, str]:
  return {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()}


_DETERMINISTIC = _with_flag('--xla_gpu_deterministic_ops=true')
_CHECKPOINTS = ('orbax',)
# The last stage takes all that the others leave, and at least a fifth.
STAGES: tuple[tuple[Stage, Callable[[Task], None]], ...] = (
    (Stage('machine', 0.05), machine),
    (Stage('tests', 0.07, needs=('pytest',)), gpu_tests),
    (Stage('train', 0.28), train),
    (Stage('precision', 0.11), bits),
    (Stage('resume_begin', 0.05, needs=_CHECKPOINTS), begin_run),
    (Stage('resume_end', 0.03, needs=_CHECKPOINTS), end_run),
    (Stage('deterministic_begin', 0.04, _DETERMINISTIC, _CHECKPOINTS), begin_run),
    (Stage('deterministic_end', 0.03, _DETERMINISTIC, _CHECKPOINTS), end_run),
    (Stage('samples', 0.07), samples),
    (Stage('ode', 0.06), flow),
    (Stage('training', 0.0), curve))
