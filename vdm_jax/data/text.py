"""Text as tokens: the bytes of UTF-8.  So any language has 257 levels, and needs no vocabulary."""
from collections.abc import Sequence

import numpy as np

LEVELS = 257  # of a token: 0 pads, b + 1 is the byte b


def longest(texts: Sequence[str]) -> int:
  """The number of bytes of the longest text, at least 1."""
  return max((len(text.encode()) for text in texts), default=0) or 1


def encode(texts: Sequence[str], length: int) -> np.ndarray:
  """int32 [n, length]: byte + 1, then zeros.  Longer texts are cut."""
  tokens = np.zeros((len(texts), length), np.int32)
  for row, one in zip(tokens, texts, strict=True):
    codes = np.frombuffer(one.encode()[:length], np.uint8)
    row[:len(codes)] = codes.astype(np.int32) + 1
  return tokens


def decode(tokens: np.ndarray) -> list[str]:
  """The texts of tokens [n, length].  A character that was cut in two is left out."""
  return [bytes((row[row > 0] - 1).astype(np.uint8)).decode(errors='ignore')
          for row in np.asarray(tokens)]
