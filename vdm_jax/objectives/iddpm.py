"""Objectives of IDDPM: the bound of a chain whose reverse variances are learned, and the hybrid.

The network has a second output u of the shape of z, Estimate.extra['variance'].  The reverse kernel
has the variance beta^v beta_tilde^(1 - v), v = (u + 1) / 2, which lies between the variances of
q(z_t | z_s) and q(z_s | z_t, x).  Nichol and Dhariwal (2021), section 3.1; the range of u is taken
from their public code, as in `processes.learned_share`.

L_vlb is `vlb.discrete` with this variance.  The hybrid, their section 3.1 and eq. 16, is

    L_simple + 0.001 L_vlb,    with no gradient of L_vlb with respect to the estimate of x or eps,

so L_vlb trains the variances alone, and the layers that the variances share with the estimate.
"""
from vdm_jax.objectives import ddpm, vlb
from vdm_jax.typing import Array, Decoder, Denoiser, Process, PyTree


def hybrid(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
           cond: PyTree = None, *, steps: int, data: Array, decoder: Decoder,
           weight: float = 0.001, variance: vlb.Variance = vlb.learned,
           last: vlb.LastStep | None = None, first: Array | None = None,
           eps: Array | None = None, eps_0: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|eps - eps_hat|^2 + weight L_vlb, L_vlb for T = `steps`: Nichol and Dhariwal (2021), eq. 16.

  Here both terms are sums over the data.  The authors' public code adds the mean square and 0.001
  times the bits per dimension.  In the units here, the `weight` of that code is 0.001 / ln
  2 = 0.00144. x: [B, ...]; t, keys: [B]; variance, last, first, eps, eps_0 as in `vlb.discrete`.
  Returns nats [B] and the terms of `ddpm.objective`.
  """
  simple, terms = ddpm.objective(denoise, process, x, t, keys, cond, steps=steps, data=data,
                                 decoder=decoder, variance=variance, last=last, first=first,
                                 eps=eps, eps_0=eps_0)
  return simple + weight * terms['vlb'], terms
