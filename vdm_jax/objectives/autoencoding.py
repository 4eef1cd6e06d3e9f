"""The losses of the autoencoders of latent diffusion.

With x' the reconstruction of an image x, D a discriminator of patches and n the numbers of x,

    KL kind   sum |x - x'| + n w_p LPIPS(x, x') + w_KL KL(q(y | x) || N(0, 1)) + d w_g g
    VQ kind   mean |x - x'| + w_p LPIPS(x, x') + w_c codebook(h, q) + d w_g g
    g = -mean D(x'),    d = |grad of the reconstruction| / (|grad of g| + 1e-4),

where both gradients are by the last kernel of the decoder.  The KL kind takes sums over an image,
and the VQ kind takes means, as in the public code.  The sums |x - x'| and LPIPS are in `units` and
`nn.lpips`.  Images are in [-1, 1].

Esser et al. (2021), section 3.1, and Rombach et al. (2022), eq. 25.
"""
import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, PyTree
from vdm_jax.units import mean_over_data, sum_over_data


def kl(mean: Array, log_variance: Array) -> Array:
  """KL(N(m, v) || N(0, 1)) in nats, [B]; Kingma and Welling (2014), appendix B.

  mean, log_variance: [B, ...].
  """
  return 0.5 * sum_over_data(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def codebook(h: Array, q: Array, *, beta: float = 0.25, legacy: bool = False) -> Array:
  """mean |sg(h) - q|^2 + beta mean |h - sg(q)|^2, [B]: van den Oord et al. (2017), eq. 3.

  The first part moves the codebook to h, and the second moves h to the codebook; sg(u) has no
  gradient.  h, q: [B, ...].  legacy: beta stands before the first part, as in the public code with
  which the weights were trained.
  """
  stop = jax.lax.stop_gradient
  to_h = mean_over_data(jnp.square(stop(h) - q))
  to_codebook = mean_over_data(jnp.square(h - stop(q)))
  return beta * to_h + to_codebook if legacy else to_h + beta * to_codebook


def generator(fake: Array) -> Array:
  """g: minus the mean of the logits of an image's patches, [B].  fake: [B, h, w]."""
  return -mean_over_data(fake)


def hinge(real: Array, fake: Array) -> Array:
  """The discriminator's loss, [B]: half of mean relu(1 - D(x)) + mean relu(1 + D(x')).

  Lim and Ye (2017); the factor 1/2 is that of the public code.  real, fake: logits [B, h, w].
  """
  return 0.5 * (mean_over_data(jax.nn.relu(1.0 - real)) + mean_over_data(jax.nn.relu(1.0 + fake)))


def balance(reconstruction: PyTree, adversarial: PyTree) -> Array:
  """d, []: the weight that makes both gradients by the last kernel of the decoder equally long.

  Esser et al. (2021), section 3.1, eq. 7, with 1e-4 of the public code instead of 1e-6.  d is at
  most 1e4, and it has no gradient.

  reconstruction, adversarial: the gradients by the kernel, of means over a batch.  If devices share
  the batch, average the gradients first: d is not the mean of what each device would compute.
  """
  length = lambda gradient: jnp.sqrt(sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(gradient)))
  weight = length(reconstruction) / (length(adversarial) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(weight, 0.0, 1e4))
