"""Recovery likelihood: an energy learns the law of z_s given the noisier z_t.

  p(z_s | z_t)  =  exp(-E(z_s, s)) N(z_t; alpha_{t|s} z_s, sigma_{t|s}^2) / Z(z_t)

The maximum of E log p(z_s | z_t) over energies is E = -log q(z_s) up to a number for each level.
So the energy of a level is the energy of the noisy data, as in denoising score matching.  Gao,
Song, Poole, Wu and Kingma (2021), Learning Energy-Based Models by Diffusion Recovery Likelihood,
eq. 9 and 10; their f(y, t) is -E(z_s, s) of y = alpha_{t|s} z_s.

Z(z_t) is not known, but the gradient needs a draw of the model only: the gradient of
-log p(z_s | z_t) is the mean gradient of

  E(z_s, s) - E(z_s^-, s),    z_s^- ~ p(. | z_t).

The paper has T levels.  Here s is any time in [0, 1 - 1/T], and t = s + 1/T.  So every time has an
energy, and all samplers and bounds of the library can use it.
"""
from collections.abc import Callable

import jax

from vdm_jax import random
from vdm_jax.processes import diffuse, renoise
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree

# (keys [B], z_t [B, ...], level t, level s) -> z_s ~ p(z_s | z_t), [B, ...]
Draw = Callable[[Array, Array, Level, Level], Array]


def recovery(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
             cond: PyTree = None, *, draw: Draw, levels: int
             ) -> tuple[Array, dict[str, Array]]:
  """E(z_s, s) - E(z_s^-, s) in nats, [B]: its gradient is an estimate of -grad log p(z_s | z_t).

  The value itself says nothing: its expectation is 0 at the minimum, and for a constant energy too.

  denoise: with Estimate.extra['energy'], as `systems.scores.energy.denoiser` makes it.  draw: the
  Langevin chain, `samplers.recovery.chain` of the same energy.  No gradient goes through it; a
  denoiser of parameters under `stop_gradient` also saves the memory of that gradient.  t: [B] in
  [0, 1); s = (1 - 1 / levels) t, and z_t is at s + 1 / levels.

  Also returns {'positive', 'negative'}, the two energies.
  """
  gap = 1.0 / levels
  time = (1.0 - gap) * t
  at_s, at_t = process(time), process(time + gap)
  z_s = diffuse(x, random.normal(random.stream(keys, 'eps'), x), at_s)
  z_t = renoise(z_s, random.normal(random.stream(keys, 'renoised'), x), at_s, at_t)
  drawn = jax.lax.stop_gradient(draw(random.stream(keys, 'negative'), z_t, at_t, at_s))
  energy = lambda z: denoise(z, at_s, cond).extra['energy']
  positive, negative = energy(z_s), energy(drawn)
  return positive - negative, {'positive': positive, 'negative': negative}
