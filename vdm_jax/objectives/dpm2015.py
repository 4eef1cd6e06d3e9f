"""The bound of diffusion probabilistic models: the Gaussian chain of Sohl-Dickstein et al. (2015).

The chain of T steps x^(1), ..., x^(T) from data x^(0) has the kernels

    q(x^(t) | x^(t-1)) = N(sqrt(1 - beta_t) x^(t-1), beta_t),
    p(x^(t-1) | x^(t)) = N(f_mu, f_Sigma),    p(x^(T)) = N(0, 1),

as in their table App.1.  The log-likelihood is at least (their eq. 14)

    K = - sum_{t=2}^T E KL(q(x^(t-1) | x^(t), x^(0)) || p(x^(t-1) | x^(t)))
        + H_q(X^(T) | X^(0)) - H_q(X^(1) | X^(0)) - H_p(X^(T)).

This is our chain on the curve `vp`, with x^(1) at t = 0 and x^(T) at t = 1, so it has T - 1 steps.
The divergences come from `vlb.discrete`: f_mu is the mean of q(z_s | z_t, x_hat), and f_Sigma is a
`vlb.Variance` such as `vlb.learned`.  The entropies replace the other two terms.  Two assumptions
give them: p(x^(0) | x^(1)) is the forward kernel itself (`first_step`), and E |x^(0)|^2 = E
|x^(T)|^2 = d.  Without the second assumption, the bound is `vlb.discrete` with the decoder
`first_step`.  For each x, -K exceeds that bound by

    1/2 (d - |x|^2) (beta_1 + alpha_1^2),    alpha_1 at t = 1.

The mean of this excess is 0 over data of unit second moments, so the data are scaled to them.

Learned rates: beta_2, ..., beta_T are parameters of the process.  K is differentiated with the
noise held fixed (their section 2.4.1); in this library noise is a function of the keys, so every
gradient holds it fixed.  beta_1 stays a small constant: without it, the density of finitely many
data is unbounded.  `dpm2015_bits` has the binomial chain, and `samplers.multiplied` the product
with a second distribution.
"""
import math

import jax.numpy as jnp
from jax.scipy.stats import norm

from vdm_jax.objectives import vlb
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree
from vdm_jax.units import sum_of_terms, sum_over_data


def first_step(x: Array, z: Array, level: Level) -> Array:
  """log p(x^(0) | x^(1)) = log N(x; alpha z, sigma^2) in nats, [B]: the reversed forward kernel.

  Sohl-Dickstein et al. (2015), appendix B.  A `Decoder` of continuous data.  x, z: [B, ...]; level:
  at t = 0, on `vp`.
  """
  level = level.expand(z)
  return sum_over_data(norm.logpdf(x, level.alpha * z, level.sigma))


def bound(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
          cond: PyTree = None, *, steps: int, variance: vlb.Variance = vlb.learned,
          eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of -K, Sohl-Dickstein et al. (2015), eq. 14, for T - 1 = `steps`.

  t chooses one of the divergences.  x: [B, ...], of unit second moments; process: on `vp`, fixed or
  learned; variance, eps and the rest as for `vlb.discrete`.  Returns nats [B], and the terms whose
  sum they are: 'reconstruction', H_q(X^(1) | X^(0)); 'latent', H_p(X^(T)) minus H_q(X^(T) | X^(0));
  'diffusion', the divergences.
  """
  _, terms = vlb.discrete(denoise, process, x, t, keys, cond, steps=steps, data=x,
                          decoder=first_step, variance=variance, eps=eps)
  first, last = (process(u).expand(x) for u in (jnp.zeros_like(t), jnp.ones_like(t)))
  over_data = lambda u: sum_over_data(jnp.broadcast_to(u, x.shape))
  terms = {'reconstruction': over_data(jnp.log(first.sigma) + 0.5 * math.log(2 * math.pi * math.e)),
           'latent': over_data(-jnp.log(last.sigma)), 'diffusion': terms['diffusion']}
  return sum_of_terms(terms), terms
