"""Writes the averaged weights of a run as safetensors, with the config beside them.

  python scripts/export_weights.py --workdir=runs/digits --out=digits.safetensors

Writes digits.safetensors, whose names are those of the parameters here joined by '/', and
digits.json, the config, the step and the average.
"""
from pathlib import Path

import cli
from absl import flags

from vdm_jax.runs import exporting

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'The .safetensors to write.')
OVERWRITE = cli.overwrite()
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")


def main():
  trained = exporting.export(WORKDIR.value, OUT.value, average=AVERAGE.value, step=STEP.value,
                             overwrite=OVERWRITE.value)
  print(f'step {trained.step}, average {trained.average}')
  cli.wrote(OUT.value, Path(OUT.value).with_suffix('.json'))


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/digits', 'out': 'digits.safetensors'}, alone=True)
