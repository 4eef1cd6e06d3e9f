"""Measures a config: its speed, its compilation, its precision, its memory and its scaling.

  python scripts/benchmark.py train --config=configs/cifar10/vdm.py --blocks=4 --features=64
  python scripts/benchmark.py train --config=configs/cifar10/vdm.py --json > train.json
  python scripts/benchmark.py eval --workdir=runs/digits
  python scripts/benchmark.py sample --config=configs/digits/vdm.py --sampler_steps=100
  python scripts/benchmark.py pairs --config=configs/digits/distilled.py:teacher --sampler_steps=20
  python scripts/benchmark.py distillation --config=configs/digits/distilled.py:progressive
  python scripts/benchmark.py codec --config=configs/cifar10/vdm.py --blocks=2 --batch_size=1
  python scripts/benchmark.py data --config=configs/cifar10/vdm.py --data_dir=DIR
  python scripts/benchmark.py compile --config=configs/digits/vdm.py --depths=1,2,4,8
  python scripts/benchmark.py compile --config=configs/cifar10/vdm.py --target=h200
  python scripts/benchmark.py targets --measured=docs/measured/targets.json
  python scripts/benchmark.py precision --workdir=runs/cifar10 --data_dir=DIR
  python scripts/benchmark.py memory [--config=configs/cifar10/vdm.py] [--markdown]
  python scripts/benchmark.py scaling --config=configs/cifar10/vdm.py

`data` and `precision` need the data.  `compile` needs the data for the time to the first step.
With --target it compiles for a machine that need not be here; `targets` fills the table of them.
`memory` (by default for all published configs) and `scaling` compile for the CPU, and run nothing.
"""
import functools

import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import benchmark

flags.adopt_module_key_flags(benchmark)

if __name__ == '__main__':
  cli.run(functools.partial(benchmark.main, bootstrap.ROOT / 'configs'), bootstrap.ROOT,
          arguments=True)
