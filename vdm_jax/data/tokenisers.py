"""Tokenisers: texts as the integers that a network of texts reads.

A text field says which tokeniser made its values (`fields.Texts`), and `of` makes the tokeniser.
The kinds are `bytes`, `words`, `clip`, `gpt2` and `bert`:

  of_bytes   the bytes of UTF-8, see `text`
  of_words   the words of a data set's own captions
  of_clip    the byte-pair encoding of CLIP, which Stable Diffusion reads
  of_gpt2    the byte-pair encoding of GPT-2, as GLIDE reads it
  of_bert    the pieces of words of BERT, which latent diffusion's text models read

A byte-pair encoding (Sennrich et al. 2016) splits a text into words, and a word into bytes.  It
then joins neighbours, again and again, by a list of merges: always the pair that comes first in the
list.  The list is a file of the public code.
"""
import difflib
import functools
import gzip
import html
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.data import text
from vdm_jax.data.fields import MERGED, Field, Texts
from vdm_jax.errors import InputError, renamed, require, require_choice

Merge = tuple[str, str]


class Tokeniser(NamedTuple):
  """Texts as tokens 0 .. levels - 1, and back.

  encode raises InputError for a text that has no tokens here, and for a text of more than `length`
  tokens.  With `cut`, it cuts such a text instead, and CLIP's end stays at the end of the text.
  decode leaves out padding, and the marks of a start and an end.
  """
  encode: Callable[..., np.ndarray]              # n texts (, cut=False) -> int32 [n, length]
  decode: Callable[[np.ndarray], list[str]]      # [n, length] -> n texts
  length: int
  levels: int
  padding: int  # the token that fills a text up


KINDS = ('bytes', 'words', *MERGED)
# Kind -> length, levels, and the empty text: its first tokens, and the token that follows.
_PUBLISHED = {'clip': (77, 49_408, (49_406,), 49_407), 'gpt2': (128, 50_257, (), 50_256),
              'bert': (77, 30_522, (101, 102), 0)}
_MARKS = {'clip': ((49_406,), (49_407,)), 'bert': ((101,), (102,))}  # the start and the end


class Apart(NamedTuple):
  """A text as words, and the tokens of each word."""
  words: tuple[str, ...]
  tokens: tuple[tuple[int, ...], ...]  # of each word
  start: tuple[int, ...]               # before the first word
  end: tuple[int, ...]                 # after the last word, without padding


class Settings(NamedTuple):
  """The fields of `config.data` about texts."""
  kind: str = 'bytes'
  length: int = 0   # tokens of a text; 0: of the longest text, or as published for clip, gpt2, bert
  merges: str = ''  # of clip, gpt2 and bert: their file

  @property
  def complete(self) -> bool:
    """Whether the fields of texts are known without the texts."""
    return self.kind in MERGED or (self.kind == 'bytes' and self.length > 0)


BYTES = Settings()


def field(name: str, settings: Settings, texts: Sequence[str] = ()) -> Field:
  """The field of texts in a data set.  texts: all of them, unless the settings are `complete`.

  Raises InputError: no such tokeniser.
  """
  kind, length, merges = settings
  require_choice('config.data.tokeniser', kind, KINDS)
  if kind in MERGED:
    usual, levels, *_ = _PUBLISHED[kind]
    return Field(name, (length or usual,), 'int32', levels, Texts(kind, merges=merges))
  if kind == 'bytes':
    return Field(name, (length or text.longest(texts),), 'int32', text.LEVELS, Texts(kind))
  words, longest = vocabulary(texts), max((len(split(one)) for one in texts), default=0) or 1
  return Field(name, (length or longest,), 'int32', len(words) + 1, Texts(kind, words))


def of(field: Field) -> Tokeniser:
  """The tokeniser of a text field.  Raises InputError: its file is missing, or is another one."""
  assert field.texts is not None
  return _made(field.shape[0], *field.texts)


_FILES = {'clip': 'bpe_simple_vocab_16e6.txt.gz of openai/CLIP',
          'gpt2': 'vocab.bpe of openai/gpt-2', 'bert': 'vocab.txt of bert-base-uncased'}


@functools.lru_cache(maxsize=8)
def _made(length: int, kind: str, words: tuple[str, ...], merges: str) -> Tokeniser:
  if kind not in MERGED:
    return of_words(words, length) if kind == 'words' else of_bytes(length)
  require(bool(merges), 'config.data.merges', None, f'the tokeniser {kind} needs a file',
          f'name {_FILES[kind]}')
  try:
    return {'clip': of_clip, 'gpt2': of_gpt2, 'bert': of_bert}[kind](merges, length)
  except InputError as error:
    raise InputError('config.data.merges', error.value, error.problem, error.remedy) from None


def nothing(field: Field) -> np.ndarray:
  """The tokens of the empty text [L], for which no file of merges is read."""
  assert field.texts is not None
  *_, first, rest = _PUBLISHED.get(field.texts.kind, ((), 0))
  tokens = np.full(field.shape, rest, field.dtype)
  tokens[:len(first)] = first
  return tokens


def tokens(field: Field, texts: Sequence[str], name: str) -> np.ndarray:
  """The tokens of texts that a user gave, [n, L].

  name: the argument or the flag that gave them.  Raises InputError about it, as `Tokeniser.encode`.
  """
  with renamed({'text': name}):
    return of(field).encode(texts)


def apart(field: Field, text: str) -> Apart:
  """The words of a text between spaces, each with its own tokens.

  A word has the space before it, as byte-pair encodings have.  So the tokens of all words, one
  after another, are those of the text.  Raises InputError as `Tokeniser.encode` does.
  """
  tokeniser, (start, end) = of(field), _MARKS.get(field.texts.kind if field.texts else '', ((), ()))
  tokeniser.encode([text])  # refused as a whole
  words = tuple(text.split())
  rows = tokeniser.encode([' ' * (i > 0) + word for i, word in enumerate(words)]).tolist()
  for row in rows:
    while row and row[-1] in (tokeniser.padding, *end):
      row.pop()
  return Apart(words, tuple(tuple(row[len(start):]) for row in rows), start, end)


def of_bytes(length: int) -> Tokeniser:
  """The bytes of UTF-8.  0 pads, and b + 1 is the byte b."""
  def encode(texts, cut=False):
    for one in texts if not cut else ():
      _require_length(one, len(one.encode()), length, 'bytes')
    return text.encode(texts, length)
  return Tokeniser(encode, text.decode, length, text.LEVELS, 0)


# --------------------------------------------------------------------------------------- words


def split(text: str) -> list[str]:
  """The words and the marks of punctuation of a text, in lower case."""
  return re.findall(r'\w+|[^\w\s]', text.lower())


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
  """All words of texts, in alphabetical order."""
  return tuple(sorted({word for text in texts for word in split(text)}))


def of_words(words: Sequence[str], length: int) -> Tokeniser:
  """A token for each word: 0 pads, and i + 1 is word i.

  words: of the data, see `vocabulary`.  Upper case is lower case, and decoded words stand one space
  apart.  A text with other words is refused, and the error names each of them and what is near it.
  """
  numbers = {word: i + 1 for i, word in enumerate(words)}

  def codes(text):
    found = split(text)
    unknown = [word for word in dict.fromkeys(found) if word not in numbers]
    if unknown:
      raise _unknown(text, unknown, words)
    return [numbers[word] for word in found]

  decode = lambda tokens: [' '.join(words[int(i) - 1] for i in row if i > 0)
                           for row in tokens.tolist()]
  return Tokeniser(functools.partial(_padded, codes, length, 0, 'words'), decode, length,
                   len(words) + 1, 0)


_SHOWN = 8  # words of the data, where no word is near


def _unknown(text: str, unknown: Sequence[str], words: Sequence[str]) -> InputError:
  """The error of a text with words that the data do not have."""
  near = {word: difflib.get_close_matches(word, words, 3) for word in unknown}
  named = [repr(word) + (f' (near it: {", ".join(close)})' if close else '')
           for word, close in near.items()]
  several = 's' * (len(named) > 1)
  remedy = 'use words of the data'
  if not all(near.values()):
    known = [word for word in words if word[0].isalnum()]
    more = len(known) - _SHOWN
    remedy += (f': the words are {", ".join(known[:_SHOWN])}'
               + (f' and {more:,} more' if more > 0 else ''))
  return InputError('text', text, f'the texts of the data have no word{several} '
                    f'{", ".join(named)}', remedy)


# -------------------------------------------------------------------------- byte-pair encodings


def of_clip(merges: str | Path, length: int = 77, count: int = 48_894) -> Tokeniser:
  """CLIP's encoding (Radford et al. 2021): a start, the tokens, an end, and ends as padding.

  Stable Diffusion pads with ends.  CLIP pads with 0, but nothing that it returns depends on it.
  Case and spaces are not kept.  Some characters are written plainly first, as the public code does
  by ftfy: curly quotes, ligatures, characters of full width.  Garbled text is not mended.

  merges: the file bpe_simple_vocab_16e6.txt.gz of openai/CLIP, or merges.txt of the same tokeniser.
  count: how many of its merges the encoding has; the longer file has more.
  Raises InputError: no such file, or a file of other merges.
  """
  found = read_merges(merges)
  ends = any(second.endswith(_END) for _, second in found)
  if len(found) < count or not ends:
    raise InputError('merges', str(merges), f'it has {len(found):,} merges'
                     + ('' if ends else ' without ends of words')
                     + f", and CLIP's encoding has {count:,} with them",
                     'give bpe_simple_vocab_16e6.txt.gz of openai/CLIP, or merges.txt of its '
                     'tokeniser')
  found = found[:count]
  letters = list(_LETTERS.values())
  symbols = [*letters, *(letter + _END for letter in letters), *map(''.join, found)]
  numbers = {symbol: i for i, symbol in enumerate(symbols)}
  start, end = len(symbols), len(symbols) + 1
  special = {'<|startoftext|>': start, '<|endoftext|>': end}
  join = _joining(found)

  def codes(text):
    out = [start]
    for word in _clip_words().findall(_plain(text)):
      if word in special:
        out.append(special[word])
      else:
        *first, last = _letters(word)
        out += [numbers[symbol] for symbol in join((*first, last + _END))]
    return [*out, end]

  def decode(tokens):
    rows = [''.join(symbols[i] for i in row if i < start) for row in tokens.tolist()]
    return [_text(row).replace(_END, ' ').rstrip() for row in rows]
  encode = functools.partial(_padded, codes, length, end, 'tokens', end=end)
  return Tokeniser(encode, decode, length, len(symbols) + 2, end)


def of_gpt2(merges: str | Path, length: int = 128, count: int = 50_000) -> Tokeniser:
  """GPT-2's encoding (Radford et al. 2019) as GLIDE reads it: in lower case, without start or end.

  merges: the file vocab.bpe of openai/gpt-2, or merges.txt of the same tokeniser.
  Raises InputError: no such file, or a file of other merges.
  """
  found = read_merges(merges)
  ends = any(second.endswith(_END) for _, second in found)
  if len(found) != count or ends:
    raise InputError('merges', str(merges), f'it has {len(found):,} merges'
                     + (' with ends of words' if ends else '')
                     + f", and GPT-2's encoding has {count:,} without them",
                     'give vocab.bpe of openai/gpt-2, or merges.txt of its tokeniser')
  symbols = [*_LETTERS.values(), *map(''.join, found)]
  numbers = {symbol: i for i, symbol in enumerate(symbols)}
  join = _joining(found)
  codes = lambda text: [numbers[symbol] for word in _gpt2_words().findall(text.lower())
                        for symbol in join(tuple(_letters(word)))]
  decode = lambda tokens: [_text(''.join(symbols[i] for i in row if i < len(symbols)))
                           for row in tokens.tolist()]
  return Tokeniser(functools.partial(_padded, codes, length, len(symbols), 'tokens'), decode,
                   length, len(symbols) + 1, len(symbols))


# --------------------------------------------------------------------------- pieces of words


def of_bert(pieces: str | Path, length: int = 77, count: int = 30_522) -> Tokeniser:
  """BERT's encoding (Devlin et al. 2019; Wu et al. 2016, section 4.1), in lower case.

  A text is split at spaces and at every mark of punctuation, and loses its accents.  A word is
  split into the longest piece at its start, then the longest piece that follows (written ##piece),
  and so on.  If no piece follows, the whole word is the token [UNK].  A text begins with [CLS] and
  ends with [SEP].

  pieces: the file vocab.txt of bert-base-uncased, one piece a line.  count: of the pieces.
  Raises InputError: no such file, or a file of other pieces.
  """
  found = read_text(pieces).split('\n')
  found = [one.rstrip('\r') for one in (found if found[-1] else found[:-1])]
  numbers = {piece: i for i, piece in enumerate(found)}
  lack = [mark for mark in ('[PAD]', '[UNK]', '[CLS]', '[SEP]') if mark not in numbers]
  if len(found) != count or lack:
    raise InputError('merges', str(pieces), f'it has {len(found):,} pieces of words'
                     + (f' and no {lack[0]}' if lack else '')
                     + f", and BERT's encoding has {count:,}",
                     'give vocab.txt of bert-base-uncased')
  unknown, start, end = (numbers[mark] for mark in ('[UNK]', '[CLS]', '[SEP]'))

  def parts(word):
    out, begin = [], 0
    while begin < len(word):
      mark = '##' * (begin > 0)
      stop = next((stop for stop in range(len(word), begin, -1)
                   if mark + word[begin:stop] in numbers), None)
      if stop is None:
        return [unknown]
      out.append(numbers[mark + word[begin:stop]])
      begin = stop
    return out

  def codes(text):
    return [start, *(one for word in _bert_words(text) for one in parts(word)), end]

  def decode(tokens):
    marks = {numbers[mark] for mark in ('[PAD]', '[CLS]', '[SEP]')}
    rows = [' '.join(found[i] for i in row if i not in marks) for row in tokens.tolist()]
    return [row.replace(' ##', '') for row in rows]
  encode = functools.partial(_padded, codes, length, numbers['[PAD]'], 'tokens', end=end)
  return Tokeniser(encode, decode, length, count, numbers['[PAD]'])


def _bert_words(text: str) -> list[str]:
  """The words and the marks of a text, in lower case and without accents."""
  plain = [letter for letter in unicodedata.normalize('NFD', text.lower())
           if unicodedata.category(letter) != 'Mn']
  return ''.join(f' {letter} ' if _is_alone(letter) else letter for letter in plain).split()


def _is_alone(letter: str) -> bool:
  """Whether a letter is a word of its own: punctuation, symbols of ASCII, and ideographs."""
  symbol = letter.isascii() and not letter.isalnum() and letter.isprintable() and letter != ' '
  ideograph = any(a <= ord(letter) <= b for a, b in (
      (0x3400, 0x4dbf), (0x4e00, 0x9fff), (0xf900, 0xfaff), (0x20000, 0x2fa1f)))
  return symbol or ideograph or unicodedata.category(letter).startswith('P')


def read_text(path: str | Path) -> str:
  """The text of a file of merges, which may be compressed by gzip.

  Raises InputError: no such file; a file that holds no text.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError('merges', str(path), 'there is no such file', 'name a file of merges')
  data = path.read_bytes()
  try:
    return (gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode()
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    raise InputError('merges', str(path), f'it cannot be read: {error}',
                     'give a whole file of merges') from None


def read_merges(path: str | Path) -> list[Merge]:
  """The pairs of a file of merges, one a line, in their order.

  Raises InputError: no such file; a file that holds anything else.
  """
  lines = read_text(path).split('\n')
  lines = lines['#version' in lines[0]:]
  rows = [line.split() for line in lines if line.strip()]
  wrong = next((row for row in rows if len(row) != 2), None)
  if wrong is not None or not rows:
    what = 'it is empty' if wrong is None else f'{" ".join(wrong)[:40]!r} is no pair'
    raise InputError('merges', str(path), f'{what}, so it is no file of merges',
                     'give a file with two symbols a line')
  return [(first, second) for first, second in rows]


def _padded(codes: Callable[[str], list[int]], length: int, padding: int, unit: str,
            texts: Sequence[str], cut: bool = False, *, end: int | None = None) -> np.ndarray:
  """The codes of texts, int32 [n, length].  Raises InputError for a longer text, unless `cut`.

  end: the last token of a text that is cut.
  """
  tokens = np.full((len(texts), length), padding, np.int32)
  for row, one in zip(tokens, texts, strict=True):
    found = codes(one)
    if not cut:
      _require_length(one, len(found), length, unit)
    row[:len(found)] = found[:length]
    if len(found) > length and end is not None:
      row[-1] = end
  return tokens


def _require_length(text: str, size: int, length: int, unit: str) -> None:
  if size > length:
    raise InputError('text', text, f'it has {size} {unit}, and {length} are read', 'shorten it')


_END = '</w>'  # of a word, in CLIP's symbols


def _alphabet() -> dict[int, str]:
  """A visible letter for each byte, as both encodings have it: {byte: letter} in their order.

  A byte that is a visible character of Latin-1 stands for itself.
  """
  visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1),
             *range(ord('®'), ord('ÿ') + 1)]
  others = [byte for byte in range(256) if byte not in visible]
  return {**{byte: chr(byte) for byte in visible},
          **{byte: chr(256 + i) for i, byte in enumerate(others)}}


_LETTERS = _alphabet()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def _letters(word: str) -> list[str]:
  return [_LETTERS[byte] for byte in word.encode()]


def _text(letters: str) -> str:
  return bytes(_BYTES[letter] for letter in letters).decode(errors='replace')


def _joining(merges: Sequence[Merge]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
  """The function of a word's symbols that joins neighbours by these merges."""
  ranks: Mapping[Merge, int] = {pair: i for i, pair in enumerate(merges)}

  @functools.lru_cache(maxsize=2**16)
  def join(word):
    while len(word) > 1:
      first = min(zip(word, word[1:], strict=False),
                  key=lambda pair: ranks.get(pair, len(ranks)))
      if first not in ranks:
        break
      joined, i = [], 0
      while i < len(word):
        both = word[i:i + 2] == first
        joined.append(''.join(first) if both else word[i])
        i += 1 + both
      word = tuple(joined)
    return word
  return join


@functools.cache
def _categories() -> tuple[str, str]:
  r"""The letters and the numbers of Unicode, as ranges of a regular expression: \p{L}, \p{N}."""
  ranges = {'L': [], 'N': []}
  for i in range(sys.maxunicode + 1):
    found = ranges.get(unicodedata.category(chr(i))[0])
    if found is None:
      continue
    if found and found[-1][1] == i - 1:
      found[-1][1] = i
    else:
      found.append([i, i])
  letters, numbers = (''.join(f'{chr(a)}-{chr(b)}' for a, b in found) for found in ranges.values())
  return letters, numbers


_ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"


@functools.cache
def _clip_words() -> re.Pattern:
  letters, numbers = _categories()
  return re.compile(rf'<\|startoftext\|>|<\|endoftext\|>|{_ENDINGS}|[{letters}]+|[{numbers}]|'
                    rf'[^\s{letters}{numbers}]+')


@functools.cache
def _gpt2_words() -> re.Pattern:
  letters, numbers = _categories()
  return re.compile(rf'{_ENDINGS}| ?[{letters}]+| ?[{numbers}]+| ?[^\s{letters}{numbers}]+|'
                    r'\s+(?!\S)|\s+')


@functools.cache
def _plain_characters() -> dict[int, str]:
  """Quotes without curls, ligatures as letters, and characters of full or half width as usual."""
  wide = [0x3000, *range(0xff01, 0xfff0)]
  ligatures = [*range(0x132, 0x134), 0x149, *range(0x1c4, 0x1cd), *range(0x1f1, 0x1f4),
               *range(0xfb00, 0xfb07)]
  return {**{i: unicodedata.normalize('NFKC', chr(i)) for i in (*wide, *ligatures)},
          **dict.fromkeys([0x2bc, *range(0x2018, 0x201c)], "'"),
          **dict.fromkeys(range(0x201c, 0x2020), '"')}


def _plain(text: str) -> str:
  """A text as CLIP's encoding splits it: characters written plainly, single spaces, lower case."""
  text = unicodedata.normalize('NFC', text.translate(_plain_characters()))
  return ' '.join(html.unescape(html.unescape(text)).split()).lower()
