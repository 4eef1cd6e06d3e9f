"""Restores measured images with the model of a run as the prior, and measures how well.

The measurements are made here, of given images, or given in a file.
"""
import importlib
import importlib.util
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import data, guidance, inverse, oracles, random
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import InputError, renamed, require, require_at_least
from vdm_jax.evaluation import distances, references
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.evaluation.features import checksum
from vdm_jax.inverse import Operator, Problem
from vdm_jax.machine import config_files, devices, files
from vdm_jax.runs import needs, pictures, reading, workdir
from vdm_jax.samplers import conditioned, drawing
from vdm_jax.samplers.sampling import check_finite
from vdm_jax.typing import Model, PyTree

__all__ = ['EXACT', 'Measured', 'Quality', 'Restored', 'Result', 'Scores', 'TASKS',
           'draw_posterior', 'gain', 'measured', 'operator_of', 'picture', 'ranks', 'report',
           'restoration', 'restore', 'score', 'training_images']

TASKS = ('inpaint', 'keep:SHARE', 'mask:FILE', 'downsample:N', 'blur:SIGMA', 'gray', 'phase',
         'FILE.py:NAME')
EXACT = 'exact'  # the posterior of Gaussian data with the moments of the training images
_MOST = 12_000   # training images for these moments
_SAMPLES = 3     # of an image in the picture, if the truth is not known


class Scores(NamedTuple):
  """How near estimates are to the truth.  The peak is 2, the range of x.

  A PSNR is of the mean squared error over all images.  Its error is over images.
  """
  psnr: float
  error: float            # the standard error of `psnr`, dB; NaN for one image
  ssim: float | None      # the mean over images; None without scikit-image, or for small images


class Quality(NamedTuple):
  """How near the samples of one method are to the truth, and how well they are spread."""
  one: Scores             # of a sample
  mean: Scores            # of the estimate of the posterior mean
  ranks: np.ndarray       # [K + 1]  how often so many samples are below the truth, see `ranks`
  outside: Estimated      # the share of the truth below or above all samples, over images


class Restored(NamedTuple):
  """The samples of one method, and its estimate of the posterior mean."""
  samples: np.ndarray     # [n, K, ...]  x
  estimate: np.ndarray    # [n, ...]  the mean of the K samples; of `EXACT`, the mean itself
  quality: Quality | None  # None: the truth is not known


class Measured(NamedTuple):
  """Measurements of images."""
  operator: Operator
  y: np.ndarray           # [n, ...]  float32
  x: np.ndarray | None    # [n, ...]  the truth, if it is known


class Result(NamedTuple):
  """What was restored."""
  task: str
  method: str
  x: np.ndarray | None    # [n, ...]  the truth, if it is known
  y: np.ndarray           # [n, ...]
  shown: np.ndarray       # [n, ...]  y as an image of the shape of x
  restored: Restored
  wiener: Restored | None
  cost: tuple[int, int]   # evaluations of the network for a sample, and products with J^T


# ------------------------------------------------------------------------ the problem


def operator_of(task: str, shape: tuple[int, ...]) -> Operator:
  """The operator of a task, by its name.  shape: of one x.  Raises InputError."""
  require(bool(task), 'task', None, 'it is missing', f'choose one of {", ".join(TASKS)}')
  kind, _, rest = task.partition(':')
  plain = {'inpaint': inverse.inpaint, 'gray': inverse.gray, 'phase': inverse.phase}
  if task in plain:
    return plain[task](shape)
  if kind == 'downsample' and rest.isdecimal():
    return inverse.downsample(shape, int(rest))
  numbers = {'blur': (inverse.blur, '1.5'), 'keep': (inverse.scattered, '0.3')}
  if kind in numbers:
    make, example = numbers[kind]
    try:
      number = float(rest)
    except ValueError:
      raise InputError('task', task, f'{rest!r} is not a number',
                       f'write {kind}:{example}, for example') from None
    return make(shape, number)
  if kind == 'mask' and rest:
    return inverse.kept(~_missing(rest, shape), task)
  file, _, name = task.rpartition(':')
  if file.endswith('.py'):
    apply, _ = config_files.own('task', task, file, name)
    require(callable(apply), 'task', task, 'it is not a function',
            'give a function x [B, ...] -> y [B, ...]')
    return inverse.custom(task, apply, shape)
  raise InputError('task', task, 'there is no such task', f'choose one of {", ".join(TASKS)}')


def _missing(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """bool [H, W, C], where the file is white.  Raises InputError."""
  white = reading.pixels('task', name, 1) > 127
  require(white.shape[:2] == shape[:2], 'task', f'mask:{name}', f'it has {white.shape[0]} x '
          f'{white.shape[1]} pixels, and the images have {shape[0]} x {shape[1]}',
          'give a mask of that size, white where the image is missing')
  return np.broadcast_to(white, shape)


def measured(file: str | Path, task: str, shape: tuple[int, ...], noise: float = 0.1,
             bounded: bool = True) -> Measured:
  """The measurements in an .npz.

  Args:
    file: it has `y` [n, ...], in the units of A(x) for x in [-1, 1].  It may have `known`, bool
      [H, W] or [H, W, C]: y are these numbers of x, and there is no task.  Where y are numbers of
      x, y may also be the images [n, H, W, C]; their other numbers are not read.  If the file has
      `x` [n, H, W, C], that is the truth.
    task: see `operator_of`; '' with `known`.
    shape: of one x.
    noise: the standard deviation of the noise in y.
    bounded: whether x is in [-1, 1].  If not, the range of y is not checked.

  Raises InputError.
  """
  path = files.user_path('measurements', file)
  arrays = references.arrays(path, 'measurements')

  def need(holds: bool, problem: str, remedy: str):
    require(holds, 'measurements', str(path), problem, remedy)
  need('y' in arrays, f"it has {', '.join(arrays) or 'no arrays'}, and no 'y'",
       'give y, the measurements of n images')
  if 'known' in arrays:
    require(not task, 'task', task, f"{path} has 'known', which says what is measured",
            'leave one of the two out')
    known = arrays['known']
    need(known.dtype == bool and known.shape in (shape[:2], shape), f"its 'known' is "
         f'{known.dtype} of shape {known.shape}', f'give bool of shape {shape[:2]} or {shape}')
    need(bool(known.any() and not known.all()), "its 'known' is the same everywhere",
         'mark the numbers that are known by true, and the others by false')
    operator = inverse.kept(np.broadcast_to(known.reshape(*shape[:2], -1), shape), 'known')
  else:
    operator = operator_of(task, shape)
  y, x = arrays['y'], arrays.get('x')
  if operator.known is not None and y.shape[1:] == shape:
    y = y[:, operator.known]
  need(len(y.shape) > 1 and y.shape[1:] == operator.measured and len(y) > 0, f"its 'y' has the "
       f"shape {arrays['y'].shape}", f'give (n, {str(operator.measured)[1:]} for {operator.name}')
  for name, u in {'y': y, 'x': x}.items():
    need(u is None or u.dtype.kind in 'uif' and bool(np.isfinite(u).all()), f'{name!r} has no real '
         'numbers, or some that are not finite', 'give finite real numbers')
  need(x is None or x.shape == (len(y), *shape),
       f"its 'x' has the shape {getattr(x, 'shape', None)}",
       f'give the {len(y)} images that were measured, of shape {shape}, or none')
  y = y.astype(np.float32)
  if not bounded:
    operator = operator._replace(limits=None)
  with renamed({'y': 'measurements'}):
    Problem(operator, jnp.asarray(y), noise).check()
  return Measured(operator, y, None if x is None else x.astype(np.float32))


def _prior(at: Callable[[PyTree], Model], labelled: bool, label: int | None
           ) -> Callable[[PyTree], Model]:
  """The model, which is told no class if none is given: the class of an image is not known.

  labelled: whether it is told a class.  Raises InputError for a model that needs one.
  """
  if not labelled or label is not None:
    return at

  def untold(params):
    model = at(params)
    require(model.null is not None, 'label', None, 'this model is told a class, and has not '
            'learned to do without', 'give the class of the images, or name the run of a model '
            'without classes')
    return guidance.untold(model)
  return untold


def _names(names: Sequence[str]) -> list[str]:
  """The images that are named: data:SPLIT:FIRST-LAST becomes one name for each."""
  require(bool(names), 'images', None, 'none is named', 'write data:test:0-7, for example')
  found = []
  for name in names:
    head, _, last = name.rpartition(':')
    first, dash, end = last.partition('-')
    if head.startswith('data:') and dash and first.isdecimal() and end.isdecimal():
      require(int(first) <= int(end), 'images', name, 'the last number is below the first',
              'write data:test:0-7, for example')
      found += [f'{head}:{i}' for i in range(int(first), int(end) + 1)]
    else:
      found.append(name)
  return found


# ------------------------------------------------------------------------ one restoration


def restore(directory: str | Path, out: str | Path, task: str, method: conditioned.Method | str,
            images: Sequence[str] = (), *, measurements: str | Path = '', noise: float = 0.1,
            count: int = 4, steps: int = 100, clip: bool = True, wiener: bool = False,
            label: int | None = None, seed: int = 0, batch_size: int = 64,
            samples: str | Path = '', average: str = '', step: int | str = 'latest',
            overwrite: bool = False, data_dir: str = '', data_name: str = '') -> Result:
  """Measures images, draws `count` samples of each given its measurement, and compares.

  If measurements are given, nothing is measured; without a truth, nothing is compared.

  Whole batches of samples are kept beside `out` until it is written.  So after a stop the same call
  goes on, and its result is the same bit for bit.

  Args:
    out: a .png: the image, its measurement, one sample, mean and standard deviation of the samples.
      If the image is not known, some samples.
    task: see `operator_of`; '' for measurements with `known`.
    method: of `samplers.conditioned`, or 'exact': the posterior of Gaussian data with the moments
      of the training images (Wiener), which does not use the network.
    images: picture files, data:SPLIT:INDEX, or data:SPLIT:FIRST-LAST; none if there are
      measurements.
    measurements: an .npz with y, see `measured`.
    noise: the standard deviation of the noise of y, for x in [-1, 1].  Given y have it already.
    steps: of the sampler; RePaint walks back and makes more.
    clip: whether x_hat is clipped to [-1, 1], if the data are integers.
    wiener: whether the samples of 'exact' are drawn too, and shown beside.
    label: the class of all images, for a model that is told one.  Default: it is told none.
    samples: an .npz, to which x (if it is known), y and the samples are written.

  Sample k of image i depends on (seed, i, k) alone.  Raises InputError before anything is compiled,
  except for samples that are not finite.
  """
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.png', overwrite=overwrite)
  kept = files.output('samples', samples, '.npz', overwrite=overwrite) if samples else None
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  parts = out.with_name(f'{out.name}.parts')
  result = restoration(directory, trained, task, method, images, parts, measurements=measurements,
                       noise=noise, count=count, steps=steps, clip=clip, wiener=wiener, label=label,
                       seed=seed, batch_size=batch_size)
  about = {} if isinstance(method, str) else method._asdict()
  if kept:
    files.save_npz(kept, **({} if result.x is None else {'x': result.x}), y=result.y,
                   samples=result.restored.samples, **(
                       {} if result.wiener is None else {'wiener': result.wiener.samples}))
  pictures.save_png(out, picture(result), {
      'task': result.task, 'method': result.method, **about, 'noise': noise, 'count': count,
      'steps': steps, 'seed': seed, 'checkpoint': trained.step, 'average': trained.average})
  if parts.is_dir():
    shutil.rmtree(parts)
  return result


def restoration(directory: Path, trained: workdir.Trained, task: str,
                method: conditioned.Method | str, images: Sequence[str], parts: Path, *,
                measurements: str | Path = '', noise: float = 0.1, count: int = 4,
                steps: int = 100, clip: bool = True, wiener: bool = False,
                label: int | None = None, seed: int = 0, batch_size: int = 64) -> Result:
  """What `restore` shows and writes.  See there for the arguments, and for the errors.

  directory: of the run, for messages.  parts: a folder, in which batches of samples are kept.
  """
  for flag, value in {'count': count, 'steps': steps, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  require(0.0 <= noise < math.inf, 'noise', noise, 'it must be at least 0, and finite',
          'give the standard deviation, for x in [-1, 1]')
  names = []
  if measurements:
    require(not images, 'images', ','.join(images), 'images are named to be measured, and '
            'measurements are given', 'leave one of the two out')
  else:
    names = _names(images)
  model = needs.require(trained.experiment.model(trained.params), 'restore', directory)
  needs.require_prior(model, directory)
  field = needs.data_field(model, data.resolve(trained.config.data))
  require(len(field.shape) == 3, 'workdir', str(directory), f'its data have the shape '
          f'{field.shape}, and are no images', 'name the run of a model of images')
  given = measured(measurements, task, tuple(model.shape), noise,
                   bool(field.levels)) if measurements else None
  operator = given.operator if given else operator_of(task, model.shape)
  exact = method == EXACT
  if exact or wiener:
    inverse.require_linear(operator, EXACT)
    require(noise > 0.0, 'noise', noise, 'the covariance of y needs some', 'give 0.01, for example')
  times, cost = np.linspace(1.0, 0.0, steps + 1), (0, 0)
  if not isinstance(method, str):
    conditioned.require_suited(method, operator, noise)
    evaluations, products = conditioned.cost(method, times)
    cost = evaluations + int(model.ends_denoised), products
  read = [reading.image('images', name, trained, field)[0] for name in names]
  conditions = lambda rows: model.conditions(rows, label=label)
  at = _prior(trained.experiment.model, LABEL in conditions(np.arange(1)), label)
  at(trained.params)

  decode = jax.jit(model.decode) if field.levels else lambda x: x

  def judged(drawn, estimate):
    quality = None if x is None else score(drawn, x, operator, estimate,
                                           lambda u: np.asarray(decode(u)))
    return Restored(drawn, estimate, quality)
  x, y = (given.x, given.y) if given else _measure(trained, operator, noise, seed, np.stack(read))
  limits = (-1.0, 1.0) if clip and field.levels else None
  gaussian = None
  if exact or wiener:
    means, drawn = _wiener(trained, operator, noise, seed, y, count)
    gaussian = judged(drawn, means)
  if exact:
    assert gaussian is not None
    restored, wiener_too = gaussian, None
  else:
    assert not isinstance(method, str)
    # Two operators of one name, of files that changed, measure the same image differently.
    probe = np.random.default_rng(0).uniform(-1.0, 1.0, (1, *operator.shape)).astype(np.float32)
    about = {'task': operator.name, 'method': type(method).__name__, **method._asdict(),
             'noise': noise, 'label': label, 'limits': limits,
             'given': checksum([y, operator(jnp.asarray(probe))])}
    drawn = draw_posterior(at, trained.params, method, operator, noise, seed, y, count, times,
                           limits, conditions, batch_size, parts, about)
    restored, wiener_too = judged(drawn, drawn.mean(axis=1)), gaussian
  name = EXACT if exact else type(method).__name__.lower()
  return Result(operator.name, name, x, y, _shown(operator, y), restored, wiener_too, cost)


def _measure(trained: workdir.Trained, operator: Operator, noise: float, seed: int,
             given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """x and y of these images; the noise of image i depends on (seed, i)."""
  @jax.jit
  def program(params, key, given):
    x = trained.experiment.model(params).encode(given)
    y = operator(x)
    keys = random.stream(random.per_example(key, jnp.arange(len(given))), 'measurement')
    return x, y + noise * random.normal(keys, y)
  x, y = jax.device_get(program(trained.params, random.key(seed), given))
  return x, y


def draw_posterior(at: Callable[[PyTree], Model], params: PyTree, method: conditioned.Method,
                   operator: Operator, noise: float, seed: int, y: np.ndarray, count: int,
                   times: np.ndarray, limits: tuple[float, float] | None, conditions: Callable,
                   batch_size: int, parts: Path, about: dict, doing: str = 'restoring'
                   ) -> np.ndarray:
  """[n, K, ...] samples of x, each image's together.

  A batch that is in the folder `parts` is not drawn again.  about: what else the samples depend on.
  doing: the words at the progress bar.
  """
  def draw(shared, xs):
    (params, key), (numbers, measured, condition) = shared, xs
    m = at(params)
    keys = jax.vmap(jax.random.fold_in)(random.per_example(key, numbers // count),
                                        numbers % count)
    told = m.cond(condition)
    denoise = lambda z, level, _=None: m.denoise(z, level, told)
    z = conditioned.sample_posterior(
        method, denoise, m.process, Problem(operator, measured, noise),
        random.stream(keys, 'sampler'), drawing.z_at_start(m, keys), times, limits)
    x = drawing.x_at_end(m, denoise, z, times[-1])
    return x, jnp.all(jnp.isfinite(x))

  program = devices.over_rows(draw)
  shared = devices.replicate((params, random.key(seed)))
  total = len(y) * count
  size = devices.global_batch_size(min(batch_size, total))
  tag = files.digest({**about, 'seed': seed, 'count': count, 'steps': len(times) - 1,
                      'batch': size, 'weights': checksum(params)})[:16]
  drawn = []
  for rows, real in tqdm.tqdm(list(devices.padded_rows(0, total, size)), desc=doing, unit='batch',
                              dynamic_ncols=True):

    def batch(rows=rows):
      local = devices.local_rows(rows)
      x, finite = jax.device_get(program(shared, devices.place(
          (local, y[local // count], conditions(local // count)))))
      check_finite(np.atleast_1d(finite), times[[0, -1]])
      return {'x': x}
    drawn.append(files.kept(parts / f'{tag}_{rows[0]:09d}.npz', batch)['x'][real])
  return np.concatenate(drawn).reshape(len(y), count, *drawn[0].shape[1:])


def training_images(trained: workdir.Trained, most: int = _MOST) -> np.ndarray:
  """[n, ...] x of the first training images of a run, at most so many."""
  part = needs.split(trained, 'train')
  model: Model = trained.experiment.model(trained.params)
  return np.asarray(jax.jit(model.encode)(part.get(np.arange(min(len(part), most)))[model.field]))


def _wiener(trained: workdir.Trained, operator: Operator, noise: float, seed: int, y: np.ndarray,
            count: int) -> tuple[np.ndarray, np.ndarray]:
  """The posterior of Gaussian data with the moments of the training images.

  Means [n, ...] and samples [n, K, ...].
  """
  images = training_images(trained).astype(np.float64)
  x = images.reshape(len(images), -1)
  matrix = operator.matrix().astype(np.float64)
  gain, covariance, _ = oracles.condition(np.cov(x.T), matrix, noise)
  mean = x.mean(axis=0)
  means = mean + (y.reshape(len(y), -1) - mean @ matrix.T) @ gain.T
  values, vectors = np.linalg.eigh(covariance)
  root = vectors * np.sqrt(np.maximum(values, 0.0))
  each = [np.random.default_rng((seed, i)).normal(size=(count, len(mean))) for i in range(len(y))]
  drawn = means[:, None] + np.stack(each) @ root.T
  return means.reshape(len(y), *images.shape[1:]), drawn.reshape(len(y), count, *images.shape[1:])


def _shown(operator: Operator, y: np.ndarray) -> np.ndarray:
  """y as an image of the shape of x: at its places, or by the pseudo-inverse, or y itself."""
  if operator.known is not None:
    return np.asarray(operator.spread(jnp.asarray(y)))
  if y.shape[1:] == operator.shape:
    return y
  if operator.linear:
    return np.asarray(inverse.pseudo_inverse(operator, jnp.asarray(y)))
  return np.zeros((len(y), *operator.shape), y.dtype)


# ------------------------------------------------------------------------ how well


def score(samples: np.ndarray, x: np.ndarray, operator: Operator,
          estimate: np.ndarray | None = None,
          decode: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Quality:
  """The quality of samples [n, K, ...] of images x [n, ...].

  Args:
    estimate: [n, ...], of the posterior mean.  Default: the mean of the samples.
    decode: [m, ...] x -> the nearest data.  Ranks are of data: a black pixel is the least value of
      x, and a sample that is black but for rounding would never be below it.
  """
  mean: np.ndarray = samples.mean(axis=1) if estimate is None else estimate
  rounded = decode(samples.reshape(-1, *x.shape[1:])).reshape(samples.shape)
  each = ranks(rounded, decode(x), operator.known)
  return Quality(_scores(samples, x), _scores(mean[:, None], x), each.mean(axis=0),
                 distances.mean(each[:, 0] + each[:, -1]))


def _errors(estimates: np.ndarray, x: np.ndarray) -> np.ndarray:
  """[n] the mean squared errors of estimates [n, K, ...]: all of an image count alike."""
  return np.square(estimates - x[:, None]).reshape(len(x), -1).mean(axis=1)


def _decibels(shares: np.ndarray) -> float:
  """The standard error of 10 log10 of a mean.  shares: [n], over their mean; NaN of one."""
  if len(shares) < 2:
    return math.nan
  return float(10.0 / math.log(10.0) * shares.std(ddof=1) / math.sqrt(len(shares)))


def _scores(estimates: np.ndarray, x: np.ndarray) -> Scores:
  each = _errors(estimates, x)
  return Scores(float(10.0 * np.log10(4.0 / each.mean())), _decibels(each / each.mean()),
                _ssim(estimates, x))


def gain(ours: np.ndarray, theirs: np.ndarray, x: np.ndarray) -> Estimated:
  """The PSNR of estimates [n, ...] less the PSNR of others, dB, and the error of the difference.

  The error is over images, of paired differences: both PSNRs depend on how hard the images are.
  """
  a, b = (_errors(u[:, None], x) for u in (ours, theirs))
  return Estimated(float(10.0 * np.log10(b.mean() / a.mean())),
                   _decibels(b / b.mean() - a / a.mean()))


def _ssim(estimates: np.ndarray, x: np.ndarray) -> float | None:
  """The structural similarity by scikit-image, windows of 7 x 7; None where it is not possible."""
  if importlib.util.find_spec('skimage') is None or min(x.shape[1:3]) < 7:
    return None
  metrics = importlib.import_module('skimage.metrics')
  return float(np.mean([metrics.structural_similarity(truth, one, data_range=2.0, channel_axis=-1)
                        for truth, of in zip(x, estimates, strict=True) for one in of]))


def ranks(samples: np.ndarray, x: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
  """[n, K + 1] shares: how often 0, 1, ..., K of the samples of a number of x are below it.

  On average, all shares are 1 / (K + 1) if the truth and the samples have one law.  More at both
  ends: the samples spread too little.  More in the middle: too much.  Equal numbers are put in
  random order.  samples: [n, K, ...].  known: bool, of one x; these numbers do not count.
  """
  chosen = (np.ones(x.shape[1:], bool) if known is None else ~known).ravel()
  truth = x.reshape(len(x), 1, -1)[:, :, chosen]
  drawn = samples.reshape(*samples.shape[:2], -1)[:, :, chosen]
  below, equal = (drawn < truth).sum(axis=1), (drawn == truth).sum(axis=1)
  rank = below + np.random.default_rng(0).integers(0, equal + 1)
  return np.stack([(rank == k).mean(axis=1) for k in range(samples.shape[1] + 1)], axis=1)


# ------------------------------------------------------------------------ what is shown


def picture(result: Result, most: int = 12) -> np.ndarray:
  """uint8 [H, W, 3]: a row for each of the first images, with what it is in columns."""
  as_levels = lambda x: np.clip(127.5 * (x[:most] + 1.0), 0.0, 255.0)
  columns = {} if result.x is None else {'image': as_levels(result.x)}
  columns['measured'] = as_levels(result.shown)
  for name, found in (('', result.restored), ('Wiener ', result.wiener)):
    if found is not None:
      spread = found.samples.std(axis=1)[:most]
      drawn = found.samples[:, :_SAMPLES if result.x is None else 1]
      columns |= {f'{name}sample {k + 1}' if drawn.shape[1] > 1 else f'{name}sample':
                  as_levels(drawn[:, k]) for k in range(drawn.shape[1])}
      columns |= {f'{name}mean': as_levels(found.estimate),
                  f'{name}std': 255.0 * spread / max(spread.max(), 1e-12)}
  return pictures.labelled(pictures.strip(np.stack(list(columns.values())), 256), list(columns))


def report(result: Result) -> list[str]:
  """Lines that say how near the samples are to the truth, and how well they are spread.

  If the truth is not known, they say only what was drawn, and how much the samples differ.
  """
  return list(_lines(result))


def _lines(result: Result) -> Iterator[str]:
  n, count = result.restored.samples.shape[:2]
  evaluations, products = result.cost
  yield (f'{result.task} by {result.method}: {n} images, {count} samples of each; '
         f'{evaluations:,} evaluations and {products:,} products with J^T for a sample')
  for name, found in ((result.method, result.restored), ('Wiener', result.wiener)):
    if found is None:
      continue
    if found.quality is None:
      spread = np.sqrt(found.samples.var(axis=1).mean())
      yield f'{name}: the standard deviation of the samples of a pixel is {spread:.3f}'
      continue
    quality = found.quality
    mean = f'the mean of {count}' if name not in (EXACT, 'Wiener') else 'the posterior mean'
    for what, scores in (('one sample', quality.one), (mean, quality.mean)):
      error = '' if math.isnan(scores.error) else f' ± {scores.error:.2f}'
      ssim = '' if scores.ssim is None else f', SSIM {scores.ssim:.3f}'
      yield f'{name}, {what}: PSNR {scores.psnr:.2f}{error} dB{ssim}'
    if count > 1:
      error = f' ± {quality.outside.error:.1%}' if n > 1 else ''
      yield (f'{name}: the truth is below or above all samples in '
             f'{quality.outside.value:.1%}{error} '
             f'of the pixels; of a calibrated posterior, in {2 / (count + 1):.1%}')
      yield (f'{name}: ranks of the truth among the samples, 0 to {count}, in %: '
             f'{" ".join(f"{100 * share:.1f}" for share in quality.ranks)}; of a calibrated '
             f'posterior, {100 / (count + 1):.1f} each')
  if result.x is None:
    return
  if result.wiener is not None:
    more = gain(result.restored.estimate, result.wiener.estimate, result.x)
    error = f' ± {more.error:.2f}' if n > 1 else ''
    yield (f'the mean of {count} by {result.method} has {more.value:+.2f}{error} dB more than the '
           'posterior mean of Wiener')
  if importlib.util.find_spec('skimage') is None:
    yield "no SSIM: it needs scikit-image (pip install 'vdm_jax[ssim]')"
