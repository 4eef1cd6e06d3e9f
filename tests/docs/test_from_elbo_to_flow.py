"""The walk of docs/learn/from_elbo_to_flow.md runs, and its pairs of numbers are equal."""
import re

import pytest

from tests.support import pages
from tests.support.pages import PAGES

TEXT = PAGES['docs/learn/from_elbo_to_flow.md'].read_text()
BLOCKS = [pages.blocks(section, 'python') for section in re.split(r'^## ', TEXT, flags=re.M)]
PRINTS = sum(block.count('print(') for blocks in BLOCKS for block in blocks)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return pages.pairs(pages.run(PAGES['docs/learn/from_elbo_to_flow.md'].read_text(),
                               tmp_path_factory.mktemp('walk')).printed)


@pytest.mark.long
def test_every_identity_of_the_walk_is_two_equal_numbers(pairs):
  assert not [line for line, left, right in pairs if not pages.agree(left, right)]


@pytest.mark.long
def test_the_numbers_could_tell_and_none_is_missing(pairs):
  assert len(pairs) == PRINTS + 3  # the four transitions are one print in a loop
  assert PRINTS == pages.promised(TEXT)
  assert all(abs(float(right)) > 1e-4 for _, _, right in pairs)
  assert len({float(right) for _, _, right in pairs}) > 15


def test_every_section_of_the_walk_has_code():
  assert len(BLOCKS) == 9 and all(BLOCKS)
  assert len(TEXT.splitlines()) <= 260
