"""Maximum likelihood training of score models is the variational bound with weight 1.

For an SDE dz = f z dt + g dw, denoising score matching with lambda(t) is

    1/2 int_0^1 lambda E|score_hat - score|^2 dt,    score = -eps / sigma.

As g^2 = -sigma^2 dlogsnr/dt on every curve, this is `weighted_diffusion` with w = lambda / g^2.
The likelihood weighting, lambda = g^2, is w = 1.  The weighting lambda = sigma^2 of the score SDEs
(Song, Sohl-Dickstein et al. 2021) is w = -1 / dlogsnr, half of `weightings.simple`.  With
likelihood weighting and p(z_1) = pi, their bound is

    E[-log p(z_0)] <= E[-log pi(z_1)]
                      + 1/2 int_0^1 E[g^2 |score_hat - score|^2 - g^2 |score|^2 - 2 div(f z)] dt.

Since dlog sigma = (f + g^2 / (2 sigma^2)) dt, the last two terms integrate to minus the gain of the
entropy of q(z_t | x) from t = 0 to 1.  So the bound becomes

    KL(q(z_1 | x) || pi) + diffusion + H(q(z_0 | x)),

which is the bound of `vlb` without E[-log p(data | z_0)], for z_0 instead of the data.  At the true
score this bound exceeds E[-log q(z_0)] by exactly KL(q(z_1) || pi).

Song, Durkan, Murray and Ermon (2021), `Maximum Likelihood Training of Score-Based Diffusion
Models`, theorems 1 (likelihood weighting) and 3 (the bound).  They draw the times by
`proposals.by_logsnr`, section 5.1.
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.processes import prior_kl, sde
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree, Weighting
from vdm_jax.units import sum_of_terms, sum_over_data


def matching(scale: Callable[[Level], Array]) -> Weighting:
  """The weighting of denoising score matching with lambda = `scale`: w = lambda / g^2."""
  return lambda level: scale(level) / jnp.square(sde(level)[1])


def density_bound(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
                  cond: PyTree = None, *, eps: Array | None = None
                  ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the bound on E[-log p(z_0)] over q(z_0 | x): nats [B].

  Song, Durkan et al. (2021), theorem 3.

  x: [B, ...], continuous; t, keys: [B].  Also returns the terms {'entropy', 'latent', 'diffusion'}.
  With -log p(x | z_0) - H(q(z_0 | x)) added, it bounds -log p(x).
  """
  diffusion, _ = weighted_diffusion(denoise, process, x, t, keys, cond, eps=eps)
  first, last = process(jnp.zeros_like(t)).expand(x), process(jnp.ones_like(t))
  entropy = 0.5 * (1.0 + jnp.log(2.0 * jnp.pi)) + jnp.log(first.sigma)
  terms = {'entropy': sum_over_data(jnp.broadcast_to(entropy, x.shape)),
           'latent': sum_over_data(prior_kl(x, last)), 'diffusion': diffusion}
  return sum_of_terms(terms), terms
