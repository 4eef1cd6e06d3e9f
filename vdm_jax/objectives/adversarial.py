"""Adversarial losses of one example: for a generator, and for a discriminator of fake and real.

The discriminator D gives a logit, large for real examples; s is the sigmoid.

    generator       -log s(D(fake))                            the form that does not saturate
    discriminator   -log s(D(real)) - log s(-D(fake))
    R1              gamma / 2 |grad D(real)|^2

Goodfellow et al. (2014), section 3 and eq. 1; Mescheder, Geiger and Nowozin (2018), R1.  If the
discriminator is perfect for two given distributions, real and fake, its loss is 2 log 2 less twice
their Jensen-Shannon divergence.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array
from vdm_jax.units import sum_over_data

Discriminator = Callable[[Array], Array]  # z [B, ...] -> logits [B]; of each example alone


def generator(discriminate: Discriminator, fake: Array) -> Array:
  """-log s(D(fake)), [B].  fake: [B, ...]."""
  return jax.nn.softplus(-discriminate(fake))


def discriminator(discriminate: Discriminator, real: Array, fake: Array
                  ) -> tuple[Array, dict[str, Array]]:
  """-log s(D(real)) - log s(-D(fake)): [B], and the two parts {'real', 'fake'}.

  real, fake: [B, ...].  No gradient reaches the network that made `fake`.
  """
  terms = {'real': jax.nn.softplus(-discriminate(real)),
           'fake': jax.nn.softplus(discriminate(jax.lax.stop_gradient(fake)))}
  return terms['real'] + terms['fake'], terms


def gradient_square(discriminate: Discriminator, real: Array) -> Array:
  """|grad D(z)|^2 at z = `real`, [B]: Mescheder et al. (2018), R1 without gamma / 2."""
  slope = jax.grad(lambda z: jnp.sum(discriminate(z)))(real)
  return sum_over_data(jnp.square(slope))


def lazy_r1(discriminate: Discriminator, real: Array, step: Array, *, gamma: float,
            every: int) -> Array:
  """gamma / 2 |grad D(real)|^2 times `every` in each `every`-th step, and 0 in the others.  [B].

  The mean over the steps is R1, at a fraction of the cost.  Karras et al. (2020), `Analyzing and
  Improving the Image Quality of StyleGAN`, section 3.1.  The public code of truncated diffusion
  leaves out the factor `every`.  So the gamma here is the gamma of that code, divided by `every`.
  """
  return jax.lax.cond(
      step % every == 0,
      lambda: 0.5 * gamma * every * gradient_square(discriminate, real),
      lambda: jnp.zeros(real.shape[:1], real.dtype))
