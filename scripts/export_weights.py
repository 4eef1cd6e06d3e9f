"""Writes the averaged weights of a run as safetensors, with the config beside them.

  python scripts/export_weights.py --workdir=runs/digits --out=digits.safetensors

It writes two files.  digits.safetensors has the names of the parameters, joined by '/'.
digits.json has the config, the step and the average.
"""
from pathlib import Path

import bootstrap

from vdm_jax import cli
from vdm_jax.runs import exporting

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'The .safetensors file to write.')
OVERWRITE = cli.overwrite()
AVERAGE, STEP = cli.average(), cli.step()


def main():
  trained = exporting.export(WORKDIR.value, OUT.value, **cli.values(OVERWRITE, AVERAGE, STEP))
  print(f'step {trained.step}, average {trained.average}')
  cli.wrote(OUT.value, Path(OUT.value).with_suffix('.json'))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/digits', 'out': 'digits.safetensors'},
          alone=True)
