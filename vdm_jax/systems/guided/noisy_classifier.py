"""A classifier of noisy images, p(label | z_t, t), whose gradient classifier guidance uses.

Dhariwal and Nichol (2021), section 4.  The classifier is trained on z_t at all noise levels, with
the loss

    -log p(label | z_t),   z_t = alpha x + sigma eps,  t uniform.

The loss is least at the true conditional probability.  Its minimum is not 0, because noise hides
the label.  A trained classifier guides any diffusion model of the same data and curve:

    denoise = guidance.classifier(model.denoise, guidance.label_gradient(noisy.logits), scale)

If the model reads no labels, guide guidance.conditioned_on(model.denoise, lambda label: None).
"""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from vdm_jax import data, random
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.inputs import Inputs
from vdm_jax.processes import diffuse
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Experiment, Level, Process, brief
from vdm_jax.values import Bound

Logits = Callable[[Array, Level], Array]  # z [B, ...], level -> [B, classes]
QUARTERS = 4                              # of time, for which the accuracy is told apart


class NoisyClassifier(NamedTuple):
  """A trained classifier of noisy images, which may guide a denoiser."""
  logits: Logits
  process: Process                  # the levels and the curve it was trained on
  encode: Callable[[Array], Array]  # data, integers [B, ...] -> x [B, ...]
  shape: tuple[int, ...]            # of x, without the batch

  def __repr__(self) -> str:
    return brief(self)


def cross_entropy(logits: Logits, process: Process, x: Array, t: Array, keys: Array,
                  label: Array, *, eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """-log p(label | z_t) in nats [B], and whether the likeliest label is right.

  x: [B, ...]; t, keys, label: [B].  The term 'accuracy' is 0 or 1.  The terms 'accuracy_1' ...
  'accuracy_4' are the accuracy in each quarter of time; the first quarter is nearest the data.  A
  term is 0 outside of its quarter and 4 times 'accuracy' inside, so its mean over uniform t is the
  accuracy in that quarter.
  """
  level = process(t)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  each = logits(diffuse(x, eps, level), level)
  nats = optax.softmax_cross_entropy_with_integer_labels(each, label)
  right = (jnp.argmax(each, axis=-1) == label).astype(x.dtype)
  quarter = jnp.minimum(jnp.floor(QUARTERS * t), QUARTERS - 1.0)
  return nats, {'accuracy': right, **{
      f'accuracy_{i + 1}': jnp.where(quarter == i, QUARTERS * right, 0.0)
      for i in range(QUARTERS)}}


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, process: Process,
               inputs: Inputs) -> Experiment:
  """The cross-entropy of a network (z, time, cond = None, keys) -> logits on noisy images.

  inputs: what the network reads, as in `denoisers.denoiser`.  `Experiment.model` gives a
  `NoisyClassifier`.  Raises InputError for data without labels.
  """
  spec = data.resolve(config.data)
  if not spec.classes:
    raise InputError('config.data.name', spec.name, 'it has no labels to train a classifier on',
                     'choose data that have some')
  encode = Pixels(spec.levels).encode

  def init(key):
    return {'net': net.init(key, jnp.zeros((1, *spec.shape)), jnp.zeros(1))['params']}

  def model(params, keys=None):
    bound = Bound(params['net'], net, keys)
    return NoisyClassifier(lambda z, level: bound(*inputs(z, level)), process, encode, spec.shape)

  def loss(params, batch, context):
    m = model(params, compose.dropout_keys(context))
    return cross_entropy(m.logits, process, encode(batch[spec.x.name]), context.t, context.keys,
                         batch['label'])

  return compose.assemble(config, init=init, loss=loss, model=model)
