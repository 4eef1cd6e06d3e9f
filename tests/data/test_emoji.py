"""Emoji: the oracles are Unicode's own names, and a set of pictures made by other code."""
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdm_jax import data
from vdm_jax.data import emoji, prepare, text
from vdm_jax.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'emoji' / 'emoji32.npz'
FONT = Path('/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf')
LISTING = Path('/usr/share/unicode/emoji/emoji-test.txt')
NAMES = [f'{who}: {tone}{hair}' for who in ('person', 'man', 'woman', 'child', 'baby', 'elf')
         for hair in ('', ', beard', ', bald', ', red hair', ', curly hair')
         for tone in ('light skin tone', 'medium-light skin tone', 'medium skin tone',
                      'dark skin tone')] + ['grinning face', 'flag: Chile', 'keycap: #']


def test_captions_are_letters_and_digits():
  names = {'woman guard: dark skin tone': 'woman guard dark skin tone', 'keycap: #': 'keycap hash',
           'piñata': 'pinata', 'twelve o’clock': 'twelve oclock', 'keycap: 10': 'keycap 10',
           'flag: Côte d’Ivoire': 'flag cote divoire', 'face with head-bandage':
           'face with head bandage', 'keycap: *': 'keycap asterisk'}
  assert {name: emoji.caption(name) for name in names} == names


def test_names_lose_their_tones_and_nothing_else():
  names = {'man: dark skin tone, bald': 'man: bald', 'flag: Chile': 'flag: Chile',
           'handshake: light skin tone, medium-dark skin tone': 'handshake',
           'OK hand: medium skin tone': 'OK hand', 'man: bald': 'man: bald'}
  assert {name: emoji.without_tones(name) for name in names} == names


def check_splits(names, split):
  plain = np.array([' '.join(re.findall('[^ :,]+', re.sub(r'[\w-]+ skin tone', '', name)))
                    for name in names])
  part = {number: set(plain[split == number]) for number in range(3)}
  assert all(part.values()) and not part[0] & part[1] and part[2] <= part[0]
  assert all('skin tone' in name for name in np.array(names)[split == 2])


def test_new_names_never_occur_in_training_and_held_out_names_do():
  check_splits(NAMES, emoji.splits(NAMES))


@pytest.mark.skipif(not SHARED.exists(), reason=f'no {SHARED}')
def test_of_the_real_names_about_a_twelfth_are_new_and_a_tenth_of_the_toned_held_out():
  with np.load(SHARED) as file:
    names = [str(name) for name in file['names']]
    assert [emoji.caption(name) for name in names] == file['captions'].tolist()
  split = emoji.splits(names)
  check_splits(names, split)
  bases = np.array([emoji.without_tones(name) for name in names])
  new = [np.any(split[bases == base] == 1) for base in dict.fromkeys(bases)]
  assert abs(np.mean(new) - 1 / 12) < 4 * np.sqrt(11 / 144 / len(new))
  toned = np.array(['skin tone' in name for name in names]) & (split != 1)
  assert abs(np.mean(split[toned] == 2) - 0.1) < 4 * np.sqrt(0.09 / toned.sum())


def test_a_picture_is_averaged_with_its_alpha_and_laid_on_white():
  """136 x 128 pixels: half of them opaque red, half transparent, with green below."""
  pixels = np.zeros((128, 136, 4), np.uint8)
  pixels[:, :68] = 200, 0, 0, 255
  pixels[:, 68:] = 0, 255, 0, 0
  small = emoji._small(Image.fromarray(pixels))
  assert (small[2:30, :15] == (200, 0, 0)).all() and (small[:, 17:] == 255).all()
  assert (small[[0, 31]] == 255).all()  # the margin of 4 of 136 rows
  pixels[:, :] = 100, 0, 0, 128
  # 100 a + 255 (1 - a) with a = 128 / 255 is 177.2; the others are 127.
  assert (emoji._small(Image.fromarray(pixels))[16, 16] == (177, 127, 127)).all()


def made():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (len(NAMES), 32, 32, 3)).astype(np.uint8)
  images[0, 0, 0] = 255
  return emoji.Emoji(images, np.arange(len(NAMES), dtype=np.int32) % 2,
                     [emoji.caption(name) for name in NAMES], NAMES, ['a', 'b'])


@pytest.mark.parametrize('name, number', [('emoji', 1), ('emoji:held_out', 2)])
def test_written_pictures_are_read_by_name_with_their_captions_and_labels(tmp_path, name, number):
  written = made()
  assert emoji.write(written, str(tmp_path)) == str(tmp_path / 'emoji')
  config = data.default_config()
  config.update(name=name, data_dir=str(tmp_path))
  d, split = data.Data(config), emoji.splits(NAMES)
  assert d.spec.names == ('image', 'label', 'caption') and d.spec.shape == (32, 32, 3)
  for part, wanted in (('train', 0), ('test', number)):
    batch = d.split(part).get(np.arange(len(d.split(part))))
    rows = [written.captions.index(caption) for caption in text.decode(batch['caption'])]
    assert sorted(rows) == np.flatnonzero(split == wanted).tolist()
    np.testing.assert_array_equal(batch['image'], written.images[rows])
    np.testing.assert_array_equal(batch['label'], written.labels[rows])


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
  config = data.default_config()
  config.update(name='emoji', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='prepare_data.py emoji .* --from=NotoColorEmoji.ttf'):
    data.Data(config).batch(0)
  with pytest.raises(InputError, match='0 of its files are the font NotoColorEmoji.ttf; give'):
    prepare.prepare('emoji', str(tmp_path))
  font, listing = tmp_path / 'a.ttf', tmp_path / 'emoji-test.txt'
  font.write_text('no font')
  listing.write_text('# no emoji\n')
  with pytest.raises(InputError, match='it has no fully qualified emoji'):
    prepare.prepare('emoji', str(tmp_path), [str(font), str(listing)])
  listing.write_text('# group: Flags\n1F600 ; fully-qualified # \U0001f600 E1.0 grinning face\n')
  with pytest.raises(InputError, match='it is not a font with pictures'):
    prepare.prepare('emoji', str(tmp_path), [str(tmp_path)])


@pytest.mark.skipif(not SHARED.exists(), reason=f'no {SHARED}')
def test_the_known_checksum_is_that_of_the_pictures_that_other_code_made():
  with np.load(SHARED) as file:
    assert emoji.checksums(made()._replace(images=file['images'])) == emoji.KNOWN


def test_other_pictures_are_told_from_the_known_ones_by_their_checksum(tmp_path, monkeypatch):
  font, listing = tmp_path / 'a.ttf', tmp_path / 'emoji-test.txt'
  font.touch()
  listing.touch()
  monkeypatch.setattr(emoji, 'read', lambda *files: made())
  prepared = lambda: prepare.prepare('emoji', str(tmp_path), [str(font), str(listing)])
  own = hashlib.sha256(made().images.tobytes()).hexdigest()[:16]
  first, second = prepared().splitlines()
  assert first.endswith(f': {len(NAMES)} pictures')
  assert second == (f'pictures: sha256 {own}, expected 793ff7bf58628d4a: another version of the '
                    'font or the list, whose results differ')
  monkeypatch.setitem(emoji.KNOWN, 'pictures', own)
  assert prepared().splitlines()[1] == f'pictures: sha256 {own}, as expected'


@pytest.mark.long
@pytest.mark.skipif(not (FONT.exists() and LISTING.exists()), reason=f'needs {FONT}, {LISTING}')
def test_the_font_of_debian_bookworm_gives_the_pictures_that_other_code_made():
  """Skipped unless both packages are of Debian 12: fonts-noto-color-emoji and unicode-data."""
  if prepare._sha256(FONT)[:8] != 'e5899ed3' or prepare._sha256(LISTING)[:8] != '8445f23a':
    pytest.skip('other versions of the font or of Unicode')
  read = emoji.read(str(FONT), str(LISTING))
  assert emoji.checksums(read) == emoji.KNOWN
  if not SHARED.exists():
    pytest.skip(f'the names and labels are not compared: no {SHARED}')
  with np.load(SHARED) as file:
    np.testing.assert_array_equal(read.images, file['images'])
    np.testing.assert_array_equal(read.labels, file['labels'])
    assert (read.captions, read.names, read.groups) == (
        file['captions'].tolist(), file['names'].tolist(), file['group_names'].tolist())
