"""Noise schedules t -> logsnr(t), decreasing in t on [0, 1].

A schedule says *how fast* noise comes in; the curve of `processes` says *where* in
(alpha, sigma) the process is at that logsnr.  A fixed schedule is a value: its numbers are
pytree leaves, so changing them never recompiles.  A learned schedule is a Linen module;
`Bound` turns it, at a point in parameter space, into the same kind of thing: a pure function.

The official VDM code speaks of gamma = -logsnr.  The learned schedules below keep their
parameters in that convention, so that an imported checkpoint's numbers are its own.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from vdm_jax.typing import Array, PyTree


@struct.dataclass
class Bound:
  """A Linen module at a point in parameter space: a pure function, and a pytree.

  Build it inside `jit`: it is a new object at every call, but an equal one (modules compare
  by their fields), so it does not retrace.  A module with a fresh lambda as a field does.

  keys: one PRNG key per example [B] for a network's dropout, or None for none.
  """
  params: PyTree
  module: nn.Module = struct.field(pytree_node=False)
  keys: Array | None = None

  def __call__(self, *args):
    random = {} if self.keys is None else {'keys': self.keys}
    return self.module.apply({'params': self.params}, *args, **random)


# ------------------------------------------------------------------ fixed


@struct.dataclass
class Linear:
  """logsnr(t) = max + (min - max) t.  The `fixed` schedule of Kingma et al. (2021)."""
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  def __call__(self, t: Array) -> Array:
    return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t


@struct.dataclass
class Cosine:
  """logsnr(t) = -2 log tan(a + (b - a) t), with a, b such that the end points are as given.

  The alpha-cosine schedule of Nichol and Dhariwal (2021), section 3.2, in the continuous form
  of Salimans and Ho (2022): on the `vp` curve alpha(t) is the cosine of an angle linear in t.
  """
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  def __call__(self, t: Array) -> Array:
    a = jnp.arctan(jnp.exp(-0.5 * self.logsnr_max))
    b = jnp.arctan(jnp.exp(-0.5 * self.logsnr_min))
    return -2.0 * jnp.log(jnp.tan(a + (b - a) * t))


@struct.dataclass
class BetaLinear:
  """On the `vp` curve, the SDE with beta(u) = beta_min + (beta_max - beta_min) u.

  logsnr = -log(expm1(int_0^u beta)), u = t_min + (1 - t_min) t.  This is the continuous limit
  of the linear betas of DDPM (Ho et al. 2020, section 4) that Song et al. (2021), appendix C,
  call the VP SDE.  At u = 0 logsnr is infinite; `t_min` is where the process starts (Song et
  al. use 1e-3 for samples and 1e-5 for likelihoods).
  """
  beta_min: float = 0.1
  beta_max: float = 20.0
  t_min: float = 1e-3

  def __call__(self, t: Array) -> Array:
    u = self.t_min + (1.0 - self.t_min) * t
    return -jnp.log(jnp.expm1(u * self.beta_min + 0.5 * u * u * (self.beta_max - self.beta_min)))


@struct.dataclass
class GeometricSigma:
  """On the `ve` curve, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

  The VE SDE of Song et al. (2021), appendix C, with their CIFAR-10 values, which are for data in
  [0, 1]: in [-1, 1] they are 0.02 and 100.
  """
  sigma_min: float = 0.01
  sigma_max: float = 50.0

  def __call__(self, t: Array) -> Array:
    low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
    return -2.0 * (low + (high - low) * t)


# ---------------------------------------------------------------- learned


class LearnedLinear(nn.Module):
  """gamma(t) = b + |w| t: two scalars.  `learnable_scalar` of the official VDM code."""
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: Array) -> Array:
    w = self.param('w', nn.initializers.constant(self.logsnr_max - self.logsnr_min), (1,))
    b = self.param('b', nn.initializers.constant(-self.logsnr_max), (1,))
    return -(b[0] + jnp.abs(w[0]) * t)


class _PositiveDense(nn.Module):
  """A dense layer whose kernel enters through its absolute value, so that it is monotone."""
  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.normal()
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(self, u: Array) -> Array:
    kernel = self.param('kernel', self.kernel_init, (u.shape[-1], self.features))
    u = u @ jnp.abs(kernel)
    if self.bias_init is None:
      return u
    return u + self.param('bias', self.bias_init, (self.features,))


class Monotone(nn.Module):
  """gamma(t) = l1(t) + l3(2 sigmoid(l2(2 t - 1)) - 1) / features, all kernels in absolute value.

  `learnable_nnet` of the official VDM code: its end points are *not* pinned, they move with
  the interior (`PinnedMonotone` separates the two).
  """
  features: int = 1024
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: Array) -> Array:
    constant = nn.initializers.constant
    u = jnp.asarray(t)[..., None]
    line = _PositiveDense(1, constant(self.logsnr_max - self.logsnr_min),
                          constant(-self.logsnr_max), name='l1')(u)
    h = _PositiveDense(self.features, name='l2')(2.0 * (u - 0.5))
    h = 2.0 * (nn.sigmoid(h) - 0.5)
    bend = _PositiveDense(1, bias_init=None, name='l3')(h) / self.features
    return -(line + bend)[..., 0]


class PinnedMonotone(nn.Module):
  """logsnr(t) = max + (min - max) u(t): end points and interior are parameters of their own.

  u(t) = (raw(t) - raw(0)) / (raw(1) - raw(0)) with raw a monotone network: Kingma et al. (2021),
  appendix I.2, eq. 59.  The continuous bound depends on the end points alone, so the interior may
  be trained for another purpose (the estimator's variance).
  """
  features: int = 64
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: Array) -> Array:
    high = self.param('logsnr_max', nn.initializers.constant(self.logsnr_max), ())
    low = self.param('logsnr_min', nn.initializers.constant(self.logsnr_min), ())
    normal = nn.initializers.normal(1.0)
    w_in = jax.nn.softplus(self.param('w_in', normal, (self.features,)))
    b_in = self.param('b_in', normal, (self.features,))
    w_out = jax.nn.softplus(self.param('w_out', normal, (self.features,)))

    def raw(u):
      h = nn.sigmoid((2.0 * u[..., None] - 1.0) * w_in + b_in)
      return u + jnp.mean(w_out * h, axis=-1)

    first, last = raw(jnp.zeros(())), raw(jnp.ones(()))
    return high + (low - high) * (raw(jnp.asarray(t)) - first) / (last - first)
