"""Reconstructs volumes from few measurements, with the model of a run as the prior of slices.

The measurements are sums along parallel beams, or a part of the Fourier transform of each slice.
There are also three reconstructions without a prior, to compare with: a direct inverse, least
squares, and total variation.
"""
import importlib
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import data, processes, random, volumes
from vdm_jax.data.fields import AUGMENTED
from vdm_jax.errors import require, require_at_least
from vdm_jax.evaluation import distances, references
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.evaluation.features import checksum
from vdm_jax.inverse import Operator, Problem, slack
from vdm_jax.machine import devices, files
from vdm_jax.runs import needs, pictures, reading, workdir
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.samplers import drawing, mbir, sampling
from vdm_jax.samplers.sampling import check_finite
from vdm_jax.typing import Array, Model, Process, PyTree, Sampler
from vdm_jax.volumes import TV

__all__ = ['COLUMNS', 'DDS', 'MBIR', 'METHODS', 'Measured', 'NAMES', 'Quality', 'Result', 'figures',
           'mask_of', 'measured', 'picture', 'reconstruct', 'report', 'score']

# The reconstructions, in the order of the picture.
NAMES = ('direct', 'least squares', 'TV', 'ours')
COLUMNS = ('direct', 'least squares', 'TV', 'ours', 'ours less TV', 'SSIM of TV', 'SSIM of ours',
           'evaluations', 'products with A', 'minutes')  # of the measurements of `figures`
LEAST_SQUARES = 10      # conjugate gradients: more of them fit the noise
TV_STEPS, TV_ITERATIONS = 100, 5
SHOWN = 4               # volumes in the picture
_PART = 10              # steps of the sampler between two writings of its state
_LEVELS, _IMAGES = 24, 64  # for the errors of the denoiser


class DDS(NamedTuple):
  """`samplers.mbir.dds`.  weight, rho: of TV across slices, in the units of the volumes.

  The defaults are the best of 13 settings on four phantoms that no table shows.
  """
  weight: float = 0.2
  rho: float = 10.0
  iterations: int = 20
  eta: float = 1.0
  scale: float = 6.0   # a factor of the variance of x given z

  def check(self) -> None:
    """Raises InputError for wrong numbers."""
    TV(self.weight, self.rho).check()
    require_at_least('iterations', self.iterations)
    require(0.0 <= self.eta <= 1.0, 'eta', self.eta, 'it must be from 0 to 1',
            'give 1, for example')
    require(0.0 < self.scale < math.inf, 'scale', self.scale, 'it must be above 0, and finite',
            'give 1, for example')

  def sampler(self, denoise: mbir.Denoiser, process: Process, problem: Problem,
              errors: mbir.SquaredErrors, unit: float, limits: tuple[float, float] | None
              ) -> Sampler:
    return mbir.dds(denoise, process, problem, lambda logsnr: self.scale * errors(logsnr),
                    _tv(self, unit), self.iterations, self.eta, limits)


class MBIR(NamedTuple):
  """`samplers.mbir.mbir`.  weight, rho: as for `DDS`."""
  weight: float = 0.04
  rho: float = 10.0
  iterations: int = 1
  snr: float = 0.16

  def check(self) -> None:
    """Raises InputError for wrong numbers."""
    TV(self.weight, self.rho).check()
    require_at_least('iterations', self.iterations)
    require(0.0 < self.snr < math.inf, 'snr', self.snr, 'it must be above 0, and finite',
            'give 0.16, for example')

  def sampler(self, denoise: mbir.Denoiser, process: Process, problem: Problem,
              errors: mbir.SquaredErrors, unit: float, limits: tuple[float, float] | None
              ) -> Sampler:
    del errors, limits
    return mbir.mbir(denoise, process, problem, _tv(self, unit), self.snr, self.iterations)


Method = DDS | MBIR
METHODS: dict[str, Any] = {'dds': DDS, 'mbir': MBIR}


def _tv(method: Method, unit: float) -> TV:
  """TV across slices in the units of x.  unit: the change of x that is a change of 1 in volumes.

  1/2 |A v - y|^2 + weight |D v|_1 is the same number for x = unit v + offset.
  """
  return TV(method.weight / unit, method.rho / unit**2)


class Measured(NamedTuple):
  """Measurements of volumes."""
  operator: Operator         # of volumes [Z, H, W, 1], in their own units
  y: np.ndarray              # [N, ...]
  noise: float               # the standard deviation in y
  truth: np.ndarray | None   # [N, Z, H, W, 1]
  peak: float                # the largest number that volumes may have
  angles: np.ndarray | None  # [views] in radians; None: the measurements are frequencies
  inside: np.ndarray         # bool [H, W]  where volumes may differ from 0


class Quality(NamedTuple):
  """How near a reconstruction is to each volume.  The peak is the largest number of the volume."""
  psnr: np.ndarray         # [N] dB, where `Measured.inside`
  ssim: np.ndarray | None  # [N] the mean over slices; None without scikit-image or if too small


class Result(NamedTuple):
  """What was reconstructed."""
  measured: Measured
  found: dict[str, np.ndarray]   # name -> [N, Z, H, W, C]; 'ours': the mean of the samples
  samples: np.ndarray            # [N, K, Z, H, W, C]
  quality: dict[str, Quality]    # of `found`, and of 'a sample'; empty without a truth
  method: str
  evaluations: int               # of the network, for each slice of a volume
  products: dict[str, int]       # with A, at most, for each volume by name; as many with A^T
  seconds: float                 # of the samples of this call
  about: dict[str, Any]          # the settings


# ------------------------------------------------------------------ measurements


def mask_of(name: str, height: int, width: int) -> np.ndarray:
  """The frequencies that are measured: bool [W] or [H, W].

  name: 'every:N', every Nth column and the central 15 % of them, or a picture, white where it is
  measured.  Raises InputError.
  """
  kind, _, rest = name.partition(':')
  if kind == 'every':
    require(rest.isdecimal() and int(rest) >= 1, 'mri', name, f'{rest!r} is no number of columns',
            'write every:2, for example')
    column = np.arange(width)
    return (column % int(rest) == 0) | (2 * np.abs(column - width // 2) < 0.15 * width)
  white = reading.pixels('mri', name, 1)[..., 0] > 127
  require(white.shape == (height, width), 'mri', name, f'it has {white.shape[0]} x '
          f'{white.shape[1]} pixels, and the slices have {height} x {width}',
          'give a picture of that size, white where it is measured')
  return white


def measured(file: str | Path, side: int, *, views: int | None = None, mri: str = '',
             noise: float = 0.005, peak: float | None = None, seed: int = 0) -> Measured:
  """The measurements in a file, or measurements of the volumes in a file.

  Args:
    file: an .npz.  It has `volumes` [N, Z, H, W], or `volume` [Z, H, W], which are measured here;
      or `sinograms` [N, Z, P, views] with `angles` [views] in degrees; or `kspace` [N, Z, H, W],
      complex, with `known`, bool [W] or [H, W].  See `volumes` for the operators.  If there are
      measurements, volumes are their truth.
    side: the pixels of a slice along each side.
    views: parallel beams from so many angles.
    mri: see `mask_of`.
    noise: the standard deviation, as a share of the largest |y|.  Given y have such noise already.
    peak: the largest number that volumes may have.  Default: 1; for integers of 8 or 16 bits, the
      largest of their type.
    seed: of the noise.

  Raises InputError.
  """
  path = files.user_path('volume', file)
  require(0.0 <= noise < math.inf, 'noise', noise, 'it must be at least 0, and finite',
          'give a share of the largest measurement, such as 0.005')
  require_at_least('views', views)
  arrays = _arrays(path)
  truth, peak = _truth(arrays, path, side, peak)
  given = [name for name in ('sinograms', 'kspace') if name in arrays]
  if given:
    require(len(given) == 1 and views is None and not mri, 'volume', str(path), 'its measurements '
            f'are there already: {" and ".join(given)}', 'keep one of them, and leave out --views '
            'and --mri')
    operator, y, angles = _given(arrays, path, side)
    _require_range(given[0], operator, y, path, peak, noise)
    require(truth is None or truth.shape[:2] == y.shape[:2], 'volume', str(path),
            f'its {given[0]} have the shape {arrays[given[0]].shape}, and its volumes are not as '
            'many, or have other slices', 'give the volumes that were measured, or none')
  else:
    require(truth is not None, 'volume', str(path), f'it has {", ".join(arrays) or "no arrays"}',
            'give volumes, sinograms or kspace')
    require((views is None) != (not mri), 'views', views, 'a volume is measured in one way',
            'give either --views=8 or --mri=every:2')
    assert truth is not None
    shape, angles, known = truth.shape[1:], None, np.ones(1)
    if views is None:
      known = np.broadcast_to(mask_of(mri, side, side), (side, side))[..., None, None]
      operator = volumes.fourier(shape, known[..., 0, 0])
    else:
      angles = volumes.angles_of(views)
      operator = volumes.parallel_beams(shape, angles, not truth[:, :, ~_circle(side)].any())
    y = known * _with_noise(operator, truth, noise, seed)
  y, std = y.astype(np.float32), noise * float(np.abs(y).max())
  Problem(operator, jnp.asarray(y), std).check()
  whole = angles is None or y.shape[2] != side
  return Measured(operator, y, std, truth, peak, angles,
                  np.ones((side, side), bool) if whole else _circle(side))


def _circle(side: int) -> np.ndarray:
  """bool [side, side], the circle that fits into the square."""
  row, column = np.mgrid[:side, :side] - side // 2
  return row**2 + column**2 <= (side // 2)**2


def _with_noise(operator: Operator, truth: np.ndarray, noise: float, seed: int) -> np.ndarray:
  """y of volumes; the noise of volume i depends on (seed, i)."""
  @jax.jit
  def program(key, x):
    y = operator(x)
    keys = random.stream(random.per_example(key, jnp.arange(len(x))), 'measurement')
    return y + noise * jnp.max(jnp.abs(y)) * random.normal(keys, y)
  return np.asarray(program(random.key(seed), jnp.asarray(truth)))


def _arrays(path: Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz.  Raises InputError."""
  found = references.arrays(path, 'volume')
  for name, u in found.items():
    if name in ('volume', 'volumes', 'sinograms', 'angles', 'kspace'):
      kinds, numbers = ('uifc', 'numbers') if name == 'kspace' else ('uif', 'real numbers')
      require(u.dtype.kind in kinds and u.size > 0 and bool(np.isfinite(u).all()), 'volume',
              str(path), f'{name!r} has no {numbers}, or some that are not finite',
              f'give finite {numbers}')
  return found


def _truth(arrays: Mapping[str, np.ndarray], path: Path, side: int, peak: float | None
           ) -> tuple[np.ndarray | None, float]:
  """[N, Z, H, W, 1], or None, and the largest number that volumes may have."""
  require(peak is None or 0.0 < peak < math.inf, 'peak', peak, 'it must be above 0, and finite',
          'give the largest number that volumes may have')
  found = arrays['volume'][None] if 'volume' in arrays else arrays.get('volumes')
  if found is None:
    return None, peak or 1.0
  require(found.ndim == 4, 'volume', str(path), f'its volumes have the shape {found.shape}',
          'give `volumes` [N, Z, H, W], or `volume` [Z, H, W]')
  require(found.shape[2:] == (side, side), 'volume', str(path), f'its slices have {found.shape[2]} '
          f'x {found.shape[3]} pixels, and those of the prior {side} x {side}', 'resample them, or '
          'name the run of another prior')
  whole = found.dtype.kind in 'ui'
  require(peak is not None or not whole or found.dtype.itemsize <= 2, 'peak', peak, 'the volumes '
          f'are {found.dtype}, whose largest number says nothing about them',
          'give the largest number that volumes may have')
  peak = peak or (float(np.iinfo(found.dtype).max) if whole else 1.0)
  low, high = float(found.min()), float(found.max())
  require(0.0 <= low and high <= peak, 'peak', peak, f'the volumes are from {low:.4g} to '
          f'{high:.4g}', 'give the largest number that volumes may have; the smallest is 0')
  require(bool(found.any(axis=(1, 2, 3)).all()), 'volume', str(path),
          'a volume is 0 everywhere, so it has no scores', 'leave it out')
  return found[..., None].astype(np.float32), peak


def _given(arrays: Mapping[str, np.ndarray], path: Path, side: int
           ) -> tuple[Operator, np.ndarray, np.ndarray | None]:
  """The operator and y of measurements in a file, and the angles of their views."""
  name, beside = ('sinograms', 'angles') if 'sinograms' in arrays else ('kspace', 'known')
  y = arrays[name]
  wide = {side, math.ceil(math.sqrt(2.0) * side)}
  fits = y.ndim == 4 and (y.shape[2] in wide if beside == 'angles' else y.shape[2:] == (side, side))
  require(fits, 'volume', str(path), f'its {name} have the shape {y.shape}',
          f'give [N, Z, P, views] with P of {sorted(wide)}' if beside == 'angles' else
          f'give [N, Z, {side}, {side}]')
  require(beside in arrays, 'volume', str(path), f'its {name} come without {beside!r}',
          'add the array')
  shape, other = (y.shape[1], side, side, 1), arrays[beside]
  if beside == 'known':
    operator = volumes.fourier(shape, other)
    y = np.where(np.broadcast_to(other, (side, side)), y, 0.0)[..., None]
    return operator, np.stack([np.real(y), np.imag(y)], axis=-1).astype(np.float32), None
  require(other.shape == y.shape[3:], 'volume', str(path), f'it has {y.shape[3]} views, and the '
          f'shape of its angles is {other.shape}', 'give one angle, in degrees, for each view')
  angles = np.deg2rad(other.astype(float))
  operator = volumes.parallel_beams(shape, angles, y.shape[2] == side)
  return operator, y[..., None].astype(np.float32), angles


def _require_range(name: str, operator: Operator, y: np.ndarray, path: Path, peak: float,
                   noise: float) -> None:
  """Raises InputError if y cannot be of volumes from 0 to `peak`: it is surely in other units.

  A sum along a beam is at least 0, and largest if the volume is `peak` everywhere.  The modulus of
  a frequency is then largest at 0: the transform is unitary, so it is `peak` times the root of the
  number of pixels.  The slack of `inverse.slack` is allowed beyond, for a noise that is a share of
  the largest sum or modulus.
  """
  if name == 'kspace':
    u, what = np.hypot(y[..., 0], y[..., 1]), 'the moduli of its kspace'
    most = peak * math.sqrt(operator.shape[1] * operator.shape[2])
  else:
    u, what = y, f'its {name}'
    most = float(jnp.max(operator(jnp.full((1, *operator.shape), peak))))
  beyond = slack(noise * most, most)
  require(-beyond <= u.min() and u.max() <= most + beyond, 'volume', str(path), f'{what} are from '
          f'{u.min():.4g} to {u.max():.4g}, and of volumes from 0 to {peak:g} with this noise they '
          f'are from {-beyond:.4g} to {most + beyond:.4g}',
          'give them in the units of the volumes, and the largest number of these by --peak')


# ------------------------------------------------------------------ the prior


def _unit(model: Model, directory: Path, peak: float, levels: int | None) -> tuple[float, float]:
  """(unit, offset): x = unit v + offset for a volume v, which is 0 at least and `peak` at most."""
  top = float(levels - 1) if levels else 1.0
  ends = np.asarray(model.encode(jnp.asarray([[0.0], [top]]).reshape(2, 1, 1, 1) * jnp.ones(
      (1, *model.shape))))
  low, high = ends.reshape(2, -1)
  require(np.ptp(low) == np.ptp(high) == 0.0, 'workdir', str(directory), 'its data are '
          'standardised pixel by pixel', 'name a run whose pixels have one scale')
  return float(high[0] - low[0]) / peak, float(low[0])


def _in_x(m: Measured, unit: float, offset: float) -> tuple[Operator, np.ndarray]:
  """The operator and y of x = unit v + offset: A(x) / unit, and y + A(offset) / unit."""
  operator = m.operator._replace(apply=lambda x: m.operator(x / unit))
  return operator, m.y + np.asarray(operator(jnp.full((1, *operator.shape), offset)))


# ------------------------------------------------------------------ one reconstruction


def reconstruct(directory: str | Path, volume: str | Path, out: str | Path, *,
                method: Method | None = None, views: int | None = None, mri: str = '',
                noise: float = 0.005, peak: float | None = None, steps: int = 50, count: int = 4,
                tv_weight: float = 0.04, seed: int = 0, batch_size: int = 16,
                samples: str | Path = '', average: str = '', step: int | str = 'latest',
                data_dir: str = '', data_name: str = '', overwrite: bool = False) -> Result:
  """Reconstructs volumes by the mean of `count` samples, and without a prior.

  The state of the sampler is kept beside `out` until it is written.  So after a stop the same call
  goes on, and its result is the same bit for bit.

  Args:
    out: a .png with the truth and the reconstructions.  The scores and costs are written beside it,
      as .json.
    method: default `DDS()`.
    volume, views, mri, noise, peak: see `measured`.
    steps: of the sampler, even in time.
    tv_weight: of the reconstruction by total variation in all three directions.
    samples: an .npz, to which the truth, y and all reconstructions are written.

  Sample k of volume i depends on (seed, i, k) alone.  Raises InputError before anything is
  compiled, except for samples that are not finite.
  """
  method = DDS() if method is None else method
  method.check()
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.png', overwrite=overwrite)
  beside = files.output('out', out.with_suffix('.json'), '.json', overwrite=overwrite)
  kept = files.output('samples', samples, '.npz', overwrite=overwrite) if samples else None
  for flag, value in {'steps': steps, 'count': count, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  plain = TV(tv_weight, 1.0, (1, 2, 3), isotropic=True)
  plain.check()
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model = needs.require(trained.experiment.model(trained.params), 'volumes', directory)
  needs.require_prior(model, directory)
  require(set(model.conditions(np.arange(1))) <= {AUGMENTED} and model.prior is None, 'workdir',
          str(directory), 'this model cannot be a prior of slices: it is told what an image shows, '
          'or has a prior of its own', 'name the run of an unconditional model')
  shape = model.shape
  require(len(shape) == 3 and shape[0] == shape[1] and shape[2] == 1, 'workdir', str(directory),
          f'its data have the shape {tuple(shape)}', 'name the run of a model of square slices of '
          'one channel')
  levels = needs.data_field(model, data.resolve(trained.config.data)).levels
  given = measured(volume, shape[0], views=views, mri=mri, noise=noise, peak=peak, seed=seed)
  unit, offset = _unit(model, directory, given.peak, levels)
  # Of real numbers nothing is known but what the file says: they are at least 0, at most `peak`.
  limits = (offset, offset + unit * given.peak)
  errors = _errors(trained, seed)
  operator, y = _in_x(given, unit, offset)
  make = lambda denoise, process, y: method.sampler(
      denoise, process, Problem(operator, y, given.noise), errors, unit, limits)
  calls = make(mbir.slicewise(model.denoise), model.process, jnp.asarray(y)).evaluations
  assert calls is not None  # the same in every step
  about = {'method': type(method).__name__.lower(), **method._asdict(), 'operator': operator.name,
           'noise': noise, 'peak': given.peak, 'steps': steps, 'count': count,
           'tv_weight': tv_weight, 'seed': seed}
  parts = out.with_name(f'{out.name}.parts')
  began = time.perf_counter()
  x = _draw(trained, make, y, count, steps, seed, batch_size, parts,
            {**about, 'given': checksum([y, given.angles]), 'limits': limits})
  seconds = time.perf_counter() - began
  drawn = np.clip((x - offset) / unit, 0.0, given.peak)
  found = {**_plain(given, plain, batch_size), 'ours': drawn.mean(axis=1)}
  quality = {} if given.truth is None else {
      name: score(u, given) for name, u in {**found, 'a sample': drawn[:, 0]}.items()}
  each = count * (steps * calls + int(model.ends_denoised))
  result = Result(given, found, drawn, quality, about['method'], each, _products(method, steps,
                  count, given), seconds, about)
  if kept:
    truth = {} if given.truth is None else {'truth': given.truth[..., 0]}
    files.save_npz(kept, y=given.y, samples=drawn[..., 0], **truth, **{
        name.replace(' ', '_'): u[..., 0] for name, u in found.items()})
  pictures.save_png(out, picture(result), {**about, 'checkpoint': trained.step,
                                           'average': trained.average})
  files.write_text(beside, _json(result, trained))
  if parts.is_dir():
    shutil.rmtree(parts)
  return result


def _errors(trained: workdir.Trained, seed: int) -> mbir.SquaredErrors:
  """The errors of the denoiser on images that were held out, or on those of training."""
  part = needs.split(trained, 'validation' if trained.config.data.validation else 'train')
  rows = np.arange(min(len(part), _IMAGES))

  @jax.jit
  def program(params, images, key):
    m = trained.experiment.model(params)
    told = m.cond(m.conditions(rows))
    denoise = lambda z, level, _=None: m.denoise(z, level, told)
    return mbir.squared_errors(denoise, m.process, m.encode(images),
                               jnp.linspace(1.0, 0.0, _LEVELS),
                               random.per_example(key, jnp.asarray(rows)))
  model = trained.experiment.model(trained.params)
  found = program(trained.params, part.get(rows)[model.field], random.key(seed))
  return jax.tree.map(jnp.asarray, jax.device_get(found))


def _draw(trained: workdir.Trained, make: Callable, y: np.ndarray, count: int, steps: int,
          seed: int, batch_size: int, parts: Path, about: dict) -> np.ndarray:
  """[N, K, Z, H, W, C] samples of x, each volume's together.

  The state after some steps is in the folder `parts`, with which a stopped call goes on.
  """
  times, at = np.linspace(1.0, 0.0, steps + 1, dtype=np.float32), trained.experiment.model
  shape = at(trained.params).shape

  def told(m, rows):
    each, cond = mbir.slicewise(m.denoise), m.cond(m.conditions(np.arange(rows)))
    return lambda z, level, _=None: each(z, level, cond)

  def begin(shared, xs):
    (params, key), (numbers, y) = shared, xs
    m = at(params)
    like = jnp.zeros((len(numbers), y.shape[1], *shape))
    z = processes.sample_prior(m.process, _keys(key, numbers, count), like, times[0])
    return make(told(m, len(numbers)), m.process, y).init(z)

  def go_on(shared, xs):
    (params, key, start), (numbers, y, state) = shared, xs
    m = at(params)
    sampler = make(told(m, len(numbers)), m.process, y)
    keys = random.stream(_keys(key, numbers, count), 'sampler')
    return sampling.part(sampler, keys, state, jnp.asarray(times), start, _PART)

  def finish(params, xs):
    y, state = xs
    m = at(params)
    denoise = told(m, len(y))
    return drawing.x_at_end(m, denoise, make(denoise, m.process, y).value(state), times[-1])

  programs = [devices.over_rows(program) for program in (begin, go_on, finish)]
  shared, total = devices.replicate((trained.params, random.key(seed))), len(y) * count
  size = devices.global_batch_size(min(batch_size, total))
  tag = files.digest({**about, 'batch': size, 'weights': checksum(trained.params)})[:16]
  batches, drawn = list(devices.padded_rows(0, total, size)), []
  with tqdm.tqdm(total=len(batches) * steps, desc='reconstructing', unit='step',
                 dynamic_ncols=True) as bar:
    for rows, real in batches:
      local = devices.local_rows(rows)
      x = _of_batch(programs, shared, (local, y[local // count]), times,
                    parts / f'{tag}_{rows[0]:06d}.npz', bar)
      drawn.append(x[real])
  return np.concatenate(drawn).reshape(len(y), count, *drawn[0].shape[1:])


def _keys(key: Array, numbers: Array, count: int) -> Array:
  """A key for each sample: number k of volume i has the number i count + k."""
  return jax.vmap(jax.random.fold_in)(random.per_example(key, numbers // count), numbers % count)


def _of_batch(programs: Sequence[Callable], shared: PyTree, given: tuple[np.ndarray, np.ndarray],
              times: np.ndarray, file: Path, bar: tqdm.tqdm) -> np.ndarray:
  """x of one batch, whose state is kept in `file` after every part."""
  begin, go_on, finish = programs
  numbers, y = given
  steps = len(times) - 1
  state = jax.device_get(begin(shared, devices.place(given)))
  leaves, tree = jax.tree.flatten(state)
  done = 0
  if file.exists():
    with np.load(file) as arrays:
      done, leaves = int(arrays['done']), [arrays[f'{i}'] for i in range(len(leaves))]
  bar.update(done)
  while done < steps:
    state = jax.tree.unflatten(tree, leaves)
    state, finite = jax.device_get(go_on((*shared, np.int32(done)), devices.place(
        (numbers, y, state))))
    after = min(done + _PART, steps)
    check_finite(finite[:after - done], times[done:after + 1])
    leaves = jax.tree.leaves(state)
    bar.update(after - done)
    done = after
    files.save_npz(file, done=done, **{f'{i}': leaf for i, leaf in enumerate(leaves)})
  return jax.device_get(finish(shared[0], devices.place((y, jax.tree.unflatten(tree, leaves)))))


# ------------------------------------------------------------------ without a prior


def _plain(m: Measured, tv: TV, batch_size: int) -> dict[str, np.ndarray]:
  """The reconstructions without a prior by name, each [N, Z, H, W, 1], from 0 to the peak."""
  within = lambda x: jnp.clip(x, 0.0, m.peak)

  def program(_, y):
    problem = Problem(m.operator, y, m.noise)
    direct = m.operator.adjoint(y) if m.angles is None else volumes.filtered_back_projection(
        y, m.angles, m.operator.shape[1], y.shape[2] == m.operator.shape[1])
    return {'direct': within(direct),
            'least squares': within(volumes.least_squares(problem, LEAST_SQUARES)),
            'TV': within(volumes.total_variation(problem, tv, TV_STEPS, TV_ITERATIONS))}
  run, found = devices.over_rows(program), []
  for rows, real in devices.padded_rows(0, len(m.y), devices.global_batch_size(
      min(batch_size, len(m.y)))):
    made = jax.device_get(run((), devices.place(m.y[devices.local_rows(rows)])))
    found.append({name: u[real] for name, u in made.items()})
  return {name: np.concatenate([part[name] for part in found]) for name in NAMES[:-1]}


def _products(method: Method, steps: int, count: int, m: Measured) -> dict[str, int]:
  """Products with A of each reconstruction of a volume, at most; there are as many with A^T.

  Conjugate gradients stop early where nothing but rounding is left.
  """
  return {'direct': 1, 'least squares': LEAST_SQUARES + 1,
          'TV': TV_STEPS * (1 + TV_ITERATIONS), 'ours': count * steps * (1 + method.iterations)}


# ------------------------------------------------------------------ how well


def score(found: np.ndarray, m: Measured) -> Quality:
  """The quality of reconstructions [N, Z, H, W, 1] of measured volumes that are known."""
  assert m.truth is not None
  peak = m.truth.max(axis=(1, 2, 3, 4))
  errors = np.square(found - m.truth, dtype=np.float64)[:, :, m.inside].reshape(len(found), -1)
  psnr = 10.0 * np.log10(peak**2 / errors.mean(axis=1))
  if importlib.util.find_spec('skimage') is None or min(m.truth.shape[2:4]) < 7:
    return Quality(psnr, None)
  similar = importlib.import_module('skimage.metrics').structural_similarity
  return Quality(psnr, np.array([np.mean([similar(a[..., 0], b[..., 0], data_range=top)
                                          for a, b in zip(x, u, strict=True)])
                                 for x, u, top in zip(m.truth, found, peak, strict=True)]))


# ------------------------------------------------------------------ what is shown


def picture(result: Result) -> np.ndarray:
  """uint8 [H, W, 3]: the middle slice of the first volumes, a row each; a column for each method.

  Under a column is the mean PSNR over all volumes, if they are known.
  """
  m = result.measured
  top = m.peak if m.truth is None else float(m.truth[:SHOWN].max())
  slices = lambda u: np.clip(255.0 / top * u[:SHOWN, u.shape[1] // 2], 0.0, 255.0)
  columns = {} if m.truth is None else {'truth': slices(m.truth)}
  names = {'direct': 'zero filling' if m.angles is None else 'FBP'}
  columns |= {names.get(name, name): slices(u) for name, u in result.found.items()}
  shown = pictures.labelled(pictures.strip(np.stack(list(columns.values())), 256), list(columns))
  if not result.quality:
    return shown
  psnr = [f'{result.quality[name].psnr.mean():.2f} dB' for name in result.found]
  return pictures.labelled(shown, ['PSNR', *psnr])


def _estimates(result: Result) -> dict[str, Estimated]:
  """The mean PSNR over volumes, by name, and of ours less TV."""
  psnr = {name: quality.psnr for name, quality in result.quality.items()}
  return {name: distances.mean(u) for name, u in {
      **psnr, 'ours less TV': psnr['ours'] - psnr['TV']}.items()}


def figures(result: Result) -> dict[str, str]:
  """The measurements of `COLUMNS`, as text, for a table.  Raises InputError without a truth."""
  require(bool(result.quality), 'row', None, 'the volumes are not known, so there are no scores',
          'leave it out')
  shown = lambda u: f'{u.value:.2f}' + (f' +- {u.error:.2f}' if math.isfinite(u.error) else '')
  found = {name: shown(u) for name, u in _estimates(result).items() if name in COLUMNS}
  for name in ('TV', 'ours'):
    ssim = result.quality[name].ssim
    found[f'SSIM of {name}'] = '' if ssim is None else f'{ssim.mean():.3f}'
  return found | {'evaluations': f'{result.evaluations:,}',
                  'products with A': f'{result.products["ours"]:,}',
                  'minutes': f'{result.seconds / 60.0:.1f}'}


def report(result: Result) -> Iterator[str]:
  """Lines that say how near the reconstructions are to the truth, and what they cost."""
  m, count = result.measured, result.samples.shape[1]
  yield (f'{m.operator.name}: {len(m.y)} volumes of {m.operator.shape[0]} slices, by '
         f'{result.method}, {count} samples of each')
  estimates = _estimates(result) if result.quality else {}
  names = {'direct': 'zero filling' if m.angles is None else 'filtered back-projection',
           'ours': f'ours, the mean of {count}', 'a sample': 'ours, one sample'}
  for name, quality in result.quality.items():
    psnr = estimates[name]
    error = f' +- {psnr.error:.2f}' if math.isfinite(psnr.error) else ''
    ssim = '' if quality.ssim is None else f', SSIM {quality.ssim.mean():.3f}'
    yield f'{names.get(name, name)}: PSNR {psnr.value:.2f}{error} dB{ssim}'
  if estimates:
    more = estimates['ours less TV']
    error = f' +- {more.error:.2f}' if math.isfinite(more.error) else ''
    yield f'ours less TV: {more.value:+.2f}{error} dB'
  yield (f'ours took {result.evaluations:,} evaluations of the network for each slice, and at most '
         f'{result.products["ours"]:,} products with A and with A^T for each volume (TV: '
         f'{result.products["TV"]:,}); {result.seconds / 60.0:.1f} minutes in this call')
  if result.quality and importlib.util.find_spec('skimage') is None:
    yield "no SSIM: it needs scikit-image (pip install 'vdm_jax[ssim]')"


def _json(result: Result, trained: workdir.Trained) -> str:
  scores = {name: {'psnr': quality.psnr.tolist(),
                   'ssim': None if quality.ssim is None else quality.ssim.tolist()}
            for name, quality in result.quality.items()}
  return json.dumps({
      'format': FORMAT, **result.about, 'volumes': len(result.measured.y), 'scores': scores,
      'evaluations_of_each_slice': result.evaluations, 'products_with_each_volume': result.products,
      'seconds': result.seconds,
      'checkpoint': {'step': trained.step, 'average': trained.average},
      'provenance': provenance()}, indent=1, allow_nan=False)
