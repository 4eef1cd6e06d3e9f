"""The flags and the `main` of scripts/train.py."""
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from vdm_jax import cli, runs
from vdm_jax.errors import require
from vdm_jax.runs import needs, workdir
from vdm_jax.train import metrics

CONFIG = cli.config_flag()
WORKDIR = cli.run_directory('The directory of the run, which is created or resumed.')
DATA_DIR, DATA_NAME = cli.config_data_dir(), cli.moved_data()
SEEDS = flags.DEFINE_list('seeds', [], 'Train one run for each seed, in WORKDIR/seed_N.')
INIT_FROM = cli.run_directory('Start from the weights of the run in this directory.', 'init_from')
EXTEND = flags.DEFINE_bool('extend', False, 'Train longer: the learning rate then falls to 0 at a '
                           'larger --config.optimizer.decay_steps.')
PROFILE = flags.DEFINE_integer('profile', 0, 'How many steps to trace, into WORKDIR/profile.')
FRECHET = flags.DEFINE_string('frechet', '', 'With each picture, record the Fréchet distance of '
                              'samples to the training images, in these features: pixels, '
                              'values (of real numbers), '
                              'classifier:RUN or inception:FILE.')
FRECHET_SAMPLES = flags.DEFINE_integer('frechet_samples', 1000, 'How many samples --frechet draws.')
MEASURED, ROW = cli.measured(), cli.row()
CELLS = ('minutes', 'reached here')  # what --row writes
DEBUG_NANS = flags.DEFINE_bool('debug_nans', False, 'Stop at the operation that makes a NaN.')


def main():
  jax.config.update('jax_debug_nans', DEBUG_NANS.value)
  config, options = cli.config(), cli.values(
      INIT_FROM, EXTEND, PROFILE, FRECHET, FRECHET_SAMPLES)
  cli.check_row(MEASURED.value, ROW.value, CELLS)
  if SEEDS.value:
    require(not MEASURED.value, 'measured', MEASURED.value, 'it is the table of one run, and '
            '--seeds trains several', 'leave one of the two out')
    seeds = cli.integers('seeds', SEEDS.value)
    runs.train_seeds(config, cli.config_file(), WORKDIR.value, seeds, **options)
    directories = [Path(WORKDIR.value, f'seed_{seed}') for seed in seeds]
  else:
    runs.train(config, cli.config_file(), WORKDIR.value, **options)
    directories = [WORKDIR.value]
  if jax.process_index() == 0:  # the others may not see yet what it has written
    _tell(directories)


def _tell(directories: Sequence[str | Path]) -> None:
  """Says where the runs are and what to do with them; writes the tables of --measured."""
  if ROW.value:
    reached = f'{metrics.minutes(WORKDIR.value):.1f}', metrics.reached(WORKDIR.value)
    cli.keep_row(MEASURED.value, ROW.value, dict(zip(CELLS, reached, strict=True)),
                 date=workdir.record(WORKDIR.value)['starts'][0]['date'][:10])
  elif MEASURED.value:
    cli.keep(MEASURED.value, f'Validation of {WORKDIR.value}', metrics.validations(WORKDIR.value))
  made = runs.made(directories[0])
  out = {'sample.py': {'out': 'samples.png' if needs.draws_data(made) else 'samples.npz'}}
  then = [cli.command(script, workdir=directories[0], **out.get(script, {}))
          for script in needs.scripts(made)]
  cli.wrote(*directories, verb='kept in', then=', '.join(then))
  if PROFILE.value:
    print(_of_trace(Path(directories[-1], 'profile')))


def _of_trace(profile: Path) -> str:
  """A line that says where the trace of --profile is, and which programs show it."""
  if traces := sorted(profile.rglob('*.trace.json.gz')):
    return (f'trace: {traces[-1]}; open it in https://ui.perfetto.dev, or `pip install xprof` and '
            f'`xprof --logdir={shlex.quote(str(profile))}`')
  return 'trace: none, since the run had too few steps left'
