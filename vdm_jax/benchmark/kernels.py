"""The work of a compiled program: its kernels, their FLOP and bytes, and its collectives.

A kernel is an instruction of the program that runs by itself: a fusion, a convolution, a copy.
Instructions that only name memory (tuples, bitcasts) are no kernels.  A kernel in a loop counts as
often as the loop runs.  Both branches of a condition count.

  FLOP    of convolutions and matrix products: a multiplication and an addition are two.  Products
          with the zeros around an image, or with zeros between numbers, do not count.
  bytes   that a kernel reads from the device's main memory and writes to it: its operands and
          results.  A fusion reads its parameters and writes its results, and nothing between.
          Where a kernel reads or writes only a slice of an array, the slice counts.

So the bytes assume that no kernel finds its operands in a cache, and reads none of them twice.
"""
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.benchmark import hlo

SCALAR = 4  # bytes: what is no larger belongs to the metrics, or is a parameter of the schedule
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')

# What moves nothing: it names memory, or the work is inside of what it calls.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'domain',
         'opt-barrier', 'partition-id', 'replica-id', 'add-dependency', 'async-update',
         'call-done'}
_FREE_CALLS = {'AllocateBuffer', 'ConcatBitcast', 'Sharding', 'AssumeGatherIndicesInBound',
               'AsyncCollectiveStart', 'AsyncCollectiveDone'}
_LOOPS = {'while', 'conditional', 'call', 'call-start'}
# What reads all of an operand for any part of its result.
_WHOLE = {'dot', 'convolution', 'reduce', 'reduce-window', 'sort', 'custom-call', 'fft', 'scatter',
          'select-and-scatter', 'cholesky', 'triangular-solve', 'fusion', 'call', 'while',
          'conditional'}
_RENAMING = {'bitcast', 'reshape'}  # inside of a fusion


# A collective: its kind, the bytes of its tensors, the devices in a group, its channel.
_Found = tuple[str, tuple[int, ...], int, str | None]


class Kernel(NamedTuple):
  """An instruction that runs."""
  name: str
  kind: str       # 'product', 'collective', or the operation
  times: int      # it runs in a step
  flop: float     # of one time
  bytes: int      # of one time
  source: str     # as JAX names it
  ends: bool = False  # the end of a pair that runs beside other work


class Collective(NamedTuple):
  """An operation between the devices."""
  kind: str
  sizes: tuple[int, ...]  # bytes of each of its tensors: the whole one, not a device's part
  times: int              # it runs in a step
  group: int = 0          # devices that take part together; 0: all
  unknown: str = ''       # the computation that has it, in a loop of unknown length; '': none


class Work(NamedTuple):
  """All that a program does in a step, on one device."""
  kernels: tuple[Kernel, ...]
  collectives: tuple[Collective, ...]
  unknown_loops: tuple[str, ...]    # loops of a length that the text does not say; they count once
  unknown_calls: Mapping[str, int]  # calls of a library, whose FLOP are not known: {name: count}

  @property
  def launches(self) -> int:
    """The number of kernels that start; the two ends of a pair are one kernel."""
    return sum(k.times for k in self.kernels if not k.ends)

  @property
  def flop(self) -> float:
    return sum(k.times * k.flop for k in self.kernels)

  @property
  def bytes(self) -> int:
    return sum(k.times * k.bytes for k in self.kernels)


def work(program: hlo.Program) -> Work:
  """What a program does in one run."""
  kernels, collectives, fused, loops, calls = [], [], {}, [], {}

  def visit(c: hlo.Computation, times: int, known: bool = True) -> None:
    for one in c.instructions.values():
      if (found := _collective(program, c, one)) is not None:
        kind, sizes, group, channel = found
        own = Collective(kind, sizes, times, group, '' if known else c.name)
        if one.opcode != 'fusion' or channel is None:
          collectives.append(own)
        # On TPUs, several fusions make one collective beside their own work.  Some of them may be
        # in a loop through which it runs.
        elif channel not in fused or times < fused[channel].times:
          fused[channel] = own
      if one.opcode in _LOOPS:
        inside, long = times, known
        if one.opcode == 'while':
          trips = hlo.trips(program, c, one)
          inside *= 1 if trips is None else trips
          if trips is None:
            long = False
            loops.append(one.name)
        for how, name in one.called:
          if how != 'condition':
            visit(program.computations[name], inside, long)
      elif not _is_free(one):
        flop, unknown = _flop(program, c, one)
        for name in unknown:
          calls[name] = calls.get(name, 0) + times
        kernels.append(Kernel(one.name, _kind(program, one, flop, found is not None), times, flop,
                              _bytes(program, c, one), one.source,
                              one.opcode.endswith('-done')))

  visit(program.entry, 1)
  return Work(tuple(kernels), (*collectives, *fused.values()), tuple(loops), calls)


def _is_free(one: hlo.Instruction) -> bool:
  return one.opcode in _FREE or (
      one.opcode == 'custom-call' and one.attribute('custom_call_target') in _FREE_CALLS)


def _kind(program: hlo.Program, one: hlo.Instruction, flop: float, is_collective: bool) -> str:
  plain = re.sub(r'-(start|done)$', '', one.opcode)
  if flop:
    return 'product'
  if is_collective or plain in COLLECTIVES or _wrapped(program, one) is not None:
    return 'collective'
  return plain


# ----------------------------------------------------------------- collectives


def _collective(program: hlo.Program, c: hlo.Computation, one: hlo.Instruction
                ) -> _Found | None:
  """The collective of an instruction, which is the end of a pair if there is a pair."""
  if one.opcode in ('fusion', 'async-done'):
    start = c.instructions[one.operands[0]] if one.opcode == 'async-done' else one
    return _wrapped(program, start)
  kind = one.opcode.removesuffix('-done')
  if kind not in COLLECTIVES:
    return None
  start = c.instructions[one.operands[0]] if one.opcode.endswith('-done') else one
  # Of a reduce-scatter, the result is a device's part.
  tensors = one.result
  if kind == 'reduce-scatter':
    tensors = [u for name in start.operands for u in c.instructions[name].result]
  return kind, tuple(u.bytes for u in tensors), _group(start), start.attribute('channel_id')


def _wrapped(program: hlo.Program, one: hlo.Instruction) -> _Found | None:
  """`_collective` of the first collective that an instruction calls."""
  for inside in [program.computations[name] for how, name in one.called if how == 'calls']:
    for inner in inside.instructions.values():
      if (found := _collective(program, inside, inner)) is not None:
        # A TPU's reduce-scatter is a fused sum, of which a device keeps its slice.
        sliced = any(u.opcode == 'dynamic-slice' and inner.name in u.operands[:1]
                     for u in inside.instructions.values())
        return ('reduce-scatter', *found[1:]) if found[0] == 'all-reduce' and sliced else found
  return None


def collectives(text: str) -> list[Collective]:
  """All collectives of the text of a compiled program.

  Raises ValueError if a collective is in a loop of unknown length.
  """
  found = list(work(hlo.parse(text)).collectives)
  if unknown := [c for c in found if c.unknown]:
    raise ValueError(f'{unknown[0].kind} in a loop of unknown length: {unknown[0].unknown}')
  return found


def _group(one: hlo.Instruction) -> int:
  """The number of devices that take part together; 0 if it is not said."""
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', one.attributes):
    return int(found[2])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', one.attributes):
    return len(found[1].split(','))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", one.attributes):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    # A part of an axis is written with its size, 'axis':(1)2.
    return math.prod(int(part or sizes[name]) for name, part in
                     re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2]))
  return 0


def by_kind(seen: Sequence[Collective]) -> dict[str, dict[str, int]]:
  """{kind: {'operations', 'bytes', 'scalars'}}: the bytes of tensors, and the count of scalars."""
  out = {}
  for kind in COLLECTIVES:
    those = [c for c in seen if c.kind == kind]
    if those:
      out[kind] = {
          'operations': sum(c.times for c in those),
          'bytes': sum(c.times * sum(s for s in c.sizes if s > SCALAR) for c in those),
          'scalars': sum(c.times * sum(s <= SCALAR for s in c.sizes) for c in those)}
  return out


# ----------------------------------------------------------------------- bytes


def _stored(of: Sequence[hlo.Array]) -> int:
  return sum(u.stored for u in of if u.space == 0)


def _bytes(program: hlo.Program, c: hlo.Computation, one: hlo.Instruction) -> int:
  """Bytes that the instruction moves between the main memory and the device's cores."""
  operands = [c.instructions[name].result for name in dict.fromkeys(one.operands)]
  if one.opcode in ('slice-start', 'dynamic-slice-start'):  # its result has operand and slice
    return _part(operands[0], one.result[1:2])
  if one.opcode == 'dynamic-update-slice-start':  # the rest is updated in place
    return _stored(operands[1])
  if one.opcode == 'dynamic-update-slice-done':
    start = c.instructions[one.operands[0]]
    return _part(one.result, c.instructions[start.operands[1]].result)
  if one.opcode.endswith('-start'):    # the end of the pair writes
    return sum(map(_stored, operands))
  if one.opcode.endswith('-done'):
    return _stored(one.result)
  if one.opcode == 'fusion':
    operands = [c.instructions[name].result for name in one.operands]
    inside = program.computations[dict(one.called)['calls']]
    return _fused_bytes(inside, operands, one.result)
  if one.opcode in ('dynamic-slice', 'slice'):
    return _part(operands[0], one.result) + _stored(one.result)
  if one.opcode == 'dynamic-update-slice':
    return _stored(operands[1]) + _part(operands[0], operands[1])
  if one.opcode == 'gather':
    return _part(operands[0], one.result) + sum(map(_stored, operands[1:])) + _stored(one.result)
  if one.opcode == 'scatter':
    updates = c.instructions[one.operands[-1]].result
    return sum(map(_stored, operands[1:])) + 2 * _part(operands[0], updates)
  return sum(map(_stored, operands)) + _stored(one.result)


def _part(whole: Sequence[hlo.Array], part: Sequence[hlo.Array]) -> int:
  """The bytes of a part of an array, with the padding of the whole."""
  return round(_stored(whole) * sum(u.size for u in part) / max(1, sum(u.size for u in whole)))


def _fused_bytes(c: hlo.Computation, operands: Sequence[Sequence[hlo.Array]],
                 result: Sequence[hlo.Array]) -> int:
  """Bytes that a fusion reads and writes; c: what is fused."""
  share = lambda of, part: round(_stored(of) * part / max(1, sum(u.size for u in of)))
  reads = _Reads(c)
  read = sum(share(own, reads.of[parameter.name])
             for parameter, own in zip(c.parameters, operands, strict=False))
  written = 0
  for name, own in zip(reads.outputs, result, strict=False):
    updated = reads.updated(name)
    written += share([own], own.size if updated is None else updated)
  return read + written


class _Reads:
  """How many numbers of each value in a fusion are read.

  A fusion computes only the numbers that its results need.  So behind a slice, only the slice is
  read of all values that one number at a time depends on.
  """

  def __init__(self, c: hlo.Computation):
    self.c = c
    self.outputs = list(c.root.operands) if c.root.opcode == 'tuple' else [c.root.name]
    self.users: dict[str, list[tuple[hlo.Instruction, int]]] = {}
    for one in c.instructions.values():
      if one.opcode not in ('parameter', 'constant'):
        for place, name in enumerate(one.operands):
          self.users.setdefault(name, []).append((one, place))
    self.in_place = {u for name in self.outputs for u in self._updates(name) or []}
    self.of: dict[str, int] = {}
    for name in reversed(list(c.instructions)):  # users stand behind their operands
      self.of[name] = self._of(name)

  def size(self, name: str) -> int:
    return sum(u.size for u in self.c.instructions[name].result)

  def _renamed(self, name: str) -> hlo.Instruction:
    one = self.c.instructions[name]
    return self._renamed(one.operands[0]) if one.opcode in _RENAMING else one

  def _updates(self, name: str) -> list[str] | None:
    """The updates that make an output from a parameter in place; None: it is made anew."""
    one = self._renamed(name)
    if one.opcode == 'parameter':
      return []
    if one.opcode not in ('dynamic-update-slice', 'scatter'):
      return None
    before = self._updates(one.operands[0])
    return None if before is None else [*before, one.name]

  def updated(self, name: str) -> int | None:
    """How many numbers of an output are written; None: all."""
    return sum(self._update_size(self.c.instructions[u]) for u in self._updates(name) or []) or None

  def _update_size(self, one: hlo.Instruction) -> int:
    place = 1 if one.opcode == 'dynamic-update-slice' else -1
    return self.size(one.operands[place])

  def _of(self, name: str) -> int:
    size, total = self.size(name), 0
    if name in self.outputs and name not in self.in_place:
      total += size
    for user, place in self.users.get(name, []):
      total += self._by(user, place, size)
    return min(total, size)

  def _by(self, user: hlo.Instruction, place: int, size: int) -> int:
    """Numbers of an operand, which has `size`, that a user of it reads."""
    if user is self.c.root and user.opcode == 'tuple':
      return 0
    if user.name in self.in_place:
      # A scatter adds to what is there; a slice that is overwritten is not read.
      own = self._update_size(user)
      return {0: own if user.opcode == 'scatter' else 0}.get(place, min(size, own))
    needed = self.of[user.name]
    if user.opcode in _WHOLE:
      return size if needed else 0
    return min(needed, size)


# ------------------------------------------------------------------------ FLOP


def _flop(program: hlo.Program, c: hlo.Computation, one: hlo.Instruction
          ) -> tuple[float, list[str]]:
  """(FLOP of the products in an instruction, calls of a library whose FLOP are not known)."""
  shape = lambda name: c.instructions[name].result[0].shape
  if one.opcode == 'dot':
    return _matmul(one.result[0].size, shape(one.operands[0]),
                   one.numbers('lhs_contracting_dims')), []
  if one.opcode == 'convolution':
    return _convolution(one, shape(one.operands[0]), one.result[0].shape), []
  if one.opcode in ('custom-call', 'custom-call-start'):
    return _library(c, one)
  if one.opcode.endswith('-done'):  # whose beginning has counted
    return 0.0, []
  total, unknown = 0.0, []
  for how, name in one.called:
    if how == 'calls' and name in program.computations:
      inside = program.computations[name]
      for inner in inside.instructions.values():
        flop, calls = _flop(program, inside, inner)
        total, unknown = total + flop, [*unknown, *calls]
  return total, unknown


def _matmul(results: int, lhs: Sequence[int], contracted: Sequence[int]) -> float:
  return 2.0 * results * float(np.prod([lhs[i] for i in contracted], dtype=float))


def _library(c: hlo.Computation, one: hlo.Instruction) -> tuple[float, list[str]]:
  """`_flop` of a call of NVIDIA's libraries."""
  target = one.attribute('custom_call_target') or ''
  if target in _FREE_CALLS:
    return 0.0, []
  shape = lambda name: c.instructions[name].result[0].shape
  first, *others = one.operands or ('',)
  result = one.result[0].shape if one.result else ()
  if target.startswith('__cublas'):
    return _matmul(one.result[0].size, shape(first),
                   one.numbers('lhs_contracting_dimensions')), []
  if target.startswith('__cudnn$conv'):
    x, y = shape(first), result
    if target == '__cudnn$convBackwardInput':     # dy, kernel -> dx
      x, y = result, shape(first)
    elif target == '__cudnn$convBackwardFilter':  # x, dy -> the kernel's gradient
      y = shape(others[0])
    return _convolution(one, x, y), []
  return 0.0, [target]


def _convolution(one: hlo.Instruction, x: Sequence[int], y: Sequence[int]) -> float:
  """FLOP of a convolution from one shape to another, without products with zeros."""
  left, _, result = re.split(r'_|->', one.attribute('dim_labels') or '')
  group = one.numbers('feature_group_count') or (1,)
  batches = one.numbers('batch_group_count') or (1,)
  total = 2.0 * (x[left.index('f')] // group[0]) * y[result.index('f')] * (
      x[left.index('b')] // batches[0])
  for i, window in enumerate(one.windows):
    total *= _taps(x[left.index(str(i))], y[result.index(str(i))], window)
  return total


@functools.cache
def _taps(numbers: int, results: int, window: hlo.Window) -> int:
  """How many pairs (result, number) a window makes along a dimension."""
  at = (np.arange(results)[:, None] * window.stride - window.low
        + np.arange(window.size)[None, :] * window.rhs_dilate)
  inside = (at >= 0) & (at % window.lhs_dilate == 0) & (at // window.lhs_dilate < numbers)
  return int(inside.sum())


# -------------------------------------------------------------------- rooflines


class Roofline(NamedTuple):
  """Seconds of a step if nothing but arithmetic and the main memory took time."""
  arithmetic: float    # all FLOP at the peak
  memory: float        # all bytes at the bandwidth
  longest: float       # the sum over the kernels of the longer of the two

  @property
  def summed(self) -> float:
    """As if arithmetic and memory never overlapped."""
    return self.arithmetic + self.memory


def roofline(kernels: Sequence[Kernel], flop_per_second: float, bytes_per_second: float
             ) -> Roofline:
  """The times of the kernels at these rates (Williams, Waterman and Patterson 2009)."""
  arithmetic = [k.times * k.flop / flop_per_second for k in kernels]
  memory = [k.times * k.bytes / bytes_per_second for k in kernels]
  return Roofline(sum(arithmetic), sum(memory), sum(map(max, arithmetic, memory)))


def together(kernels: Sequence[Kernel]) -> Iterator[tuple[str, list[Kernel]]]:
  """The kernels of each kind, the kind that moves most bytes first."""
  kinds: dict[str, list[Kernel]] = {}
  for k in kernels:
    kinds.setdefault(k.kind, []).append(k)
  yield from sorted(kinds.items(), key=lambda of: -sum(k.times * k.bytes for k in of[1]))
