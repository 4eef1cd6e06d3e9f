"""Decoders of texts: the oracles are entropies of a small language, worked out by hand.

The language has the tokens 0 (padding), 1 and 2, and texts of two tokens.  The first token is 1 or
2 with equal odds.  The second token is the first with the probability 3/4, and else the other.
"""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.objectives import dysi

TEXTS = jnp.array([[1, 1], [1, 2], [2, 1], [2, 2]])
ODDS = jnp.array([3 / 8, 1 / 8, 1 / 8, 3 / 8])
OF_SECOND = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)  # its entropy, given the first
NEVER = -30.0
KEYS = jax.random.split(jax.random.key(0), 4)


def table(first, second):
  """A decoder: the logits of the first token [3], and of the second after each token [3, 3]."""
  def decode(tokens):
    return jnp.stack([jnp.broadcast_to(first, (len(tokens), 3)), second[tokens[:, 0]]], axis=1)
  return decode


def logits(*odds):
  """The logits of tokens 1 and 2 with these odds; the padding never occurs."""
  return jnp.stack([jnp.array([NEVER, math.log(a), math.log(b)]) for a, b in odds])


TRUE = logits((1, 1))[0], logits((1, 1), (3, 1), (1, 3))


def mean(loss):
  return jax.value_and_grad(lambda parts: jnp.sum(ODDS * loss(table(*parts))))


@pytest.mark.long
def test_the_least_loss_of_teacher_forcing_is_the_entropy_of_the_language():
  value, gradient = mean(lambda decode: dysi.teacher_forcing(decode, TEXTS, 0)[0])(TRUE)
  np.testing.assert_allclose(value, math.log(2) + OF_SECOND, rtol=1e-5)
  assert all(jnp.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(gradient))


@pytest.mark.long
def test_scheduled_sampling_is_biased_to_the_odds_of_a_token_alone():
  """All tokens are the decoder's own: the first is always 1, whatever the text."""
  loss = mean(lambda decode: dysi.scheduled(decode, TEXTS, 0, KEYS, probability=1.0)[0])
  value, _ = loss(TRUE)  # it says 3/4 and 1/4 for second tokens that are 1 and 2 equally often
  np.testing.assert_allclose(value, math.log(2) + 0.5 * math.log(4 / 3) + 0.5 * math.log(4),
                             rtol=1e-5)
  value, gradient = loss((logits((1.001, 1))[0], logits((1, 1), (1, 1), (1, 1))))
  np.testing.assert_allclose(value, 2 * math.log(2), rtol=1e-5)
  assert all(jnp.abs(leaf).max() < 1e-3 for leaf in jax.tree.leaves(gradient))


@pytest.mark.long
def test_without_own_tokens_all_three_are_teacher_forcing_bit_for_bit():
  parts = jax.random.normal(jax.random.key(1), (3,)), jax.random.normal(jax.random.key(2), (3, 3))
  wanted = mean(lambda decode: dysi.teacher_forcing(decode, TEXTS, 0)[0])(parts)
  for loss in (lambda decode: dysi.scheduled(decode, TEXTS, 0, KEYS, probability=0.0)[0],
               lambda decode: dysi.imitation(decode, TEXTS, 0, KEYS, share=0.0, weight=0.0)[0]):
    jax.tree.map(np.testing.assert_array_equal, mean(loss)(parts), wanted)
  # The decoder imitates itself, and no gradient passes through what is imitated.
  value, gradient = mean(lambda decode: dysi.imitation(
      decode, TEXTS, 0, KEYS, share=0.0, weight=5.0)[0])(parts)
  np.testing.assert_array_equal(value, wanted[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, wanted[1])


def test_the_divergence_is_that_of_two_coins_and_zero_only_where_they_are_equal():
  fair, loaded = logits((1, 1))[0], logits((1, 3))[0]
  of = lambda expert, own, text: float(dysi.divergence(
      expert[None, None], own[None, None], jnp.array([[text]]), 0)[0])
  assert of(fair, loaded, 1) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-5)
  assert of(loaded, fair, 1) == pytest.approx(math.log(2) - OF_SECOND, rel=1e-5)
  assert of(loaded, loaded, 2) == 0.0
  assert of(loaded, loaded + 7.0, 2) == pytest.approx(0.0, abs=1e-6)
  assert of(loaded, loaded.at[2].add(1e-2), 1) > 1e-6


@pytest.mark.long
def test_the_imitation_is_weighted_and_its_own_tokens_are_as_many_as_it_is_accurate():
  """It says 1 first, and then 2: of the first text half is right, and a quarter is its own."""
  parts = logits((2, 1))[0], logits((1, 1), (1, 4), (1, 4))
  n = 20_000
  texts, keys = jnp.tile(TEXTS[:1], (n, 1)), random.each(jax.random.key(3), n)
  run = lambda weight: dysi.imitation(table(*parts), texts, 0, keys, share=0.5, weight=weight)
  (plain, terms), (weighted, _) = run(0.0), run(2.0)
  np.testing.assert_allclose(weighted - plain, 2.0 * terms['divergence'], atol=1e-5)
  np.testing.assert_allclose(terms['accuracy'], 0.5)
  first = table(*parts)(texts)
  own = dysi.mixed(first, texts, keys, 0.5 * terms['accuracy']) != texts
  assert not own[:, 0].any()  # the first token that it says is the true one
  assert abs(float(own[:, 1].mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


@pytest.mark.long
def test_a_text_is_learned_up_to_its_first_padding_which_is_learned_too():
  tokens = jnp.array([[2, 0, 0], [0, 1, 0], [1, 2, 1]])
  assert dysi.learned(tokens, 0).tolist() == [[True, True, False], [True, False, False],
                                              [True, True, True]]
  flat = jnp.zeros((3, 3, 4))
  np.testing.assert_allclose(dysi.nats(flat, tokens, 0), math.log(4) * np.array([2, 1, 3]),
                             rtol=1e-6)
  np.testing.assert_allclose(dysi.accuracy(flat, tokens, 0), [0.5, 1.0, 0.0])


@pytest.mark.parametrize('field,value', [('share', 1.5), ('weight', -1.0)])
def test_numbers_out_of_range_are_refused(field, value):
  with pytest.raises(InputError, match=f'{field}={value}'):
    dysi.imitation(table(*TRUE), TEXTS, 0, KEYS, **{'share': 0.5, 'weight': 1.0, field: value})
