"""The work of scripts/score_clip.py: how well the samples of a run agree with their texts.

A dual encoder judges; see `evaluation.clip_scores`.  It reads images at its least noisy level.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import data
from vdm_jax.data import Field, tokenisers
from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.evaluation import clip_scores, features
from vdm_jax.evaluation.clip_scores import Scored
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.runs import guided, needs, pictures, steering, workdir
from vdm_jax.runs.scoring import SPLITS
from vdm_jax.samplers.catalogue import Method
from vdm_jax.systems.guided.dual_encoder import DualEncoder
from vdm_jax.typing import PyTree

__all__ = ['WEIGHTS', 'score_clip']

WEIGHTS = (0.0, 1.0, 3.0)
SHOWN = 12  # texts in the picture


def score_clip(directory: str | Path, clip: str | Path, out: str | Path = '', *,
               split: str = 'test', weights: Sequence[float] = WEIGHTS,
               method: Method | None = None, count: int | None = None, seed: int = 0,
               average: str = '', step: int | str = 'latest', batch_size: int = 128,
               overwrite: bool = False, data_dir: str = '', data_name: str = ''
               ) -> tuple[Scored, Path]:
  """Draws a sample for the text of each real image; returns the scores and the path of a picture.

  All weights start from the same noise.  The samples are kept in DIRECTORY/clip, so after a stop
  the same call goes on.

  Args:
    clip: the run of the dual encoder.
    out: the picture, a .png.  Default: clip.png in the run's directory.
    split: the split of the real images.
    weights: of guidance; 0 is the model that is told the text.
    method: the sampler and its grid.  Default: `catalogue.usual`.
    count: the number of real images, the first ones.  Default: all.

  The other arguments are those of `runs.evaluate`.

  Raises InputError: for wrong arguments, for a model without texts or without guidance, and for an
  encoder of another kind, of other images, or that cannot read the texts.
  """
  require_choice('split', split, SPLITS)
  for name, least, value in (('count', 2, count), ('batch_size', 1, batch_size)):
    require_at_least(name, value, least)
  guided.check_weights(weights)
  out = files.output('out', out or Path(directory, 'clip.png'), '.png', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  spec, at = data.resolve(trained.config.data), trained.experiment.model
  model = needs.require(at(trained.params), 'score_clip', directory)
  field, x = needs.text_field(model, spec, 'workdir'), needs.data_field(model, spec)
  Guidance(0.0).of(model)
  method = guided.suited(method, model)
  of_encoder, encoder = steering.load_encoder(clip)
  _require_alike(clip, data.resolve(of_encoder.config.data).x, x)
  assert x.levels is not None  # an encoder reads integers

  part = needs.split(trained, split)
  told = part.get(np.arange(min(len(part), count or len(part))))
  texts = tokenisers.of(field).decode(told[field.name])
  tokens, own = np.unique(_read(clip, encoder, texts), axis=0, return_inverse=True)
  images_of, texts_of = _features(str(clip), of_encoder)
  named, own = texts_of(tokens, batch_size), own.reshape(-1)
  agreement = lambda images: clip_scores.agreement(images_of(images, batch_size), named, own)
  real = agreement(told[x.name])

  given = {name: told[name] for name in model.conditions(np.arange(1)) if name in told}
  drawn = guided.draw_each(
      lambda params: Guidance(params['w']).of(at(params['of'])), trained, method,
      method.times(model.process), weights, count=len(texts), seed=seed, batch_size=batch_size,
      cond=lambda numbers: model.conditions(numbers, **given), to=Path(directory, 'clip', 'w'),
      levels=x.levels)
  scored = Scored({w: agreement(images) for w, images in drawn.items()}, real, len(texts),
                  len(tokens))
  if jax.process_index() == 0:
    rows = np.unique(np.linspace(0, len(texts) - 1, SHOWN).astype(int))
    columns = {'real': told[x.name], **{f'w = {w:g}': images for w, images in drawn.items()}}
    pictures.save_png(out, clip_scores.picture(
        {name: images[rows] for name, images in columns.items()}, [texts[i] for i in rows]))
  return scored, out


def _require_alike(clip: str | Path, reads: Field, x: Field) -> None:
  """Raises InputError unless the encoder reads images such as the model makes."""
  for what, own, made in (('shape', reads.shape, x.shape), ('levels', reads.levels, x.levels)):
    require(own == made, 'clip', str(clip), f'this encoder reads images of {what} {own}, and the '
            f'model makes {what} {made}', 'train an encoder on the data of the run')


def _read(clip: str | Path, encoder: DualEncoder, texts: Sequence[str]) -> np.ndarray:
  """The encoder's own tokens of texts, [n, L].  Raises InputError for texts that it cannot read."""
  try:
    return tokenisers.of(encoder.caption).encode(texts)
  except InputError as error:
    if error.field != 'text':
      raise
    raise InputError('clip', str(clip), f'this encoder cannot read {error.value!r}: '
                     f'{error.problem}', 'train an encoder on the texts of the run') from None


Extract = Callable[[np.ndarray, int], np.ndarray]  # rows [n, ...], a batch size -> features [n, D]


def _features(name: str, trained: workdir.Trained) -> tuple[Extract, Extract]:
  """The features, of length 1, of images (integers) and of tokens by the run of a dual encoder."""
  checksum, at = features.checksum(trained.params), trained.experiment.model

  def of_images(params: PyTree, images):
    encoder = at(params)
    level = encoder.process(jnp.float32(0.0))
    return encoder.image(level.alpha * encoder.encode(images), level)

  def extract(what, apply):
    extractor = features.of_network(f'clip:{name}', checksum, apply, trained.params)
    return lambda rows, batch_size: np.concatenate(list(features.extract(
        extractor, lambda numbers: rows[numbers], len(rows), batch_size=batch_size, what=what)))

  return extract('images', of_images), extract('texts', lambda params, rows: at(params).text(rows))
