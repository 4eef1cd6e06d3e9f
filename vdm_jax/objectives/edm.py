"""The loss of EDM: noise levels from a log-normal density, and the weight for that density.

Karras, Aittala, Aila and Laine (2022), eq. 8, in units of s = sigma / alpha and of D = x_hat:

    E_(ln s ~ N(mean, std^2))  lambda(s) |x - D|^2,   lambda(s) = (s^2 + sigma_d^2) / (s sigma_d)^2

With their preconditioned output F (`targets.edm`), this is E |F - F_hat|^2.  The weight makes the
loss of all levels alike at the start of training.  In expectation the loss is `weightings.edm` at
uniform times.
"""
from vdm_jax import weightings
from vdm_jax.objectives import proposals
from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.typing import Array, Denoiser, Process, PyTree


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, mean: float = -1.2, std: float = 1.2,
              sigma_data: float = 0.5, eps: Array | None = None
              ) -> tuple[Array, dict[str, Array]]:
  """|F - F_hat|^2 at log-normal noise levels, times the probability of the levels of `process`.

  x: [B, ...]; t: [B], uniform on [0, 1], which determines the level; keys: [B].  Returns nats [B]
  and {'diffusion', 'eps_error'}.  'diffusion' is the diffusion term of the bound, weighted for
  these times so that it is unbiased.  It has a heavy tail if few of these times are near the data.
  'eps_error' is |eps - eps_hat|^2.
  """
  t, share = proposals.by_mass(process, proposals.log_normal(mean, std))(t)
  loss, terms = weighted_diffusion(denoise, process, x, t, keys, cond, eps=eps,
                                   weight=weightings.edm(mean, std, sigma_data))
  bound = -0.5 * process(t).dlogsnr * terms['eps_error']
  return share * loss, {'diffusion': share * bound, **terms}
