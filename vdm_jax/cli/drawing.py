"""The flags that choose a sampler and its grid, and that condition and guide a model."""
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from vdm_jax.cli.flags import path
from vdm_jax.errors import InputError, renamed, require
from vdm_jax.guidance import Guidance, parse
from vdm_jax.runs.steering import Clip
from vdm_jax.samplers import catalogue

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


class Sampler(NamedTuple):
  """--sampler, --steps, --grid and --eta."""
  name: flags.FlagHolder
  steps: flags.FlagHolder
  grid: flags.FlagHolder
  eta: flags.FlagHolder

  def chosen(self) -> bool:
    """Whether any of these flags is on the command line."""
    return any(flag.present for flag in self)

  def method(self) -> catalogue.Method:
    """The sampler with its grid.  Raises InputError."""
    return catalogue.method(*(flag.value for flag in self))


def sampler(names: str, grids: str, eta: str, default: str = 'ancestral') -> Sampler:
  """Defines the flags --sampler, --steps, --grid and --eta, with these texts for --help."""
  return Sampler(flags.DEFINE_string('sampler', default, names),
                 flags.DEFINE_integer('steps', None, 'Number of steps.  Default: 250, unless '
                                      'the sampler or the model sets another number.'),
                 flags.DEFINE_string('grid', '', grids), flags.DEFINE_float('eta', None, eta))


class Conditions(NamedTuple):
  """--label, --condition and --guidance."""
  label: flags.FlagHolder
  condition: flags.FlagHolder
  guidance: flags.FlagHolder

  def guided(self) -> Guidance | None:
    """The guidance.  Raises InputError."""
    return parse(self.guidance.value)


@contextlib.contextmanager
def by_field(flag: flags.FlagHolder) -> Iterator[dict[str, list[str]]]:
  """The values of --condition by field; an error of a field shows the flag that set the field.

  Raises InputError.
  """
  values = {}
  for word in flag.value:
    field, equals, value = word.partition('=')
    require(bool(field and equals), 'condition', word, 'it is not of the form FIELD=VALUE',
            'write --condition=caption=three')
    values.setdefault(field, []).append(value)
  with renamed({field: f'condition={field}' for field in values}):
    yield values


class Prompts(NamedTuple):
  """--prompt and --prompts."""
  prompt: flags.FlagHolder
  prompts: flags.FlagHolder

  @contextlib.contextmanager
  def texts(self) -> Iterator[list[str]]:
    """The texts of either flag, [] without both; an error of a text shows its line in the file.

    Raises InputError.
    """
    if self.prompts.value is None:
      yield [] if self.prompt.value is None else [self.prompt.value]
      return
    require(self.prompt.value is None, 'prompt', self.prompt.value, 'there is --prompts too',
            'leave one of them out')
    try:
      lines = Path(self.prompts.value).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise InputError('prompts', self.prompts.value, f'it cannot be read: {error}',
                       'name a file of texts, one a line') from None
    texts = [line for line in lines if line.strip()]
    require(bool(texts), 'prompts', self.prompts.value, 'it is empty', 'write one text a line')
    try:
      yield texts
    except InputError as error:
      if error.field != 'prompt':
        raise
      line = (f'line {lines.index(error.value) + 1}, {error.value!r}: ' if error.value in lines
              else '')
      raise InputError('prompts', self.prompts.value, line + error.problem,
                       error.remedy) from None


class Clips(NamedTuple):
  """--clip, --clip_scale, --like, --like_scale, --style and --style_scale."""
  clip: flags.FlagHolder
  clip_scale: flags.FlagHolder
  like: flags.FlagHolder
  like_scale: flags.FlagHolder
  style: flags.FlagHolder
  style_scale: flags.FlagHolder

  def guided(self) -> Clip | None:
    """The guidance; None without --clip.  Raises InputError."""
    if self.clip.value is None:
      for flag in self[1:]:
        require(not flag.present, flag.name, flag.value, 'without --clip it has no effect',
                'name the run of a dual encoder: --clip=runs/dual_shapes')
      return None
    for goal, scale in ((self.like, self.like_scale), (self.style, self.style_scale)):
      require(bool(goal.value) or not scale.present, scale.name, scale.value,
              f'without --{goal.name} it has no effect', f'name a picture by --{goal.name}')
    return Clip(self.clip.value, scale=self.clip_scale.value, like=self.like.value,
                like_scale=self.like_scale.value, style=self.style.value,
                style_scale=self.style_scale.value)


def clips() -> Clips:
  """Defines the flags."""
  return Clips(
      path('clip', 'The run of a dual encoder (configs/text/dual_encoder.py).  Its gradient guides '
           'the samples to --prompt, --prompts, --like or --style, also of a model without texts.'),
      flags.DEFINE_float('clip_scale', 1.0, 'How many times the logit of the text is added to '
                         'log p(z).'),
      flags.DEFINE_string('like', '', 'A picture, or data:SPLIT:INDEX: the samples shall be like '
                          'it, for the encoder.'),
      flags.DEFINE_float('like_scale', 1.0, 'How many times the logit of --like is added to '
                         'log p(z).'),
      flags.DEFINE_string('style', '', 'A picture, or data:SPLIT:INDEX: the samples shall have its '
                          'style, for the encoder, wherever its parts stand.'),
      flags.DEFINE_float('style_scale', 1.0, 'How many times the distance of styles, the mean '
                         'squared difference of Gram matrices, is taken from log p(z).'))


def way_back(steps: int) -> tuple[flags.FlagHolder, flags.FlagHolder]:
  """Defines --sampler and --steps of the way back from noise; steps: the default."""
  return (flags.DEFINE_string('sampler', 'ancestral', 'The way back: a sampler of sample.py --help '
                              'with fixed steps.  ancestral: the reverse SDE; ddim, heun: the '
                              'flow.'),
          flags.DEFINE_integer('steps', steps, 'Steps of the way back.'))


def prompts() -> Prompts:
  """Defines the flags."""
  return Prompts(
      flags.DEFINE_string('prompt', None, 'The text of all samples, for a model conditioned on '
                          'text.  Default: the empty text.'),
      path('prompts', 'A file of texts, one a line; the samples take them in turn.'))


def condition() -> flags.FlagHolder:
  """Defines the flag --condition."""
  return flags.DEFINE_multi_string(
      'condition', [], 'FIELD=VALUE: the value of a field that conditions the model.  VALUE: a '
      'text, numbers (0.5,1), or x.npz with an array FIELD of rows.  Several values take turns')


def conditions(of: str) -> Conditions:
  """Defines the flags.  of: what is drawn, 'samples'."""
  return Conditions(
      flags.DEFINE_integer('label', None, f'The class of all {of}.  Default: all classes in turn.'),
      condition(),
      flags.DEFINE_list(
          'guidance', [], 'W: classifier-free guidance, eps = (1 + W) eps(z, label) - W eps(z).  '
          'W,LOW,HIGH: only where log-SNR is in [LOW, HIGH].  W,channels=N: only the first N '
          'channels.'))
