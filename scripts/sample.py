"""Draws samples from a run.

  python scripts/sample.py --workdir=runs/digits --sampler=ddim --steps=50 --out=samples.png
"""
import cli
import jax
from absl import flags

from vdm_jax import guidance, runs
from vdm_jax.errors import InputError, require
from vdm_jax.samplers import catalogue

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png to look at, or an .npz, resumed where it was left.')
OVERWRITE = cli.overwrite()
SAMPLER = flags.DEFINE_string('sampler', 'ancestral', catalogue.describe())
STEPS = flags.DEFINE_integer('steps', None, 'Steps of the grid; default: 250.')
GRID = flags.DEFINE_string(
    'grid', '', f'{", ".join(catalogue.GRIDS)}; the last five and '
    "iddpm:10,10,5 select from a chain of 1000; or times of your own, 1,0.7,0.3,0 or a .npy file.  "
    "Default: the sampler's own, for most uniform.")
ETA = flags.DEFINE_float('eta', None, 'Of ddim: its noise, from 0 (none) to 1 (that of ancestral).')
TRACE = cli.path('trace', 'Also a .png of the first images on their way.')
COUNT = flags.DEFINE_integer('count', 64, 'How many; image i is the same for any count.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.')
LABEL = flags.DEFINE_integer('label', None, 'The class of all samples; default: all in turn.')
CONDITION = flags.DEFINE_multi_string(
    'condition', [], 'FIELD=TEXT: the value of a field of text that conditions the model; '
    'repeated, the texts in turn.')
GUIDANCE = flags.DEFINE_list(
    'guidance', [], 'W: classifier-free, eps = (1 + W) eps(z, label) - W eps(z); W,LOW,HIGH: where '
    'log-SNR is in [LOW, HIGH], else as it is.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images at a time.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()


def condition() -> dict[str, list[str]]:
  """The texts of --condition by field.  Raises InputError."""
  values = {}
  for one in CONDITION.value:
    field, equals, text = one.partition('=')
    require(field and equals, 'condition', one, 'it is no FIELD=TEXT',
            'write --condition=caption=three')
    values.setdefault(field, []).append(text)
  return values


def main():
  # A run that draws its own samples is to be asked for none by name.
  method = (catalogue.method(SAMPLER.value, STEPS.value, GRID.value, ETA.value)
            if any(flag.present for flag in (SAMPLER, STEPS, GRID, ETA)) else None)
  texts = condition()
  try:
    evaluations = runs.sample(
        WORKDIR.value, OUT.value, method=method, count=COUNT.value, seed=SEED.value,
        label=LABEL.value, average=AVERAGE.value, step=STEP.value, batch_size=BATCH_SIZE.value,
        trace=TRACE.value, guided=guidance.parse(GUIDANCE.value), condition=texts,
        overwrite=OVERWRITE.value, data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '')
  except InputError as error:
    if error.field not in texts:
      raise
    raise InputError(f'condition={error.field}', error.value, error.problem, error.remedy) from None
  if jax.process_index() == 0 and evaluations:
    print(f'{evaluations} evaluations of the network for each image')
  then = cli.command('score_samples.py', samples=OUT.value, reference='digits',
                     features='pixels') if OUT.value.endswith('.npz') else ''
  if evaluations == 0:
    print(f'{OUT.value}: all images were there already')
    if TRACE.value:
      cli.wrote(TRACE.value)
  else:
    cli.wrote(*filter(None, (OUT.value, TRACE.value)), then=then)


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/digits', 'out': 'samples.png'},
          kept='Of an .npz whole batches are kept, and the same command goes on from there; of a '
               '.png nothing is.')
