"""Knowledge distillation: a student that replaces the whole path of its teacher by one step.

Luhman and Luhman (2021), Knowledge Distillation in Iterative Generative Models for Improved
Sampling Speed.  A deterministic sampler of the teacher maps each z_1 to one x.  The student reads
z_1 alone, and learns this map from pairs (z_1, x).  Their student is z - net(z, last step), without
a factor (`targets.removed`).  It starts from the teacher's weights.
"""
import jax.numpy as jnp

from vdm_jax.errors import require_choice
from vdm_jax.objectives.metrics import METRICS, l2
from vdm_jax.typing import Array, Denoiser, Process, PyTree


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, z_1: Array, norm: str = 'l2'
              ) -> tuple[Array, dict[str, Array]]:
  """|x - x_hat(z_1)|^2, or with the norm 'l1' |x - x_hat(z_1)|: sums over the data, [B].

  Luhman and Luhman (2021); their public code uses l1 on CIFAR-10 and l2 elsewhere.
  z_1, x: [B, ...], the two ends of a path of the teacher.  Nothing is drawn, so t and keys are not
  used.
  Returns [B] and {'x_error': |x - x_hat|^2}.
  Raises InputError if the norm is another.
  """
  require_choice('norm', norm, METRICS)
  x_hat = denoise(z_1, process(jnp.ones_like(t)), cond).x
  return METRICS[norm](x, x_hat), {'x_error': l2(x, x_hat)}
