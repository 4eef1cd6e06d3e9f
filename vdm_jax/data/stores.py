"""The data set that a name means.

  name                         data
  `digits`                     scikit-learn's handwritten digits, prepared when first used
  `shapes`, `shapes:held_out`  captioned shapes of 16 x 16 pixels: see `shapes`
  `expressions`                pictures of expressions of shapes: see `expressions`
  `textured_ellipses`          slices through a body with a texture: see `slices`
  `brain`                      slices of a head, prepared from nilearn: see `brain`
  `emoji`, `emoji:held_out`    emoji and their names, prepared from a font: see `emoji`
  `chorales`, `chorales:...`   windows of Bach's chorales, prepared from music21: see `chorales`
  `captioned_digits`           `digits` with the field `caption`, 'zero' .. 'nine': see `captions`
  `swirl`, `swiss_roll`, ...   points in the plane, binary sequences: see `formulas`
  `./photos`, `/data/photos`   a folder of images (any name with a leading `.`, `/` or `~`):
                               see `folders`
  `./pairs`                    a folder of pairs of noise and sample: see `pairs`
  `x.npy`, `x.npz`             arrays: images, points, sequences, labels, texts: see `arrays`
  `x.csv`, `x.npy`, `x.npz`    time series, if config.data.series has windows: see `series`
  `x.npz`                      episodes, if config.data.episodes has windows: see `episodes`
  anything else                a TFDS name: `cifar10`, `mnist`, `downsampled_imagenet/32x32`: see
                               `records`

If the data have no splits, every sixth image is for testing, from index 0.
"""
import functools
import os
from collections.abc import Sequence

from vdm_jax.data import (
  arrays,
  brain,
  captions,
  chorales,
  emoji,
  episodes,
  expressions,
  folders,
  formulas,
  latents,
  pairs,
  records,
  series,
  shapes,
  slices,
  tokenisers,
)
from vdm_jax.data.fields import IMAGE, Field
from vdm_jax.data.sources import Source, Store
from vdm_jax.errors import InputError


def open_store(name: str, data_dir: str = '', image_size: int = 0, fields: Sequence[str] = (),
               texts: tokenisers.Settings = tokenisers.BYTES,
               windows: series.Windows = series.NONE,
               plans: episodes.Windows = episodes.NONE) -> Store:
  """Finds the data set `name` and reads its headers, not its images (see the module's table).

  fields: the names of the requested fields, x first.  Empty means all fields, or image and label
  for TFDS.  texts: how texts become tokens.  windows: of time series, which the file then holds;
  plans: of episodes.

  Raises NotPrepared or FileNotFoundError if the data set is missing.  Raises InputError if it
  cannot be used, or if no data set can have that name.
  """
  path = os.path.expanduser(name)
  if name in formulas.FORMULAS:
    return _formula(name)
  if name in shapes.NAMES:
    return shapes.open_shapes(name, texts)
  if name == slices.NAME:
    return slices.open_slices()
  if name == expressions.NAME:
    return expressions.open_expressions(texts)
  if name == brain.NAME:
    return brain.open_brain(data_dir)
  if name in emoji.FILES:
    return emoji.open_emoji(name, data_dir, texts)
  if name in chorales.STEPS:
    return chorales.open_chorales(name, data_dir)
  if name == 'captioned_digits':
    return captions.open_digits(data_dir, image_size, texts)
  if windows.history:
    return series.open_series(path, windows)
  if plans.horizon:
    return episodes.open_episodes(path, plans)
  if name.endswith('.csv'):
    raise InputError('config.data.name', name, 'a .csv file holds time series, and this config has '
                     'no windows of them', 'take a config of forecasts '
                     '(configs/applications/greensboro.py), or set config.data.series.history')
  if name.endswith(('.npy', '.npz')):
    return arrays.open_arrays(path, texts)
  if is_path(name) and pairs.begun(path):
    return pairs.open_pairs(path)
  if is_path(name) and latents.begun(path):
    raise InputError('config.data.name', name, 'it holds latents, which only training reads',
                     'name the images here, and the latents in config.data.latents')
  if is_path(name):
    return folders.open_folder(path, image_size, texts)
  return records.open_records(name, data_dir, image_size, fields, texts)


def is_path(name: str) -> bool:
  """Whether `name` names a file or a folder."""
  return (name.endswith(('.npy', '.npz', '.csv')) or name.startswith('.')
          or os.path.isabs(os.path.expanduser(name)))


def _read_formula(name, n, index, rows):
  return {IMAGE: formulas.draw(name, n, index)[rows]}


def _formula(name: str) -> Store:
  sizes = {'train': 50_000, 'test': 10_000}
  train, test = (Source(split, n, functools.partial(_read_formula, name, n, index))
                 for index, (split, n) in enumerate(sizes.items()))
  one = formulas.draw(name, 1, 0)
  field = Field(IMAGE, one.shape[1:], one.dtype.name, None if one.dtype.kind == 'f' else 0)
  return Store(train, test, (field,), '',
               lambda: {f'{name} {split}': n for split, n in sizes.items()})
