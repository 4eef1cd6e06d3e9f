"""Rectified flow trained on its own pairs: reflow, and distillation to one step.

Liu, Gong and Liu (2023).  A flow carries z_1 from the prior to x' = Z_0.  The next flow is trained
on these pairs (reflow), and its lines cross less.  The cost E|x' - z_1|^2 falls, and so does the
straightness S = int E|(Z_1 - Z_0) - v|^2 dt.  S is 0 where one Euler step is exact.  For the exact
flow of any data

    S = E|x - eps|^2 - loss - E|x' - eps|^2,

where `loss` is the loss of flow matching, on the flow's own times.  `distil` trains at the noise
end alone, where x is one step away.

A pair is (z_1, x): z_1 ~ N(0, prior_std^2), and x is what a model makes of it (`runs.pairing`).  At
the noise end the network reads z_1 itself, as in sampling.  (The public code trains on z at
t = 1e-3 and samples from pure noise there.)
"""
import jax.numpy as jnp

from vdm_jax.objectives import flow_matching, vlb
from vdm_jax.objectives.metrics import Metric, l2
from vdm_jax.processes import prior_std
from vdm_jax.typing import Array, Denoiser, Process, PyTree


def reflow(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
           cond: PyTree = None, *, z_1: Array, steps: int = 0) -> tuple[Array, dict[str, Array]]:
  """Flow matching on pairs: [B], {'eps_error'}.  Liu et al. (2023), section 2.2, reflow.

  x, z_1: [B, ...].  steps: k, to train only at the times t = 1/k ... 1 from which k Euler steps
  start, as in their distillation; 0 trains at all times.
  """
  t = vlb.step_number(t, steps) / steps if steps else t
  return flow_matching.objective(denoise, process, x, t, keys, cond,
                                 eps=z_1 / prior_std(process))


def one_step(denoise: Denoiser, process: Process, z_1: Array, cond: PyTree = None) -> Array:
  """x_hat at the noise end; on straight lines it is z_1 - v, one Euler step.  z_1: [B, ...]."""
  return denoise(z_1, process(jnp.ones(len(z_1), z_1.dtype)), cond).x


def distil(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
           cond: PyTree = None, *, z_1: Array, metric: Metric = l2
           ) -> tuple[Array, dict[str, Array]]:
  """d(x, x_hat) with x_hat = one_step(z_1), [B], and {'x_error': |x - x_hat|^2}.

  Liu et al. (2023), distillation of a flow.

  x, z_1: [B, ...]; t and keys are not used.  metric: d, a sum over the data; LPIPS in the paper.
  """
  x_hat = one_step(denoise, process, z_1, cond)
  return metric(x, x_hat), {'x_error': l2(x, x_hat)}
