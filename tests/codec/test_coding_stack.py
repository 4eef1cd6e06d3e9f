"""The stack of bits: what is pushed comes back, at the price that its probability says."""
import numpy as np
import pytest

from vdm_jax.codec.stack import MAX_OVERFLOW, Stack, seed_words
from vdm_jax.errors import InputError


def started(count=400):
  return Stack(seed_words(0, count))


def test_what_was_pushed_is_popped_and_the_words_are_as_before():
  stack, before = started(), seed_words(0, 400)
  rng = np.random.default_rng(0)
  mean, std = rng.uniform(-0.5, 0.5, 50), rng.uniform(0.5, 4.0, 50)
  residual = np.rint(rng.normal(0, 3, 50)).astype(int)
  residual[[3, 7]] = 90, -5000  # both far beyond the window
  probabilities = rng.dirichlet(np.ones(17), 50).astype(np.float32)
  levels = rng.integers(0, 17, 50)
  stack.push_residual(residual, mean, std, 20)
  stack.push_levels(levels, probabilities)
  np.testing.assert_array_equal(stack.pop_levels(probabilities), levels)
  np.testing.assert_array_equal(stack.pop_residual(mean, std, 20), residual)
  np.testing.assert_array_equal(stack.words(), before)


def test_a_stack_far_larger_than_what_is_looked_at_is_the_same_stack():
  stack = Stack(words := seed_words(3, 200_000))
  zeros, ones = np.zeros(1000), np.full(1000, 2.0)
  pushed = np.random.default_rng(0).integers(-8, 9, (400, 1000))
  for row in pushed:
    stack.push_within(row, zeros, ones, 20)
  popped = [stack.pop_within(zeros, ones, 20) for _ in pushed]
  np.testing.assert_array_equal(popped[::-1], pushed)
  np.testing.assert_array_equal(stack.words(), words)


def test_a_symbol_costs_the_logarithm_of_its_probability():
  stack, rng = started(), np.random.default_rng(0)
  probabilities = rng.dirichlet(np.ones(17), 2000).astype(np.float32)
  levels = np.array([rng.choice(17, p=p / p.sum()) for p in probabilities])
  before = stack.bits
  stack.push_levels(levels, probabilities)
  exact = -np.log2(probabilities[np.arange(2000), levels]).sum()
  assert stack.bits - before == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize('half', [128, 16_384, 2**18])
def test_each_value_of_a_window_costs_two_to_the_minus_24(half):
  """-log2(1 - W 2^-24) a symbol for a window of W values, beside that of the Gaussian."""
  stack = started()
  residual = np.rint(np.random.default_rng(0).normal(0.0, 2.0, 5000)).astype(int)
  zeros, std = np.zeros(5000), np.full(5000, 2.0)
  narrow, wide = stack.bits, None
  stack.push_within(residual, zeros, std, 16)
  narrow, wide = stack.bits - narrow, stack.bits
  stack.push_within(residual, zeros, std, half)
  wide = stack.bits - wide
  cost = lambda w: -np.log2(1.0 - (2 * w + 1) * 2.0**-24)
  assert (wide - narrow) / 5000 == pytest.approx(cost(half) - cost(16), rel=0.02, abs=1e-5)


def test_a_keystream_is_taken_off_by_the_call_that_added_it():
  stack, before = started(), seed_words(0, 400)
  stack.whiten(5, 17, 30)
  changed = np.flatnonzero(stack.words() != before)
  assert changed.min() == 400 - 32 and stack.lowest == 400 - 32
  assert len(changed) >= 31  # words of 32 random bits are equal by chance once in 2^32
  assert stack.words()[-1] >> 26 == before[-1] >> 26
  stack.whiten(5, 17, 30)
  np.testing.assert_array_equal(stack.words(), before)


def test_an_empty_stack_and_a_latent_out_of_reach_are_refused():
  with pytest.raises(InputError, match='stack of bits is empty'):
    started(3).pop_within(np.zeros(5000), np.ones(5000), 20)
  stack = started()
  with pytest.raises(InputError, match='further from its prediction'):
    stack.push_residual(np.array([MAX_OVERFLOW + 30]), np.zeros(1), np.ones(1), 20)
