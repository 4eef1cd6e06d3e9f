"""The flags and the `main` of scripts/plan.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.runs import planning

WORKDIR = cli.run_directory()
ENV = flags.DEFINE_string('env', 'Pendulum-v1', "An environment of gymnasium's with real "
                          "observations and actions: that of the run's episodes.")
EPISODES = flags.DEFINE_integer('episodes', 50, 'Episodes for each return.')
FIRST_SEED = flags.DEFINE_integer('first_seed', 90_000, 'Episode i is reset with this seed + i.')
ASKED = flags.DEFINE_list('returns', [], 'Returns to reach, discounted as in training, such as '
                          '-300,-200,-100.  Default: the largest of training.')
GUIDANCE = flags.DEFINE_float('guidance', None, 'Classifier-free guidance; the paper of Ajay et '
                              'al. calls 1 more the guidance.  0: none.  Default: of the config.')
TEMPERATURE = flags.DEFINE_float('temperature', None, 'A factor of the noise of plans.  Default: '
                                 'of the config.')
OUT = cli.path('out', 'A .json file; a .png is written beside it.  Default: plans.json in the '
               'workdir.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.  Default: the sampler of the model.'])
SEED = cli.seed('the plans')
BATCH_SIZE = cli.batch_size(50, 'Episodes that plan together.')
AVERAGE, STEP = cli.average(), cli.step()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, planning.NAMES)
  found, wrote = planning.plan(
      WORKDIR.value, OUT.value or '', asked=cli.numbers('returns', ASKED.value),
      method=SAMPLER.method() if SAMPLER.chosen() else None,
      **cli.values(ENV, EPISODES, FIRST_SEED, GUIDANCE, TEMPERATURE, SEED, BATCH_SIZE, AVERAGE,
                   STEP, OVERWRITE))
  for one in found:
    print(f'asked {one.asked:.4g}: {one.mean.value:.1f} +- {one.mean.error:.1f}, '
          f'{len(one.returns)} episodes; from a row on, discounted: {one.reached.value:.1f} +- '
          f'{one.reached.error:.1f}; {one.milliseconds:.0f} ms a step')
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, planning.figures(found))
  cli.wrote(*wrote)
