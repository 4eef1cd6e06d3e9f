"""The AUROC, against closed forms."""
import numpy as np
import pytest
from scipy.stats import norm

from vdm_jax.errors import InputError
from vdm_jax.evaluation.anomalies import auroc


def test_small_cases_are_counted_by_hand():
  odd = np.array([True, True, False, False, False])
  assert auroc([5.0, 4.0, 3.0, 2.0, 1.0], odd).value == 1.0
  assert auroc([1.0, 2.0, 3.0, 4.0, 5.0], odd).value == 0.0
  assert auroc([1.0, 1.0, 1.0, 1.0, 1.0], odd).value == 0.5
  # 3 beats 2 and 0, ties 3; 1 beats 0: 2.5 + 1 of 6 pairs.
  assert auroc([3.0, 1.0, 3.0, 2.0, 0.0], odd).value == 3.5 / 6.0


def test_two_normals_have_phi_of_their_distance_and_the_error_is_that_of_repetitions():
  """P(a > b) = Phi(1 / sqrt(2)) of N(1, 1) and N(0, 1)."""
  rng, found = np.random.default_rng(0), []
  for _ in range(400):
    scores = np.concatenate([1.0 + rng.standard_normal(40), rng.standard_normal(90)])
    found.append(auroc(scores, np.arange(130) < 40))
  values, errors = np.array(found).T
  want, spread = norm.cdf(0.5**0.5), values.std(ddof=1)
  assert abs(values.mean() - want) < 4 * spread / 20
  assert abs(errors.mean() / spread - 1.0) < 4 / (2 * 400)**0.5 + 0.02


def test_one_kind_alone_is_refused():
  with pytest.raises(InputError, match='^odd: 0 of 2 examples are odd; give examples of both'):
    auroc(np.ones(2), np.zeros(2, bool))
