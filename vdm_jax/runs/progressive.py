"""Encodes images with a run's model so that any prefix of the payload is an image.

The methods are DiffC and UQDM of `codec`.  The header holds the times, variances and tables, which
encoder and decoder must share.  The network's output need not be the same to the last bit, so
another machine can decode a file.
"""
import hashlib
import io
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vdm_jax import codec, random
from vdm_jax.codec import channel, container, diffc, queue, uqdm
from vdm_jax.codec.bits_back import Lane, check_images
from vdm_jax.codec.chain import require_chain
from vdm_jax.codec.kernels import FINISHES, Conditions, Kernels, kernels, levels_between
from vdm_jax.errors import require, require_choice
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.runs import compressing, needs, pictures, workdir
from vdm_jax.runs.provenance import provenance
from vdm_jax.runs.sampling import variances_of
from vdm_jax.samplers.analytic import Variances

__all__ = ['METHODS', 'STEPS', 'Curve', 'Decoded', 'Report', 'curve', 'decode', 'encode', 'psnr']

STEPS = {'diffc': 20, 'uqdm': 4}  # by default
METHODS = tuple(STEPS)
_MOST = 20  # steps
_CALIBRATION = 256  # training images that scales are measured on


class Report(NamedTuple):
  """What `encode` wrote.  Sizes are in bytes."""
  count: int
  dimensions: int       # of an image
  size: int             # of the file
  header: int
  psnr: float           # dB, of the whole file finished along the flow
  ideal: float          # bits of divergence of all images; NaN of uqdm
  blocks: int           # numbers that were searched; 0 of uqdm
  large: int            # of these, blocks of more than 4 bits, whose samples are approximate
  noise: np.ndarray     # [blocks] along the mean: N(0, 1) if samples are exact
  seconds: float

  def bits_per_dim(self, size: float) -> float:
    return 8.0 * size / (self.count * self.dimensions)


class Decoded(NamedTuple):
  paths: list[Path]
  level: int            # 0: all there is
  steps: int            # T
  size: int             # bytes of the payload that were read


class _Ready(NamedTuple):
  """A model, with everything that depends on the model alone."""
  model: Any
  levels: int
  times: np.ndarray
  variances: Mapping[str, list[float]]  # as JSON
  kernels: Kernels


def psnr(images: np.ndarray, decoded: np.ndarray, levels: int) -> float:
  """10 log10((levels - 1)^2 / mean squared error) of integers in dB; infinite if all are equal."""
  error = np.mean(np.square(np.asarray(images, np.float64) - decoded))
  return float('inf') if error == 0.0 else float(10.0 * np.log10((levels - 1)**2 / error))


def _measured(trained: workdir.Trained, directory: str | Path, steps: int, seed: int) -> _Ready:
  """The model of a run, with variances that are estimated now on its training images."""
  model, levels = _model(trained, directory)
  times = levels_between(model.process, levels, steps)
  estimated = variances_of(trained, times[::-1], seed)
  return _of_table(trained, directory, times, {
      name: np.asarray(u, np.float32).tolist() for name, u in estimated._asdict().items()})


def _of_table(trained: workdir.Trained, directory: str | Path, times: np.ndarray,
              table: Mapping[str, list[float]]) -> _Ready:
  """The model of a run, with the variances of a file."""
  model, levels = _model(trained, directory)
  variances = Variances(*(jnp.asarray(table[name], jnp.float32) for name in Variances._fields))
  return _Ready(model, levels, times, table, kernels(model, levels, times, variances))


def _model(trained: workdir.Trained, directory: str | Path) -> tuple[Any, int]:
  model = needs.require(trained.experiment.model(trained.params), 'compress', directory)
  return model, trained.experiment.data.spec[model.field].levels or 0


def _require_few(steps: int) -> None:
  require(1 <= steps <= _MOST, 'T', steps, 'each step costs bits of its own here, so few '
          'are best', f'choose 1 to {_MOST}')


def _encoded(ready: _Ready, images: np.ndarray) -> np.ndarray:
  """x [n, D] of integers [n, D]."""
  return np.asarray(ready.model.encode(jnp.asarray(images)), np.float64).reshape(len(images), -1)


def _pixels(source: compressing.Images, shape: tuple[int, ...], levels: int) -> np.ndarray:
  """Integers [n, ...].  Raises InputError of what the model does not code."""
  images = source.read(np.arange(len(source.names)))
  return check_images(images, tuple(shape), levels).reshape(-1, *shape)


def _finished(ready: _Ready, z: np.ndarray, i: int, how: str, seed: int, conditions: Conditions
              ) -> np.ndarray:
  """Integers [n, ...]."""
  x = ready.kernels.finish(z, i, how, seed, conditions)
  return np.asarray(ready.model.decode(jnp.asarray(x))).reshape(len(z), *ready.kernels.shape)


def _calibrated(trained: workdir.Trained, ready: _Ready, seed: int) -> np.ndarray:
  part = needs.split(trained, 'train')
  batch = part.get(np.arange(min(_CALIBRATION, len(part))))
  images = np.asarray(batch[ready.model.field])
  conditions = lambda rows: jax.tree.map(lambda leaf: leaf[rows], batch)
  return uqdm.calibrate(ready.kernels, _encoded(ready, images), seed=seed, conditions=conditions)


def encode(directory: str | Path, images: str | Path, out: str | Path, *, method: str = 'diffc',
           steps: int | None = None, approximate: bool = False, seed: int = 0, average: str = '',
           step: int | str = 'latest', data_dir: str = '', data_name: str = '',
           overwrite: bool = False, progress: bool = True) -> Report:
  """Encodes images with the run in `directory` into the file `out`, a .vdmz, with loss.

  Args:
    images: as for `compressing.encode`.
    method: diffc codes at the rate of the bound plus a price for each block; uqdm needs no search.
    steps: T, at most 20, because more steps cost more bits.  Default: 20 for diffc, 4 for uqdm.
    approximate: let diffc choose larger blocks from fewer candidates.  The samples are then biased
      towards the prediction; `Report.noise` says by how much.

  The training images are read to estimate variances and scales.  The file is decoded once to
  measure its PSNR.

  Raises InputError as `compressing.encode` does.
  """
  out = files.output('out', out, '.vdmz', overwrite=overwrite)
  require_choice('method', method, METHODS)
  random.key(seed)  # raises if there is no such seed
  steps = STEPS[method] if steps is None else steps
  _require_few(steps)
  require(not approximate or method == 'diffc', 'approximate', None, 'only diffc searches, so '
          'only diffc can be approximate', 'leave it out, or choose diffc')
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model, levels = _model(trained, directory)
  require_chain(model, levels)
  source = compressing.open_images(images, model.shape)
  conditions, saved = compressing.conditions_of(trained, source.conditions)
  pixels = _pixels(source, model.shape, levels)
  ready = _measured(trained, directory, steps, seed)
  start = time.monotonic()
  x, ideal, blocks, large, noise = _encoded(ready, pixels), float('nan'), 0, 0, np.zeros(0)
  if method == 'diffc':
    search = diffc.APPROXIMATE if approximate else diffc.EXACT
    sent = diffc.encode(ready.kernels, x, search=search, seed=seed, conditions=conditions,
                        progress=progress)
    ideal, noise, tables = float(sent.ideal.sum()), sent.noise, sent.tables
    blocks, large = sent.blocks, sent.large
  else:
    tables = _calibrated(trained, ready, seed)
    sent = uqdm.encode(ready.kernels, x, tables, seed=seed, conditions=conditions,
                       progress=progress)
    tables = tables.tolist()
  seconds = time.monotonic() - start
  header = {
      'kind': method, 'run': str(Path(directory).absolute()), 'step': trained.step,
      'average': trained.average, 'weights': checksum(trained.params), 'provenance': provenance(),
      'platform': jax.devices()[0].device_kind, 'count': len(source.names),
      'shape': list(ready.kernels.shape), 'levels': ready.levels, 'steps': steps, 'seed': seed,
      'coder': _coder(method), 'approximate': approximate, 'conditions': saved,
      'names': source.names,
      'coded': {'times': ready.times.tolist(), 'ends': sent.ends, 'tables': tables,
                'variances': ready.variances}}
  lane = Lane(sent.words, 0)
  *_, (_, z) = _levels(codec.Container(header, [lane]), ready, conditions)
  reached = psnr(pixels, _finished(ready, z, 0, 'flow', seed, conditions), ready.levels)
  header['psnr'] = min(reached, 99.0)  # JSON has no infinity
  with files.atomic_write(out) as partial:
    overhead = container.write(partial, header, [lane])
  return Report(len(source.names), ready.kernels.size, out.stat().st_size, overhead,
                header['psnr'], ideal, blocks, large, noise, seconds)


def _coder(method: str) -> str:
  """A digest of a few coded symbols, and of a few candidates of diffc.

  It changes if the tables of the queue's library change, or the numbers of diffc's candidates.
  """
  sha = hashlib.sha256(np.asarray(queue.sample_words(), '<u4').tobytes())
  if method == 'diffc':
    sha.update(channel.sample_candidates().tobytes())
  return sha.hexdigest()[:32]


def _levels(read: codec.Container, ready: _Ready, conditions: Conditions, prefix: float = 1.0
            ) -> Iterator[tuple[int, np.ndarray]]:
  """(i, z_i) of the levels that lie in this share of the payload.

  Raises InputError if no level does.
  """
  header, words = read.header, read.lanes[0].words
  kept = int(len(words) * prefix)
  ends = header['coded']['ends']
  count = sum(end <= kept for end in ends)
  first = ends[0] / max(len(words), 1)
  if header['kind'] == 'uqdm':
    yield from uqdm.decode(ready.kernels, words[:kept], np.array(header['coded']['tables'])[:count],
                           header['count'], seed=header['seed'], conditions=conditions)
    return
  require(count > 0, 'prefix', prefix, f'the first level takes {first:.4f} of the file',
          'read more of it')
  yield from diffc.decode(ready.kernels, words[:kept], header['coded']['tables'][:count],
                          header['count'], seed=header['seed'], conditions=conditions)


def decode(file: str | Path, out: str | Path, *, prefix: float = 1.0, finish: str = 'flow',
           directory: str | Path = '', data_dir: str = '', data_name: str = '',
           overwrite: bool = False) -> Decoded:
  """Decodes a lossy .vdmz into the folder `out`: pictures or `images.npz`, as `compressing.decode`.

  Args:
    prefix: the share of the payload that is read.  The levels that end within it are decoded.
    finish: how the last of these levels becomes images: along the `flow`, by `ancestral` sampling,
      or by the `mean` of x.  The mean is blurred and has the least squared error.
    directory: the run that encoded the file, if the run has moved.

  Raises InputError as `compressing.decode` does, and then writes nothing.  But any machine may
  decode.
  """
  require(0.0 < prefix <= 1.0, 'prefix', prefix, 'it must be a share of the file',
          'give a number above 0, and at most 1')
  require_choice('finish', finish, FINISHES)
  read = container.read(files.user_path('file', file))
  header = read.header
  require(read.kind in METHODS, 'file', str(file), f'it is {read.kind}, which has no prefixes',
          'decode it by runs.compressing')
  container.require_same(read, 'coder', _coder(read.kind), 'this version of vdm_jax or of '
                         'constriction codes otherwise than the version that encoded it',
                         'install the versions of the encoder, or encode the images again')
  targets = compressing.targets_in(files.user_path('out', out), header, overwrite)
  trained = compressing.load_for(read, directory, data_dir, data_name)
  coded = header['coded']
  ready = _of_table(trained, directory or header['run'], np.array(coded['times']),
                    coded['variances'])
  conditions, _ = compressing.conditions_of(trained, {
      name: np.asarray(values) for name, values in header['conditions'].items()})
  *_, (level, z) = _levels(read, ready, conditions, prefix)
  images = _finished(ready, z, level, finish, header['seed'], conditions)
  paths = compressing.save(targets, iter([(np.arange(len(images)), images)]), header)
  # The ends are those of the last levels: diffc's z_T has one, uqdm's costs nothing.
  ends = [0] * (header['steps'] + 1 - len(coded['ends'])) + coded['ends']
  return Decoded(paths, level, header['steps'], 4 * ends[header['steps'] - level])


# ------------------------------------------------------------ rate and distortion


class Curve(NamedTuple):
  """{name: [(bits/dim without header, dB), ...]}, and the images as their bytes arrive."""
  points: Mapping[str, list[tuple[float, float]]]
  path: np.ndarray          # [frames, n, ...]  of diffc along the flow; the last is the original
  rates: list[float]        # [frames - 1]  bits/dim


def curve(directory: str | Path, images: str | Path, out: str | Path, *,
          trace: str | Path | None = None, steps: Mapping[str, int] = STEPS, seed: int = 0,
          average: str = '', step: int | str = 'latest', data_dir: str = '',
          data_name: str = '', overwrite: bool = False, progress: bool = True) -> Curve:
  """Draws PSNR against bits/dim into a .png, for every prefix of diffc and uqdm, and other codecs.

  The other codecs code all images as one sheet.  The arguments not named here are as in `encode`.

  Args:
    trace: a .png of the first eight images as their bytes arrive.
    steps: the T of each method.

  Raises InputError.
  """
  out = files.output('out', out, '.png', overwrite=overwrite)
  random.key(seed)  # raises if there is no such seed
  for number in steps.values():
    _require_few(number)
  trace = files.output('trace', trace, '.png', overwrite=overwrite) if trace else None
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model, levels = _model(trained, directory)
  require_chain(model, levels)
  source = compressing.open_images(images, model.shape)
  conditions, _ = compressing.conditions_of(trained, source.conditions)
  pixels = _pixels(source, model.shape, levels)
  points: dict[str, list[tuple[float, float]]] = {}
  ready = _measured(trained, directory, steps['diffc'], seed)
  per_dim = 1.0 / pixels.size
  x = _encoded(ready, pixels)
  sent = diffc.encode(ready.kernels, x, seed=seed, conditions=conditions, progress=progress)
  cost, ideal = np.cumsum(sent.cost) * per_dim, np.cumsum(sent.ideal.sum(axis=1)) * per_dim
  frames = []
  for row, (i, z) in enumerate(diffc.decode(ready.kernels, sent.words, sent.tables, len(x),
                                            seed=seed, conditions=conditions)):
    of = {how: _finished(ready, z, i, how, seed, conditions) for how in FINISHES}
    frames.append(of['flow'][:8])
    for how, decoded in of.items():
      points.setdefault(f'DiffC, {how}', []).append(
          (float(cost[row]), psnr(pixels, decoded, ready.levels)))
    points.setdefault('DiffC, flow, ideal channel', []).append(
        (float(ideal[row]), points['DiffC, flow'][-1][1]))
  few = _measured(trained, directory, steps['uqdm'], seed)
  scales = _calibrated(trained, few, seed)
  quantised = uqdm.encode(few.kernels, x, scales, seed=seed, conditions=conditions,
                          progress=progress)
  cost = np.cumsum(quantised.cost) * per_dim
  for i, z in uqdm.decode(few.kernels, quantised.words, scales, len(x), seed=seed,
                          conditions=conditions):
    if i < few.kernels.steps:
      decoded = _finished(few, z, i, 'flow', seed, conditions)
      points.setdefault(f'UQDM, T = {steps["uqdm"]}, flow', []).append(
          (float(cost[few.kernels.steps - 1 - i]), psnr(pixels, decoded, few.levels)))
  if len(ready.kernels.shape) == 3 and ready.kernels.shape[-1] in (1, 3):
    points |= _sheets(pixels, ready.levels)
  shown = np.unique(np.linspace(0, len(frames) - 1, 11).round().astype(int))
  result = Curve(points, np.stack([*(frames[row] for row in shown), pixels[:8]]),
                 [float(np.cumsum(sent.cost)[row] * per_dim) for row in shown])
  pictures.save_png(out, pictures.rate_distortion(points, len(pixels)))
  if trace:
    labels = [*(f'{rate:.2f}' for rate in result.rates), 'original']
    strip = pictures.labelled(pictures.strip(result.path, ready.levels), labels)
    pictures.save_png(trace, pictures.captioned(strip, 'bits/dim so far'))
  return result


def _sheets(images: np.ndarray, levels: int) -> dict[str, list[tuple[float, float]]]:
  """(bits/dim, dB) of the images as one sheet, by JPEG, WebP and, where installed, JPEG XL."""
  whole = compressing.sheet(np.round(images * (255.0 / (levels - 1))).astype(np.uint8))
  exact = compressing.sheet(images.astype(np.uint8))
  points = {}
  for name, options in _lossy_formats().items():
    for setting in options:
      coded = _coded(name, whole, setting)
      if coded is None:
        continue
      size, decoded = coded
      back = np.round(decoded.reshape(whole.shape) * ((levels - 1) / 255.0))
      points.setdefault(name, []).append((8.0 * size / images.size, psnr(exact, back, levels)))
  return points


def _lossy_formats() -> dict[str, list[dict[str, Any]]]:
  qualities = (1, 5, 10, 20, 35, 50, 65, 80, 90, 95)
  formats = {'JPEG': [{'quality': q, 'optimize': True} for q in qualities],
             'WebP': [{'quality': q, 'method': 6} for q in qualities]}
  try:
    import pillow_jxl  # noqa: F401  # makes Pillow know JXL
  except ImportError:
    return formats
  return formats | {'JXL': [{'quality': q} for q in qualities]}


def _coded(name: str, pixels: np.ndarray, options: Mapping[str, Any]
           ) -> tuple[int, np.ndarray] | None:
  """Bytes and pixels of a picture [H, W, c] in a format; None if this Pillow lacks the format."""
  buffer = io.BytesIO()
  grey = pixels.shape[-1] == 1
  try:
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, format=name, **options)
  except (KeyError, OSError):
    return None
  size = len(buffer.getvalue())
  return size, np.asarray(Image.open(buffer).convert('L' if grey else 'RGB'))
