"""A folder of pictures as a data set.

The folders `train` and `test` (or validation, valid, val; in any case) are the splits.  Without
them, every sixth picture is for testing.  If every picture lies in a folder inside its split, these
inner folders are the classes.  Names that begin with a dot are left out.  The pictures have one
channel if all of them are grey, and else three: see `images`.

Further fields may lie beside the pictures, in the folder or in a split's folder:

  captions.txt     each line is `file<TAB>caption`; `caption` is a text field
  metadata.jsonl   each line is {"file_name": "a.png", "caption": "a cat", "age": 3, ...}.  Texts,
                   numbers and lists of numbers are fields.  Numbers that are all 0, 1, 2, ... are
                   integers, and other numbers are real

These files name a picture by its path from their own folder.  Every picture must have all fields.
"""
import collections
import functools
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.data import fields, images, tokenisers
from vdm_jax.data.fields import CAPTION, IMAGE, LABEL, Batch, Field
from vdm_jax.data.sources import HELD_OUT, Source, Store, every_sixth
from vdm_jax.errors import InputError

CAPTIONS, METADATA = 'captions.txt', 'metadata.jsonl'
IMAGE_FILES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')


class Listing(NamedTuple):
  """The files below a folder."""
  pictures: list[str]         # relative paths, in order
  hidden: int                 # files that begin with a dot, or lie in a folder that does
  others: collections.Counter  # the endings of all other files, but `CAPTIONS` and `METADATA`


def open_folder(root: str, image_size: int,
                texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The pictures below `root` as a Store; only their headers are read.

  texts: how texts become tokens.  Raises FileNotFoundError or InputError.
  """
  if os.path.isfile(root):
    raise InputError('config.data.name', root, 'it is a file, and neither .npy nor .npz',
                     'name a folder of images')
  if not os.path.isdir(root):
    raise FileNotFoundError(f'there is no folder {root}: see --config.data.name')
  folders = _split_folders(root)
  if folders:
    names, outside = folders, _listing(root, skip=folders)
    listings = [_listing(os.path.join(root, name)) for name in names]
    parts, subfolders = [listing.pictures for listing in listings], names
  else:
    names, outside, listings = ('not every sixth', 'every sixth'), None, [_listing(root)]
    files = listings[0].pictures
    parts, subfolders = [[files[i] for i in rows] for rows in every_sixth(len(files))], ('', '')
  left_out = _left_out(listings, outside, folders)
  if not all(parts):
    raise InputError(
        'config.data.name', root, f'it holds too few images: {len(parts[0])} for training, '
        f'{len(parts[1])} for test{"".join(f" ({note})" for note in left_out)}',
        f'add files that end in {", ".join(IMAGE_FILES)}')
  classes, labels = _classes(parts)
  paths = [[os.path.join(root, name, file) for file in part]
           for name, part in zip(subfolders, parts, strict=True)]
  headers = [images.header(path) for part in paths for path in part]
  channels = 1 if all(header.grey for header in headers) else 3
  extra, columns = _described(root, subfolders, parts, texts)
  if classes:
    if LABEL in extra:
      raise InputError('config.data.name', root, f'{METADATA} has a label, and the folders are '
                       'classes too', 'leave out one of the two')
    extra = {LABEL: fields.label(len(classes))} | extra
    columns = [{LABEL: label} | each for label, each in zip(labels, columns, strict=True)]
  known = lambda each: each[LABEL] if LABEL in extra and extra[LABEL].levels else None
  sources = [Source(name, len(part), functools.partial(_read, part, each, channels, image_size),
                    known(each)) for name, part, each in zip(names, paths, columns, strict=True)]
  image = Field(IMAGE, (*_size(root, headers, image_size), channels), 'uint8', 0)
  return Store(*sources, (image, *extra.values()), '',
               functools.partial(_sizes, root, paths + [_descriptions(root, subfolders)]),
               left_out + _changed(headers), 256)


def _descriptions(root: str, subfolders: Sequence[str]) -> list[str]:
  """The files `CAPTIONS` and `METADATA` that exist."""
  folders = dict.fromkeys([root, *(os.path.join(root, name) if name else root
                                   for name in subfolders)])
  return [path for folder in folders for name in (CAPTIONS, METADATA)
          if os.path.isfile(path := os.path.join(folder, name))]


def _described(root: str, subfolders: Sequence[str], parts: list[list[str]],
               texts: tokenisers.Settings) -> tuple[dict[str, Field], list[Batch]]:
  """The fields that `CAPTIONS` and `METADATA` give the pictures, and their values by split."""
  described = collections.defaultdict(dict)  # path from root -> {name: value}
  files = _descriptions(root, subfolders)
  for path in files:
    for number, (file, values) in enumerate(_lines(path), 1):
      at = os.path.normpath(os.path.relpath(os.path.join(os.path.dirname(path), file), root))
      if set(values) & {IMAGE, fields.AUGMENTED}:
        raise InputError('config.data.name', f'{path}, line {number}', 'its fields may not be '
                         f'called {IMAGE} or {fields.AUGMENTED}', 'rename them')
      described[at].update(values)
  pictures = [[os.path.normpath(os.path.join(name, file)) for file in part]
              for name, part in zip(subfolders, parts, strict=True)]
  names = list(dict.fromkeys(name for part in pictures for file in part
                             for name in described[file]))
  for file in (file for part in pictures for file in part):
    absent = [name for name in names if name not in described[file]]
    if absent:
      raise InputError('config.data.name', root, f'{" and ".join(map(os.path.basename, files))} '
                       f'has no {absent[0]} of {file}', 'add it, or remove the picture')
  declared, by_split = {}, [{} for _ in pictures]
  for name in names:
    values = [[described[file][name] for file in part] for part in pictures]
    declared[name], columns = _column(root, name, values, texts)
    for each, column in zip(by_split, columns, strict=True):
      each[name] = column
  return declared, by_split


def _lines(path: str) -> list[tuple[str, dict]]:
  """Each line of a file: the picture's name, and its fields."""
  remedy = ('write file<TAB>caption' if path.endswith(CAPTIONS) else
            'write {"file_name": "a.png", ...}')
  out = []
  try:
    with open(path, encoding='utf-8-sig') as file:  # editors of Windows begin a file with a mark
      lines = file.readlines()
  except UnicodeDecodeError as error:
    raise InputError('config.data.name', path, 'it is not text in UTF-8',
                     'save it in this encoding') from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      if path.endswith(CAPTIONS):
        name, caption = line.rstrip('\n').split('\t', 1)
        out.append((name, {CAPTION: caption}))
      else:
        values = json.loads(line)
        out.append((values.pop('file_name'), values))
    except (ValueError, KeyError, AttributeError) as error:
      raise InputError('config.data.name', f'{path}, line {number}', 'the line cannot be read',
                       remedy) from error
  return out


def _column(root: str, name: str, values: list[list], texts: tokenisers.Settings
            ) -> tuple[Field, list[np.ndarray]]:
  """The field of these values, and its array in each split.  Raises InputError."""
  every = [value for part in values for value in part]
  if all(isinstance(value, str) for value in every):
    field = tokenisers.field(name, texts, every)
    return field, [tokenisers.of(field).encode(part, cut=True) for part in values]
  try:
    array = np.array(every)
    if array.dtype.kind not in 'uibf':
      raise ValueError(array.dtype)
  except ValueError as error:
    raise InputError('config.data.name', root, f'the values of {name} in {METADATA} differ in '
                     'kind or in length', 'give only texts, only numbers, or only lists of one '
                     'length'
                     ) from error
  if array.dtype.kind in 'ib' and array.min() < 0:
    array = array.astype(np.float32)
  field = fields.of_array(name, array, f'{root}, {METADATA}: {name}')
  if name == LABEL and field.levels:
    field = fields.label(int(array.max()) + 1)
  array, sizes = array.astype(field.dtype), np.cumsum([len(part) for part in values])
  return field, np.split(array, sizes[:-1])


def _split_folders(root: str) -> tuple[str, str] | None:
  """The folders for training and for testing, as they are spelled; None without two such folders.
  """
  spelled = collections.defaultdict(list)
  for name in sorted(os.listdir(root)):
    if os.path.isdir(os.path.join(root, name)):
      spelled[name.lower()].append(name)
  test = next((name for name in HELD_OUT if name in spelled), None)
  if not test or 'train' not in spelled:
    return None
  for name in ('train', test):
    if len(spelled[name]) > 1:
      raise InputError('config.data.name', root, f'it holds {" and ".join(spelled[name])}',
                       'merge them, or rename one')
  return spelled['train'][0], spelled[test][0]


def _listing(root: str, skip: Sequence[str] = ()) -> Listing:
  """The Listing of all files below `root`, without its folders `skip`."""
  pictures, hidden, others = [], 0, collections.Counter()
  for folder, folders, files in os.walk(root):
    if folder == root:
      folders[:] = [name for name in folders if name not in skip]
    for file in files:
      path = os.path.relpath(os.path.join(folder, file), root)
      if any(name.startswith('.') for name in path.split(os.sep)):
        hidden += 1
      elif path.lower().endswith(IMAGE_FILES):
        pictures.append(path)
      elif folder != root or file not in (CAPTIONS, METADATA):
        others[os.path.splitext(path)[1].lower() or 'no ending'] += 1
  return Listing(sorted(pictures), hidden, others)


def _left_out(listings: list[Listing], outside: Listing | None,
              folders: tuple[str, str] | None) -> tuple[str, ...]:
  """One note on the files that are not part of the data, or no note."""
  everything = [*listings, outside] if outside else listings
  hidden = sum(listing.hidden for listing in everything)
  others = sum((listing.others for listing in everything), collections.Counter())
  notes = []
  if hidden:
    notes.append(f'{_count(hidden, "hidden file")}')
  if others:
    notes.append(f'{_count(others.total(), "file")} of other kinds ({", ".join(sorted(others))})')
  if folders and outside and outside.pictures:
    notes.append(f'{_count(len(outside.pictures), "image")} outside of {" and ".join(folders)}')
  return (f'left out: {", ".join(notes)}',) if notes else ()


def _count(n: int, what: str) -> str:
  return f'{n:,} {what}{"s" * (n != 1)}'


def _classes(parts: list[list[str]]) -> tuple[list[str], list[np.ndarray | None]]:
  """The folders inside the splits as classes, if every picture has one, and the labels by split."""
  folders = [[file.split(os.sep)[0] if os.sep in file else '' for file in part] for part in parts]
  classes = sorted({folder for part in folders for folder in part})
  if '' in classes:
    return [], [None] * len(parts)
  number = {folder: i for i, folder in enumerate(classes)}
  return classes, [np.array([number[folder] for folder in part], np.int32) for part in folders]


def _size(root: str, headers: list[images.Header], image_size: int) -> tuple[int, int]:
  sizes = sorted({header.size for header in headers})
  if image_size:
    return image_size, image_size
  if len(sizes) > 1:
    raise images.sizes_differ(root, sizes[0], sizes[-1])
  return sizes[0]


def _changed(headers: list[images.Header]) -> tuple[str, ...]:
  """Notes on the changes that reading makes to the pictures."""
  grey, alpha = (sum(getattr(header, name) for header in headers) for name in ('grey', 'alpha'))
  notes = []
  if 0 < grey < len(headers):
    notes.append(f'{_count(grey, "grey image")} read as three equal channels')
  if alpha:
    notes.append(f'{_count(alpha, "image")} with alpha laid on white')
  return tuple(notes)


def _sizes(root: str, paths: list[list[str]]) -> dict[str, int | str]:
  return {os.path.relpath(path, root): os.path.getsize(path) for part in paths for path in part}


def _read(paths, columns, channels, image_size, rows):
  pictures = [images.decode(paths[i], paths[i], channels, image_size) for i in rows]
  return {IMAGE: images.stack(pictures, os.path.dirname(paths[0])),
          **{name: values[rows] for name, values in columns.items()}}
