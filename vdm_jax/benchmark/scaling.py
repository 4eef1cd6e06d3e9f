"""The bytes that devices send each other in a training step: counted in the program, and foretold.

In weak scaling, every device has the same number of images, however many devices there are.  Then
the time of computing does not grow with the devices, and only communication grows.  With P the
bytes of all parameters, and S the bytes of the sharded parameters, a step needs

    jit, pmap   an all-reduce of P, which sums the gradients
    fsdp        an all-gather of S, which gathers the parameters for the loss; then a reduce-scatter
                of S and an all-reduce of the rest, which sum the gradients so that each device
                keeps its share (or an all-reduce of P on the CPU, where XLA has no such pass)

and a few numbers of the metrics.  In a ring of n devices, each device sends 2 (n - 1)/n of the
bytes that an all-reduce reduces.  It sends (n - 1)/n of the bytes gathered or scattered (Patarasuk
and Yuan 2009).  So the bytes sent tend to a constant: 2 P, or 3 S in all.

The programs are compiled for simulated devices, n threads of a CPU.  XLA's own partitioner splits
the programs, as on all backends, except for the fusion of collectives.  Nothing is run or timed.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import ml_collections

from vdm_jax import random
from vdm_jax.benchmark import kernels, speed
from vdm_jax.benchmark.timing import say
from vdm_jax.errors import InputError
from vdm_jax.train import loop, parallel
from vdm_jax.typing import PyTree

DEVICES = (1, 2, 4, 8)

# ------------------------------------------------------------------ foretold


def _bytes(leaf) -> int:
  return leaf.size * leaf.dtype.itemsize


def expected(layout: str, params: PyTree, devices: int, scatters: bool = False) -> dict[str, int]:
  """{kind: bytes} of the tensors that a step sends, by the account above.

  params: shapes.  scatters: whether the backend sums and scatters in one operation.  If `devices`
  does not divide a parameter, the parameter is cut into fewer parts (`parallel.shards`).  Several
  devices then hold the same part, and sum its gradients among themselves.
  """
  if devices == 1 and layout != 'pmap':  # whose program of one device reduces all the same
    return {}
  leaves = [leaf for leaf in jax.tree.leaves(params) if _bytes(leaf) > kernels.SCALAR]
  if layout != 'fsdp':
    return {'all-reduce': sum(map(_bytes, leaves))}
  sharded = {i: parts for i, leaf in enumerate(leaves)
             if (parts := parallel.shards(leaf.shape, devices)[1]) > 1}
  gathered = sum(_bytes(leaves[i]) for i in sharded)
  if not scatters:
    return {'all-reduce': sum(map(_bytes, leaves)), 'all-gather': gathered}
  whole = sum(_bytes(leaf) for i, leaf in enumerate(leaves) if i not in sharded)
  partly = sum(_bytes(leaves[i]) // parts for i, parts in sharded.items() if parts < devices)
  return {'all-reduce': whole + partly, 'all-gather': gathered, 'reduce-scatter': gathered}


def sent(tensors: Mapping[str, int], devices: int) -> int:
  """Bytes that each device of a ring sends; tensors: {kind: bytes}."""
  share = {'all-reduce': 2 * (devices - 1) / devices, 'collective-permute': 1.0}
  return round(sum(size * share.get(kind, (devices - 1) / devices)
                   for kind, size in tensors.items()))


# ------------------------------------------------------------------- rehearsed


def simulate(devices: int) -> None:
  """Makes the CPU show as `devices` devices in this process.  Call it before JAX is used."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)


def lowered(subject: speed.Subject, layout: str, devices: Sequence[jax.Device], batch: int,
            accumulate: int = 1) -> jax.stages.Lowered:
  """A training step with `batch` images on each device, before XLA compiles it."""
  n = len(devices)
  chosen = loop.LAYOUTS[layout](speed.make_update(subject, accumulate), devices)
  shape = lambda u, *first: jax.ShapeDtypeStruct((*first, *u.shape), u.dtype)
  state = jax.eval_shape(lambda: speed.initial_state(subject))
  if layout == 'pmap':  # each device's, one after another
    state = jax.tree.map(lambda u: shape(u, n), state)
    rows = jax.tree.map(lambda u: shape(u, n), speed.batch_shapes(subject, batch))
  else:
    state, rows = chosen.target(state), speed.batch_shapes(subject, n * batch)
  return chosen.step.lower(state, rows, jax.eval_shape(lambda: random.key(0)))


def program(subject: speed.Subject, layout: str, devices: Sequence[jax.Device], batch: int) -> str:
  """The compiled HLO of a training step with `batch` images on each device."""
  # LLVM has nothing to do with what the devices send.
  return lowered(subject, layout, devices, batch).compile(
      compiler_options={'xla_backend_optimization_level': 0}).as_text()


def rehearse(subject: speed.Subject, devices: Sequence[int] = DEVICES, batch: int = 2
             ) -> list[dict]:
  """A row for each layout and number of devices: the bytes sent in a step, and the bytes foretold.

  batch: the images on each device.  Bytes count tensors only; `scalars` counts the single numbers.
  """
  params = jax.eval_shape(lambda: speed.initial_params(subject))
  rows = []
  for layout in loop.LAYOUTS:
    for n in devices:
      say(f'compiling the step: {layout} on {n} simulated devices')
      text = program(subject, layout, jax.devices()[:n], batch)
      kinds = kernels.by_kind(kernels.collectives(text))
      tensors = {kind: u['bytes'] for kind, u in kinds.items() if u['bytes']}
      foretold = expected(layout, params, n, 'reduce-scatter' in tensors)
      rows.append({'layout': layout, 'devices': n,
                   'operations': sum(u['operations'] for u in kinds.values()),
                   'scalars': sum(u['scalars'] for u in kinds.values()), **_columns(tensors),
                   'foretold_bytes': sum(foretold.values()), 'as_foretold': tensors == foretold,
                   'sent_by_each_bytes': sent(tensors, n)})
  return rows


def foretell(subject: speed.Subject, devices: Sequence[int]) -> list[dict]:
  """A row for each layout and number of devices: the bytes foretold with a reduce-scatter."""
  params = jax.eval_shape(lambda: speed.initial_params(subject))
  rows = []
  for layout in loop.LAYOUTS:
    for n in devices:
      tensors = expected(layout, params, n, scatters=True)
      rows.append({'layout': layout, 'devices': n, **_columns(tensors),
                   'sent_by_each_bytes': sent(tensors, n)})
  return rows


def _columns(tensors: Mapping[str, int]) -> dict[str, int]:
  named, others = kernels.COLLECTIVES[:3], kernels.COLLECTIVES[3:]
  return {**{f'{kind.replace("-", "_")}_bytes': tensors.get(kind, 0) for kind in named},
          'other_bytes': sum(tensors.get(kind, 0) for kind in others)}


def scaling(file: str | Path, config: ml_collections.ConfigDict, *, blocks: int | None = None,
            features: int | None = None, batch_size: int = 2) -> dict:
  """The bytes that a step sends on 1, 2, 4 and 8 simulated devices, and on 512 as foretold.

  Args:
    blocks, features: the size of the network that is compiled.  Default: 4 and 64, or the config's
      numbers if smaller.  For the config's own network, the bytes are only foretold.
    batch_size: the images on each device.

  Raises InputError.
  """
  # `winograd` sums the transform of a gradient, 16 numbers for 9.
  config = speed.on_accelerators(config)
  if 'blocks' not in config.model:
    raise InputError('config', f'{file}', 'its network is a published one, which cannot be made '
                     'smaller for the rehearsal', 'take a config of VDM')
  small = speed.of_config(
      file, config, blocks=min(config.model.blocks, 4) if blocks is None else blocks,
      features=min(config.model.features, 64) if features is None else features)
  m = small.config.model
  return {'command': 'scaling', 'config': str(file), 'blocks': m.blocks, 'features': m.features,
          'images_on_each_device': batch_size, 'jax': jax.__version__,
          'rehearsed': rehearse(small, batch=batch_size),
          'foretold_of_the_same': foretell(small, [512]),
          'foretold_of_the_config': foretell(speed.of_config(file, config), [8, 64, 512])}
