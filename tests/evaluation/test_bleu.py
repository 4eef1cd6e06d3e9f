"""Exact matches and BLEU: the oracles are examples of the paper, and recordings of sacrebleu."""
import math

import pytest

from vdm_jax.errors import InputError
from vdm_jax.evaluation import bleu

# Papineni et al. (2002), example 1.
CANDIDATES = (
    'it is a guide to action which ensures that the military always obeys the commands of the '
    'party',
    'it is to insure the troops forever hearing the activity guidebook that party direct')
# sacrebleu 2.6.0, corpus_bleu(said, [texts], ...) with tokenize='none', smooth_method='none' and
# force=True: of up to 4 and up to 2 words.
RECORDED = [
    (['the cat sat on the mat', 'a small red disk on grey'],
     ['the cat is on the mat', 'a small red disk on white'], 55.83948264724184, 76.3762615825974),
    (['a large blue disk on black today', 'a small red cross on white', 'purple heart'],
     ['a large blue disk on black', 'a small green cross on white', 'a purple heart exclamation'],
     58.676344684400206, 75.4229843865858),
    (['woman guard dark skin tone', 'flag', 'man man man man man'],
     ['woman guard medium dark skin tone', 'flag iceland', 'man running light skin tone'], 0.0,
     40.72918109623678)]


@pytest.mark.parametrize('said,texts,four,two', RECORDED)
def test_bleu_is_that_of_the_public_program(said, texts, four, two):
  assert 100 * bleu.score(said, texts) == pytest.approx(four, rel=1e-12)
  assert 100 * bleu.score(said, texts, order=2) == pytest.approx(two, rel=1e-12)


def test_a_word_counts_no_more_often_than_in_the_reference():
  """Example 2 of the paper: seven times "the" has the precision 2/7."""
  assert bleu.score(['the ' * 7], ['the cat is on the mat'], order=1) == pytest.approx(2 / 7)


def test_the_candidates_of_the_paper_share_ten_and_six_words_with_its_third_reference():
  """Counted by hand: it, is, guide, to, always, of, party and three times "the"; and it, is, to,
  party and twice "the".  The second candidate has 14 words, and 16 are wanted."""
  reference = ['it is the practical guide for the army always to heed the directions of the party']
  assert bleu.score([CANDIDATES[0]], reference, order=1) == pytest.approx(10 / 18)
  assert bleu.score([CANDIDATES[1]], reference, order=1) == pytest.approx(
      6 / 14 * math.exp(1 - 16 / 14))


def test_equal_captions_have_the_highest_scores_and_a_short_one_has_no_phrases():
  said = ['a small red disk on grey', 'a large blue cross on black']
  assert bleu.score(said, said) == 1.0 and bleu.exact(said, said) == (1.0, 0.0)
  assert bleu.score(['heart'], ['heart']) == 0.0  # it has no two words
  assert bleu.score(['heart'], ['heart'], order=1) == 1.0


def test_exact_matches_are_a_share_with_its_error():
  found = bleu.exact(['a b', 'a', 'b ', 'c'], ['a b', 'b', 'b', 'a'])
  assert found.value == 0.5 and found.error == pytest.approx(0.25)
  with pytest.raises(InputError, match='4 captions and 3 texts'):
    bleu.exact(['a'] * 4, ['a'] * 3)
