"""Encodes images without loss with a run's model, at the bound of its chain, and decodes them."""
import collections
import contextlib
import importlib
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vdm_jax import codec, random
from vdm_jax.codec import bits_back, container
from vdm_jax.codec.chain import VARIANCES, require_chain
from vdm_jax.codec.chain import timed as timed_chain
from vdm_jax.data import images as image_files
from vdm_jax.data.fields import AUGMENTED
from vdm_jax.data.folders import IMAGE_FILES
from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.evaluation import references
from vdm_jax.evaluation.features import checksum
from vdm_jax.likelihood import bounds, passes
from vdm_jax.likelihood.statistics import standard_errors
from vdm_jax.machine import files
from vdm_jax.objectives import vlb
from vdm_jax.runs import needs, workdir
from vdm_jax.runs.provenance import provenance
from vdm_jax.runs.sampling import variances_of
from vdm_jax.samplers.analytic import Variances
from vdm_jax.typing import Model

__all__ = ['Images', 'Report', 'as_sheet', 'conditions_of', 'decode', 'encode', 'info', 'load_for',
           'open_images', 'save', 'sheet', 'targets_in']


_HELD = 1 << 23     # numbers of all images together: 8 MiB of pictures
_TIMES = 8          # draws of the bound for an image and repetition
_AT_ONCE = 1 << 20  # numbers that the network sees at a time, for the bound


class Report(NamedTuple):
  """What `encode` wrote.  Sizes are in bytes, and rates in bits/dim."""
  count: int
  dimensions: int          # of an image
  size: int                # of the file
  header: int
  initial: float           # what the stacks borrowed at first
  net: float               # bits/dim
  net_error: float         # its standard error over images; nan of one image
  bound: float             # `vlb@T` of the same images, of 16 draws each
  bound_error: float       # its standard error over images; of one image, over draws
  above_error: float       # of net - bound, image by image; of one image, over draws of the bound
  sheet: dict[str, float | None]  # `as_sheet`; {}: no images of grey or colour, or too many
  seconds: float
  network_seconds: float   # of these, in the network

  def bits_per_dim(self, size: float) -> float:
    return 8.0 * size / (self.count * self.dimensions)


# ------------------------------------------------------------------ images


class Images(NamedTuple):
  names: list[str]
  read: Callable[[np.ndarray], np.ndarray]  # numbers -> integers [n, ...]
  conditions: dict[str, np.ndarray]         # arrays beside the images, by name
  held: np.ndarray | None = None            # all images, where they are few: see `_checked`


def open_images(path: str | Path, shape: tuple[int, ...]) -> Images:
  """The images of a picture, a folder of pictures, or an .npz.  Raises InputError."""
  path = files.user_path('images', path)
  if path.suffix == '.npz':
    return _of_arrays(path)
  if path.is_dir():
    names = sorted(str(file.relative_to(path)) for file in path.rglob('*')
                   if file.suffix.lower() in IMAGE_FILES and file.is_file())
    require(bool(names), 'images', str(path), 'it holds no pictures',
            f'give files that end in {", ".join(IMAGE_FILES)}')
    root = path
  elif path.suffix.lower() in IMAGE_FILES and path.is_file():
    root, names = path.parent, [path.name]
  else:
    raise InputError('images', str(path), 'there is no such picture, folder or .npz',
                     'name one')
  count = collections.Counter(map(_as_png, names))
  twice = next((name for name, number in count.items() if number > 1), None)
  require(twice is None, 'images', str(path), f'two pictures would be decoded as {twice}',
          'rename one')
  folders = {str(folder) for name in names for folder in Path(name).parents}
  both = next((name for name in names if _as_png(name) in folders), None)
  require(both is None, 'images', str(path), f'{both} would be decoded under the name of a folder',
          'rename one')
  read = lambda rows: np.stack([_picture(root / names[row], shape) for row in rows])
  return Images(names, read, {})


def _checked(source: Images, shape: tuple[int, ...], levels: int) -> Images:
  """The images, held in memory unless they are more than `_HELD` numbers.

  Larger sets are read again wherever they are needed, a few images at a time.  So memory does not
  grow with the folder.  All images are read now, so that a bad image is refused before anything is
  computed.

  Raises InputError for an image of another shape, or with other levels.
  """
  count, held = len(source.names), []
  few = count * int(np.prod(shape)) <= _HELD
  for rows in np.array_split(np.arange(count), -(-count // 64)):
    images = source.read(rows)
    bits_back.check_images(images, tuple(shape), levels)
    held += [images] if few else []
  if not few:
    return source
  images = np.concatenate(held)
  return source._replace(read=lambda rows: images[rows], held=images)


def _as_png(name: str) -> str:
  """The name of a decoded picture whose original had this name."""
  return str(Path(name).with_suffix('.png'))


def _picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
  header = image_files.header(str(path))
  require(not header.alpha and (header.grey or shape[-1] > 1), 'images', str(path),
          f'it has {"alpha" if header.alpha else "colours"}, which the model does not code',
          'convert it, or leave it out')
  pixels = image_files.decode(path, str(path), shape[-1], 0)
  require(pixels.shape == tuple(shape), 'images', str(path), f'its shape is {list(pixels.shape)}, '
          f'and the model codes {list(shape)}', 'resize it')
  return pixels


def _of_arrays(path: Path) -> Images:
  arrays = references.arrays(path, 'images')
  name = next((name for name in ('images', 'image', 'arr_0') if name in arrays), None)
  if name is None:
    raise InputError('images', str(path), f'it holds the arrays {", ".join(arrays) or "(none)"}',
                     'name the array `images`')
  images = arrays.pop(name)
  require(images.ndim > 1 and len(images) > 0, 'images', str(path),
          f'the array {name!r} has shape {list(images.shape)}', 'give one image or more, [n, ...]')
  labels = {'label' if key == 'labels' else key: value for key, value in arrays.items()
            if value.shape[:1] == images.shape[:1]}
  return Images([f'{i:05d}' for i in range(len(images))], lambda rows: images[rows], labels)


# ------------------------------------------------------------------ encoding


def _chain(trained: workdir.Trained, steps: int, lanes: int, variance: str,
           table: Mapping[str, list[float]] | None) -> codec.Chain:
  model = trained.experiment.model(trained.params)
  field = trained.experiment.data.spec[model.field]
  if variance == 'learned':
    batch = trained.experiment.data.spec.zeros(1)
    require('variance' in bounds.heads(model, batch), 'variance', variance,
            "this model's network has no head for the variance", 'choose small or analytic')
  return model.codec(field.levels or 0, steps, lanes=lanes, variance=variance,
                     kernel=_kernel(table))


def _kernel(table: Mapping[str, list[float]] | None) -> vlb.Variance | None:
  """The analytic variances of a table; None without one."""
  if table is None:
    return None
  return bounds.analytic_variance(Variances(
      *(jnp.asarray(table[name], jnp.float32) for name in Variances._fields)))


def conditions_of(trained: workdir.Trained, arrays: Mapping[str, np.ndarray]
                  ) -> tuple[Callable[[np.ndarray], Any], dict[str, list]]:
  """A function from the numbers of images to their conditions, and all conditions as JSON."""
  model = trained.experiment.model(trained.params)
  wanted = model.conditions(np.arange(1)).keys() - {AUGMENTED}  # nothing is augmented
  for name in wanted:
    require(name in arrays, 'images', None, f'this model is conditioned on {name!r}, and the '
            'images have none', f'give an .npz with an array {name!r} beside the images')
  used = {name: np.asarray(arrays[name]) for name in wanted}
  try:
    model.conditions(np.arange(1), **used)
  except InputError as error:
    raise InputError('images', None, f'in their array {error.field!r}, {error.problem}',
                     error.remedy) from None
  return (lambda rows: model.conditions(rows, **used),
          {name: values.tolist() for name, values in used.items()})


def encode(directory: str | Path, images: str | Path, out: str | Path, *, steps: int = 50,
           variance: str = 'small', lanes: int = 1, seed: int = 0, verify: bool = False,
           average: str = '', step: int | str = 'latest', data_dir: str = '', data_name: str = '',
           overwrite: bool = False, progress: bool = True) -> Report:
  """Encodes images with the run in `directory` into the file `out`, a .vdmz.

  Args:
    images: a picture, a folder of pictures, or an .npz with `images` [n, ...] (and `labels`).
    steps: the T of the chain.
    variance: the variance of the chain's kernels: small, analytic or learned.  The analytic
      variances are estimated on the training images, and their table is kept in the file.
    lanes: the number of images that go through the network together.  Each lane borrows bits of
      its own.
    verify: decode the images again and compare them, before the file is written.

  Raises InputError if the images do not fit the model, the run has no chain, or `out` exists.
  """
  out = files.output('out', out, '.vdmz', overwrite=overwrite)
  random.key(seed)  # raises if there is no such seed
  require_at_least('T', steps)
  require_at_least('lanes', lanes)
  require_choice('variance', variance, VARIANCES)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model = needs.require(trained.experiment.model(trained.params), 'compress', directory)
  levels = trained.experiment.data.spec[model.field].levels or 0
  require_chain(model, levels)
  source = _checked(open_images(images, model.shape), model.shape, levels)
  conditions, saved = conditions_of(trained, source.conditions)
  table = None
  if variance == 'analytic':
    estimated = variances_of(trained, np.linspace(1.0, 0.0, steps + 1), seed)
    table = {name: np.asarray(u, np.float32).tolist()
             for name, u in estimated._asdict().items()}
  chain = _chain(trained, steps, lanes, variance, table)
  timed, clock = timed_chain(chain)
  start = time.perf_counter()
  coded = bits_back.encode(timed, source.read, len(source.names), conditions=conditions, seed=seed,
                           progress=progress)
  seconds = time.perf_counter() - start
  split = _Rows(model, source, conditions, trained.experiment.data.spec[model.field].dtype)
  bound = _bound(trained, split, steps, variance, table, seed, progress)
  header = {
      'run': str(Path(directory).absolute()), 'step': trained.step, 'average': trained.average,
      'weights': checksum(trained.params), 'provenance': provenance(),
      'platform': jax.devices()[0].device_kind, 'count': len(source.names),
      'shape': list(chain.shape), 'levels': chain.levels, 'steps': steps, 'variance': variance,
      'table': table, 'network_lanes': lanes, 'seed': seed, 'conditions': saved,
      'names': source.names, 'tables': chain.digest(),
      'probe': chain.probe(conditions(np.resize(np.arange(len(source.names)), lanes))),
      'net': bits_back.net_bits(coded, chain)}
  if verify:
    file = codec.Container(header, coded.lanes)
    for rows, decoded in _decoded(file, chain, conditions, progress):
      require(np.array_equal(decoded, source.read(rows)), None, None,
              'a decoded image is not the one that was encoded', 'report this')
  # When nothing is left to be computed, so that a signal leaves no part of it.
  with files.atomic_write(out) as partial:
    overhead = container.write(partial, header, coded.lanes)
  size = int(np.prod(chain.shape))
  sheet = {}
  if source.held is not None and len(chain.shape) == 3 and chain.shape[-1] in (1, 3) and (
      chain.levels <= 256):
    sheet = as_sheet(source.held)
  return Report(len(source.names), size, out.stat().st_size, overhead, coded.initial / 8.0,
                header['net'], _error(coded.net[None] / size), float(bound.mean() / size),
                _error(bound / size), _error((coded.net - bound) / size), sheet, seconds, clock[0])


def _error(values: np.ndarray) -> float:
  """The standard error of the mean of [R, N]: over images, or over repetitions of one image.

  It is nan for one number.
  """
  found = [error for error in standard_errors(values) if error is not None]
  return found[0] if found else float('nan')


class _Rows:
  """The images and their conditions as a split."""

  def __init__(self, model: Model, source: Images, conditions: Callable[[np.ndarray], Any],
               dtype: Any):
    self.get = lambda rows: {**conditions(rows), model.field: source.read(rows).astype(dtype)}
    self.count = len(source.names)

  def __len__(self) -> int:
    return self.count


def _bound(trained: workdir.Trained, split: _Rows, steps: int, variance: str,
           table: Mapping[str, list[float]] | None, seed: int, progress: bool) -> np.ndarray:
  """`vlb@T` of each image for the chain of `_chain`: bits [2, N], two independent repetitions."""
  experiment = trained.experiment
  model = experiment.model(trained.params)
  kernel = vlb.learned if variance == 'learned' else _kernel(table)
  size = int(np.prod(model.shape))
  out = passes.over_images(
      bounds.at_times(steps, _TIMES, kernel), experiment.model, trained.params, split,
      random.key(seed), label=f'vlb@{steps}', repeats=2, progress=progress,
      at_once=max(1, _AT_ONCE // (_TIMES * size)))
  return out['nats'] / np.log(2.0)


# ------------------------------------------------------------------ decoding


def _decoded(file: codec.Container, chain: codec.Chain, conditions, progress: bool
             ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  return bits_back.decode(chain, file.lanes, file.header['count'], conditions=conditions,
                          seed=file.header['seed'], progress=progress)


def decode(file: str | Path, out: str | Path, *, directory: str | Path = '', data_dir: str = '',
           data_name: str = '', overwrite: bool = False, progress: bool = True) -> list[Path]:
  """Decodes a .vdmz into the folder `out`: pictures, or else `images.npz`.

  Pictures are written if pictures were encoded, or if the data have 256 levels.

  directory: the run that encoded the file, if the run has moved.

  Raises InputError, and then writes nothing.  The reasons are a damaged or newer file, other
  weights than the encoder's, a machine or a program that rounds differently, or existing files.
  """
  read = container.read(files.user_path('file', file))
  header = read.header
  require(read.kind == container.LOSSLESS, 'file', str(file), f'it is lossy ({read.kind})',
          'decode it by runs.progressive')
  targets = targets_in(files.user_path('out', out), header, overwrite)
  trained = load_for(read, directory, data_dir, data_name)
  chain = _chain(trained, header['steps'], header['network_lanes'], header['variance'],
                 header['table'])
  conditions, _ = conditions_of(trained, {name: np.asarray(values)
                                          for name, values in header['conditions'].items()})
  versions = f'jax {header["provenance"]["jax"]} on {header["platform"]}'
  rounds = (f'this machine, or its version of JAX or constriction, rounds otherwise than the one '
            f'that encoded it ({versions}): one bit of difference would decode to noise')
  container.require_same(read, 'tables', chain.digest(), rounds, 'decode on a machine like it')
  first = np.resize(np.arange(header['count']), header['network_lanes'])
  container.require_same(read, 'probe', chain.probe(conditions(first)), rounds,
                         'decode on a machine like it')
  return save(targets, _decoded(read, chain, conditions, progress), header)


def load_for(read: codec.Container, directory: str | Path = '', data_dir: str = '',
             data_name: str = '') -> workdir.Trained:
  """The run that encoded a file, from `directory` if the run has moved.

  Raises InputError if the run is not there, or has other weights.
  """
  header = read.header
  where = directory or header['run']
  if not Path(where).is_dir():
    raise InputError('workdir', str(where), 'the run that encoded this file is not there',
                     'say where it is now')
  trained = workdir.load_trained(where, average=header['average'], step=header['step'],
                                 data_dir=data_dir, data_name=data_name)
  container.require_same(read, 'weights', checksum(trained.params), f'it was encoded with other '
                         f'weights than the weights of {where}', 'name the run that encoded it')
  return trained


def targets_in(folder: Path, header: Mapping[str, Any], overwrite: bool) -> list[Path]:
  """The files that decoding will write into `folder`.

  Raises InputError for a file that exists (unless `overwrite`), or that cannot be written.
  """
  files_of = all(Path(name).suffix.lower() in IMAGE_FILES for name in header['names'])
  pictures = len(header['shape']) == 3 and (header['levels'] == 256 or files_of)
  names = [*map(_as_png, header['names'])] if pictures else ['images.npz']
  for name in names:
    require(not Path(name).is_absolute() and '..' not in Path(name).parts, 'file', None,
            f'it names a file outside of the folder, {name}', 'do not decode it')
  paths = [folder / name for name in names]
  there = next((path for path in paths if path.exists()), None)
  require(overwrite or there is None, 'out', str(folder), f'{there} is there already',
          'choose another folder, or ask for `overwrite`')
  for parent in {path.absolute().parent for path in paths}:
    place = next(each for each in (parent, *parent.parents) if each.exists())
    require(place.is_dir() and os.access(place, os.W_OK | os.X_OK), 'out', str(folder),
            f'nothing can be written into {place}', 'choose another place')
  taken = next((path for path in paths if path.is_dir()), None)
  require(taken is None, 'out', str(folder), f'{taken} is a directory', 'choose another folder')
  return paths


def save(targets: list[Path], decoded: Iterator[tuple[np.ndarray, np.ndarray]],
         header: Mapping[str, Any]) -> list[Path]:
  """Writes all images or none.  Pictures wait beside the folder until the last one is decoded."""
  place = next(parent for parent in targets[0].absolute().parents if parent.exists())
  with tempfile.TemporaryDirectory(prefix='.decoding-', dir=place) as waiting:
    if targets[0].suffix == '.npz':
      _save_arrays(targets[0], Path(waiting, 'images.npy'), decoded, header)
      return targets
    for rows, part in decoded:
      for row, image in zip(rows, part.astype(np.uint8), strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(Path(waiting, f'{row}.png'))
    for row, path in enumerate(targets):
      path.parent.mkdir(parents=True, exist_ok=True)
      Path(waiting, f'{row}.png').replace(path)
  return targets


def _save_arrays(target: Path, waiting: Path, decoded: Iterator[tuple[np.ndarray, np.ndarray]],
                 header: Mapping[str, Any]) -> None:
  """Writes an .npz.  The images are put together on disk, so memory does not grow with them."""
  images = np.lib.format.open_memmap(
      waiting, 'w+', np.uint8 if header['levels'] <= 256 else np.int32,
      (header['count'], *header['shape']))
  for rows, part in decoded:
    images[rows] = part
  images.flush()
  with files.atomic_write(target) as partial, zipfile.ZipFile(
      partial, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.write(waiting, 'images.npy')
    beside = {'labels' if name == 'label' else name: values
              for name, values in header['conditions'].items()}
    for name, values in (beside | {'names': header['names']}).items():
      with archive.open(f'{name}.npy', 'w') as member:
        np.lib.format.write_array(member, np.asarray(values))


# ------------------------------------------------------------------ looking


def info(file: str | Path) -> dict[str, Any]:
  """A summary of a file: its header without long lists, its sizes in bytes, and its bits/dim."""
  path = files.user_path('file', file)
  read = container.read(path)
  short = {name: value for name, value in read.header.items()
           if name not in ('table', 'conditions', 'names', 'lanes', 'kind', 'coded', 'provenance')}
  short |= read.header.get('provenance', {})
  names = read.header['names']
  short['names'] = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
  loss = 'lossless' if read.kind == container.LOSSLESS else 'lossy'
  return {'kind': f'{read.kind} ({loss})'} | short | {
      'bytes': path.stat().st_size, 'header_bytes': read.overhead,
      'bits_per_dim': 8.0 * path.stat().st_size / (
          read.header['count'] * int(np.prod(read.header['shape'])))}


def sheet(images: np.ndarray) -> np.ndarray:
  """Images [n, h, w, c] side by side: uint8 [H, W, c], about square."""
  n, height, width, channels = images.shape
  columns = int(np.ceil(n**0.5))
  rows = -(-n // columns)
  pixels = np.zeros((rows * height, columns * width, channels), np.uint8)
  for i, image in enumerate(images):
    top, left = i // columns * height, i % columns * width
    pixels[top:top + height, left:left + width] = image
  return pixels


def as_sheet(images: np.ndarray) -> dict[str, float | None]:
  """bits/dim of the images [n, H, W, 1 or 3] as one lossless sheet, by format ('PNG', 'WebP', ...).

  Pillow writes the sheet.  The value is None if this Pillow does not write the format.
  """
  pixels = sheet(images)
  picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  return {name: None if (size := _saved(picture, **options)) is None else 8.0 * size / images.size
          for name, options in _FORMATS.items()}


_FORMATS: dict[str, dict[str, Any]] = {
    'PNG': {'format': 'PNG', 'optimize': True},
    'WebP': {'format': 'WebP', 'lossless': True, 'quality': 100, 'method': 6},
    'JPEG XL': {'format': 'JXL', 'lossless': True, 'effort': 9}}


def _saved(picture: Image.Image, **options: Any) -> int | None:
  """The size of a picture in bytes; None if this Pillow does not write the format."""
  with contextlib.suppress(ImportError):
    importlib.import_module('pillow_jxl')  # which gives JPEG XL to Pillow, where it is installed
  buffer = io.BytesIO()
  try:
    picture.save(buffer, **options)
  except (KeyError, OSError):
    return None
  return len(buffer.getvalue())
