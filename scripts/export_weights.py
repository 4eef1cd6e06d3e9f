"""Writes the averaged weights of a run as safetensors, with the config beside them.

  python scripts/export_weights.py --workdir=runs/digits --out=digits.safetensors

Writes digits.safetensors, whose names are those of the parameters here joined by '/', and
digits.json, the config, the step and the average.
"""
from pathlib import Path

import bootstrap

from vdm_jax import cli
from vdm_jax.runs import exporting

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'The .safetensors to write.')
OVERWRITE = cli.overwrite()
AVERAGE, STEP = cli.average(), cli.step()


def main():
  trained = exporting.export(WORKDIR.value, OUT.value, **cli.values(OVERWRITE, AVERAGE, STEP))
  print(f'step {trained.step}, average {trained.average}')
  cli.wrote(OUT.value, Path(OUT.value).with_suffix('.json'))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/digits', 'out': 'digits.safetensors'},
          alone=True)
