"""Reads the text of a compiled program (HLO) into computations and instructions.

The text is `jax.stages.Compiled.as_text()`, of the CPU's compiler, the GPU's or the TPU's.  It
lists computations.  A computation lists instructions: a name, the type of the result, the
operation, the names of the operands, and attributes.

    %fusion.3 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%p), kind=kLoop, calls=%fused.3

The layout stands in braces behind a shape.  It orders the dimensions from the fastest to the
slowest.  On TPUs, T(8,128) says that the array is stored in tiles, whose last ones are padded.
S(1) says that the array lies in the memory of the core, and not in the device's main memory.
"""
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ['Array', 'Computation', 'Instruction', 'Program', 'Window', 'arrays', 'parse',
           'trips']

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$')
_ARRAY = re.compile(r'\b(?:(pred)|[a-z]+(\d+)\w*|token|opaque)\[([\d,<=]*)\](?:\{([^{}]*)\})?')
_CALLED = re.compile(r'\b(body|condition|to_apply|calls|true_computation|false_computation)'
                     r'=%?([\w.-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


class Array(NamedTuple):
  """An array of a type."""
  bits: int               # of a number; 0 of a token
  shape: tuple[int, ...]
  space: int = 0          # 0: the device's main memory
  minor_to_major: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()

  @property
  def size(self) -> int:
    """The count of its numbers."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """The bytes of its numbers, without padding."""
    return self.size * self.bits // 8

  @property
  def stored(self) -> int:
    """The bytes that the array takes in memory, with the padding of its tiles."""
    order = self.minor_to_major or tuple(reversed(range(len(self.shape))))
    if not self.tile or len(self.tile) > len(order):
      return self.bytes
    sizes = list(self.shape)
    for dimension, tile in zip(order, reversed(self.tile), strict=False):
      sizes[dimension] = -(-sizes[dimension] // tile) * tile
    return math.prod(sizes) * self.bits // 8


class Window(NamedTuple):
  """The window of a convolution along one dimension."""
  size: int
  stride: int = 1
  low: int = 0            # padding before the first number
  lhs_dilate: int = 1
  rhs_dilate: int = 1


class Instruction(NamedTuple):
  """An instruction of a computation."""
  name: str
  opcode: str
  result: tuple[Array, ...]     # of a tuple, its parts
  operands: tuple[str, ...]     # names; of a parameter its number, of a constant its value
  attributes: str               # the text behind the operands, without the metadata
  source: str = ''              # the operation of the user's program, as JAX names it

  def attribute(self, name: str) -> str | None:
    """The text of an attribute: of name=..., name={...}, name="..." or "name":[...]."""
    found = re.search(rf'(?:\b{name}=|"{name}":)(?:\{{([^}}]*)\}}|\[([^\]]*)\](?!<)|"([^"]*)"|'
                      r'([^,\s]+))', self.attributes)
    return next((u for u in found.groups() if u is not None), None) if found else None

  def numbers(self, name: str) -> tuple[int, ...]:
    """The whole numbers in an attribute."""
    return tuple(map(int, re.findall(r'\d+', self.attribute(name) or '')))

  @property
  def called(self) -> list[tuple[str, str]]:
    """(how, name) of each computation that the instruction calls; how: body, calls, branch, ..."""
    out = []
    for how, one, several in _CALLED.findall(self.attributes):
      out += [(how, one)] if one else [('branch', u) for u in re.findall(r'[\w.-]+', several)]
    return out

  @property
  def windows(self) -> tuple[Window, ...]:
    """The windows of a convolution, one for each spatial dimension."""
    fields = dict(part.split('=', 1) for part in (self.attribute('window') or '').split())
    sizes = [int(u) for u in fields['size'].split('x')] if 'size' in fields else []

    def along(name, default):
      if name not in fields:
        return [default] * len(sizes)
      return [int(u.split('_')[0]) for u in fields[name].split('x')]
    return tuple(map(Window, sizes, along('stride', 1), along('pad', 0), along('lhs_dilate', 1),
                     along('rhs_dilate', 1)))


class Computation(NamedTuple):
  """A list of instructions with one result."""
  name: str
  instructions: Mapping[str, Instruction]
  root: Instruction

  @property
  def parameters(self) -> list[Instruction]:
    """In the order of the operands of a call."""
    found = [u for u in self.instructions.values() if u.opcode == 'parameter']
    return sorted(found, key=lambda u: int(u.operands[0]))


class Program(NamedTuple):
  """All computations by name, and the one that runs."""
  computations: Mapping[str, Computation]
  entry: Computation


@functools.lru_cache(maxsize=4096)
def arrays(types: str) -> tuple[Array, ...]:
  """The arrays of a type; the type of a tuple has several."""
  return tuple(_array(*groups) for groups in _ARRAY.findall(types))


def _array(pred: str, bits: str, shape: str, layout: str) -> Array:
  order, _, rest = layout.partition(':')
  space, tile = re.search(r'S\((\d+)\)', rest), re.search(r'T\(([\d,]+)\)', rest)

  def numbers(text):
    return tuple(int(u) for u in text.split(',') if u)
  return Array(8 if pred else int(bits or 0), numbers(shape.replace('<=', '')),
               int(space[1]) if space else 0, numbers(order), numbers(tile[1]) if tile else ())


def parse(text: str) -> Program:
  """The program of a text.  Raises ValueError if the text has no entry."""
  computations, entry = {}, None
  name, found, root, is_entry = '', {}, None, False
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      is_entry, name, found, root = bool(header[1]), header[2], {}, None
    elif line.startswith('}') and root:
      computations[name] = Computation(name, found, root)
      entry = computations[name] if is_entry else entry
    elif match := _INSTRUCTION.match(line):
      instruction = _instruction(*match.groups()[1:])
      found[instruction.name] = instruction
      root = instruction if match[1] or root is None else root
  if entry is None:
    raise ValueError('the text of the program has no entry')
  return Program(computations, entry)


def trips(program: Program, of: Computation, loop: Instruction) -> int | None:
  """How often a loop in the computation `of` runs; None if the text does not say so.

  The compilers for CPUs and GPUs write the number down.  In a program for TPUs it follows from a
  counter, which begins at a constant, grows by a constant, and stays below a constant.
  """
  if found := _TRIPS.search(loop.attributes):
    return int(found[1])
  called = dict(loop.called)
  condition, body = program.computations[called['condition']], program.computations[called['body']]
  test, start = condition.root, of.instructions[loop.operands[0]]
  if test.opcode != 'compare' or test.attribute('direction') != 'LT' or start.opcode != 'tuple':
    return None
  counter, limit = (_original(condition, name) for name in test.operands)
  if counter.opcode != 'get-tuple-element' or body.root.opcode != 'tuple':
    return None
  place = int(counter.attribute('index') or 0)
  grown = _original(body, body.root.operands[place])
  steps = [_original(body, name) for name in grown.operands] if grown.opcode == 'add' else []
  of_counter = [u for u in steps if u.opcode == 'get-tuple-element'
                and u.attribute('index') == f'{place}']
  numbers = [_original(of, start.operands[place]), limit,
             *[u for u in steps if u.opcode == 'constant']]
  if len(of_counter) != 1 or len(numbers) != 3 or any(u.opcode != 'constant' for u in numbers):
    return None
  first, last, step = (int(u.operands[0]) for u in numbers)
  return max(0, -(-(last - first) // step)) if step > 0 else None


def _original(of: Computation, name: str) -> Instruction:
  """The instruction that a chain of copies begins with."""
  one = of.instructions[name]
  return _original(of, one.operands[0]) if one.opcode in ('copy', 'bitcast') else one


def _instruction(name: str, types: str, opcode: str, rest: str) -> Instruction:
  end, depth = 0, 1
  while end < len(rest) and depth:
    depth += {'(': 1, ')': -1}.get(rest[end], 0)
    end += 1
  source, inside = _OP_NAME.search(rest), rest[:end - 1]
  operands = (inside,) if opcode == 'constant' else tuple(_names(inside))
  return Instruction(name, opcode, arrays(types), operands, _METADATA.sub('', rest[end:]),
                     source[1] if source else '')


def _names(operands: str) -> list[str]:
  """The names in a list of operands.  Some printers write an operand's type before its name."""
  text = re.sub(r'/\*.*?\*/', '', operands)
  if '%' in text:
    return re.findall(r'%([\w.-]+)', text)
  return [u.split()[-1] for u in text.split(',') if u.strip()]
