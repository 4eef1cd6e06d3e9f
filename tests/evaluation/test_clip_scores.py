"""How well images agree with their texts: cosines and shares by hand."""
import math

import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.evaluation import clip_scores
from vdm_jax.evaluation.clip_scores import Agreement, Scored
from vdm_jax.evaluation.distances import Estimated

TEXTS = np.eye(3)


def test_the_cosines_are_averaged_and_the_likeliest_texts_counted():
  """Cosines with the own text 0.6, 1 and 0.8; the first image is nearer to the second text."""
  images = np.array([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
  found = clip_scores.agreement(images, TEXTS, np.array([0, 1, 2]))
  assert found.cosine == pytest.approx((0.8, 0.2 / math.sqrt(3)))
  assert found.accuracy == pytest.approx((2 / 3, math.sqrt(2 / 27)))


def test_images_may_share_a_text():
  found = clip_scores.agreement(TEXTS[[1, 1, 0, 2]], TEXTS, np.array([1, 1, 1, 1]))
  assert found.accuracy.value == 0.5 and found.cosine.value == 0.5


def test_an_encoder_that_sees_no_difference_retrieves_by_chance():
  images = np.tile([[1.0, 0.0]], (3, 1))
  found = clip_scores.agreement(images, images, np.arange(3))
  assert found.cosine == (1.0, 0.0) and found.accuracy.value == pytest.approx(1 / 3)


def test_a_single_text_is_refused():
  with pytest.raises(InputError, match='all these images have one text'):
    clip_scores.agreement(TEXTS, TEXTS[:1], np.zeros(3, int))


def made_up():
  of = lambda cosine, share: Agreement(Estimated(cosine, 0.01), Estimated(share, 0.02))
  return Scored({3.0: of(0.5, 0.25), 1.0: of(0.5, 0.125), 0.0: of(0.25, 0.75)}, of(0.875, 1.0),
                163, 150)


def test_the_row_has_the_least_weight_of_the_highest_cosine_and_the_real_images():
  assert clip_scores.figures(made_up()) == {
      'w': '1', 'cosine': '0.500 +- 0.010', 'retrieval accuracy': '0.125 +- 0.020',
      'cosine of real images': '0.875 +- 0.010', 'accuracy of real images': '1.000 +- 0.020'}
  table = clip_scores.table(made_up())
  assert list(table.columns[0].cells) == ['w = 3', 'w = 1', 'w = 0', 'real']
  assert list(table.columns[1].cells)[-1] == '0.875 +- 0.010'
  assert '163 images' in str(table.title) and '150 texts' in str(table.title)
