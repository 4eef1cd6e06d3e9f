"""A system that is told texts: a network that reads texts, the encoder, makes its condition.

The text is the field `caption` of the data, whose tokens a tokeniser of `data.tokenisers` made.
The system's network reads the vectors of the tokens, [B, L, C], for example by cross-attention
(Rombach et al. 2022, section 3.3).  The encoder is trained with the system, as latent diffusion's
"BERT" was, or it is frozen, as CLIP's was in Stable Diffusion.

In training a share of the texts is dropped: the network then reads the vectors of the empty text.
So the model can be guided (see `guided.label_dropping`).

The fields are a section of their own, config.text.  The parameters of the encoder are
params['encoder'].
"""
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from vdm_jax import data
from vdm_jax.data import tokenisers
from vdm_jax.data.fields import CAPTION, Field
from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import Sequence
from vdm_jax.systems.guided import label_dropping
from vdm_jax.typing import Experiment

Encoder = TextTower | LatentBERT | GLIDEText

KINDS: dict[str, type[Encoder]] = {'clip': TextTower, 'bert': LatentBERT, 'glide': GLIDEText}
_COMMON = ('features', 'depth', 'attention_heads', 'levels', 'length')
_OWN = {'clip': ('outputs', 'gelu', 'key_bias'), 'bert': ('head_features',),
        'glide': ('padding', 'outputs')}


def settings(encoder: Encoder) -> dict[str, Any]:
  """The fields of config.text that describe `encoder`: the inverse of `network`."""
  kind = next(kind for kind, made in KINDS.items() if isinstance(encoder, made))
  return {'kind': kind, **{name: getattr(encoder, name) for name in (*_COMMON, *_OWN[kind])}}


def network(text: ml_collections.ConfigDict) -> Encoder:
  """The encoder that config.text describes.  Raises InputError: no such kind."""
  require_choice('config.text.kind', text.kind, KINDS)
  return KINDS[text.kind](**{name: text[name] for name in (*_COMMON, *_OWN[text.kind])})


def add(config: ml_collections.ConfigDict, encoder: Encoder, *, trained: bool = True,
        dropped: float = 0.1) -> ml_collections.ConfigDict:
  """`config`, the config of a system, with the section config.text beside its fields.

  trained: whether the encoder is trained too.  dropped: the share of texts that are dropped in
  training.
  """
  with config.unlocked():
    config.text = {**settings(encoder), 'trained': trained, 'dropped': dropped}
  return config.lock()


def experiment(config: ml_collections.ConfigDict, build: Callable[..., Experiment], *,
               pooled: bool = False) -> Experiment:
  """The experiment of a system that is told texts as config.text says.

  build: the system, (condition=..., encoder=...) -> its experiment; see `compose.experiment`.
  pooled: whether its network also reads the pooled vector, so that it is given an `Encoded`.

  Raises InputError for data without a text `caption`, for an encoder that reads other tokens than
  the data have, and for a frozen encoder in a system that makes its own steps.
  """
  field = data.resolve(config.data)[CAPTION]
  text = fitted(config.text, field)
  require(0.0 <= text.dropped < 1.0, 'config.text.dropped', text.dropped, 'it is no share',
          'give a number from 0, below 1')
  encoder = network(text)
  base = build(condition=field.name, encoder=encoder if pooled else Sequence(encoder))
  if not text.trained:
    base = _frozen(base)
  return label_dropping.experiment(base, text.dropped, field.name, tokenisers.nothing(field))


def fitted(text: ml_collections.ConfigDict, field: Field) -> ml_collections.ConfigDict:
  """config.text for the tokens of this field: levels and length of 0 become those of the field.

  Raises InputError unless the field holds texts, and for other levels or another length.
  """
  if field.texts is None:
    raise InputError('config.data.name', str(field), 'this field holds no texts',
                     'name data whose captions are texts')
  own = {'levels': field.levels, 'length': field.shape[0]}
  for name, there in own.items():
    require(text[name] in (0, there), f'config.text.{name}', text[name], f'the tokens of the data '
            f'have {name}={there}', f'set it to {there}, or choose another config.data.tokeniser '
            'or config.data.text_length')
  fitted = text.copy_and_resolve_references()
  fitted.update(own)
  return fitted


def _frozen(base: Experiment) -> Experiment:
  """`base`, whose encoder is not trained: it has no gradient, no decay and no moments."""
  require(base.update is None, 'config.text.trained', False, 'this system makes its own steps',
          'train the encoder too')

  def loss(params, batch, context):
    own = {'encoder': jax.lax.stop_gradient(params['encoder'])}
    return base.loss(params | own, batch, context)

  labels = lambda params: {
      name: jax.tree.map(lambda _, name=name: 'frozen' if name == 'encoder' else 'moves', part)
      for name, part in params.items()}
  tx = optax.multi_transform({'moves': base.tx, 'frozen': optax.set_to_zero()}, labels)
  return base._replace(
      loss=loss, tx=tx, adds=('net', 'schedule'),  # which are trained
      needs_start='its encoder of texts is not trained, and random weights say nothing')
