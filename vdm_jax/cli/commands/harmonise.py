"""The flags and the `main` of scripts/harmonise.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.runs import harmonising
from vdm_jax.samplers import conditioned
from vdm_jax.systems.applications.music import KNOWN
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'The .png file to write: piano rolls of four windows, a row for each row of '
               'the table.')
OVERWRITE = cli.overwrite()
GIVEN = flags.DEFINE_list('given', list(KNOWN), 'What is known of a window: a voice, or the first '
                          f'and the last quarter (ends).  Some of {", ".join(KNOWN)}.')
METHOD = flags.DEFINE_string('method', 'replacement', f'{" or ".join(harmonising.METHODS)}.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
COUNT = flags.DEFINE_integer('count', 100, 'How many windows, evenly spread over the split.')
STEPS = flags.DEFINE_integer('steps', 200, 'Steps of the sampler; repaint walks back and makes '
                             'more.')
SAMPLES = cli.path('samples', 'Also write all windows to this .npz or .mid.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(64, 'How many windows are drawn at a time.')
AVERAGE, STEP, DATA_DIR = cli.average(), cli.step(), cli.data_dir()
MEASURED = cli.measured()
# A method has the fields of its own flags; their defaults stand in vdm_jax.samplers.conditioned.
OF_METHOD = (
    flags.DEFINE_integer('jump', None, 'repaint: steps of a walk back.  Default: 10.'),
    flags.DEFINE_integer('visits', None, 'repaint: how often a level is visited.  Default: 10.'))


def main():
  found = harmonising.harmonise(
      WORKDIR.value, OUT.value, method=conditioned.named(**cli.values(METHOD, *OF_METHOD)),
      **cli.values(GIVEN, SPLIT, COUNT, STEPS, SEED, BATCH_SIZE, SAMPLES, AVERAGE, STEP, DATA_DIR,
                   OVERWRITE))
  metrics.show(harmonising.table(found))
  cli.keep(MEASURED.value, 'Voices that were written to given notes',
           [list(harmonising.COLUMNS), *harmonising.cells(found)])
  cli.wrote(*filter(None, (OUT.value, SAMPLES.value)))
