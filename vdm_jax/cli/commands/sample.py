"""The flags and the `main` of scripts/sample.py."""
import jax
from absl import flags

from vdm_jax import cli, guidance, runs
from vdm_jax.cli import drawing
from vdm_jax.errors import InputError, require
from vdm_jax.samplers import catalogue

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png to look at, or an .npz, which the same command resumes.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(
    catalogue.describe(), f'The times of the steps: {", ".join(catalogue.GRIDS)}.  The last five '
    'and iddpm:10,10,5 select from a chain of 1000.  Or your own times: 1,0.7,0.3,0 or a .npy '
    "file.  Default: the sampler's own grid, mostly uniform.",
    'ddim: its noise, from 0 (none) to 1 (as ancestral).')
TRACE = cli.path('trace', 'Also write a .png that shows the first images on their way from noise.')
COUNT = flags.DEFINE_integer('count', 64, 'How many images.  Image i is the same for any count.')
SEED = cli.seed('the samples')
LABEL = flags.DEFINE_integer('label', None, 'The class of all samples.  Default: all classes in '
                             'turn.')
CONDITION = flags.DEFINE_multi_string(
    'condition', [], 'FIELD=VALUE: the value of a field that conditions the model.  VALUE: a text, '
    'numbers (0.5,1), or x.npz with an array FIELD of rows.  Several values take turns')
GUIDANCE = flags.DEFINE_list(
    'guidance', [], 'W: classifier-free guidance, eps = (1 + W) eps(z, label) - W eps(z).  '
    'W,LOW,HIGH: only where log-SNR is in [LOW, HIGH].')
BATCH_SIZE = cli.batch_size(64)
OF_RUN = cli.of_run()


def main():
  # A run that draws its own samples takes no sampler by name.
  method = SAMPLER.method() if SAMPLER.chosen() else None
  values = _values(CONDITION.value)
  try:
    evaluations = runs.sample(
        WORKDIR.value, OUT.value, method=method, guided=guidance.parse(GUIDANCE.value),
        condition=values,
        **cli.values(OVERWRITE, TRACE, COUNT, SEED, LABEL, BATCH_SIZE, *OF_RUN))
  except InputError as error:
    if error.field not in values:
      raise
    raise InputError(f'condition={error.field}', error.value, error.problem, error.remedy) from None
  if jax.process_index() == 0 and evaluations:
    print(f'{evaluations} evaluations of the network for each image')
  if evaluations == 0:
    print(f'{OUT.value}: all images were there already')
    if TRACE.value:
      cli.wrote(TRACE.value)
    return
  then = (cli.command('score_samples.py', samples=OUT.value, reference='digits', features='pixels')
          if OUT.value.endswith('.npz') else '')
  cli.wrote(*filter(None, (OUT.value, TRACE.value)), then=then)


def _values(words: list[str]) -> dict[str, list[str]]:
  """The values of --condition by field.  Raises InputError."""
  values = {}
  for word in words:
    field, equals, value = word.partition('=')
    require(bool(field and equals), 'condition', word, 'it is not of the form FIELD=VALUE',
            'write --condition=caption=three')
    values.setdefault(field, []).append(value)
  return values
