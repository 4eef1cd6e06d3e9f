"""The cost of bfloat16 in bits, on one checkpoint.

    float32               everything is float32, also products on devices that round their factors
    bfloat16 trunk        the network's blocks are bfloat16; z, its Fourier features, the first and
                          the last convolution, z + y and the loss are float32: config.model.dtype
    naive bfloat16        the same trunk, but z is rounded to bfloat16 before the network reads it,
                          and the estimate of the noise is rounded too
    rounded z, x known    no network: E[eps | rounded z, x], the best estimate from the rounded z
                          for a denoiser that knows the data

At logsnr 13.3, the standard deviation of the noise is a third of the distance between two
neighbouring bfloat16 numbers in [1/2, 1].  The last row is the cost of this rounding for any
network.  So its part of the bound near the data is a lower limit for naive bfloat16.

All rows have the same times and the same noise, so a difference of two rows is known far better
than either row.  The diffusion term, 1/2 int E|eps - eps_hat|^2 dlogsnr, is split at logsnr 8.  The
two parts have equally many times, each evenly spread.
"""
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.likelihood import bounds
from vdm_jax.likelihood.bounds import level_axes
from vdm_jax.likelihood.passes import Estimator, over_images
from vdm_jax.likelihood.statistics import standard_errors
from vdm_jax.machine import files
from vdm_jax.objectives import vlb
from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.processes import time_of
from vdm_jax.typing import Array, Denoiser, Estimate, Model, PyTree
from vdm_jax.units import bits_per_dim

SPLIT_AT = 8.0  # logsnr
FLOAT32, TRUNK, NAIVE = 'float32', 'bfloat16 trunk', 'naive bfloat16'
FLOOR = 'rounded z, x known'


def rounded(u: Array) -> Array:
  """float32 -> the nearest bfloat16, as float32.

  It is not computed by two casts, because XLA may drop these.
  """
  return jax.lax.reduce_precision(u, exponent_bits=8, mantissa_bits=7)


def naive(denoise: Denoiser) -> Denoiser:
  """A denoiser that reads z in bfloat16 and returns its estimate of the noise in bfloat16."""
  def handed_less(z, level, cond=None):
    estimate = denoise(rounded(z), level, cond)
    return estimate._replace(eps=rounded(estimate.eps))
  return handed_less


def exact(denoise: Denoiser) -> Denoiser:
  """`denoise` with products in float32.

  By default, TPUs round the factors of products to bfloat16, and GPUs round them to TF32.
  """
  def precise(z, level, cond=None):
    with jax.default_matmul_precision('float32'):
      return denoise(z, level, cond)
  return precise


def knowing(x: Array) -> Denoiser:
  """E[eps | rounded z, x]: the noise in z = alpha x + sigma eps, estimated from the rounded z.

  It is the mean of a standard normal between the two ends of the cell that is rounded to z.  The
  mean is computed by Gauss's rule of 64 points, in float32 to 1e-5 for cells of up to 12 standard
  deviations.  x: [B, ...].
  """
  rule = jnp.asarray(np.stack(np.polynomial.legendre.leggauss(64), axis=1), jnp.float32)

  def denoise(z, level, cond=None):
    wide = level.expand(z)
    z = rounded(z).astype(jnp.bfloat16)
    below, above = (jnp.nextafter(z, jnp.asarray(u, z.dtype)).astype(jnp.float32)
                    for u in (-jnp.inf, jnp.inf))
    z = z.astype(jnp.float32)
    # The cell ends half-way to each neighbour; they are as far away only within a binade.
    middle = (0.5 * z + 0.25 * (below + above) - wide.alpha * x) / wide.sigma
    half = 0.25 * (above - below) / wide.sigma
    density = lambda offset: -offset * (middle + 0.5 * offset)
    highest = density(jnp.clip(-middle, -half, half))

    def add(sums, point):
      node, weight = point
      mass = weight * jnp.exp(density(half * node) - highest)
      return (sums[0] + mass, sums[1] + mass * half * node), None

    (mass, moment), _ = jax.lax.scan(add, (jnp.zeros_like(z), jnp.zeros_like(z)), rule)
    return Estimate(x, middle + moment / mass)
  return denoise


def paired(times: int) -> Estimator:
  """The bound of several models that differ only in their denoiser, all with the same draws.

  The estimator takes {name: Model} in place of a model, and returns terms in nats, [n] each.
  'ends' is the reconstruction and the latent term.  '{name}/above' and '{name}/below' are the
  diffusion term where logsnr is above and below SPLIT_AT, from `times` draws each.
  '{FLOOR}/above' belongs to no model.
  """
  def estimator(models: dict[str, Model], batch: PyTree, keys: Array) -> dict[str, Array]:
    model = next(iter(models.values()))
    cut = time_of(model.process, jnp.asarray(SPLIT_AT))
    out = {}
    for part, start, stop in (('above', 0.0, cut), ('below', cut, 1.0)):
      own = random.stream(keys, part)
      rows, t, each = bounds.draw_times(batch, own, times)
      x, cond, t = model.encode(rows[model.field]), model.cond(rows), start + (stop - start) * t
      denoisers = {name: m.denoise for name, m in models.items()}
      if part == 'above':
        ends = vlb.end_terms(model.process, x, x, t, each, rows[model.field], model.decoder, None)
        out['ends'] = sum(ends.values()).reshape(-1, times).mean(axis=1)
        denoisers[FLOOR] = knowing(x)
      for name, denoise in denoisers.items():
        nats, _ = weighted_diffusion(denoise, model.process, x, t, each, cond)
        out[f'{name}/{part}'] = (stop - start) * nats.reshape(-1, times).mean(axis=1)
    return out
  return estimator


def measure(models: dict[str, Callable[[PyTree], Model]], params: PyTree, split,
            shape: tuple[int, ...], *, times: int = 16, repeats: int = 1, batch_size: int = 512,
            count: int | None = None, seed: int = 0, progress: bool = True) -> list[dict]:
  """A row for each of `models`, compared with the first, and a row for the floor, in bits/dim.

  Errors are standard errors over images.  The error of a difference is the error of the differences
  image by image.

  Args:
    models: {name: params -> Model}, see `paired`.
    split: `len`, and `get(rows)` -> batch.
    shape: the shape of one image.

  Raises InputError for a bound that is not finite.
  """
  bits = over_images(
      paired(times), lambda params: {name: make(params) for name, make in models.items()}, params,
      split, random.key(seed), label='precisions', at_once=batch_size // times,
      repeats=repeats, count=count, progress=progress)
  bits = {name: bits_per_dim(u, shape) for name, u in bits.items()}
  if not all(np.isfinite(u).all() for u in bits.values()):
    raise InputError(problem='the bound of this run is not finite, and so cannot be compared: its '
                     'log-SNR has no two finite ends, or its weights are not finite',
                     remedy='name another run')
  above = {name: bits[f'{name}/above'] for name in models}
  total = {name: bits['ends'] + above[name] + bits[f'{name}/below'] for name in models}

  def mean(name, values):
    if values is None:
      return {name: None, f'{name}_error': None}
    return {name: float(values.mean()), f'{name}_error': standard_errors(values)[0]}

  reference, *others = models
  less = lambda name, of: of[name] - of[reference] if name in others else None
  rows = [{'precision': name, **mean('bits', total[name]),
           **mean('bits_difference', less(name, total)), **mean('bits_above', above[name]),
           **mean('bits_above_difference', less(name, above))} for name in models]
  return [*rows, {'precision': FLOOR, **mean('bits', None), **mean('bits_difference', None),
                  **mean('bits_above', bits[f'{FLOOR}/above']),
                  **mean('bits_above_difference', None)}]


def compare(directory: str | Path, *, split: str = 'test', examples: int | None = None,
            repeats: int = 1, times: int = 32, batch_size: int = 512, seed: int = 0,
            average: str = '', step: int | str = 'latest', data_dir: str = '',
            data_name: str = '') -> dict:
  """The bound of the run in `directory` in float32, with a bfloat16 trunk, and in naive bfloat16.

  Args:
    times: the evaluations of the network for an image, in each precision and repetition.  Half of
      them are drawn above log-SNR 8, so the number is even.
    batch_size: the evaluations at a time.

  The other arguments are as for `runs.evaluate`.

  Raises InputError if there is no such run, or if it has no such images.  Raises InputError for a
  run with a bound of its own, with a logsnr for each pixel, or with a network of one precision.
  """
  from vdm_jax.runs import needs, workdir  # whose packages `measure` does without
  for flag, value, least in [('repeats', repeats, 1), ('examples', examples, 1),
                             ('batch_size', batch_size, 1), ('times', times, 2)]:
    require_at_least(flag, value, least)
  if times % 2:
    raise InputError('times', times, 'half of the times are drawn above log-SNR 8, so their number '
                     'must be even', 'give an even number')
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  config = trained.config
  if 'dtype' not in config.get('model', {}):
    raise InputError('workdir', f'{directory}',
                     'its config has no config.model.dtype, so its network has one precision only',
                     'name a run whose config has the field')
  module = workdir.import_config(
      files.run_directory('workdir', directory) / 'config.py')
  builds = {}
  for dtype in ('float32', 'bfloat16'):
    config.model.dtype = dtype
    builds[dtype] = module.build(config)

  def changed(dtype, change):
    def make(params):
      model = builds[dtype].model(params)
      return model._replace(denoise=change(model.denoise))
    return make

  model = needs.require(builds['float32'].model(trained.params), 'benchmark', directory)
  bounds.require_default_bound(model, 'precision')
  if level_axes(model):
    raise InputError('workdir', f'{directory}', 'its log-SNR differs from pixel to pixel, so that '
                     'no time has log-SNR 8', 'name another run')
  part = trained.experiment.data.split(split)
  if not len(part):
    raise InputError('split', split, 'this run has no such images', 'choose another')
  count = min(len(part), examples or len(part))
  rows = measure({FLOAT32: changed('float32', exact), TRUNK: builds['bfloat16'].model,
                  NAIVE: changed('bfloat16', naive)},
                 trained.params, part, model.shape, times=times // 2, repeats=repeats,
                 batch_size=batch_size, count=count, seed=seed)
  return {'command': 'precision', 'workdir': str(directory), 'checkpoint': trained.step,
          'average': trained.average, 'split': split, 'examples': count, 'repeats': repeats,
          'evaluations_per_image': times, 'above_is_logsnr_above': SPLIT_AT, 'precisions': rows}
