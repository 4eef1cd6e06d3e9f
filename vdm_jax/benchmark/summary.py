"""The parts of a config's network: parameters, work and activations, block by block.

Nothing is run.  The work is counted in the program of one evaluation of the denoiser, for one
image.

  parameters    the numbers in `params`, by the names there
  FLOP          the operations of convolutions and matrix products; a multiplication and an addition
                are two; products with the zeros around an image are counted too
  activations   the bytes of the results, which training keeps of a block under `remat=dots`

In papers, a GFLOP is often a multiplication with an addition, so their numbers are half of these.
"""
import json
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import rich.box
import rich.table

from vdm_jax import random
from vdm_jax.benchmark import speed
from vdm_jax.typing import PyTree


class Row(NamedTuple):
  """One block: a child of the network, or another part of the parameters."""
  block: str
  parameters: int
  flop: float          # of one evaluation for one image
  activations: int     # bytes


def summary(subject: speed.Subject) -> list[Row]:
  """The blocks in the order of the program.  Blocks that the denoiser does not call come last."""
  params = jax.eval_shape(lambda: speed.initial_params(subject))

  def evaluate(params, z, batch, key):
    m = speed.denoising(subject, params)
    if m.latent is not None:
      m = m.latent(random.per_example(key, jnp.arange(1)))
    return m.denoise(z, m.process(jnp.float32(0.5)), m.cond(batch))

  program = jax.make_jaxpr(evaluate)(
      params, jax.ShapeDtypeStruct((1, *speed.x_shape(subject)), jnp.float32),
      speed.random_batch(subject, 1),
      jax.eval_shape(lambda: random.key(0)))
  counts, products = _parameters(params), list(operations(program.jaxpr))
  owners = _owners([scope for scope, _, _ in products], counts)
  work = {}
  for scope, flop, size in products:
    block = next((name for name in (f'{owners[scope[0]]}/{"".join(scope[1:2])}',
                                    owners[scope[0]]) if name in counts), 'other')
    before = work.get(block, (0.0, 0))
    work[block] = before[0] + flop, before[1] + size
  order = [*work, *(name for name in counts if name not in work)]
  return [Row(name, counts.get(name, 0), *work.get(name, (0.0, 0))) for name in order]


def together(rows: Sequence[Row]) -> Row:
  """The sum of the rows."""
  return Row('together', *(sum(column) for column in list(zip(*rows, strict=True))[1:]))


COLUMNS = ('block', 'parameters', 'GFLOP an image', 'activations, MiB an image')


def figures(rows: Sequence[Row]) -> dict[str, str]:
  """The sums over all blocks as text, by the names of their columns."""
  return dict(zip(COLUMNS[1:], _cells(together(rows))[1:], strict=True))


def table(title: str, rows: Sequence[Row]) -> rich.table.Table:
  """A table with a line for each block, and a line for all blocks together."""
  out = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
  for name in COLUMNS:
    out.add_column(name, justify='left' if name == 'block' else 'right')
  for row in rows:
    out.add_row(*_cells(row), end_section=row is rows[-1])
  out.add_row(*_cells(together(rows)))
  return out


def _cells(row: Row) -> list[str]:
  """The cells of a row.  A block that the denoiser does not call has only parameters."""
  work = [f'{row.flop / 1e9:.4g}', f'{row.activations / 2**20:.3g}'] if row.flop else ['-', '-']
  return [row.block, f'{row.parameters:,}', *work]


def as_json(title: str, rows: Sequence[Row]) -> str:
  """A JSON object with a list of the blocks."""
  return json.dumps({'config': title, 'blocks': [row._asdict() for row in rows],
                     'together': together(rows)._asdict()}, indent=2)


def _parameters(params: PyTree) -> dict[str, int]:
  """{'net/conv_in': count, ...}: parameters by their first two names, or by one if there is one."""
  out = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = [k.key for k in path]
    block = '/'.join(names[:2] if len(names) > 2 else names[:1])
    out[block] = out.get(block, 0) + math.prod(leaf.shape)
  return out


def _owners(scopes: list[tuple[str, ...]], counts: dict[str, int]) -> dict[str, str]:
  """{'UNet': 'net', ...}: the part of the parameters that belongs to a module.

  The module is the first name of a scope.  A program knows a module by its class, and the module's
  children by their names.  The part with the most of these names is the module's own.
  """
  children = {}
  for module, *rest in scopes:
    children.setdefault(module, set()).update(rest[:1])
  parts = {}
  for name in counts:
    part, _, child = name.partition('/')
    parts.setdefault(part, set()).add(child)
  return {module: max(parts, key=lambda part: len(parts[part] & names))
          for module, names in children.items()}


def operations(jaxpr, scope: tuple[str, ...] = (), times: int = 1
               ) -> Iterator[tuple[tuple[str, ...], float, int]]:
  """(names of its scope, FLOP, bytes of the result) of each product in a program, loops included.

  A product outside of all modules has the scope ('',).  The body of a loop counts as often as it
  runs.  The body of a loop of unknown length counts once.
  """
  for eqn in jaxpr.eqns:
    names = (*scope, *filter(None, str(eqn.source_info.name_stack).split('/')))
    kind = eqn.primitive.name
    if kind in ('dot_general', 'conv_general_dilated'):
      result = eqn.outvars[0].aval
      yield (names or ('',), 2.0 * times * result.size * _terms(eqn),
             times * result.size * result.dtype.itemsize)
      continue
    inner = times * (eqn.params['length'] if kind == 'scan' else 1)
    for value in eqn.params.values():
      for part in value if isinstance(value, (tuple, list)) else (value,):
        part = getattr(part, 'jaxpr', part)  # of a closed one
        if hasattr(part, 'eqns'):
          yield from operations(part, names, inner)


def _terms(eqn) -> int:
  """The number of products that are added for one number of the result."""
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    return math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
  kernel = eqn.invars[1].aval.shape
  spec = eqn.params['dimension_numbers'].rhs_spec  # (out, in, *window)
  return math.prod(kernel[axis] for axis in spec[1:])
