"""Tokenisers: parity with the public code's tokens, and texts that they refuse."""
import gzip
import json
import os
from pathlib import Path

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
  path = Path(os.environ.get('VDM_JAX_MERGES', 'merges')) / file
  if not path.exists():
    pytest.skip(f'{path}, a file of the public code, is not here: VDM_JAX_MERGES names its folder')
  tokeniser = make(path)
  start, end = ([49406], [49407]) if name == 'clip' else ([], [])
  for row, ids in zip(tokeniser.encode(recorded['strings']), recorded[f'{name}/ids'], strict=True):
    assert row[:len(start + ids + end)].tolist() == start + ids + end
  levels, text, published = {
      'clip': (49_408, 'a photo of a cat', [49406, 320, 1125, 539, 320, 2368, 49407]),
      'glide': (50_257, 'hello world', [31373, 995])}[name]  # in lower case, as GLIDE reads it
  assert tokeniser.levels == levels
  assert tokeniser.encode([text])[0, :len(published)].tolist() == published


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


@pytest.mark.parametrize('text, message', [
    ('a bleu disk', "have no word 'bleu' (near it: blue); use words of the data."),
    ('a bleu dusk on bleu', "have no words 'bleu' (near it: blue), 'dusk' (near it: disk); use "
     'words of the data.'),
    ('a bleu hymn', "have no words 'bleu' (near it: blue), 'hymn'; use words of the data: the "
     'words are a, ball, black, blue, cat, disk, floor, on and 4 more.')])
def test_all_words_that_the_data_do_not_have_are_named_with_those_near_them(text, message):
  one = tokenisers.of_words(tokenisers.vocabulary(CAPTIONS), 8)
  with pytest.raises(InputError) as caught:
    one.encode(['a red disk', text])
  assert str(caught.value) == f'text={text!r}: the texts of the data {message}'


def test_where_no_word_is_near_all_of_few_words_are_named():
  with pytest.raises(InputError, match="no word 'hymn'; use words of the data: the words are a, b"):
    tokenisers.of_words((',', 'a', 'b'), 2).encode(['hymn'])


def test_bytes_are_one_of_the_tokenisers():
  one = tokenisers.of_bytes(6)
  tokens = one.encode(['ab', 'é'])
  np.testing.assert_array_equal(tokens, [[98, 99, 0, 0, 0, 0], [0xc4, 0xaa, 0, 0, 0, 0]])
  assert one.decode(tokens) == ['ab', 'é'] and one.levels == 257


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


def test_a_field_of_texts_makes_the_tokeniser_of_its_values():
  """CLIP's and GPT-2's fields have the published sizes; words and bytes are those of the texts."""
  words = tokenisers.field('caption', tokenisers.Settings('words'), CAPTIONS)
  assert words[:4] == ('caption', (8,), 'int32', 15) and words.texts.kind == 'words'
  own = tokenisers.of(words)
  assert own.decode(own.encode(['The Red disk'])) == ['the red disk']
  for kind, length, levels in (('clip', 77, 49_408), ('gpt2', 128, 50_257)):
    settings = tokenisers.Settings(kind)
    field = tokenisers.field('caption', settings)
    assert settings.complete and field[:4] == ('caption', (length,), 'int32', levels)
    with pytest.raises(InputError, match=f'config.data.merges: the tokeniser {kind} needs a'):
      tokenisers.of(field)
  assert tokenisers.field('caption', tokenisers.BYTES, CAPTIONS).shape == (31,)
  with pytest.raises(InputError, match='config.data.tokeniser=.word.: did you mean words'):
    tokenisers.field('caption', tokenisers.Settings('word'))


@pytest.mark.long
def test_nothing_is_the_empty_text(tmp_path):
  """A file of 48,894 merges of two letters each, by a rule: CLIP's levels are then the published
  ones, and so are those of GPT-2 for 50,000."""
  letters = [chr(i) for i in range(0x21, 0x7f)] + [chr(i) for i in range(0xae, 0x100)]
  pairs = [(a, b) for a in letters for b in letters]
  pairs += [(a, b * 2) for a, b in pairs]
  for kind, count, end in (('clip', 48_894, '</w>'), ('gpt2', 50_000, '')):
    path = tmp_path / kind
    path.write_text(''.join(f'{a} {b}{end}\n' for a, b in pairs[:count]), encoding='utf-8')
    field = tokenisers.field('caption', tokenisers.Settings(kind, 5, str(path)))
    np.testing.assert_array_equal(tokenisers.nothing(field), tokenisers.of(field).encode([''])[0])
  pieces = ['[PAD]', *(f'[unused{i}]' for i in range(99)), '[UNK]', '[CLS]', '[SEP]']
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join([*pieces, *map(str, range(30_522 - len(pieces))), '']))
  field = tokenisers.field('caption', tokenisers.Settings('bert', 5, str(path)))
  np.testing.assert_array_equal(tokenisers.nothing(field), tokenisers.of(field).encode([''])[0])
  for kind in ('bytes', 'words'):
    field = tokenisers.field('caption', tokenisers.Settings(kind), CAPTIONS)
    np.testing.assert_array_equal(tokenisers.nothing(field), tokenisers.of(field).encode([''])[0])


def test_a_caption_of_the_data_is_cut_and_clip_s_end_stays(merges):
  clip = tokenisers.of_clip(merges, 4, count=600)
  whole = tokenisers.of_clip(merges, 9, count=600).encode(['a a a a'])[0]
  np.testing.assert_array_equal(clip.encode(['a a a a'], cut=True), [[*whole[:3], 1113]])
  words = tokenisers.of_words(('a', 'b'), 2)
  np.testing.assert_array_equal(words.encode(['b a a'], cut=True), [[2, 1]])
  np.testing.assert_array_equal(tokenisers.of_bytes(2).encode(['abc'], cut=True), [[98, 99]])


def test_bert_s_pieces_are_those_of_its_public_test(tmp_path):
  """google-research/bert, tokenization_test.py; [PAD] is put first here, so all are one more."""
  path = tmp_path / 'vocab.txt'
  pieces = ['[UNK]', '[CLS]', '[SEP]', 'want', '##want', '##ed', 'wa', 'un', 'runn', '##ing', ',']
  path.write_text('\n'.join(['[PAD]', *pieces]) + '\n')
  bert = tokenisers.of_bert(path, 9, count=12)
  tokens = bert.encode(['UNwant\u00E9d,running', 'unwantedX running'])
  np.testing.assert_array_equal(tokens[0], [2, *np.array([7, 4, 5, 10, 8, 9]) + 1, 3, 0])
  np.testing.assert_array_equal(tokens[1], [2, 1, 9, 10, 3, 0, 0, 0, 0])
  assert bert.decode(tokens)[0] == 'unwanted , running' and bert.levels == 12
  np.testing.assert_array_equal(bert.encode(['un ' * 9], cut=True)[0], [2, *[8] * 7, 3])
  with pytest.raises(InputError, match="it has 12 pieces of words, and BERT's encoding has 30,522"):
    tokenisers.of_bert(path)


@pytest.mark.parametrize('kind', ['bytes', 'words'])
def test_the_tokens_of_the_words_of_a_text_are_those_of_the_text(kind):
  field = tokenisers.field('caption', tokenisers.Settings(kind), ['a red, small disk  ', 'on grey'])
  text = 'a small  red, disk'
  apart = tokenisers.apart(field, text)
  assert apart.words == ('a', 'small', 'red,', 'disk') and apart.start == apart.end == ()
  whole = tokenisers.of(field).encode([' '.join(text.split())])[0]
  assert [one for word in apart.tokens for one in word] == whole[whole > 0].tolist()
  assert len(apart.tokens[2]) == {'bytes': 5, 'words': 2}[kind]
  with pytest.raises(InputError, match='words|bytes'):
    tokenisers.apart(field, 'a red, small disk on grey, red')


def test_the_marks_around_a_text_belong_to_no_word(tmp_path):
  """BERT's pieces, by a vocabulary of its size whose other pieces are never used."""
  pieces = ['[PAD]', '[UNK]', *map(str, range(2, 101)), '[CLS]', '[SEP]', 'red', '##dish', 'cat']
  file = tmp_path / 'vocab.txt'
  file.write_text('\n'.join([*pieces, *(f'unused{i}' for i in range(30_522 - len(pieces)))]))
  field = tokenisers.field('caption', tokenisers.Settings('bert', 9, str(file)))
  apart = tokenisers.apart(field, 'reddish cat')
  number = {piece: i for i, piece in enumerate(pieces)}
  assert number['[CLS]'] == 101
  assert apart == (('reddish', 'cat'), ((number['red'], number['##dish']), (number['cat'],)),
                   (101,), (102,))


@pytest.mark.parametrize('kind, count, merges, tokens, start, end', [
    ('clip', 48_894, ('r e', 're d</w>', 'c a'), ((513, 267), (514, 339)), (49_406,), (49_407,)),
    ('gpt2', 50_000, ('Ġ c', 'Ġc a', 'r e'), ((258, 67, 11), (257, 83)), (), ())])
def test_joined_bytes_belong_to_their_word(kind, count, merges, tokens, start, end, tmp_path):
  """Three merges, and others that are never used.  In both published vocabularies "," is 11, "d"
  is 67 and "t" is 83; at the end of a word CLIP adds 256.  Merges follow these bytes."""
  file = tmp_path / 'merges.txt'
  others = (f'unused {i}{"</w>" * (kind == "clip")}' for i in range(count - len(merges)))
  file.write_text('\n'.join([*merges, *others, '']), encoding='utf-8')
  field = tokenisers.field('caption', tokenisers.Settings(kind, 9, str(file)))
  assert tokenisers.apart(field, 'red, cat') == (('red,', 'cat'), tokens, start, end)
  whole = [*start, *tokens[0], *tokens[1], *end]
  assert tokenisers.of(field).encode(['red, cat'])[0, :len(whole)].tolist() == whole
