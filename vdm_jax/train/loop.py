"""The training loop, read top to bottom.

The loop knows an `Experiment` (a loss, data, an optimiser), but not the meaning of the loss.  The
batch and the randomness of step k are functions of (seed, k), and a checkpoint holds all other
state.  So the same command resumes a run bit for bit.
"""
import collections
import contextlib
import functools
import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
import tqdm
from absl import logging

from vdm_jax import random
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.machine import devices, distributed, signals
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.validate import make_validate
from vdm_jax.train.window import IN_FLIGHT, Diverged, Window, headline
from vdm_jax.typing import Experiment, PyTree

LAYOUTS = {'jit': parallel.jit_layout, 'fsdp': parallel.fsdp_layout, 'pmap': parallel.pmap_layout}
DISPATCH_SECONDS = 0.5  # of a dispatch whose steps are not given; it has at most 100 steps
SPLITS = ('validation', 'test')  # `train` names the records of training itself


class _Stopped(Exception):
  """A signal asks the run to stop; the argument is the number of the signal."""


def default_config() -> ml_collections.ConfigDict:
  """config.train: how a run goes, not what it computes.  All of it may change when a run resumes.
  """
  return ml_collections.ConfigDict({
      'steps': 10_000_000,
      'layout': 'jit',          # 'jit' or 'pmap' (the batch split), 'fsdp' (the state too)
      'accumulate': 1,          # microbatches a step, one after another: less memory, same step
      'steps_per_dispatch': 0,  # 0: one on the CPU; elsewhere the steps of `DISPATCH_SECONDS`
      'log_every': 1000,
      'validate_every': 10_000,
      'checkpoint_every': 10_000,
      'pictures_every': 10_000,  # samples, for TensorBoard and in samples/; 0: none
      'keep': 5,                # newest checkpoints; the best by validation is kept as well
      'splits': ('validation',),   # evaluated on the way; only 'validation' ever chooses anything
      'validation_repeats': 1,  # times per example
  }).lock()


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for a training that could not run, before anything is compiled."""
  run, batch = config.train, config.data.batch_size
  if run.layout not in LAYOUTS:
    raise InputError('config.train.layout', run.layout, 'there is no such choice',
                     f'choose one of {", ".join(LAYOUTS)}')
  if batch % jax.device_count():  # `data` refuses what is no size at all
    raise InputError('config.data.batch_size', batch,
                     f'it cannot be divided over {jax.device_count()} devices',
                     f'choose a multiple of {jax.device_count()}')
  if run.accumulate < 1 or batch // jax.device_count() % run.accumulate:
    raise InputError('config.train.accumulate', run.accumulate, 'it does not divide the '
                     f'{batch // jax.device_count()} examples of a batch that each device has',
                     'choose one that does')
  for name in ('log_every', 'validate_every', 'checkpoint_every', 'steps', 'keep',
               'validation_repeats'):
    require_at_least(f'config.train.{name}', run[name])
  for room, names in (('train', ('pictures_every', 'steps_per_dispatch')),
                      ('data', ('workers', 'memory_gb', 'image_size'))):
    for name in names:
      value = config[room].get(name, 0)  # a run's config may be older than a field
      require(value >= 0, f'config.{room}.{name}', value, 'it must be 0 or more')
  if 'validation' not in run.splits or not set(run.splits) <= set(SPLITS):
    raise InputError('config.train.splits', run.splits,
                     "it must contain 'validation', which chooses the checkpoint kept as the best",
                     'include it')
  if not config.ema:
    raise InputError('config.ema', config.ema.to_dict(), 'it names no average',
                     'name at least one, e.g. {"ema": 0.9999}')
  step_lib.check_averages(config.ema.to_dict(), 'config.ema')
  if config.data.validation < 1:
    raise InputError('config.data.validation', config.data.validation,
                     'there is no example to validate on', 'hold out at least one training example')
  _steps_per_dispatch(run)
  random.key(config.seed, 'config.seed')  # its range


def _cadences(run) -> list[int]:
  return [c for c in (run.log_every, run.validate_every, run.checkpoint_every, run.pictures_every)
          if c]


def _steps_per_dispatch(run) -> int:
  cadence = math.gcd(*_cadences(run), run.steps)
  if run.steps_per_dispatch:
    if cadence % run.steps_per_dispatch:
      raise InputError('config.train.steps_per_dispatch', run.steps_per_dispatch,
                       'it does not divide the steps and all cadences',
                       f'choose {cadence} or a divisor of it')
    return run.steps_per_dispatch
  return 1 if jax.default_backend() == 'cpu' else math.gcd(cadence, 100)


class _Dispatches:
  """How many steps are dispatched together: n; or as many as take `DISPATCH_SECONDS`, up to n.

  A signal waits for up to four dispatches, so these should not take seconds each.
  """
  TIMED = (1, 3)  # of the dispatches of a start: the first compiles, and each is chosen one early

  def __init__(self, n: int, given: bool):
    self._n = n
    self._most = n if given else 1
    self._open = n > 1 and not given

  def chunks(self, start: int, stop: int) -> Iterator[int]:
    """The numbers of steps; no chunk goes beyond a multiple of n, where the cadences fall."""
    step = start
    while step < stop:
      size = min(self._most, self._n - step % self._n)
      yield size
      step += size

  def timed(self, number: int) -> bool:
    """Whether the dispatch of this number, from 0 on, is timed."""
    return self._open and number in self.TIMED

  def took(self, seconds: float) -> None:
    """Notes the seconds of a step.  All processes call it, and the first one decides."""
    most = round(max(1.0, min(DISPATCH_SECONDS / seconds, self._n)))
    self._most = devices.broadcast_from_first(lambda: most)


def _placed_batches(batches: Iterator[PyTree], chunks: Iterator[int], place: Callable, n: int
                    ) -> Iterator:
  """(steps, placed batch), each placed while the step before it runs."""
  queue = collections.deque()
  for size in chunks:
    if n == 1:
      batch = next(batches)
    else:
      batch = jax.tree.map(lambda *rows: np.stack(rows), *itertools.islice(batches, size))
    queue.append((size, place(batch)))
    if len(queue) > 1:
      yield queue.popleft()
  yield from queue


def train(experiment: Experiment, config: ml_collections.ConfigDict, workdir: str | Path, *,
          pictures: Callable[[PyTree, int], np.ndarray | None] | None = None,
          measures: Callable[[PyTree, int], dict[str, float]] | None = None,
          initial: Callable[[PyTree], PyTree] | None = None, profile: int = 0) -> dict[str, float]:
  """Trains to config.train.steps, from the newest sound checkpoint in `workdir` if there is one.

  Args:
    pictures: (EMA parameters, step) -> uint8 image [H, W, 3], or None if there is nothing to draw.
    measures: (EMA parameters, step) -> numbers of their samples by name, recorded with the
      pictures.
    initial: freshly initialised parameters -> the parameters to start from (ignored on resuming).
    profile: the number of steps to trace.

  If pictures or measures fail, there is a warning and the run goes on.

  Returns the means of the last validation.  If any process gets Ctrl-C, SIGTERM or SIGHUP, the run
  saves and raises SystemExit with the code 128 + the signal's number.  Raises InputError.  Raises
  Diverged, and keeps the last good checkpoint.
  """
  check(config)
  workdir = Path(workdir).absolute()
  try:
    with contextlib.ExitStack() as stack:
      stop = stack.enter_context(distributed.stopping())
      return _train(experiment, config, workdir, pictures, measures, initial, profile, stop, stack)
  except Exception as error:
    if not _is_of_a_full_disk(error):
      raise
    steps = [path.name for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()]
    raise InputError(problem=f'{workdir}: no space is left on this disk (or on the disk of the '
                     'compilation cache or of temporary files).  The checkpoints of steps '
                     f'{", ".join(sorted(steps, key=int)) or "(none)"} are whole',
                     remedy='make room and start the same command again') from error


def _is_of_a_full_disk(error: BaseException | None) -> bool:
  """Whether an error, or any error behind it, says in any writer's words that the disk is full."""
  return error is not None and (
      bool(re.search('No space left on device|Disk quota exceeded', str(error)))
      or _is_of_a_full_disk(error.__cause__) or _is_of_a_full_disk(error.__context__))


def _train(experiment, config, workdir, pictures, measures, initial, profile, stop, stack):
  run = config.train
  n = _steps_per_dispatch(run)
  first = jax.process_index() == 0
  key_init, key_step, key_validation = jax.random.split(
      random.key(config.seed, 'config.seed'), 3)

  checkpoints = Checkpoints(workdir, run.keep, settled=experiment.settled)
  stack.callback(checkpoints.close)
  fresh = lambda params: step_lib.init(params, experiment.tx, experiment.ema, experiment.aux)
  update = step_lib.update_of(experiment, run.accumulate)
  layout = LAYOUTS[run.layout](update, steps=n)
  make = lambda key: fresh(experiment.init(key))
  restored = checkpoints.restore(layout.target(jax.eval_shape(make, key_init)))
  owed = []
  if restored is None:
    if initial is None:
      state = layout.init(make, key_init)
    else:
      state = layout.put(fresh(initial(jax.jit(experiment.init)(key_init))))
    metrics_lib.show(metrics_lib.parameter_table(layout.view(state).params))
    start = 0
  else:
    state, start = layout.put(restored.state), restored.step
    owed = _owed(workdir, run, start)
    if first:
      print(f'Resuming at step {start:,} of {run.steps:,}.' if start < run.steps else
            f'The run has made {start:,} of {run.steps:,} steps: '
            + ('its last validation was interrupted, and is made now.' if owed else
               'nothing to do.'))
  if start >= run.steps and not owed:
    return _last(workdir, 'validation')
  writer = metrics_lib.Writer(workdir, start)
  stack.callback(writer.close)

  validate = {name: make_validate(experiment.loss, experiment.data.split(name), key_validation,
                                  config.data.batch_size, run.validation_repeats)
              for name in run.splits}
  average = step_lib.default_average(experiment.ema)
  if first:
    for line in (step_lib.caution(average, experiment.ema[average], run.steps),
                 _long_validation(config, len(experiment.data.split('validation')))):
      if line:
        print(line)
  restored = None  # the first step takes the state's memory; keep no other copy

  batches = experiment.data.stream(start, jax.process_index(), jax.process_count())
  stack.callback(batches.close)
  bar = stack.enter_context(tqdm.tqdm(total=run.steps, initial=start, unit='step', mininterval=0.5,
                                      dynamic_ncols=True, disable=not first))
  results = {}

  def look():
    if number := stop():
      raise _Stopped(number)

  def measure(view, names):
    """Validates on the splits with these names.  Raises _Stopped."""
    for name in names:
      results[name] = validate[name](view.ema[average], view.step, view.ema, view.aux, look)
      writer.write(int(view.step), name, **results[name])
      if first and name == 'validation':
        label, value = headline(results[name])
        bar.write(f'step {int(view.step)}: validation {label} {value:.4f}')

  def leave(number, saved):
    """Ends a run that a signal has stopped."""
    if first:
      outcome = (f'saved step {saved} and stopped; the same command goes on from there.'
                 if saved else 'stopped before the first step; the same command begins again.')
      bar.close()
      signals.say(f'{signals.name(number)}: {outcome}')
    sys.exit(signals.exit_code(number))

  try:
    look()  # it came while the run was set up
    measure(layout.view(state) if owed else None, owed)
  except _Stopped as stopped:
    leave(*stopped.args, start)
  if start >= run.steps:
    return results.get('validation') or _last(workdir, 'validation')

  window, step, saved = Window(IN_FLIGHT if n == 1 else 1), start, start
  since, since_step = time.monotonic(), start
  tracing = False
  stack.callback(lambda: tracing and jax.profiler.stop_trace())
  dispatches = _Dispatches(n, given=bool(run.steps_per_dispatch))
  for dispatch, (size, batch) in enumerate(_placed_batches(
      batches, dispatches.chunks(start, run.steps), layout.place, n)):
    if first and profile and not tracing and step - start >= n + 1:
      jax.profiler.start_trace(str(workdir / 'profile'))  # past the step that compiles
      tracing, profile_until = True, step + profile
    if dispatches.timed(dispatch):
      jax.block_until_ready(state)
    begun = time.monotonic()
    state, out = layout.step(state, batch, key_step)
    window.add(step, out, size)
    if dispatches.timed(dispatch):
      jax.block_until_ready(out)
      dispatches.took((time.monotonic() - begun) / size)
    step += size
    bar.update(size)
    if tracing and step >= profile_until:
      jax.block_until_ready(out)
      jax.profiler.stop_trace()
      tracing, profile = False, 0

    number = stop()
    due = functools.partial(_due, run, step)
    if due(run.log_every) or due(run.checkpoint_every) or number:
      try:
        values = window.take()
      except Diverged as error:
        raise Diverged(f'{error}  ' + (f'The last good checkpoint is of step {saved}, in '
                                       f'{workdir}.  ' if saved else 'There is no checkpoint.  ')
                       + _against_divergence(config)) from None
      now = time.monotonic()
      rate = (step - since_step) / max(now - since, 1e-9)
      since, since_step = now, step
      writer.write(step, 'train', **values, steps_per_second=rate)
      name, value = headline(values)
      bar.set_postfix_str(f'{name} {value:.4f}')
    view, measured = None, math.inf
    if (due(run.validate_every) or due(run.checkpoint_every)) and not number:
      view = layout.view(state)
      try:
        measure(view, run.splits)
        measured = results['validation']['loss']
      except _Stopped as stopped:
        number, = stopped.args
    if due(run.checkpoint_every) or number:
      checkpoints.save(view or layout.view(state), measured)
      saved = step
    if number:
      checkpoints.seal()
      leave(number, saved)
    if pictures is not None and run.pictures_every and due(run.pictures_every):
      view = view or layout.view(state)
      bar.set_postfix_str('drawing samples')
      if not _picture(writer, step, pictures, view.ema[average]):
        pictures = None
        if first:
          bar.write('This model has nothing to draw: no pictures are made.')
    if measures is not None and run.pictures_every and due(run.pictures_every):
      view = view or layout.view(state)
      bar.set_postfix_str('measuring samples')
      with _may_fail('measurement', step):
        values = measures(view.ema[average], step)
        writer.write(step, 'samples', **values)
        if first:
          bar.write(f'step {step}: ' + ', '.join(f'{name} {value:.4g}'
                                                 for name, value in values.items()))
    if view is not None:
      since = time.monotonic()  # the rate is that of training
      since_step = step
  return results['validation']


def _due(run, step: int, every: int) -> bool:
  return bool(every) and step % every == 0 or step == run.steps


def _owed(workdir: Path, run, step: int) -> list[str]:
  """The splits whose validation at `step` was interrupted by a signal."""
  def cut_off() -> int:
    records = metrics_lib.read(workdir)
    recorded = {record['kind'] for record in records if record['step'] == step}
    return sum(1 << i for i, name in enumerate(SPLITS) if records and name not in recorded)

  if not step or not (_due(run, step, run.validate_every) or _due(run, step, run.checkpoint_every)):
    return []
  mask = devices.broadcast_from_first(cut_off)
  return [name for i, name in enumerate(SPLITS) if mask >> i & 1 and name in run.splits]


def _long_validation(config, examples: int) -> str:
  """A line if a validation evaluates more examples than the training before it used, else ''."""
  run = config.train
  between = config.data.batch_size * min(run.validate_every, run.checkpoint_every)
  if examples * run.validation_repeats <= between:
    return ''
  return (f'Each validation evaluates {examples:,} examples {run.validation_repeats} times, after '
          f'training on {between:,}.  Fewer: --config.data.validation, '
          '--config.train.validation_repeats; less often: --config.train.validate_every and '
          '--config.train.checkpoint_every.')


def _against_divergence(config) -> str:
  rate = config.get('optimizer', {}).get('learning_rate')
  smaller = '' if rate is None else (
      f'Choose a smaller --config.optimizer.learning_rate (it is {rate:g}), or find ')
  return (smaller or 'Find ') + 'the operation with --debug_nans.'


@contextlib.contextmanager
def _may_fail(what: str, step: int) -> Iterator[None]:
  """Turns an error inside into a warning that there is no `what`; the run goes on."""
  try:
    yield
  except Exception as error:
    # Of several processes that are not all here any more, none can go on.
    lost = jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)
    if lost or _is_of_a_full_disk(error):
      raise
    reason = next(iter(str(error).splitlines()), '')
    logging.warning('No %s of step %d: %s: %s', what, step, type(error).__name__, reason)


def _picture(writer, step: int, draw: Callable, params: PyTree) -> bool:
  """Writes the image that `draw` returns; False if there is nothing to draw."""
  with _may_fail('picture', step):
    image = draw(params, step)
    if image is not None:
      writer.picture(step, 'samples', image)
    return image is not None
  return True


def _last(workdir: Path, kind: str) -> dict[str, float]:
  """The last record of this kind, for a run that had nothing left to do."""
  records = [r for r in metrics_lib.read(workdir) if r['kind'] == kind]
  return {k: v for k, v in records[-1].items() if k not in ('step', 'kind')} if records else {}
