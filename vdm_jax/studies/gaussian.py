"""Gaussian data with their optimal denoiser: the distribution of every draw of the bound is known.

For x ~ N(0, std^2) in `dim` dimensions, eps - eps_hat is Gaussian, with variance
v = std^2 SNR / (1 + std^2 SNR) in each dimension.  So the diffusion term of one draw is
l(t) = -1/2 (dlogsnr/dt) v chi^2_dim.

The mean of l over t ~ U[0, 1] is the same for all schedules with the same ends:
dim/2 log((1 + std^2 SNR(0)) / (1 + std^2 SNR(1))) nats.  The variance of l depends on the schedule.
The least variance is 2/dim of the squared mean, for a time proportional to the information:
-dlogsnr/dt ~ 1/v.

So schedules can be compared by exact numbers, without a network.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vdm_jax import oracles, random
from vdm_jax.objectives import proposals, weighted_diffusion
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems.variational.learned_schedule import by_variance, is_interior
from vdm_jax.train import parallel, step
from vdm_jax.typing import Array, Experiment, Process
from vdm_jax.units import bits_per_dim
from vdm_jax.values import Bound

DIM, STD = 3072, 0.5


def one_draw(process: Process, t: Array, keys: Array, *, dim: int = DIM, std: float = STD) -> Array:
  """The diffusion term at times t [B], for data drawn from `keys`: bits/dim [B]."""
  x = std * random.normal(random.stream(keys, 'x'), jnp.zeros((len(t), dim)))
  nats, _ = weighted_diffusion(oracles.Gaussian(0.0, std), process, x, t, keys)
  return bits_per_dim(nats, (dim,))


def experiment(schedule: nn.Module, learning_rate: optax.ScalarOrSchedule, *, dim: int = DIM,
               std: float = STD) -> Experiment:
  """The diffusion term alone, in bits/dim, under a learned schedule with fixed end points.

  The loss draws the data itself, and does not read the batch.  There is no Model and no average.
  """
  def init(key):
    return {'schedule': schedule.init(key, jnp.zeros(1))['params']}

  def loss(params, batch, context):
    process = GaussianProcess(Bound(params['schedule'], schedule))
    bits = one_draw(process, context.t, context.keys, dim=dim, std=std)
    return bits, {'diffusion': bits}

  def moves(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: is_interior(tuple(entry.key for entry in path)), params)

  tx = optax.multi_transform({True: optax.adam(learning_rate, b2=0.99),
                              False: optax.set_to_zero()}, moves)
  return Experiment(init=init, loss=loss, model=None, data=None, tx=tx, ema={})


def learn(schedule: nn.Module, steps: int = 1000, *, batch: int = 64, dim: int = DIM,
          seed: int = 0) -> Process:
  """`schedule` after `steps` steps of least variance, at a rate of 0.1 that falls as a cosine."""
  rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, min(20, steps // 2), steps)
  learned = by_variance(experiment(schedule, rate, dim=dim))

  @jax.jit
  def run(key):
    key_init, key = jax.random.split(key)
    state = step.init(learned.init(key_init), learned.tx, (), learned.aux)
    one = lambda state, _: learned.update(state, jnp.zeros(batch), key, parallel.Axis())
    return jax.lax.scan(one, state, length=steps)[0].params

  return GaussianProcess(Bound(run(random.key(seed))['schedule'], schedule))


def error_of_eps(logsnr: Array, std: float = STD) -> Array:
  """E (eps - eps_hat)^2 in each dimension."""
  return jax.nn.sigmoid(logsnr + 2.0 * jnp.log(std))


def integrand(process: Process, t: Array, std: float = STD) -> Array:
  """The mean of the diffusion term at time t, in bits/dim.  `estimate` computes its variance."""
  level = process(t)
  return -0.5 * level.dlogsnr * error_of_eps(level.logsnr, std) / jnp.log(2.0)


def estimate(process: Process, propose: proposals.Proposal = proposals.uniform, *, batch: int = 1,
             dim: int = DIM, std: float = STD) -> tuple[float, float]:
  """Mean, and `batch` times the variance, of the estimate from a batch with stratified times.

  (t_i, w_i) = propose((u + i / B) mod 1), u ~ U[0, 1].  A batch of 1 has independent times.  By the
  law of total variance, the second number is E_u[2/dim f^2] + B Var_u(mean_i f_i), where
  f = w g(t), with g of `integrand`.  Quadrature computes both numbers, in bits/dim and in
  (bits/dim)^2.
  """
  # Panels shrink towards the ends of [0, 1], where a schedule may be steep over 1e-5.
  edges = np.union1d(np.geomspace(1e-9, 0.5, 60), np.linspace(0.0, 0.5, 301))
  edges = np.concatenate([edges, 1.0 - edges[-2::-1]])
  node, weight = np.polynomial.legendre.leggauss(6)
  width = np.diff(edges)[:, None]
  u, weights = (edges[:-1, None] + width * (node + 1.0) / 2.0).ravel(), (width * weight / 2).ravel()

  @jax.jit
  def weighted(u):
    t, weight = propose(u)
    return weight * integrand(process, t, std)

  f = np.asarray(weighted(jnp.asarray((u[:, None] + np.arange(batch)) / batch)), np.float64)
  means = f.mean(axis=1)
  mean = weights @ means
  noise = 2.0 / dim * (weights @ np.square(f).mean(axis=1))
  return float(mean), float(noise + batch * (weights @ np.square(means - mean)))
