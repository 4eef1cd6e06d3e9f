"""A model as a progressive codec reads it: a few levels of noise, and the kernels between them.

The levels i = 0 .. T have evenly spaced log-SNRs, from the data at i = 0 to the noise at i = T.
The sender has x, and so q(z_i | z_{i+1}, x).  Both sides have the network's p(z_i | z_{i+1}), with
the variance of Analytic-DPM.  A file holds z_T, then z_{T-1}, and so on.  Any prefix ends at some
level, which `finish` turns into images.

Nothing here must agree to the last bit between two machines.  A file holds differences from the
means of p.  So if the network rounds differently, the images change as little as those means.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.codec.chain import require_chain, require_kernel
from vdm_jax.errors import require_at_least, require_choice
from vdm_jax.likelihood.bounds import analytic_variance
from vdm_jax.processes import posterior, prior_std, time_of
from vdm_jax.samplers.analytic import Variances, analytic_dpm
from vdm_jax.samplers.dpm_solver import dpm_solver_multistep
from vdm_jax.samplers.sampling import sample
from vdm_jax.typing import Model, PyTree

__all__ = ['FINISHES', 'Conditions', 'Kernels', 'kernels', 'levels_between']

FINISHES = ('flow', 'ancestral', 'mean')
NOISIEST = -6.0  # log-SNR of z_T, where 0.25 % of the variance is of the data
_STEPS = 32      # of `finish`
Conditions = Callable[[np.ndarray], PyTree]  # numbers of images [n] -> what conditions the model
nothing: Conditions = lambda rows: {}


class Kernels(NamedTuple):
  """The parts of a model that a progressive codec uses; see the module.  D: dimensions of an image.
  """
  shape: tuple[int, ...]   # of an image
  alpha: np.ndarray        # [T + 1]
  sigma: np.ndarray        # [T + 1]
  logsnr: np.ndarray       # [T + 1]  decreasing
  prior_std: float         # of p(z_T)
  # (z_i [n, D], i, conditions) -> mean and deviation of p(z_{i-1} | z_i), float32 [n, D]
  reverse: Callable[[np.ndarray, int, Conditions], tuple[np.ndarray, np.ndarray]]
  # (z_i [n, D], i, how, seed, conditions) -> x [n, D]
  finish: Callable[[np.ndarray, int, str, int, Conditions], np.ndarray]

  @property
  def steps(self) -> int:
    return len(self.alpha) - 1

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def predicted(self, z: np.ndarray, i: int, conditions: Conditions
                ) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of p(z_i | z_{i+1}), [n, D] float64.  At i = T: of p(z_T), without `z`."""
    if i == self.steps:
      return np.zeros(np.shape(z)), np.full(np.shape(z), self.prior_std)
    mean, std = self.reverse(z, i + 1, conditions)
    return np.asarray(mean, np.float64), np.asarray(std, np.float64)

  def given(self, x: np.ndarray, z: np.ndarray, i: int) -> tuple[np.ndarray, float]:
    """Mean [n, D] and deviation of q(z_i | z_{i+1}, x).  At i = T: of q(z_T | x), without `z`.

    Kingma et al. (2021), appendix A.2: `processes.posterior`, in float64.
    """
    if i == self.steps:
      return self.alpha[i] * x, float(self.sigma[i])
    share = -math.expm1(self.logsnr[i + 1] - self.logsnr[i])
    keep = math.sqrt(1.0 - share) * self.sigma[i] / self.sigma[i + 1]
    return keep * z + self.alpha[i] * share * x, float(self.sigma[i] * math.sqrt(share))


def levels_between(process, levels: int, steps: int) -> np.ndarray:
  """Increasing times [T + 1] whose log-SNRs are evenly spaced.

  The first time is where sqrt(12) sigma / alpha is the distance of two grey levels, or the start of
  the process if that is later.  The last time is where 0.25 % of the variance is of the data, or
  the end of the process if that is earlier.
  """
  first, last = (float(process(jnp.asarray(t)).logsnr) for t in (0.0, 1.0))
  first = min(first, math.log(12.0 * (levels / 2.0)**2))
  last = max(last, NOISIEST)
  return np.asarray(time_of(process, np.linspace(first, last, steps + 1)), np.float64)


def kernels(model: Model, levels: int, times: np.ndarray, variances: Variances, *,
            batch_size: int = 64) -> Kernels:
  """The kernels of a model at `times` [T + 1], which `levels_between` gives.

  Args:
    levels: the number of levels of the data; it limits Var(x | z).
    variances: the result of `samplers.analytic.estimate_variances`.
    batch_size: the number of images that the network sees together.

  Raises InputError: a model that has no such chain, fewer than one step.  `reverse` raises
  InputError if the network's output is not finite.
  """
  require_at_least('T', len(times) - 1)
  require_chain(model, levels)
  at = jnp.asarray(times, float)
  level = jax.tree.map(lambda u: np.asarray(u, np.float64), model.process(at))
  variance = analytic_variance(variances)

  @jax.jit
  def reverse(z, i, batch):
    t, s = jnp.full(len(z), at[i], z.dtype), jnp.full(len(z), at[i - 1], z.dtype)
    at_t, at_s = model.process(t), model.process(s)
    estimate = model.denoise(z, at_t, model.cond(batch))
    mean, _ = posterior(z, estimate.x, at_t, at_s)
    std = jnp.sqrt(variance(estimate, at_t.expand(z), at_s.expand(z)))
    return mean, jnp.broadcast_to(std, z.shape)

  def finish(z, i, how, keys, batch):
    condition = model.cond(batch)
    denoise = lambda z, level, _=None: model.denoise(z, level, condition)
    if how != 'mean':
      between = jnp.linspace(model.process(at[i]).logsnr, model.process(at[0]).logsnr, _STEPS + 1)
      grid = time_of(model.process, between).at[0].set(at[i])
      sampler = (dpm_solver_multistep(denoise, model.process) if how == 'flow' else
                 analytic_dpm(denoise, model.process, variances))
      # From the last level there is no step: equal times are the identity.
      z, i = sample(sampler, keys, z, jnp.where(i == 0, at[0], grid)), 0
    return denoise(z, model.process(jnp.full(len(z), at[i], z.dtype))).x

  finishes = {how: jax.jit(lambda z, i, keys, batch, how=how: finish(z, i, how, keys, batch))
              for how in FINISHES}

  def batched(program, z, conditions, *arrays):
    outs = []
    rows = np.arange(len(z))
    for start in range(0, len(z), batch_size):
      part = np.resize(rows[start:start + batch_size], min(batch_size, len(z)))  # one program
      images = jnp.asarray(z[part], jnp.float32).reshape(-1, *model.shape)
      outs.append(jax.device_get(program(images, part, conditions(part), *arrays)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:len(z)].reshape(len(z), -1), *outs)

  def reverse_all(z, i, conditions):
    mean, std = batched(lambda images, _, batch: reverse(images, i, batch), z, conditions)
    require_kernel(mean, std, i)
    return mean, std

  def finish_all(z, i, how, seed, conditions):
    require_choice('finish', how, FINISHES)
    key = random.key(seed)
    return batched(lambda images, rows, batch: finishes[how](
        images, i, random.per_example(key, jnp.asarray(rows)), batch), z, conditions)

  return Kernels(
      tuple(model.shape), level.alpha, level.sigma, level.logsnr,
      float(prior_std(model.process, at[-1])), reverse_all, finish_all)
