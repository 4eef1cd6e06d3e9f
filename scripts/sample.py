"""Draws samples from a run.

  python scripts/sample.py --workdir=runs/digits --sampler=ddim --steps=50 --out=samples.png
"""
import cli
from absl import flags

from vdm_jax import runs

WORKDIR = flags.DEFINE_string('workdir', None, 'The directory of the run.')
OUT = flags.DEFINE_string('out', None, 'A .png to look at, or an .npz, resumed where it was left.')
SAMPLER = flags.DEFINE_string('sampler', 'ancestral', f'One of {", ".join(runs.SAMPLERS)}.')
STEPS = flags.DEFINE_integer('steps', 250, 'Steps, uniform in time.')
COUNT = flags.DEFINE_integer('count', 64, 'How many; image i is the same for any count.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.')
LABEL = flags.DEFINE_integer('label', None, 'The class of all samples; default: all in turn.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images at a time.')


def main():
  runs.sample(WORKDIR.value, OUT.value, sampler=SAMPLER.value, steps=STEPS.value,
              count=COUNT.value, seed=SEED.value, label=LABEL.value, average=AVERAGE.value,
              step=STEP.value, batch_size=BATCH_SIZE.value)
  print(OUT.value)


if __name__ == '__main__':
  cli.run(main, required=['workdir', 'out'])
