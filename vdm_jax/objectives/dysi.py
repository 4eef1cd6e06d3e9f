"""The training of a decoder of texts: teacher forcing, scheduled sampling, and DySI.

A decoder gives the probabilities of token i from the tokens before it, p(x_i | x_<i).  In training
it reads the tokens of the data (teacher forcing).  In use it reads its own tokens.

  teacher forcing     sum_i -log p(x_i | x_<i)
  scheduled sampling  sum_i -log p(x_i | m_<i), where some tokens m_j are the decoder's own
  DySI                the same + weight x sum_i KL(p(. | x_<i) || p(. | m_<i))

Scheduled sampling is of Bengio et al. (2015), sections 2.3 and 2.4.  A transformer makes its own
tokens in a first pass, all at once, from the tokens of the data (Mihaylova and Martins 2019).  Here
an own token is the most probable one.  No gradient passes through the first pass.

DySI is of Lin, Jwalapuram and Joty (2023), `Dynamic Scheduled Sampling with Imitation Loss for
Neural Text Generation`.  Only the abstract of the paper was at hand.  It says that
the schedule depends on the accuracy in training alone, and that the imitation loss makes the
decoder behave as a decoder under teacher forcing.  The rest is inferred:

* the probability of an own token is `share` times the accuracy of the first pass on this text;
* each token is replaced by a draw of its own;
* the imitation loss is the divergence above, from the first pass, which has no gradient.

Scheduled sampling has a bias (Huszar 2015): a decoder that often reads wrong tokens learns not to
trust them.  If all tokens are its own, and they do not depend on the data, then the best decoder
gives p(x_i), and forgets what x_<i say about x_i.

All functions take `decode`, a function from tokens [B, L] to logits [B, L, levels], whose logits at
i depend on the tokens before i alone.  A text ends with the first `padding`.  This token is learned
too, and those after it are not.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import require
from vdm_jax.typing import Array, ArrayLike

Decode = Callable[[Array], Array]


def learned(tokens: Array, padding: int) -> Array:
  """Which tokens are learned: those up to the first `padding`, and this one.  bool [B, L]."""
  ends = tokens == padding
  return jnp.cumsum(ends, axis=1) - ends == 0


def nats(logits: Array, tokens: Array, padding: int) -> Array:
  """-log p(text), the sum over its learned tokens, [B].  logits: [B, L, levels]."""
  of_token = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
  return -jnp.sum(jnp.where(learned(tokens, padding), of_token, 0.0), axis=1)


def accuracy(logits: Array, tokens: Array, padding: int) -> Array:
  """The share of the learned tokens that are the most probable ones, [B]."""
  counted = learned(tokens, padding)
  right = (jnp.argmax(logits, axis=-1) == tokens) & counted
  return jnp.sum(right, axis=1) / jnp.sum(counted, axis=1)


def mixed(logits: Array, tokens: Array, keys: Array, probability: ArrayLike) -> Array:
  """`tokens`, of which each is replaced by the most probable one with this probability: [B, L].

  keys: [B].  probability: [] or [B].
  """
  chance = jnp.broadcast_to(jnp.asarray(probability, jnp.float32)[..., None], tokens.shape)
  own = random.bernoulli(random.stream(keys, 'own_tokens'), chance)
  return jnp.where(own, jnp.argmax(logits, axis=-1).astype(tokens.dtype), tokens)


def divergence(expert: Array, logits: Array, tokens: Array, padding: int) -> Array:
  """KL(expert || decoder) in nats, the sum over the learned tokens, [B].

  expert, logits: [B, L, levels].  It is 0 if and only if the two distributions are equal at each
  learned token.
  """
  log_expert, log_own = jax.nn.log_softmax(expert), jax.nn.log_softmax(logits)
  each = jnp.sum(jnp.exp(log_expert) * (log_expert - log_own), axis=-1)
  return jnp.sum(jnp.where(learned(tokens, padding), each, 0.0), axis=1)


def teacher_forcing(decode: Decode, tokens: Array, padding: int
                    ) -> tuple[Array, dict[str, Array]]:
  """-log p(text), in which the decoder reads the tokens of the data: [B] nats.

  Returns it with the terms 'nats', which is equal, and 'accuracy'.
  """
  logits = decode(tokens)
  loss = nats(logits, tokens, padding)
  return loss, {'nats': loss, 'accuracy': accuracy(logits, tokens, padding)}


def scheduled(decode: Decode, tokens: Array, padding: int, keys: Array, *, probability: ArrayLike
              ) -> tuple[Array, dict[str, Array]]:
  """Scheduled sampling: -log p(text), in which the decoder reads some tokens of its own.

  keys: [B].  probability: of an own token, [] or [B]; see `scheduled_sampling.rising`.

  Returns [B] nats and the terms of `teacher_forcing`, which are of the first pass.
  """
  first = jax.lax.stop_gradient(decode(tokens))
  second = decode(mixed(first, tokens, keys, probability))
  return nats(second, tokens, padding), _of_first(first, tokens, padding)


def imitation(decode: Decode, tokens: Array, padding: int, keys: Array, *, share: float,
              weight: float) -> tuple[Array, dict[str, Array]]:
  """DySI: scheduled sampling by the accuracy, and the imitation of the decoder's first pass.

  keys: [B].  share: the probability of an own token at an accuracy of 1.  weight: of the imitation.

  Returns [B] nats, the terms of `scheduled`, and 'divergence'.
  Raises InputError for a share that is no probability, and for a negative weight.
  """
  require(0.0 <= share <= 1.0, 'share', share, 'it is no probability', 'give 0 to 1')
  require(weight >= 0.0, 'weight', weight, 'it is negative', 'give 0 or more')
  first = jax.lax.stop_gradient(decode(tokens))
  terms = _of_first(first, tokens, padding)
  second = decode(mixed(first, tokens, keys, share * terms['accuracy']))
  apart = divergence(first, second, tokens, padding)
  return nats(second, tokens, padding) + weight * apart, {**terms, 'divergence': apart}


def _of_first(logits: Array, tokens: Array, padding: int) -> dict[str, Array]:
  return {'nats': nats(logits, tokens, padding), 'accuracy': accuracy(logits, tokens, padding)}
