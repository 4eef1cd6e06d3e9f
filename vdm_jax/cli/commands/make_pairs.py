"""The flags and the `main` of scripts/make_pairs.py."""
import os

from absl import flags

from vdm_jax import cli, runs
from vdm_jax.cli import drawing

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'The folder of the pairs, as in ./pairs.  The same command resumes it.')
SAMPLER = drawing.sampler(
    'A deterministic sampler, see sample.py --help.', 'The times of the steps, see sample.py '
    "--help.  Default: the sampler's own grid.", 'ddim: its noise.  Pairs need 0.',
    default='adaptive_ode')
COUNT = flags.DEFINE_integer('count', 10_000, 'How many pairs.')
SEED = cli.seed('the noise')
CONDITIONS = drawing.conditions('pairs')
BATCH_SIZE = cli.batch_size(256, 'How many pairs are made at a time.')
AVERAGE = cli.average()
STEP = cli.step()


def main():
  given = cli.values(COUNT, SEED, BATCH_SIZE, AVERAGE, STEP)
  with drawing.by_field(CONDITIONS.condition) as values:
    out = runs.make_pairs(WORKDIR.value, OUT.value, method=SAMPLER.method(),
                          condition=values | cli.values(CONDITIONS.label),
                          guided=CONDITIONS.guided(), **given)
  place = os.path.join('.', out)  # without a leading dot it would name a data set
  cli.wrote(str(out), then=cli.command('train.py', **{
      'config': 'configs/digits/flows.py:reflow', 'config.data.name': place,
      'init_from': WORKDIR.value, 'workdir': 'RUN'}))
