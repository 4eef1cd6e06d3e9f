"""Energy-based models of noisy data: q(z_t) ~ exp(-E(z, t)), whose score is a gradient.

A network of the score is a vector field, which need not be the gradient of anything.  Here a
network gives a number, the energy E, and the gradient of E gives the score -dE/dz:

    eps_hat = sigma dE/dz.

So the field has no curl, whatever the weights.  The energy becomes a `Denoiser` like any other, for
all samplers, objectives and bounds.  It is trained by denoising score matching, which does not need
the normaliser Z_t = int exp(-E) dz.

An energy gives more than a score does:

* differences of log-density, and so an exact Metropolis test (`samplers.langevin.mala`);
* products of models, from which Markov chains draw samples;
* Z_0, by annealed importance sampling (`likelihood.annealed`), and so a likelihood.

Only at sigma = 0 is the sum of two energies the energy of the product of the data's densities, as
noise does not commute with products.  So reverse steps with the sum do not draw from the product,
but Markov chains do (Du et al. 2023, `Reduce, Reuse, Recycle`).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import processes, targets, weightings
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Array, Curve, Denoiser, Experiment, Level, PyTree, Schedule
from vdm_jax.units import sum_over_data

# (z [B, ...], level, cond=None) -> nats [B], up to a number for each level
Energy = Callable[..., Array]


def half_square(denoise: Denoiser) -> Energy:
  """E = 1/2 |eps_hat|^2 = |z - alpha x_hat|^2 / (2 sigma^2): any denoiser's network as an energy.

  The gradient of E is not eps_hat / sigma, and only this gradient is trained.  Salimans and Ho
  (2021), `Should EBMs model the energy or the score?`, take the square of z minus a network.  An
  untrained network here gives eps_hat = z, and then E is the energy of the standard normal.
  """
  return lambda z, level, cond=None: 0.5 * sum_over_data(
      jnp.square(denoise(z, level, cond).eps))


def denoiser(energy: Energy) -> Denoiser:
  """score = -dE/dz, as a Denoiser.  Estimate.extra = {'energy': [B]}."""
  def denoise(z, level, cond=None):
    def total(z):
      each = energy(z, level, cond)
      return jnp.sum(each), each
    slope, each = jax.grad(total, has_aux=True)(z)
    return targets.solve(targets.score, -slope, z, level)._replace(extra={'energy': each})
  return denoise


def log_prob(denoise: Denoiser, cond: PyTree = None) -> Callable[[Array, Level], Array]:
  """-E(z, level) [B] of a denoiser made by `denoiser`; it is log q(z_t) up to a number per level.

  `samplers.langevin.mala` takes this function.
  """
  return lambda z, level: -denoise(z, level, cond).extra['energy']


def product(*denoisers: Denoiser) -> Denoiser:
  """The denoiser of the sum of the energies, whose density is proportional to the product.

  Du et al. (2023).  Sample it by Markov chains, as explained above.
  """
  def denoise(z, level, cond=None):
    each = [one(z, level, cond) for one in denoisers]
    eps = sum(one.eps for one in each)
    return targets.solve(targets.eps, eps, z, level)._replace(
        extra={'energy': sum(one.extra['energy'] for one in each)})
  return denoise


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: Schedule,
               curve: Curve = processes.vp) -> Experiment:
  """The energy `half_square` of this network, by denoising score matching on all levels.

  The loss is L_simple (lambda = 2 sigma^2), divided by D ln 2.  The same evaluation also gives the
  bound, which is reported.  Model.denoise has the energy in Estimate.extra.

  Raises InputError as `score_sde.experiment` does.
  """
  return score_sde.experiment(
      config, net=net, schedule=schedule, curve=curve, weight=weightings.simple,
      wrap=lambda denoise: denoiser(half_square(denoise)), ends_denoised=False)
