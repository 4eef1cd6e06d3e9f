"""Emoji with their names: 32 x 32 pixels, from the user's own copy of the font Noto Color Emoji.

`scripts/prepare_data.py emoji --from=NotoColorEmoji.ttf,emoji-test.txt` writes two files of arrays
with the fields `image`, `label` (the group: 'Smileys & Emotion', ...) and `caption`.  A caption is
the Unicode name in lower case, letters and digits: 'woman guard dark skin tone'.  A font has the
pictures, but neither names nor groups: these are from the second file, the list of the Unicode
Consortium.

  name               file in data_dir/emoji   testing
  `emoji`            new_names.npz            names that do not occur in training
  `emoji:held_out`   held_out.npz             names and skin tones that occur, but not together

Both have the same pictures for training.  A twelfth of the names, and a tenth of the skin-toned
pictures with other names, are for testing.  A checksum of the name decides which.
"""
import hashlib
import io
import os
import re
import unicodedata
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdm_jax.data import arrays, random, records, tokenisers
from vdm_jax.data.sources import Store
from vdm_jax.errors import InputError
from vdm_jax.machine import files

SIDE = 32
FILES = {'emoji': 'new_names.npz', 'emoji:held_out': 'held_out.npz'}  # by name
TRAIN, NEW_NAME, HELD_OUT = 0, 1, 2
# The checksum of version 2.042 of the font (Debian: 2.042-0+deb12u1) by version 15.0 of the list.
KNOWN = {'pictures': '793ff7bf58628d4a'}
_TONE = '(?:medium-light|medium-dark|light|medium|dark) skin tone'


class Emoji(NamedTuple):
  """All pictures, in the order of emoji-test.txt."""
  images: np.ndarray    # uint8 [n, 32, 32, 3], on white
  labels: np.ndarray    # int32 [n], numbers of `groups`
  captions: list[str]   # all different
  names: list[str]      # as Unicode spells them
  groups: list[str]


def open_emoji(name: str, data_dir: str, texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The store of one of `FILES`.  Raises FileNotFoundError, with the command that prepares it."""
  return arrays.open_arrays(records.prepared_file(data_dir, 'emoji', FILES[name]), texts)


def checksums(emoji: Emoji) -> dict[str, str]:
  """The first 16 letters of the SHA-256 of all pictures in their order, as in `KNOWN`."""
  return {'pictures': hashlib.sha256(emoji.images.tobytes()).hexdigest()[:16]}


def write(emoji: Emoji, data_dir: str) -> str:
  """Writes the two files of arrays below `data_dir`, and returns their folder."""
  folder = os.path.join(records.data_directory(data_dir), 'emoji')
  os.makedirs(folder, exist_ok=True)
  # In a random order, so that any rows of a split are a fair sample.
  order = random.permutation(0, 0, len(emoji.names))
  split = splits(emoji.names)[order]
  every = {'image': emoji.images[order], 'label': emoji.labels[order],
           'caption': np.array(emoji.captions)[order]}
  for file, test in zip(FILES.values(), (NEW_NAME, HELD_OUT), strict=True):
    parts: dict[str, Any] = {
        f'{key}_{end}': values[split == number] for key, values in every.items()
        for end, number in (('train', TRAIN), ('test', test))}
    with files.atomic_write(os.path.join(folder, file)) as part, open(part, 'wb') as out:
      np.savez_compressed(out, **parts)
  return folder


def splits(names: list[str]) -> np.ndarray:
  """`TRAIN`, `NEW_NAME` or `HELD_OUT` for each of the Unicode names, uint8 [n].

  The checksum of a name without its skin tones, modulo 12, decides whether the name is new.  The
  checksum of the whole name, modulo 10, decides whether a picture is held out.
  """
  def split(name):
    base = without_tones(name)
    if zlib.crc32(base.encode()) % 12 == 0:
      return NEW_NAME
    return HELD_OUT if base != name and zlib.crc32(name.encode()) % 10 == 0 else TRAIN

  each = np.array([split(name) for name in names], np.uint8)
  bases = np.array([without_tones(name) for name in names])
  known = np.isin(bases, bases[each == TRAIN])
  return np.where((each == HELD_OUT) & ~known, NEW_NAME, each).astype(np.uint8)


def without_tones(name: str) -> str:
  """'man: dark skin tone, bald' -> 'man: bald'."""
  name = re.sub(f'{_TONE}(?:, )?', '', name)
  return name.rstrip(', ').removesuffix(':')


def read(font: str, listing: str) -> Emoji:
  """The pictures of a font, for the fully qualified names of Unicode's file emoji-test.txt.

  A picture's transparent margin makes it a square.  Its colours are weighted by its alpha and
  averaged over boxes, and then laid on white.  Names that share a picture with an earlier name are
  left out.  Raises InputError for a file of another kind, and for a name without a picture.
  """
  entries, glyphs = _entries(listing), _Font(font)
  pictures, labels, names, seen = [], [], [], set()
  groups = list(dict.fromkeys(group for _, _, group in entries))
  for codes, name, group in tqdm(entries, desc='emoji'):
    glyph = glyphs.find(codes)
    if glyph is None:
      raise InputError('from', font, f'it has no picture of {name}',
                       f'give a font and {os.path.basename(listing)} of one version of Unicode')
    if glyph in seen:
      continue
    seen.add(glyph)
    pictures.append(_small(glyphs.picture(glyph)))
    labels.append(groups.index(group))
    names.append(name)
  return Emoji(np.stack(pictures), np.array(labels, np.int32), [caption(name) for name in names],
               names, groups)


def caption(name: str) -> str:
  """A Unicode name in the letters a .. z and digits: 'keycap: #' -> 'keycap hash'."""
  name = name.lower().replace('#', 'hash').replace('*', 'asterisk')
  plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()  # no accents
  return ' '.join(re.findall('[a-z0-9]+', plain.replace("'", '')))


def _entries(listing: str) -> list[tuple[tuple[int, ...], str, str]]:
  """(code points without U+FE0F, name, group) of each fully qualified line."""
  out, group = [], ''
  with open(listing, encoding='utf-8') as lines:
    for line in lines:
      if line.startswith('# group: '):
        group = line.removeprefix('# group: ').strip()
      found = re.fullmatch(r'([0-9A-F ]+); fully-qualified +# \S+ E[0-9.]+ (.+)\n?', line)
      if found:
        codes = tuple(int(code, 16) for code in found[1].split() if code != 'FE0F')
        out.append((codes, found[2], group))
  if not out:
    raise InputError('from', listing, 'it has no fully qualified emoji',
                     'give emoji-test.txt of the Unicode Consortium')
  return out


class _Font:
  """The glyphs of a font with pictures: code points, ligatures and PNG files."""

  def __init__(self, path: str):
    from fontTools import ttLib  # only this needs it
    try:
      font = ttLib.TTFont(path)
      self.glyphs = font.getBestCmap() or {}
      self.strike = font['CBDT'].strikeData[0]
      lookups = font['GSUB'].table.LookupList.Lookup
    except (ttLib.TTLibError, KeyError) as error:
      raise InputError('from', path, f'it is not a font with pictures in the table CBDT ({error})',
                       'give NotoColorEmoji.ttf of Noto Color Emoji') from error
    self.ligatures = {}
    for table in (table for lookup in lookups for table in lookup.SubTable):
      for first, found in getattr(getattr(table, 'ExtSubTable', table), 'ligatures', {}).items():
        for one in found:
          self.ligatures.setdefault((first, *one.Component), one.LigGlyph)

  def find(self, codes: tuple[int, ...]) -> str | None:
    """The glyph of code points, if it has a picture."""
    glyphs = tuple(self.glyphs.get(code, '') for code in codes)
    glyph = glyphs[0] if len(glyphs) == 1 else self.ligatures.get(glyphs)
    return glyph if glyph in self.strike else None

  def picture(self, glyph: str) -> Image.Image:
    return Image.open(io.BytesIO(self.strike[glyph].imageData)).convert('RGBA')


def _small(picture: Image.Image) -> np.ndarray:
  """A picture with alpha -> uint8 [32, 32, 3], on white."""
  side = max(picture.size)
  square = Image.new('RGBA', (side, side))
  square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
  pixels = np.asarray(square).astype(np.float64)
  pixels[..., :3] *= pixels[..., 3:] / 255
  small = np.stack([np.asarray(Image.fromarray(channel.astype(np.float32)).resize(
      (SIDE, SIDE), Image.Resampling.BOX)) for channel in np.moveaxis(pixels, -1, 0)], -1)
  return np.clip(np.round(small[..., :3] + 255 - small[..., 3:]), 0, 255).astype(np.uint8)
