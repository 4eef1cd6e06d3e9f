"""The flags and the `main` of scripts/edit.py."""
import jax
from absl import flags

from vdm_jax import cli
from vdm_jax.editing import methods
from vdm_jax.errors import InputError, require
from vdm_jax.runs import editing

WORKDIR = cli.run_directory('The directory of a run whose model is conditioned on text.')
OUT = cli.path('out', 'The .png file to write: source, mask and edit side by side.')
OVERWRITE = cli.overwrite()
IMAGE = flags.DEFINE_string('image', '', "A picture of the model's size, or an image of the data, "
                            'data:SPLIT:INDEX (data:test:0).  Without it, prompt_to_prompt draws '
                            'its source.')
SOURCE = flags.DEFINE_string('source', '', 'The text of the image.  Default: its caption in the '
                             'data.')
TARGET = flags.DEFINE_string('target', None, 'The text that the edit should show.')
METHOD = flags.DEFINE_string('method', None, f'One of {", ".join(methods.METHODS)}.')
MASK = cli.path('mask', 'inpaint: a picture that is white where the image may change.')
GUIDANCE = flags.DEFINE_float('guidance', 2.0, 'The weight of classifier-free guidance; 0: none.')
STEPS = flags.DEFINE_integer('steps', 50, 'Steps down from the noise that the method adds.')
COUNT = flags.DEFINE_integer('count', 1, 'How many edits, each with noise of its own.')
SEED = cli.seed('the noise')
BATCH_SIZE = cli.batch_size(16, 'How many edits are made at a time.')
JUDGE = flags.DEFINE_bool('judge', None, 'Whether the judge of shapes says what the edits show.  '
                          'Default: only if the data of the run are shapes.')
OF_RUN = cli.of_run()
# A method has the fields of its own flags; their defaults stand in vdm_jax.editing.methods.
OF_METHOD = (
    flags.DEFINE_float('strength', None, 'sdedit, diffedit: the time of the noise that is added, '
                       'from 0 (none) to 1.  Default: 0.6 for sdedit, 0.8 for diffedit.'),
    flags.DEFINE_string('sampler', None, f'sdedit, inpaint: {" or ".join(methods.SAMPLERS)}.  '
                        'Default: ancestral.'),
    flags.DEFINE_string('by', None, 'inpaint: replacement, repaint, or model (one conditioned on '
                        'the known part).  Default: replacement.'),
    flags.DEFINE_integer('jump', None, 'inpaint, by repaint: steps of a walk back.  Default: 5.'),
    flags.DEFINE_integer('visits', None, 'inpaint, by repaint: how often a level is visited.  '
                         'Default: 4.'),
    flags.DEFINE_float('noise', None, 'diffedit: the time of the noise at which the texts are '
                       'compared.  Default: 0.5.'),
    flags.DEFINE_integer('noises', None, 'diffedit: the number of noises that the map averages.  '
                         'Default: 10.'),
    flags.DEFINE_float('ratio', None, 'diffedit: the mask is where the map is above ratio / 2 '
                       'times its mean.  Default: 3.'),
    flags.DEFINE_string('change', None, 'prompt_to_prompt, null_text: replace (words one for one) '
                        'or refine (words are added).  Default: replace.'),
    flags.DEFINE_float('cross', None, 'prompt_to_prompt, null_text: the share of the time, from '
                       "noise, in which attention to words is the source's.  Default: 0.8."),
    flags.DEFINE_float('own', None, 'prompt_to_prompt, null_text: the share of the time, from '
                       "noise, in which attention among positions is the source's.  Default: 0.4."),
    flags.DEFINE_list('weights', None, 'prompt_to_prompt, null_text: WORD=C,...: the attention to '
                      f'a word of the target is multiplied by C.  {methods.CHANGED}: new words.'),
    flags.DEFINE_list('blend', None, 'prompt_to_prompt: words of both texts; only pixels that '
                      f'attend to them change.  {methods.CHANGED}: the words that differ.'),
    flags.DEFINE_float('threshold', None, 'prompt_to_prompt, with --blend: the share of the '
                       'largest attention above which a pixel changes.  Default: 0.3.'),
    flags.DEFINE_integer('updates', None, 'null_text: the most updates of the embedding in a '
                         'step.  Default: 10.'))


def _method() -> methods.Method:
  """The method with the numbers that are given.  Raises InputError."""
  fields = cli.values(METHOD, *OF_METHOD)
  if 'blend' in fields:
    fields['blend'] = tuple(fields['blend'])
  if 'weights' in fields:
    fields['weights'] = tuple(map(_weight, fields['weights']))
  return methods.named(**fields)


def _weight(text: str) -> tuple[str, float]:
  word, _, number = text.partition('=')
  try:
    require(bool(word), 'weights', text, 'it has no word', 'write WORD=C')
    return word, float(number)
  except ValueError:
    raise InputError('weights', text, 'it is not of the form WORD=C',
                     'write red=2, for example') from None


def main():
  result = editing.edit(WORKDIR.value, OUT.value, _method(), mask=MASK.value or '', **cli.values(
      TARGET, IMAGE, SOURCE, COUNT, GUIDANCE, STEPS, SEED, BATCH_SIZE, JUDGE, OVERWRITE, *OF_RUN))
  if jax.process_index() == 0:
    print('\n'.join(editing.report(result)))
  cli.wrote(OUT.value)
