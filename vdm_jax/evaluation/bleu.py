"""How near captions are to the texts of their images: exact matches, and BLEU."""
import collections
import math
from collections.abc import Sequence

import numpy as np

from vdm_jax.errors import require
from vdm_jax.evaluation.distances import Estimated, share

ORDER = 4  # of the longest n-grams of BLEU


def exact(said: Sequence[str], texts: Sequence[str]) -> Estimated:
  """The share of captions that are their text, word for word, and its standard error."""
  _require_pairs(said, texts)
  return share(np.array([a.split() == b.split() for a, b in zip(said, texts, strict=True)]))


def score(said: Sequence[str], texts: Sequence[str], order: int = ORDER) -> float:
  """BLEU of captions with one reference each, from 0 to 1: Papineni et al. (2002), section 2.3.

    BP exp(mean over n of log p_n),    BP = min(1, exp(1 - r / c)),    n = 1 .. order

  p_n is the share of all n-grams of the captions that their references have too, where no n-gram
  counts more often than in its reference.  c and r are the words of all captions and references.
  Words stand one space apart.  There is no smoothing: if no n-gram of one order matches, BLEU is 0.
  """
  _require_pairs(said, texts)
  found, wanted = [one.split() for one in said], [one.split() for one in texts]
  precisions = [_precision(found, wanted, n) for n in range(1, order + 1)]
  if 0.0 in precisions:
    return 0.0
  c, r = (sum(map(len, words)) for words in (found, wanted))
  return math.exp(min(0.0, 1.0 - r / c) + sum(map(math.log, precisions)) / order)


def _precision(found: list[list[str]], wanted: list[list[str]], n: int) -> float:
  """p_n of Papineni et al. (2002), section 2.1.1; 0 if no caption has so many words."""
  grams = lambda words: collections.Counter(
      tuple(words[i:i + n]) for i in range(len(words) - n + 1))
  matches = total = 0
  for a, b in zip(found, wanted, strict=True):
    own = grams(a)
    matches += (own & grams(b)).total()
    total += own.total()
  return matches / total if total else 0.0


def _require_pairs(said: Sequence[str], texts: Sequence[str]) -> None:
  require(len(said) == len(texts) > 0, 'said', None, f'there are {len(said)} captions and '
          f'{len(texts)} texts', 'give as many of both, at least one')
