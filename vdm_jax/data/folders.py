"""A folder of pictures as a data set.

Folders `train` and `test` (or validation, valid, val; in any case) are the splits; without them
every sixth picture is for testing.  If every picture lies in a folder of its split, those folders
are the classes.  What begins with a dot is left out.  The pictures have one channel if all are
grey, else three: see `images`.
"""
import collections
import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.data import images
from vdm_jax.data.sources import HELD_OUT, Source, Store, every_sixth
from vdm_jax.errors import InputError

IMAGE_FILES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')


class Listing(NamedTuple):
  """The files below a folder."""
  pictures: list[str]         # relative paths, in order
  hidden: int                 # files that begin with a dot, or lie in a folder that does
  others: collections.Counter  # the endings of all other files


def open_folder(root: str, image_size: int) -> Store:
  """The pictures below `root`, of which the headers are read.

  Raises FileNotFoundError or InputError.
  """
  if os.path.isfile(root):
    raise InputError('config.data.name', root, 'it is a file, and neither .npy nor .npz',
                     'name a folder of images')
  if not os.path.isdir(root):
    raise FileNotFoundError(f'there is no folder {root}: see --config.data.name')
  folders = _split_folders(root)
  if folders:
    names, rest = folders, _listing(root, skip=folders)
    listings = [_listing(os.path.join(root, name)) for name in names]
    parts, within = [listing.pictures for listing in listings], names
  else:
    names, rest, listings = ('not every sixth', 'every sixth'), None, [_listing(root)]
    files = listings[0].pictures
    parts, within = [[files[i] for i in rows] for rows in every_sixth(len(files))], ('', '')
  left_out = _left_out(listings, rest, folders)
  if not all(parts):
    raise InputError(
        'config.data.name', root, f'it holds too few images: {len(parts[0])} for training, '
        f'{len(parts[1])} for test{"".join(f" ({note})" for note in left_out)}',
        f'add files that end in {", ".join(IMAGE_FILES)}')
  classes, labels = _classes(parts)
  paths = [[os.path.join(root, name, file) for file in part]
           for name, part in zip(within, parts, strict=True)]
  headers = [images.header(path) for part in paths for path in part]
  channels = 1 if all(header.grey for header in headers) else 3
  sources = [Source(name, len(part), functools.partial(_read, part, label, channels, image_size),
                    label) for name, part, label in zip(names, paths, labels, strict=True)]
  return Store(*sources, (*_size(root, headers, image_size), channels), len(classes), '',
               functools.partial(_sizes, root, paths), left_out + _changed(headers), 256)


def _split_folders(root: str) -> tuple[str, str] | None:
  """The folders for training and for testing as they are spelled, None if there are no two."""
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
  """Of all below `root`, but for the folders `skip` in it."""
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
      else:
        others[os.path.splitext(path)[1].lower() or 'no ending'] += 1
  return Listing(sorted(pictures), hidden, others)


def _left_out(listings: list[Listing], rest: Listing | None,
              folders: tuple[str, str] | None) -> tuple[str, ...]:
  """One note on the files that are no part of the data, or none."""
  everything = listings + [rest] * bool(folders)
  hidden = sum(listing.hidden for listing in everything)
  others = sum((listing.others for listing in everything), collections.Counter())
  said = []
  if hidden:
    said.append(f'{_count(hidden, "hidden file")}')
  if others:
    said.append(f'{_count(others.total(), "file")} of other kinds ({", ".join(sorted(others))})')
  if folders and rest.pictures:
    said.append(f'{_count(len(rest.pictures), "image")} outside of {" and ".join(folders)}')
  return (f'left out: {", ".join(said)}',) if said else ()


def _count(n: int, what: str) -> str:
  return f'{n:,} {what}{"s" * (n != 1)}'


def _classes(parts: list[list[str]]) -> tuple[list[str], list[np.ndarray | None]]:
  """The first folders below the split's, if every picture has one, and the labels by split."""
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
  """Notes on what reading makes of the pictures."""
  grey, alpha = (sum(getattr(header, name) for header in headers) for name in ('grey', 'alpha'))
  notes = []
  if 0 < grey < len(headers):
    notes.append(f'{_count(grey, "grey image")} read as three equal channels')
  if alpha:
    notes.append(f'{_count(alpha, "image")} with alpha laid on white')
  return tuple(notes)


def _sizes(root: str, paths: list[list[str]]) -> dict[str, int | str]:
  return {os.path.relpath(path, root): os.path.getsize(path) for part in paths for path in part}


def _read(paths, labels, channels, image_size, rows):
  pictures = [images.decode(paths[i], paths[i], channels, image_size) for i in rows]
  place = os.path.dirname(paths[0])
  return images.stack(pictures, place), None if labels is None else labels[rows]
