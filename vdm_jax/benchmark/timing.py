"""Measures a piece of work: its time, its memory, and the programs that were compiled for it.

The first calls are slower than the later ones (caches, page faults, rising clocks), so some are
left out.  The result is the median of the other calls, which no single interruption moves.  The
interquartile range beside it shows how much another median might differ.
"""
import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import tqdm
from jax.experimental.compilation_cache import compilation_cache

from vdm_jax.errors import require_at_least
from vdm_jax.typing import PyTree

BUDGET = 20.0  # seconds of measuring where no number of repetitions is given
LEAST = 3      # repetitions within the budget or not


class Timing(NamedTuple):
  """Seconds of each repetition, in order."""
  seconds: tuple[float, ...]

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  @property
  def spread(self) -> float:
    """The interquartile range in seconds; 0 for a single repetition."""
    if len(self.seconds) < 2:
      return 0.0
    first, _, third = statistics.quantiles(self.seconds, n=4, method='inclusive')
    return third - first

  @property
  def repetitions(self) -> int:
    return len(self.seconds)

  def per(self, n: int) -> 'Timing':
    """The timing of one of the n equal parts of each repetition."""
    return Timing(tuple(u / n for u in self.seconds))


def measure(work: Callable[[], PyTree], *, repetitions: int | None = None,
            label: str = 'measuring', warm_up: int = 1, budget: float = BUDGET,
            clock: Callable[[], float] = time.perf_counter) -> Timing:
  """Times `work`, waiting for the arrays it returns, after `warm_up` calls that are not counted.

  repetitions: the number of counted calls.  None: as many as end within `budget` seconds, and at
  least `LEAST`.
  """
  return in_turn({label: work}, repetitions=repetitions, label=label, warm_up=warm_up,
                 budget=budget, clock=clock)[label]


def in_turn(rivals: Mapping[str, Callable[[], PyTree]], *, repetitions: int | None = None,
            label: str = 'measuring', warm_up: int = 1, budget: float = BUDGET,
            clock: Callable[[], float] = time.perf_counter) -> dict[str, Timing]:
  """Times rivals by name, each once in a round, so that a drift of the machine meets all alike.

  The arguments are as for `measure`.  A repetition is a round, and `budget` is for all rivals.
  """
  for flag, value, least in [('repetitions', repetitions, 1), ('warm_up', warm_up, 0)]:
    require_at_least(flag, value, least)
  for _ in range(warm_up):
    for work in rivals.values():
      jax.block_until_ready(work())
  rounds: list[list[float]] = []
  with tqdm.tqdm(total=repetitions, desc=label, unit='step', dynamic_ncols=True, file=sys.stderr,
                 disable=jax.process_index() != 0) as bar:
    while not _enough([sum(each) for each in rounds], repetitions, budget):
      rounds.append([])
      for work in rivals.values():
        start = clock()
        jax.block_until_ready(work())
        rounds[-1].append(clock() - start)
      bar.update()
  return {name: Timing(seconds)
          for name, seconds in zip(rivals, zip(*rounds, strict=True), strict=True)}


def _enough(seconds: list[float], repetitions: int | None, budget: float) -> bool:
  done = len(seconds)
  if repetitions is not None:
    return done == repetitions
  return done >= LEAST and sum(seconds) * (done + 1) / done > budget


def say(text: str) -> None:
  """Prints a line about slow work on stderr, because stdout is for the result."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------- compilation

_TRACED = '/jax/core/compile/jaxpr_trace_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'  # or read from the persistent cache
_CACHED = '/jax/compilation_cache/cache_hits'


class Compiled(NamedTuple):
  """A program, and the seconds of each stage of compiling it."""
  lowered: jax.stages.Lowered
  executable: jax.stages.Compiled
  trace_seconds: float
  lower_seconds: float
  xla_seconds: float  # or of reading it, where it was cached
  cached: bool        # found in the persistent cache

  @property
  def seconds(self) -> float:
    return self.trace_seconds + self.lower_seconds + self.xla_seconds


def compiled(jitted, *args, clock: Callable[[], float] = time.perf_counter) -> Compiled:
  """Compiles `jitted` for `args`, so that calls with such arguments do not compile again."""
  with events() as seen:
    start = clock()
    lowered = jitted.lower(*args)
    middle = clock()
    executable = lowered.compile()
    end = clock()
  # The outermost trace contains those of the functions it calls.
  trace = max((seconds for name, seconds in seen if name == _TRACED), default=0.0)
  return Compiled(lowered, executable, trace, middle - start - trace, end - middle,
                  any(name == _CACHED for name, _ in seen))


@contextlib.contextmanager
def events() -> Iterator[list[tuple[str, float]]]:
  """(name, seconds or 0) of all events that JAX reports during the context, in order."""
  seen = []
  happened = lambda event, **_: seen.append((event, 0.0))
  lasted = lambda event, seconds, **_: seen.append((event, seconds))
  jax.monitoring.register_event_listener(happened)
  jax.monitoring.register_event_duration_secs_listener(lasted)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_listener(happened)
    jax.monitoring.unregister_event_duration_listener(lasted)


def compilations(seen: list[tuple[str, float]]) -> int:
  """The number of programs that were compiled, or read from the persistent cache, in `events`."""
  return sum(name == _COMPILED for name, _ in seen)


@contextlib.contextmanager
def no_cache(cold: bool = True) -> Iterator[None]:
  """Turns the persistent compilation cache off during the context: no program is read or kept."""
  if not cold:
    yield
    return
  before = jax.config.jax_enable_compilation_cache
  _set_cache(False)
  try:
    yield
  finally:
    _set_cache(before)


def _set_cache(enabled: bool) -> None:
  jax.config.update('jax_enable_compilation_cache', enabled)
  compilation_cache.reset_cache()  # else the first program's answer holds for all


# ------------------------------------------------------------------- memory


def peak_memory() -> int:
  """The peak of memory in bytes so far: the fullest accelerator's, or this process's on a CPU."""
  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use', 0)
           for device in jax.local_devices()]
  if any(peaks):
    return max(peaks)
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def program_memory(executable: jax.stages.Compiled) -> dict[str, int]:
  """The bytes that a program needs on each device, by the compiler's own account."""
  stats = executable.memory_analysis()
  if stats is None:  # a backend that keeps none
    return {}
  return {f'{name}_bytes': getattr(stats, f'{name}_size_in_bytes')
          for name in ('argument', 'output', 'alias', 'temp')}
