"""The bytes on each device and the work of a config, which is neither trained nor initialised.

The bytes, for each layout and number of devices, are the sum of

    state         the parameters, the averages and the optimiser; under fsdp, only each device's
                  share of the arrays that `parallel.shards` splits
    gradients     the gradients of all parameters; whole, also under fsdp until they are scattered
    gathered      under fsdp, the split parameters, gathered whole as the loss reads them
    activations   the arrays that the backward pass keeps of each image, and all other temporary
                  arrays

State and gathered tensors follow from shapes.  The rest is the compiler's own account of the step
of one device.  The step is compiled for two batches, and is not run: temporary bytes = gradients +
images x activations.  This is the account of the CPU's program, with XLA's own gradients of
convolutions.  Other backends fuse more, and choose algorithms that need workspace.  Under fsdp the
sum is an upper bound, because not all gathered tensors are needed at once.

The work is XLA's count (see `speed`).  The time is the work divided by a share of the stated peak.
"""
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import ml_collections

from vdm_jax import random
from vdm_jax.benchmark import hardware, speed
from vdm_jax.benchmark.timing import say
from vdm_jax.runs import workdir
from vdm_jax.train import parallel
from vdm_jax.typing import PyTree

PUBLISHED = ('cifar10/vdm', 'cifar10/augmented', 'cifar10/augmented:paper', 'imagenet/vdm:32',
             'imagenet/vdm:64', 'mnist/vdm', 'published/ddpm', 'published/adm')
DEVICES = (1, 8, 64, 512)
KINDS = ('NVIDIA H200', 'TPU v4', 'TPU v5p')
UTILISATION = 0.4  # share of the peak
_BATCHES = 4, 8    # compiled; with fewer images gradients and activations share their memory


def published(folder: Path) -> dict[str, tuple[Path, ml_collections.ConfigDict]]:
  """{name: (file, config)} of the configs of published models in `folder`."""
  configs = {}
  for name in PUBLISHED:
    stem, colon, variant = name.partition(':')
    file = folder / f'{stem}.py'
    configs[name] = file, workdir.open_config(f'{file}{colon}{variant}')
  return configs


def bytes_of(tree: PyTree, devices: int = 1) -> int:
  """Bytes of the arrays of `tree` on each device under fsdp; with one device, all bytes."""
  return sum(leaf.size * leaf.dtype.itemsize // parallel.shards(leaf.shape, devices)[1]
             for leaf in jax.tree.leaves(tree))


def gathered_bytes(params: PyTree, devices: int) -> int:
  """Bytes of the parameters that are gathered whole under fsdp."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
             if parallel.shards(leaf.shape, devices)[1] > 1)


def temporary(subject: speed.Subject, images: int) -> int:
  """Bytes of all temporary arrays of a training step with `images` images on one device."""
  layout = parallel.jit_layout(speed.make_update(subject), jax.devices()[:1])
  state = jax.eval_shape(lambda: speed.initial_state(subject))
  lowered = layout.step.lower(
      layout.target(state), speed.batch_shapes(subject, images),
      jax.eval_shape(lambda: random.key(0)))
  # LLVM comes after memory has been assigned.
  return lowered.compile(compiler_options={
      'xla_backend_optimization_level': 0}).memory_analysis().temp_size_in_bytes


def account(name: str, file: str | Path, config: ml_collections.ConfigDict,
            devices: Sequence[int] = DEVICES) -> tuple[dict, list[dict]]:
  """(a row about the config, a row for each number of devices).

  A row for a number of devices has the bytes of everything on each device, replicated (jit, pmap)
  and under fsdp, and the seconds of a step.  They are None if the devices do not divide the batch.
  """
  subject = speed.of_config(file, speed.on_accelerators(config), runs=False)
  say(f'{name}: compiling the step')
  few, many = (temporary(subject, images) for images in _BATCHES)
  activations = (many - few) // (_BATCHES[1] - _BATCHES[0])
  constant = few - _BATCHES[0] * activations
  say(f'{name}: counting the work')
  flop = speed.step_flop(subject)

  params = jax.eval_shape(lambda: speed.initial_params(subject))
  state = jax.eval_shape(lambda: speed.initial_state(subject))
  batch, microbatches = subject.config.data.batch_size, subject.config.train.get('accumulate', 1)
  if microbatches > 1:  # the sum so far, beside the gradients of the next
    constant += bytes_of(params)
  about = {'config': name, 'parameters': sum(math.prod(u.shape) for u in jax.tree.leaves(params)),
           'state_bytes': bytes_of(state), 'gradient_bytes': constant,
           'activation_bytes': activations, 'batch': batch, 'flop_per_step': flop}
  rows = []
  for n in devices:
    fits = batch % (n * microbatches) == 0
    images = batch // (n * microbatches)
    step = constant + images * activations
    shared = bytes_of(state, n)
    rows.append({
        'config': name, 'devices': n, 'images_at_once': images if fits else None,
        'fsdp_state_bytes': shared,
        'replicated_bytes': bytes_of(state) + step if fits else None,
        'fsdp_bytes': shared + gathered_bytes(params, n) + step if fits else None,
        **{f'{kind.split()[-1]}_seconds':
           flop / (n * UTILISATION * hardware.PEAKS[kind].flop_per_second) if fits else None
           for kind in KINDS}})
  return about, rows


def summary(about: Mapping, rows: Sequence[Mapping]) -> dict:
  """A row of text for a config, of an `account`: GiB on each device, and seconds on one device."""
  numbers = lambda values: ', '.join('-' if u is None else f'{u:.3g}' for u in values)
  on = ', '.join(f'{row["devices"]}' for row in rows)
  gib = lambda kind: numbers(u and u / 2**30 for u in (row[f'{kind}_bytes'] for row in rows))
  kinds = [kind.split()[-1] for kind in KINDS]
  return {'config': f'`{about["config"]}` ({about["batch"]:,})', 'parameters': about['parameters'],
          'TFLOP a step': numbers([about['flop_per_step'] / 1e12]),
          f'replicated: on {on} devices': gib('replicated'), f'fsdp: on {on}': gib('fsdp'),
          f'seconds on one {", ".join(kinds)}': numbers(rows[0][f'{kind}_seconds']
                                                        for kind in kinds)}


def memory(configs: Mapping[str, tuple[str | Path, ml_collections.ConfigDict]],
           devices: Sequence[int] = DEVICES) -> dict:
  """`account` of each of {name: (file, config)}: lists of rows, which `report` can show."""
  accounts = [account(name, file, config, devices) for name, (file, config) in configs.items()]
  return {'command': 'memory', 'share_of_peak_assumed': UTILISATION,
          **{f'{kind.split()[-1]}_peak_flop_per_second': hardware.PEAKS[kind].flop_per_second
             for kind in KINDS},
          'compiled_for': jax.default_backend(), 'jax': jax.__version__,
          'summary': [summary(*one) for one in accounts],
          'configs': [about for about, _ in accounts],
          'on_each_device': [row for _, rows in accounts for row in rows]}
