"""A training step, compiled for a machine that need not be here, and its account.

The account says whether the step compiles and fits, and what the devices send each other.  It also
predicts how long a step takes.  Nothing is run.

  memory      the compiler's own count of bytes on a device: arguments, temporary arrays and results
              that do not take the place of an argument
  roofline    the seconds of the program's FLOP at the peak rate, and of its bytes at the bandwidth
              of the main memory (see `kernels` for both counts); summed, as if the two never
              overlapped, and with the longer of the two for each kernel.  The time between devices
              and the launches are left out, and no kernel is taken to find its operands in a cache.
  share       the FLOP of the step's products without those that are computed twice, divided by the
              roofline's seconds and by the peak.  The peak is bfloat16's, also for a float32
              program.

Where a GPU would run cuDNN's attention (`config.model.attention=auto`), the account has XLA's.
"""
import datetime
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from vdm_jax.benchmark import hlo, kernels, machines, scaling, speed
from vdm_jax.benchmark.timing import program_memory, say
from vdm_jax.errors import require

LAYOUTS = ('jit', 'fsdp')
MOST_IMAGES = 2**14   # on a device, of the search for the largest batch
_SLACK = 1.1          # more bytes than there are, at which a batch is still tried
_LARGEST_KERNELS = 8  # in the report
_NO_TILES = "Couldn't find output tile sizes"
_USED = re.compile(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Step(NamedTuple):
  """A compiled step; or what it needs, if that is more than the machine has."""
  images: int                     # on each device
  seconds: float                  # of compiling
  memory: dict[str, int]          # argument_bytes, temp_bytes, ..., and total_bytes
  program: hlo.Program | None     # None: the compiler refuses it, because it does not fit
  problem: str = ''

  def fits(self, machine: machines.Machine) -> bool:
    return self.program is not None and self.memory['total_bytes'] <= machine.usable_bytes


def check(subject: speed.Subject, machine: machines.Machine, most: bool = False) -> None:
  """Raises InputError if `account` cannot compile the step for the machine."""
  layout = subject.config.train.layout
  require(layout in LAYOUTS, 'config.train.layout', layout, 'a program cannot be compiled for '
          'absent devices under this layout', f'choose {" or ".join(LAYOUTS)}')
  # JAX asks the device here for its version of cuDNN.
  require(subject.config.model.get('attention') != 'cudnn', 'config.model.attention', 'cudnn',
          'it cannot be compiled for absent devices', 'choose xla')
  size, parts = subject.config.data.batch_size, machine.count * _microbatches(subject)
  require(most or size % parts == 0, 'batch_size', size, 'it cannot be divided over the '
          f'{machine.count} devices of {machine.name} and {_microbatches(subject)} microbatches',
          f'choose a multiple of {parts}')


def _microbatches(subject: speed.Subject) -> int:
  return subject.config.train.get('accumulate', 1)


def compile_step(subject: speed.Subject, machine: machines.Machine, devices: Sequence[Any],
                 images: int, accumulate: int = 1) -> Step:
  """Compiles the step with `images` images on each device."""
  layout = subject.config.train.layout
  say(f'compiling for {machine.name}, {layout}, {images:,} images on each device')
  lowered = scaling.lowered(subject, layout, devices, images, accumulate)
  start = time.perf_counter()
  try:
    executable = _executable(lowered, machine)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in f'{error}':
      raise
    return Step(images, time.perf_counter() - start, _needed(f'{error}'), None,
                f'{error}'.strip().splitlines()[0])
  memory = program_memory(executable)
  memory['total_bytes'] = (memory['argument_bytes'] + memory['temp_bytes']
                           + memory['output_bytes'] - memory['alias_bytes'])
  return Step(images, time.perf_counter() - start, memory, hlo.parse(executable.as_text() or ''))


def _executable(lowered: Any, machine: machines.Machine) -> Any:
  if machine.is_tpu:
    return lowered.compile(compiler_options={})
  options: dict[str, Any] = {'xla_gpu_autotune_level': 0}  # autotuning would run kernels on a GPU
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    # Without autotuning, XLA finds no tiles for some products that it compiles itself.
    if _NO_TILES not in f'{error}':
      raise
  say("again, with the products of NVIDIA's library alone")
  return lowered.compile(compiler_options={**options, 'xla_gpu_enable_triton_gemm': False})


def _needed(message: str) -> dict[str, int]:
  """The bytes that a program needs, as the compiler for TPUs says where they are too many."""
  found = _USED.search(message)
  return {'total_bytes': round(float(found[1]) * _UNITS[found[2]])} if found else {}


def largest(subject: speed.Subject, machine: machines.Machine, devices: Sequence[Any]) -> Step:
  """The step with the largest power of two of images on each device that fits.

  The memory of two small batches tells about which power it is.  If not even one image fits, the
  step with one image is returned.
  """
  found: dict[int, Step] = {}

  def step(n):
    if n not in found:
      found[n] = compile_step(subject, machine, devices, n)
    return found[n]

  def expected(n):  # bytes for n images, on the line through the two largest steps that fit
    few, many = sorted(k for k, one in found.items() if one.fits(machine))[-2:]
    least, most = (found[k].memory['total_bytes'] for k in (few, many))
    return most + (n - many) * (most - least) / (many - few)
  images = 8
  if step(4).fits(machine) and step(8).fits(machine):
    if expected(16) > step(8).memory['total_bytes']:
      while images < MOST_IMAGES and expected(2 * images) <= machine.usable_bytes:
        images *= 2
  while images > 1 and not step(images).fits(machine):
    images //= 2
  # The memory is not quite a line.
  while 8 <= images < MOST_IMAGES and expected(2 * images) < _SLACK * machine.usable_bytes and (
      step(2 * images).fits(machine)):
    images *= 2
  return step(images)


def account(subject: speed.Subject, machine: machines.Machine, devices: Sequence[Any],
            most: bool = False) -> dict:
  """What the training step of a config is on a machine.

  Args:
    subject: as `check` accepts it.
    devices: of `machines.devices`.
    most: with the largest batch that fits, in one microbatch, instead of the config's own.
  """
  config = subject.config
  step = largest(subject, machine, devices) if most else compile_step(
      subject, machine, devices, config.data.batch_size // machine.count, _microbatches(subject))
  peak = machine.peak
  about = {
      'command': 'compile', 'config': str(subject.file), 'blocks': config.model.get('blocks'),
      'features': config.model.get('features'), 'dtype': str(config.model.get('dtype')),
      'target': machine.name, 'devices': machine.count, 'layout': config.train.layout,
      'batch_size': step.images * machine.count, 'images_on_each_device': step.images,
      'compiles': step.program is not None, 'fits': step.fits(machine),
      'problem': step.problem or None, 'compile_seconds': step.seconds,
      'memory_bytes': peak.memory_bytes,
      'usable_bytes': machine.usable_bytes, **step.memory, 'jax': jax.__version__,
      'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
      'source': peak.source, 'model': config.model.to_dict()}
  if step.program is None:
    return about
  say('counting the work')
  whole = subject._replace(config=config.copy_and_resolve_references())
  whole.config.data.batch_size = step.images * machine.count
  return {**about, **figures(kernels.work(step.program), machine, step_flop(whole))}


def step_flop(subject: speed.Subject) -> float:
  """FLOP of the products of a training step on the global batch, each computed once."""
  program: Any = speed.lowered_step(speed.written_out(subject)).compiler_ir('hlo')
  return kernels.work(hlo.parse(program.as_hlo_text())).flop


def figures(work: kernels.Work, machine: machines.Machine, step_flop: float) -> dict:
  """The numbers of an account that are counted in the program of a device.

  step_flop: as the function of this name counts them.
  """
  peak = machine.peak
  roof = kernels.roofline(work.kernels, peak.flop_per_second, peak.bytes_per_second)
  useful = step_flop / machine.count / peak.flop_per_second
  share = lambda seconds: useful / seconds if seconds else None
  kinds = kernels.by_kind(work.collectives)
  return {
      'kernels': work.launches, 'flop_on_each_device': work.flop,
      'step_flop_on_each_device': step_flop / machine.count, 'moved_bytes': work.bytes,
      'peak_flop_per_second': peak.flop_per_second,
      'bandwidth_bytes_per_second': peak.bytes_per_second,
      'arithmetic_seconds': roof.arithmetic, 'memory_seconds': roof.memory,
      'summed_seconds': roof.summed, 'longest_seconds': roof.longest,
      'share_of_peak_summed': share(roof.summed), 'share_of_peak_longest': share(roof.longest),
      'collectives': ', '.join(f'{u["operations"]} {kind}' for kind, u in kinds.items()) or 'none',
      'sent_by_each_bytes': sum(_sent(c, machine.count) for c in work.collectives),
      'unknown_loops': len(work.unknown_loops), 'unknown_calls': dict(work.unknown_calls),
      'by_collective': [{'collective': kind, **u} for kind, u in kinds.items()] or None,
      'by_kind': [_row(kind, those, machine) for kind, those in kernels.together(work.kernels)],
      'largest': [{'kernel': k.name, 'times': k.times, 'flop': k.times * k.flop,
                   'moved_bytes': k.times * k.bytes, 'seconds': _seconds([k], machine),
                   'where': '/'.join(k.source.split('/')[-3:])}
                  for k in sorted(work.kernels, key=lambda k: -_seconds([k], machine))
                  [:_LARGEST_KERNELS]]}


def _seconds(those: Sequence[kernels.Kernel], machine: machines.Machine) -> float:
  return kernels.roofline(those, machine.peak.flop_per_second,
                          machine.peak.bytes_per_second).longest


def _row(kind: str, those: Sequence[kernels.Kernel], machine: machines.Machine) -> dict:
  return {'kind': kind, 'kernels': sum(k.times for k in those if not k.ends),
          'flop': sum(k.times * k.flop for k in those),
          'moved_bytes': sum(k.times * k.bytes for k in those),
          'seconds': _seconds(those, machine)}


def _sent(c: kernels.Collective, devices: int) -> int:
  """Bytes that a device sends for a collective, in a ring of the devices that take part."""
  return c.times * scaling.sent({c.kind: sum(c.sizes)}, c.group or devices)
