"""CIFAR-10, MNIST and the digits as TFDS writes them; data of a font, of packages, of a formula.

Nothing here needs TensorFlow.  The builders of CIFAR-10 and MNIST in TFDS call it only to open
files and to encode images.  Here the same builders read the official archives by `tarfile` and
`gzip`, and Pillow encodes the images.  Names, versions, features, keys (and so the shuffled order)
and file layout are as in TFDS.
"""
import gzip
import hashlib
import importlib.util
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from vdm_jax.data import brain, chorales, emoji, phantoms, records, stores
from vdm_jax.errors import InputError
from vdm_jax.machine import files


class Archive(NamedTuple):
  """A file that holds a data set, as its authors publish it."""
  url: str
  size: int     # bytes
  sha256: str

  @property
  def name(self) -> str:
    return self.url.rsplit('/', 1)[-1]


def official_archives(name: str) -> tuple[Archive, ...]:
  """The archives that TFDS would download for `name`, with TFDS's sizes and checksums."""
  package = os.path.dirname(importlib.util.find_spec('tensorflow_datasets').origin)
  with open(os.path.join(package, 'url_checksums', f'{name}.txt')) as lines:
    rows = [line.rstrip('\n').split('\t') for line in lines]
  return tuple(Archive(url, int(size), digest) for url, size, digest, *_ in rows)


def prepare(name: str, data_dir: str = '', places: Sequence[str] = (),
            archives: Sequence[Archive] | None = None) -> str:
  """Writes the data set `name` below `data_dir`, and returns a text that says where it is.

  Archives are looked for in `places` (files and folders).  Without `places`, they are looked for
  where TFDS keeps its downloads (data_dir/downloads), and missing ones are downloaded into it.
  Nothing is written before every checksum is right.

  Raises InputError for another name, for a file that is not the official one, and for a data set
  there in another format.  Raises FileNotFoundError if archives are missing and cannot be
  downloaded, and OSError if data_dir cannot be written.
  """
  if name not in records.PREPARED_BY_US:
    raise InputError(problem=f'{name} is none of {", ".join(records.PREPARED_BY_US)}',
                     remedy=records.how_to_prepare(name, records.data_directory(data_dir)))
  if name == 'emoji':
    return _emoji(data_dir, places)
  if name == 'chorales':
    return _chorales(data_dir)
  if name == brain.NAME:
    return _brain(data_dir)
  if name == phantoms.NAME:
    return f'{phantoms.COUNT} volumes are written to {phantoms.write(data_dir)}'
  from vdm_jax.data import builders
  builder = records.tfds_builder(name, data_dir)
  if builder.info.splits:
    stores.open_store(name, data_dir)  # raises where it is in a format that we cannot read
    return f'{name} is already prepared in {builder.data_path}'
  if name != 'digits':
    folder = os.path.join(records.data_directory(data_dir), 'downloads')
    paths = _obtain(name, official_archives(name) if archives is None else archives, places, folder)
    read = {'cifar10': _cifar10, 'mnist': _mnist}[name]
    # The builder keeps everything but its reading: what it writes is what TFDS writes.
    builder._split_generators = lambda dl_manager: read(paths, builder.info.features)
  return f'{name} is prepared in {builders.generate(builder)}'


def _emoji(data_dir: str, places: Sequence[str]) -> str:
  """Prepares `emoji` from a font and a list of names.

  The text names the checksums of both files and of the pictures.
  """
  found = _files(places)
  chosen = []
  for ending, what in (('.ttf', 'the font NotoColorEmoji.ttf'),
                       ('.txt', 'the list of names, emoji-test.txt')):
    named = [path for path in found if path.endswith(ending)]
    if len(named) != 1:
      raise InputError('from', ','.join(places), f'{len(named)} of its files are {what}',
                       'give NotoColorEmoji.ttf,emoji-test.txt: Debian has them in the packages '
                       'fonts-noto-color-emoji and unicode-data')
    chosen += named
  made = emoji.read(*chosen)
  folder = emoji.write(made, data_dir)
  used = ', '.join(f'{os.path.basename(path)} (sha256 {_sha256(path)})' for path in chosen)
  return '\n'.join([f'emoji is prepared in {folder} from {used}: {len(made.names):,} pictures',
                    *_compared(emoji.checksums(made), emoji.KNOWN, 'the font or the list')])


def _chorales(data_dir: str) -> str:
  """Prepares `chorales` from the package music21, and names the checksums of the grids."""
  pieces = chorales.read()
  path = chorales.write(pieces, data_dir)
  return '\n'.join([f'chorales is prepared in {path}: {len(pieces.lengths)} pieces',
                    *_compared(chorales.checksums(pieces), chorales.KNOWN, 'music21')])


def _brain(data_dir: str) -> str:
  """Prepares `brain` from the package nilearn, and names the checksums of the pictures."""
  found = brain.read()
  folder = brain.write(found, data_dir)
  count = len(found.train) - brain.VALIDATION
  return '\n'.join([
      f'brain is prepared in {folder}: {count:,} pictures for training, {brain.VALIDATION} for '
      f'validation, {len(found.test)} for testing, and two volumes',
      *_compared(brain.checksums(found), brain.KNOWN, 'nilearn'),
      f'the nearest pictures of training have a PSNR of {brain.nearest(found):.2f} dB to the '
      'slices of the volume'])


def _compared(found: Mapping[str, str], known: Mapping[str, str], source: str) -> Iterator[str]:
  """A line for each checksum, which says whether the source gave what its known version gives."""
  for what, one in found.items():
    yield f'{what}: sha256 {one}, ' + ('as expected' if one == known[what] else
          f'expected {known[what]}: another version of {source}, whose results differ')


def _obtain(name: str, archives: Sequence[Archive], places: Sequence[str],
            folder: str) -> dict[str, str]:
  """Paths of the archives by official name; each has the official checksum."""
  files = _files(places or [folder])
  paths = {}
  for archive in archives:
    # TFDS renames what it downloads, so its files are known by their size.
    named = [f for f in files if os.path.basename(f) == archive.name]
    sized = [f for f in files if f not in named and os.path.getsize(f) == archive.size]
    only = files if len(files) == len(archives) == 1 else []
    digests = {f: _sha256(f) for f in named + sized or only}
    right = [f for f, digest in digests.items() if digest == archive.sha256]
    if right:
      paths[archive.name] = right[0]
    elif digests:
      file, digest = next(iter(digests.items()))
      raise InputError(problem=f'{file} is not the official {archive.name}: its sha256 is '
                       f'{digest}, expected {archive.sha256}',
                       remedy=f'delete it and get it from {archive.url}')
  missing = [archive for archive in archives if archive.name not in paths]
  try:
    if missing and places:
      raise OSError(f'not found in {" ".join(places)}')
    for archive in missing:
      paths[archive.name] = _download(archive, folder)
  except OSError as error:
    downloads = '; '.join(f'{a.url} ({a.size:,} bytes, sha256 {a.sha256})' for a in missing)
    raise FileNotFoundError(
        f'{name} needs files that are not here ({error}). Get {downloads}; then run `python '
        f'scripts/prepare_data.py {name} --data_dir={os.path.dirname(folder)} '
        f'--from=THEIR_FOLDER`') from error
  return paths


def _files(places: Sequence[str]) -> list[str]:
  paths = []
  for place in map(os.path.expanduser, places):
    paths += [place] if os.path.isfile(place) else sorted(
        os.path.join(folder, file) for folder, _, files in os.walk(place) for file in files)
  return paths


def _sha256(path: str | Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _download(archive: Archive, folder: str) -> str:
  """Downloads into `folder`; the file gets its final name only if the checksum is right."""
  path = os.path.join(folder, archive.name)
  logging.info('downloading %s', archive.url)
  with files.atomic_write(path) as part:
    with urllib.request.urlopen(archive.url, timeout=30) as reply, open(part, 'wb') as file, \
        tqdm.wrapattr(reply, 'read', total=archive.size, desc=archive.name) as stream:
      shutil.copyfileobj(stream, file)
    digest = _sha256(part)
    if digest != archive.sha256:
      raise OSError(f'{archive.url} gave sha256 {digest}')
  return path


# What the archives hold.


def _cifar10(paths: dict[str, str], features) -> dict[str, Iterator]:
  """Reads the binary version: records of a label and 3 x 32 x 32 bytes, planes red, green, blue."""
  [path] = paths.values()
  members = {}
  with tarfile.open(path) as archive:
    for member in archive:
      if member.isfile():
        members[os.path.basename(member.name)] = archive.extractfile(member).read()
  features['label'].names = members['batches.meta.txt'].decode().split()

  def examples(split, files):
    records = np.frombuffer(b''.join(members[f] for f in files), np.uint8).reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, example in enumerate(_encoded(split, images, records[:, 0])):
      yield i, {'id': f'{split}_{i:05d}', **example}

  return {'train': examples('train', [f'data_batch_{i}.bin' for i in range(1, 6)]),
          'test': examples('test', ['test_batch.bin'])}


def _mnist(paths: dict[str, str], features) -> dict[str, Iterator]:
  """Reads IDX files: a magic number whose last byte counts the axes, the axes' sizes, then bytes.
  """
  del features

  def idx(name):
    with gzip.open(paths[name]) as file:
      content = file.read()
    axes = content[3]
    shape = np.frombuffer(content, '>i4', axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)

  examples = lambda split, prefix: enumerate(_encoded(
      split, idx(f'{prefix}-images-idx3-ubyte.gz')[..., None],
      idx(f'{prefix}-labels-idx1-ubyte.gz')))
  return {'train': examples('train', 'train'), 'test': examples('test', 't10k')}


def _encoded(split: str, images: np.ndarray, labels: np.ndarray) -> Iterator[dict]:
  from vdm_jax.data.builders import png
  for image, label in tqdm(zip(images, labels, strict=True), desc=split, total=len(images)):
    yield {'image': png(np.ascontiguousarray(image)), 'label': int(label)}
