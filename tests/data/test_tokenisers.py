"""Tokenisers: parity with the public code's tokens, and texts that they refuse."""
import gzip
import json

import numpy as np
import pytest

from tests.support import recordings
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError

CAPTIONS = ('a red disk', 'a blue square, on a black floor', 'the cat\'s red ball')


@pytest.fixture(scope='module')
def recorded():
  return {name: json.loads(str(array)) for name, array in
          recordings.shared('tokens_small').items() if array.dtype.kind == 'U' and name != 'meta'}


@pytest.fixture
def merges(recorded, tmp_path):
  """A file with the first 600 merges of CLIP, which the recording holds."""
  path = tmp_path / 'merges.txt'
  path.write_text('\n'.join(['#version: 0.2', *recorded['clip_600/merges'], '']))
  return path


def test_clip_s_tokens_are_those_of_the_public_code(recorded, merges):
  clip = tokenisers.of_clip(merges, 60, count=600)
  assert clip.levels == 1_114
  tokens = clip.encode(recorded['strings'])
  assert tokens.shape == (13, 60) and tokens.dtype == np.int32
  for row, ids, string in zip(tokens, recorded['clip_600/ids'], recorded['strings'], strict=True):
    end = [1113] * (59 - len(ids))
    assert row.tolist() == [1112, *ids, *end], string
  decoded = [text.rstrip() for text in recorded['clip_600/decoded']]
  assert clip.decode(tokens) == decoded


@pytest.mark.parametrize('name, make, file', [
    ('clip', tokenisers.of_clip, 'bpe_simple_vocab_16e6.txt.gz'),
    ('glide', tokenisers.of_gpt2, 'vocab.bpe')])
def test_tokens_of_the_whole_vocabulary_are_those_of_the_public_code(recorded, name, make, file):
  path = recordings.ROOT.parent / 'shared' / 'merges' / file
  if not path.exists():
    pytest.skip(f'the file of merges {path} is not here')
  start, end = ([49406], [49407]) if name == 'clip' else ([], [])
  for row, ids in zip(make(path).encode(recorded['strings']), recorded[f'{name}/ids'],
                      strict=True):
    assert row[:len(start + ids + end)].tolist() == start + ids + end


def test_a_file_of_merges_may_be_compressed_and_longer(recorded, merges):
  packed = merges.with_name('bpe.txt.gz')
  packed.write_bytes(gzip.compress(merges.read_bytes()))
  clip = [tokenisers.of_clip(path, 60, count=count)
          for path, count in ((merges, 599), (packed, 599), (merges, 600))]
  a, b, c = (one.encode(recorded['strings']) for one in clip)
  np.testing.assert_array_equal(a, b)
  assert [one.levels for one in clip] == [1_113, 1_113, 1_114] and (a != c).any()


def test_gpt_2_s_bytes_have_the_published_numbers_and_its_words_keep_their_space(tmp_path):
  """In GPT-2's vocabulary 'a' is 64 and the space is 220; its first merge is 'Ġ t', 256."""
  path = tmp_path / 'vocab.bpe'
  path.write_text('#version: 0.2\nĠ t\nĠ a\nh e\n', encoding='utf-8')
  gpt2 = tokenisers.of_gpt2(path, 12, count=3)
  tokens = gpt2.encode(['a THE a', ''])
  np.testing.assert_array_equal(tokens, [[64, 256, 258, 257] + [259] * 8, [259] * 12])
  assert gpt2.levels == 260 and gpt2.padding == 259
  assert gpt2.decode(tokens) == ['a the a', '']
  np.testing.assert_array_equal(gpt2.encode(['  \n'])[0, :3], [220, 220, 198])


def test_words_are_those_of_the_captions():
  words = tokenisers.vocabulary(CAPTIONS)
  assert words == ("'", ',', 'a', 'ball', 'black', 'blue', 'cat', 'disk', 'floor', 'on', 'red',
                   's', 'square', 'the')
  one = tokenisers.of_words(words, 8)
  tokens = one.encode(['a red disk', '', 'A BLACK cat'])
  np.testing.assert_array_equal(tokens[:, :4], [[3, 11, 8, 0], [0, 0, 0, 0], [3, 5, 7, 0]])
  assert one.levels == 15 and one.decode(tokens) == ['a red disk', '', 'a black cat']
  assert one.field('caption') == ('caption', (8,), 'int32', 15)
  with pytest.raises(InputError, match="no word 'bleu'; take words of theirs, e.g. blue"):
    one.encode(['a bleu disk'])


def test_bytes_are_one_of_the_tokenisers():
  one = tokenisers.of_bytes(6)
  tokens = one.encode(['ab', 'é'])
  np.testing.assert_array_equal(tokens, [[98, 99, 0, 0, 0, 0], [0xc4, 0xaa, 0, 0, 0, 0]])
  assert one.decode(tokens) == ['ab', 'é'] and one.field('name').levels == 257


def test_a_text_that_is_too_long_is_refused(merges):
  for one, unit in ((tokenisers.of_clip(merges, 4, count=600), '5 tokens, and 4'),
                    (tokenisers.of_words(('a', 'b'), 2), '3 words, and 2'),
                    (tokenisers.of_bytes(4), '5 bytes, and 4')):
    with pytest.raises(InputError, match=f"text='a a a': it has {unit} are read; shorten it"):
      one.encode(['a', 'a a a'])


@pytest.mark.parametrize('text, message', [
    ('#version: 0.2\na b\n', "1 merges without ends of words, and CLIP's encoding has 48,894"),
    ('#version: 0.2\na b</w>\n', "it has 1 merges, and CLIP's encoding has 48,894 with them"),
    ('a b\nc\n', "'c' is no pair, so it is no file of merges"), ('', 'it is empty')])
def test_a_file_of_other_merges_is_refused(tmp_path, text, message):
  path = tmp_path / 'merges.txt'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    tokenisers.of_clip(path)


def test_gpt_2_refuses_the_merges_of_clip(merges):
  with pytest.raises(InputError, match="it has 600 merges with ends of words, and GPT-2's"):
    tokenisers.of_gpt2(merges)
  with pytest.raises(InputError, match='there is no such file'):
    tokenisers.of_gpt2(merges.with_name('none'))
