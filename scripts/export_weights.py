"""Writes the averaged weights of a run as safetensors, with the config beside them.

  python scripts/export_weights.py --workdir=runs/digits --out=digits.safetensors

Writes digits.safetensors, whose names are those of the parameters here joined by '/', and
digits.json, the config, the step and the average.
"""
import cli
from absl import flags

from vdm_jax.weights import exporting

WORKDIR = flags.DEFINE_string('workdir', None, 'The directory of the run.')
OUT = flags.DEFINE_string('out', None, 'The .safetensors to write.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")


def main():
  trained = exporting.export(WORKDIR.value, OUT.value, average=AVERAGE.value, step=STEP.value)
  print(f'{OUT.value}: step {trained.step}, average {trained.average}')


if __name__ == '__main__':
  cli.run(main, required=['workdir', 'out'], alone=True)
