"""The work of scripts/score_captions.py: how well the samples of a run follow their captions."""
import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import data
from vdm_jax.data import arrays, shapes, tokenisers
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation import captions
from vdm_jax.evaluation import shapes as judge
from vdm_jax.evaluation.captions import Chosen, Followed
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.runs import guided, needs, pictures, steering, workdir
from vdm_jax.runs.steering import Clip
from vdm_jax.samplers.catalogue import Method
from vdm_jax.typing import Model

__all__ = ['WEIGHTS', 'score_captions']

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
SHOWN = 6  # captions in the picture


def score_captions(directory: str | Path, out: str | Path = '', *,
                   weights: Sequence[float] = WEIGHTS, method: Method | None = None,
                   count: int = 720, seed: int = 0, average: str = '', step: int | str = 'latest',
                   batch_size: int = 144, overwrite: bool = False, clip: str | Path | None = None,
                   condition: Mapping[str, Any] | None = None
                   ) -> tuple[dict[float, Followed], Chosen, Path]:
  """{w: how well `count` samples follow their captions}, the best w, and the path of the picture.

  The samples have the captions of `shapes` in turn, and all weights start from the same noise.
  They are kept in DIRECTORY/captions, so after a stop the same call goes on.  The first half of the
  samples chooses the best w, and the second half measures it: see `captions.choose`.

  Args:
    out: the picture, a .png.  Default: captions.png in the run's directory.
    weights: of guidance; 0 is the model conditioned on the caption, without guidance.
    clip: the run of a dual encoder that guides to the captions; the model is then not conditioned
      on them.  The weights are then scales of its logits: see `steering.Clip`.
    condition: values of other fields that condition the model, by name: see `data.conditions`.  So
      the upsampler of a cascade is told small images.  Sample i has caption i modulo the number of
      captions, also in the files of DIRECTORY/captions.  So give one value for all samples, or as
      many as `count`, or those of all captions.
    method: the sampler and its grid.  Default: `catalogue.usual`.

  Raises InputError: for a run of other data, for a model without texts or without guidance, and for
  wrong conditions.  With `clip`: for a model that is told labels, and as `steering.steering` does.
  """
  for field, least, value in (('count', 2 * len(shapes.CAPTIONS), count),
                              ('batch_size', 1, batch_size)):
    require_at_least(field, value, least)
  guided.check_weights(weights)
  out = files.output('out', out or Path(directory, 'captions.png'), '.png', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step)
  spec, at = data.resolve(trained.config.data), trained.experiment.model
  model = needs.require(at(trained.params), 'score_captions', directory)
  if spec.name not in shapes.NAMES:
    raise InputError('workdir', str(directory), f'its data are {spec.name}, and only samples of '
                     f'{" or ".join(shapes.NAMES)} can be judged', 'name a run of '
                     'configs/text/glide_shapes.py')
  require(spec.x.shape[0] in judge.SIDES, 'workdir', str(directory), f'its images have '
          f'{spec.x.shape[0]} x {spec.x.shape[1]} pixels, and the judge names those of '
          f'{" or ".join(map(str, judge.SIDES))}', 'train with config.data.image_size=8, or 0')
  method = guided.suited(method, model)
  times, encoder = method.times(model.process), None
  others = dict(condition or {})
  for name, value in others.items():
    _require_in_turn(model, name, value, count)
  if clip is None:
    field = needs.text_field(model, spec, 'workdir')
    Guidance(0.0).of(model)
    tokens = tokenisers.of(field).encode(shapes.CAPTIONS)
    led = lambda params: Guidance(params['w']).of(at(params['of']))
    require(field.name not in others, field.name, others.get(field.name), 'each sample has its own '
            'caption here', 'leave it out')
    cond = lambda numbers: model.conditions(numbers, **{field.name: tokens}, **others)
    recorded = guided.by_weight
  else:
    require(LABEL not in model.conditions(np.arange(1)), 'clip', str(clip), 'the model is told '
            'labels, and the label of a shape names its caption', 'name a run without labels')
    steered = steering.steering(Clip(clip), model, trained, times, shapes.CAPTIONS)
    encoder = steered.params
    led = lambda params: steered.of(at(params['of']), params['more'], params['w'])
    cond = lambda numbers: {**model.conditions(numbers, **others), **steered.batch(numbers)}
    recorded = lambda w: steered._replace(scales=(w, steered.scales[1])).recorded()
  drawn = guided.draw_each(
      led, trained, method, times, weights, count=count, seed=seed, batch_size=batch_size,
      cond=cond, to=Path(directory, 'captions', 'w' if clip is None else 'clip'), levels=256,
      recorded=recorded, more=encoder)
  own = np.arange(count) % len(shapes.CAPTIONS)
  new = sorted(shapes.NEW) if spec.name == 'shapes:held_out' else []
  named = {w: judge.name(images) for w, images in drawn.items()}
  found = {w: captions.followed(one, own, new) for w, one in named.items()}
  shown = captions_shown(new)
  if jax.process_index() == 0:
    pictures.save_png(out, captions.picture(
        found, {w: images[shown] for w, images in drawn.items()},
        [shapes.CAPTIONS[i] for i in shown]))
  return found, captions.choose(named, own, new), out


def _require_in_turn(model: Model, name: str, value: Any, count: int) -> None:
  """Raises InputError unless the values of a condition go round with the captions."""
  one = model.conditions(np.arange(1), **{name: value})[name]
  file = isinstance(value, str) and value.endswith(('.npz', '.npy'))
  values = arrays.named(value, name) if file else np.asarray(value)
  rows, captions = len(values) if values.ndim == one.ndim else 1, len(shapes.CAPTIONS)
  require(rows == 1 or rows >= count or rows % captions == 0, name, rows, 'so many values do not '
          f'follow the captions: samples take both in turn, and there are {captions} captions',
          f'give {count} values, a multiple of {captions}, or one for all samples')


def captions_shown(new: Sequence[int] = ()) -> list[int]:
  """The numbers of the captions in the picture, whose words are as different as they can be.

  Each is the first caption whose words are rarest in those before it.

  new: the numbers of captions that do not occur in training.  If there are any, they are the second
  half.
  """
  chosen = []
  seen = [i for i in range(len(shapes.CAPTIONS)) if i not in new]
  for row in range(SHOWN):
    often = collections.Counter(word for i in chosen for word in shapes.WORDS[i])
    candidates = new if new and row >= SHOWN // 2 else seen
    chosen.append(min(candidates, key=lambda i, often=often: sum(
        often[word] for word in shapes.WORDS[i])))
  return chosen
