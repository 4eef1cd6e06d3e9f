"""Evaluates a run's likelihood: the ledger on screen, ledger.json, bits.npz and curves.png.

  python scripts/evaluate.py --workdir=runs/digits --split=test --repeats=3 --T=100,1000
"""
import cli
from absl import flags

from vdm_jax import likelihood, runs
from vdm_jax.train import metrics

WORKDIR = flags.DEFINE_string('workdir', None, 'The directory of the run.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'Independent repetitions of all draws.')
TIMES = flags.DEFINE_integer('times', 32, 'Times per image and repetition, evenly spread.')
TIMESTEPS = flags.DEFINE_list('T', [], 'Also the bounds of the chains of so many steps.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 512, 'Evaluations of the network at a time.')
EXAMPLES = flags.DEFINE_integer('examples', None, 'Only the first so many images.')
REPORT = flags.DEFINE_bool('report', False, 'Only print the ledger of the last evaluation.')
DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where TFDS data sets are, if not where they were.')


def main():
  ledger = runs.report(WORKDIR.value) if REPORT.value else runs.evaluate(
      WORKDIR.value, split=SPLIT.value, timesteps=cli.integers('T', TIMESTEPS.value),
      repeats=REPEATS.value, times=TIMES.value, average=AVERAGE.value, step=STEP.value,
      seed=SEED.value, batch_size=BATCH_SIZE.value, examples=EXAMPLES.value,
      data_dir=DATA_DIR.value)
  metrics.show(likelihood.table(ledger))


if __name__ == '__main__':
  cli.run(main, required=['workdir'])
