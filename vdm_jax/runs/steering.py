"""Guidance of samples by the run of a dual encoder: to a text, to an image, and to a style.

The gradient of the encoder's logits by z moves the estimates of any model of such images, whether
it is told texts or not: CLIP guidance (Nichol et al. 2021, section 2.4) and semantic diffusion
guidance (Liu et al. 2023).  See `guidance.classifier` and `editing.semantic`.
"""
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import data, guidance, random
from vdm_jax.data import Field, tokenisers
from vdm_jax.editing import semantic
from vdm_jax.errors import InputError, require
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.processes import time_of
from vdm_jax.runs import needs, reading, workdir
from vdm_jax.systems.guided.dual_encoder import DualEncoder
from vdm_jax.typing import Model, PyTree

# In the batch of the conditions.
_TEXT, _LIKE, _STYLE, _NUMBER = 'clip_text', 'clip_like', 'clip_style', 'clip_number'


class Clip(NamedTuple):
  """Guidance by a dual encoder, as the user asks for it.

  run         the directory of the encoder's run
  scale       how many times the logit of the text is added to log p; 0: no guidance by the text
  like        a picture; its logit with the sample is added to log p.  '': none
  like_scale  how many times
  style       a picture; minus the distance of its style to the sample's is added to log p
  style_scale how many times
  """
  run: str | Path
  scale: float = 1.0
  like: str = ''
  like_scale: float = 1.0
  style: str = ''
  style_scale: float = 1.0


class Steering(NamedTuple):
  """A trained encoder and where it leads."""
  encoder: Callable[[PyTree], DualEncoder]
  params: PyTree
  caption: Field                # the texts that it reads
  tokens: np.ndarray | None     # [K, L], of the texts that samples take in turn; None: no text
  like: np.ndarray | None       # [...], data; None: no picture
  scales: tuple[float, float]   # of the text, and of the picture
  style: np.ndarray | None = None  # [...], data; None: no style
  style_scale: float = 1.0

  def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """What `of` reads of the samples with these numbers [n], beside their conditions."""
    out = {_NUMBER: np.asarray(numbers)}
    if self.tokens is not None:
      out[_TEXT] = self.tokens[numbers % len(self.tokens)]
    for name, picture in ((_LIKE, self.like), (_STYLE, self.style)):
      if picture is not None:
        out[name] = np.broadcast_to(picture, (len(numbers), *picture.shape))
    return out

  def of(self, model: Model, params: PyTree, scale: Any = None) -> Model:
    """`model`, guided.  Its `cond` also reads `batch`, and encodes texts once, before any step.

    params: of the encoder.  scale: of the text, instead of the user's own.
    """
    encoder = self.encoder(params)
    scale = self.scales[0] if scale is None else scale

    def cond(batch):
      goals = {name: batch[name] for name in (_NUMBER, _TEXT, _LIKE, _STYLE) if name in batch}
      if _TEXT in goals:
        goals[_TEXT] = encoder.text(goals[_TEXT])
      for name in (_LIKE, _STYLE):
        if name in goals:
          goals[name] = encoder.encode(goals[name])
      return model.cond(batch), goals

    def denoise(z, level, both):
      own, goals = both
      parts = []
      if _TEXT in goals:
        parts.append((semantic.text(encoder.image, goals[_TEXT]), scale * encoder.scale))
      keys = random.per_example(random.key(0), goals[_NUMBER])
      if _LIKE in goals:
        parts.append((semantic.image(encoder.image, goals[_LIKE], keys),
                      self.scales[1] * encoder.scale))
      if _STYLE in goals:
        assert encoder.stages is not None
        parts.append((semantic.style(encoder.stages, goals[_STYLE], keys), self.style_scale))
      return guidance.classifier(model.denoise, semantic.together(*parts))(z, level, own)

    latent = model.latent
    return model._replace(
        cond=cond, denoise=denoise, null=None,
        latent=None if latent is None else lambda keys: self.of(latent(keys), params, scale))

  def told(self, count: int) -> dict[str, np.ndarray]:
    """The texts of the first `count` samples, by the name of their field; {} without texts."""
    return {} if self.tokens is None else {
        self.caption.name: self.tokens[np.arange(count) % len(self.tokens)]}

  def recorded(self) -> dict[str, Any]:
    """What samples depend on, as files of samples keep it."""
    goals = [goal for goal in (self.tokens, self.like, self.style) if goal is not None]
    style = {} if self.style is None else {'clip_style': self.style_scale}
    return {'clip': checksum(self.params), 'clip_scales': list(self.scales),
            'clip_goals': checksum(goals), **style}


def load_encoder(run: str | Path) -> tuple[workdir.Trained, DualEncoder]:
  """The dual encoder of a run.  Raises InputError, about `clip`, for a run of another kind."""
  trained = workdir.load_trained(files.run_directory('clip', run))
  encoder = trained.experiment.model(trained.params)
  if not isinstance(encoder, DualEncoder):
    raise InputError('clip', str(run), f'this run made {type(encoder).__name__}, and no dual '
                     'encoder', 'name a run of configs/text/dual_encoder.py')
  return trained, encoder


def steering(clip: Clip, model: Model, of: workdir.Trained, times: np.ndarray,
             texts: Sequence[str] = ()) -> Steering:
  """The encoder of a run, and the texts and the pictures to which it leads samples of `model`.

  of: the run of `model`.  times: the grid of sampling.  texts: samples take them in turn.

  Raises InputError: a run of another kind; a scale that is not finite, or 0 with its picture; an
  encoder of images of another size or other levels, of another curve, or that has not learned the
  noise levels of the grid; texts that it cannot read; a picture that does not fit; no text and no
  picture; a style, and an encoder without stages; a model that clips its estimates, that has no
  score, or whose data are latents.
  """
  _check_scales(clip)
  trained, encoder = load_encoder(clip.run)
  _check(clip, encoder, model, times)
  # An encoder of other data may guide too, if its images have the same size and levels.  Texts
  # become tokens by its own tokeniser, and one of words refuses words that it has not learned.
  x, own = needs.data_field(model, data.resolve(of.config.data)), data.resolve(trained.config.data)
  made = 'real numbers' if x.levels is None else f'images of {x.levels} levels'
  require(own.levels == x.levels, 'clip', str(clip.run), 'this encoder reads images of '
          f'{own.levels} levels, and the model makes {made}', 'train an encoder on its data')
  has_text = bool(texts) and clip.scale != 0.0
  require(has_text or bool(clip.like or clip.style), 'clip_scale', clip.scale, 'there is neither a '
          'text nor a picture to guide to', 'give --prompt with a scale other than 0, --like or '
          '--style')
  require(not clip.style or encoder.stages is not None, 'style', clip.style, 'the image network of '
          'this encoder has no stages, whose styles are compared', 'name a run of '
          'configs/text/dual_encoder.py')
  picture = lambda flag, name: reading.image(flag, name, of, x)[0] if name else None
  return Steering(trained.experiment.model, trained.params, encoder.caption,
                  tokenisers.tokens(encoder.caption, texts, 'prompt') if has_text else None,
                  picture('like', clip.like), (clip.scale, clip.like_scale),
                  picture('style', clip.style), clip.style_scale)


def _check_scales(clip: Clip) -> None:
  for flag, value, picture in (('clip_scale', clip.scale, ''),
                               ('like_scale', clip.like_scale, clip.like),
                               ('style_scale', clip.style_scale, clip.style)):
    require(math.isfinite(value), flag, value, 'it must be finite')
    require(not picture or value != 0.0, flag, value, 'with 0 the picture has no effect',
            'choose another scale, or leave the picture out')


def _check(clip: Clip, encoder: DualEncoder, model: Model, times: np.ndarray) -> None:
  """Raises InputError for an encoder that cannot guide this model on this grid."""
  place = str(clip.run)
  require(not model.is_latent and model.data_space, 'clip', place, 'the model draws latents, and '
          'this encoder reads images', 'guide a model of images')
  require(not model.clips, 'clip', place, 'the model clips its estimates (config.model.clip), and '
          'clipping must come after guidance', 'guide its denoiser from Python, and clip last: '
          'vdm_jax.guidance')
  require(not (model.distilled or model.coupled), 'clip', place, 'the model is a student or a flow '
          'of coupled noise, and has no score to which a gradient could be added',
          'guide the model that it was made from')
  require(encoder.shape == model.shape, 'clip', place, f'this encoder reads images of '
          f'{encoder.shape}, and the model makes {model.shape}', 'train an encoder on its data')
  level = jax.device_get(model.process(jnp.asarray(times, jnp.float32)))
  require(level.logsnr.ndim == 1, 'clip', place, 'each pixel of this model has its own noise '
          'level', 'guide a model with one level for each image')
  ends = jax.device_get(encoder.process(jnp.array([1.0, 0.0]))).logsnr
  inside = (level.logsnr >= ends[0] - 1e-3) & (level.logsnr <= ends[1] + 1e-3)
  require(bool(inside.all()), 'clip', place, f'it has learned log-SNR {ends[0]:.4g} .. '
          f'{ends[1]:.4g}, and the grid goes from {level.logsnr[0]:.4g} to {level.logsnr[-1]:.4g}',
          'train an encoder with other config.model.logsnr_min and logsnr_max, or choose another '
          'grid')
  own = jax.device_get(encoder.process(time_of(encoder.process, level.logsnr)))
  require(np.allclose(own.alpha, level.alpha, rtol=1e-2, atol=1e-2), 'clip', place, 'it has '
          'learned noise on another curve, with another alpha at the same log-SNR', 'train an '
          'encoder on the curve of the model')
