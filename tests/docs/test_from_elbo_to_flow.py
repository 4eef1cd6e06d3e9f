"""The walk of docs/learn/from_elbo_to_flow.md runs, and its pairs of numbers are equal."""
import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

TEXT = (Path(__file__).parents[2] / 'docs' / 'learn' / 'from_elbo_to_flow.md').read_text()
SECTIONS = re.split(r'^## ', TEXT, flags=re.MULTILINE)
BLOCKS = [re.findall(r'```python\n(.*?)```', section, re.DOTALL) for section in SECTIONS]
PRINTS = sum(block.count('print(') for blocks in BLOCKS for block in blocks)


@pytest.fixture(scope='module')
def printed():
  """[(what, left, right)] of all blocks, run in order in one namespace."""
  out, names = io.StringIO(), {}
  try:
    with contextlib.redirect_stdout(out):
      for blocks in BLOCKS:
        for block in blocks:
          exec(compile(block, 'docs/learn/from_elbo_to_flow.md', 'exec'), names)
  finally:
    jax.config.update('jax_enable_x64', False)  # as the first block sets it
  lines = [line.rsplit(maxsplit=2) for line in out.getvalue().splitlines()]
  return [(what, float(left), float(right)) for what, left, right in lines]


def test_every_identity_of_the_walk_is_two_equal_numbers(printed):
  wrong = [row for row in printed if abs(row[1] - row[2]) > 1e-6 * abs(row[2])]
  assert not wrong


def test_the_numbers_could_tell_and_none_is_missing(printed):
  assert len(printed) == PRINTS + 3  # the four transitions are one print in a loop
  assert all(abs(right) > 1e-4 for _, _, right in printed)
  assert len({right for _, _, right in printed}) > 15


def test_every_section_of_the_walk_has_code():
  assert len(SECTIONS) == 9 and all(BLOCKS)
  assert len(TEXT.splitlines()) <= 260
