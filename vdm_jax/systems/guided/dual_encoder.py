"""A noise-aware dual encoder: one network for noisy images, one for texts, a common space of both.

The loss is that of Radford et al. (2021), figure 3.  Nichol et al. (2021), section 3.4, train such
a pair ("noised CLIP") on noisy images with their level.  In a group of B images and their texts,

    logits[i, j] = s cos(f(z_i, level_i), g(text_j)),   z = alpha x + sigma eps,  t uniform,

and the loss of example i is the mean of two cross-entropies: text i among all texts, given image i,
and image i among all images, given text i.  The scale s is learned, and at most 100.

The gradient of a logit by z guides any diffusion model of the same images and curve, whether it is
told texts or not: see `editing.semantic`, and `sample.py --clip`.

Examples are compared within groups of `config.model.group` consecutive examples of the global
batch, so the loss depends neither on the devices nor on the layout.  Under 'jit' and 'fsdp' a group
may span devices.  Under 'pmap' each device must have whole groups: else the update is refused.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from vdm_jax import data, random
from vdm_jax.data import tokenisers
from vdm_jax.data.fields import CAPTION, Field
from vdm_jax.decoders import Pixels
from vdm_jax.errors import require
from vdm_jax.inputs import Inputs
from vdm_jax.nn.text.clip import ImageTower, TextTower
from vdm_jax.processes import diffuse
from vdm_jax.systems import compose, networks, texts
from vdm_jax.systems.guided.noisy_classifier import QUARTERS
from vdm_jax.train import step
from vdm_jax.typing import Array, Experiment, Level, Process, Scalar, brief
from vdm_jax.values import Bound

FIRST_SCALE, LARGEST_SCALE = 1.0 / 0.07, 100.0  # of the logits: Radford et al. (2021), section 2.5


class DualEncoder(NamedTuple):
  """A trained pair of encoders, whose features are comparable."""
  image: Callable[[Array, Level], Array]  # z [B, ...], level -> features [B, D], of length 1
  text: Callable[[Array], Array]          # tokens [B, L] -> features [B, D], of length 1
  scale: Scalar                           # of the logits: scale times the cosine
  process: Process                        # the levels and the curve it was trained on
  encode: Callable[[Array], Array]        # data, integers [B, ...] -> x [B, ...]
  shape: tuple[int, ...]                  # of x, without the batch
  caption: Field                          # the texts that it reads
  stages: Callable[[Array, Level], list[Array]] | None = None  # z, level -> maps [B, h, w, C] of
                                          # each stage of the network of images; None: it has none

  def __repr__(self) -> str:
    return brief(self)


def default_config(text: TextTower, **model) -> ml_collections.ConfigDict:
  """The fields of the system; config.text describes the network of texts.

  `model` may set: group, the examples that are compared; logsnr_max and logsnr_min, the levels.
  """
  config = compose.default_config(**{
      'group': 64, 'logsnr_max': 13.3, 'logsnr_min': -12.0, 'dropout': 0.0,
      **networks.how_computed()} | model)
  with config.unlocked():
    config.text = texts.settings(text)
  return config.lock()


def contrastive(image: Array, text: Array, scale: Scalar, group: int) -> tuple[Array, Array]:
  """The loss in nats [B], and whether an image's text has the largest logit in its group [B].

  Radford et al. (2021), figure 3.  image, text: features [B, D], of length 1; row i of each belong
  together.  group: divides B.  Equal texts have equal logits, and each counts as right.
  """
  rows = lambda u: u.reshape(-1, group, u.shape[-1])
  logits = scale * jnp.einsum('gid,gjd->gij', rows(image), rows(text))
  own = jnp.broadcast_to(jnp.arange(group), logits.shape[:2])
  of = lambda u: optax.softmax_cross_entropy_with_integer_labels(u, own).reshape(-1)
  nats = 0.5 * (of(logits) + of(jnp.swapaxes(logits, 1, 2)))
  true = jnp.diagonal(logits, axis1=1, axis2=2)
  right = true >= jnp.max(logits, axis=2) - 1e-5 * scale  # equal up to rounding
  return nats, right.reshape(-1).astype(nats.dtype)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, process: Process,
               inputs: Inputs) -> Experiment:
  """The contrastive loss of a network (z, time) -> features [B, D] of images, without dropout.

  config.text describes the network of texts; its features have the same D.  inputs: what `net`
  reads, as in `denoisers.denoiser`.  `Experiment.model` gives a `DualEncoder`, which has the stages
  of an `ImageTower`.

  The term 'accuracy' is the share of images whose text is the likeliest of its group, and
  'accuracy_1' ... 'accuracy_4' are the shares in each quarter of time; see
  `noisy_classifier.cross_entropy`.

  Raises InputError for data without texts, for a network of other tokens or of another kind, and
  for groups that do not divide the batch.  The update raises it, when it is traced, if the layout
  cuts groups.  There are no microbatches, since these would cut groups too.
  """
  spec, group = data.resolve(config.data), config.model.group
  field = spec[CAPTION]
  require(config.text.kind == 'clip', 'config.text.kind', config.text.kind,
          'a dual encoder reads texts by a tower of CLIP', "leave it at 'clip'")
  compose.require(config, 'group', group > 1, 'an example needs others to be compared with',
                  'choose 2 or more')
  compose.require(config, 'group', config.data.batch_size % group == 0,
                  f'it does not divide config.data.batch_size={config.data.batch_size}',
                  'choose one that does')
  tower = texts.network(texts.fitted(config.text, field))
  encode = Pixels(spec.levels).encode

  def init(key):
    first, second = jax.random.split(key)
    return {'net': net.init(first, jnp.zeros((1, *spec.shape)), jnp.zeros(1))['params'],
            'encoder': tower.init(second, jnp.zeros((1, *field.shape), jnp.int32))['params'],
            'scale': jnp.log(jnp.float32(FIRST_SCALE))}

  def model(params, keys=None):
    net_of, text_of = Bound(params['net'], net), Bound(params['encoder'], tower)
    return DualEncoder(
        lambda z, level: _unit(net_of(*inputs(z, level))),
        lambda tokens: _unit(text_of(tokens, _lengths(tokens, field)).pooled),
        jnp.exp(jnp.minimum(params['scale'], math.log(LARGEST_SCALE))), process, encode,
        spec.shape, field,
        (lambda z, level: net_of(*inputs(z, level), True)) if isinstance(net, ImageTower) else None)

  def loss(params, batch, context):
    m = model(params)
    x, t = encode(batch[spec.x.name]), context.t
    # The few examples by which `train.check` compares shapes are one group; `update` takes no such
    # batch, and a validation has batches of the same size.
    size = len(x) if len(x) % group else group
    level = process(t)
    z = diffuse(x, random.normal(random.stream(context.keys, 'eps'), x), level)
    nats, right = contrastive(m.image(z, level), m.text(batch[field.name]), m.scale, size)
    quarter = jnp.minimum(jnp.floor(QUARTERS * t), QUARTERS - 1.0)
    return nats, {'accuracy': right, **{
        f'accuracy_{i + 1}': jnp.where(quarter == i, QUARTERS * right, 0.0)
        for i in range(QUARTERS)}}

  made = compose.assemble(config, init=init, loss=loss, model=model)
  whole = step.make_step(loss, made.tx, made.ema)

  def update(state, batch, key, axis):
    rows = len(batch[field.name])
    compose.require(config, 'group', rows % group == 0, 'config.train.layout=pmap compares '
                    f'examples on one device, and {rows} examples on each are no whole number of '
                    'groups',
                    "set config.train.layout to 'jit', or choose a group that divides them")
    return whole(state, batch, key, axis)
  return made._replace(update=update)


def _unit(u: Array) -> Array:
  return u / jnp.maximum(jnp.linalg.norm(u, axis=-1, keepdims=True), 1e-12)


def _lengths(tokens: Array, field: Field) -> Array | None:
  """How many tokens a text has, 1 or more; None where its end is the largest token, as in CLIP."""
  if field.texts is None or field.texts.kind == 'clip':
    return None
  there = jnp.sum(tokens != int(tokenisers.nothing(field)[-1]), axis=1)
  return jnp.maximum(there, 1)
