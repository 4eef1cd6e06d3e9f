"""The ancestors of the diffusion bound: the ELBO of a VAE, of layers of latents, of a Markov chain.

The notation is the same for all.  z_1 ... z_L are latents; z_1 is next to the data, and z_L is
drawn from the prior.  q infers the latents, and p generates them.  With z drawn from q,

  -log p(data) <= E[-log p(data | z)]  +  E[log q(z | data) - log p(z)],

and the right side is larger by KL(q(z | data) || p(z | data)).  The second term, layer by layer, is

  VAE          KL(q(z | x) || p(z))
  from above   sum_l  E KL(q(z_l | z_{l+1..L}, x) || p(z_l | z_{l+1..L}))
  Markovian    KL(q(z_L | x) || p(z_L)) + sum_l E KL(q(z_{l-1} | z_l, x) || p(z_{l-1} | z_l)).

The last line holds where the encoder is a chain q(z_1 | x) q(z_2 | z_1) ... that can be reversed,
as a chain of Gaussians with linear means can.  Let the encoder be the Gaussian process
q(z_t | z_s), and the generator q(z_s | z_t, x_hat).  Then the last line is the bound of T steps,
`vlb.discrete`, term by term.  So a diffusion model is a Markovian hierarchical VAE.  Its latents
are as large as the data, one network serves all layers, and the encoder learns at most its noise
schedule.

Here a distribution is any object with `sample` and `log_prob`.  A conditional is a function that
returns a distribution.  Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014); the last
line as in Luo (2022), `Understanding Diffusion Models: A Unified Perspective`.
"""
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax.scipy.stats import norm

from vdm_jax import processes, random
from vdm_jax.typing import Array, Denoiser, Process, PyTree
from vdm_jax.units import sum_of_terms, sum_over_data
from vdm_jax.values import value


class Distribution(Protocol):
  """A distribution of one variable for each example: an array [B, ...], or a pytree of arrays."""

  def sample(self, keys: Array) -> PyTree:
    """keys: [B]."""
    ...

  def log_prob(self, z: PyTree) -> Array:
    """nats, [B]."""
    ...


Conditional = Callable[[PyTree], Distribution]         # what is given -> the distribution
LatentDecoder = Callable[[Array, PyTree], Array]       # data, z -> log p(data | z) in nats, [B]
Divergence = Callable[[Any, Any, PyTree], Array]       # q, p, z ~ q -> nats [B]; of two
                                                       # distributions, or of one family alone


@value
class Normal:
  """N(mean, std^2), independent dimensions.  mean: [B, ...]; std: broadcastable to it."""
  mean: Array
  std: Array

  def sample(self, keys: Array) -> Array:
    return self.mean + self.std * random.normal(keys, self.mean)

  def log_prob(self, z: Array) -> Array:
    return sum_over_data(norm.logpdf(z, self.mean, self.std))


class Joint(NamedTuple):
  """A joint distribution of z_1 ... z_L as a product of conditionals: any q(z_{1:L} | x).

  conditionals: in the order of drawing.  Each conditional gets the tuple of all latents drawn
  before; the first gets ().  upward: False draws z_L first, True draws z_1 first.  In both cases a
  value is the tuple (z_L, ..., z_1).
  """
  conditionals: Sequence[Conditional]
  upward: bool = False

  def sample(self, keys: Array) -> tuple:
    drawn = ()
    for i, conditional in enumerate(self.conditionals):
      layer = i + 1 if self.upward else len(self.conditionals) - i
      drawn += (conditional(drawn).sample(random.stream(keys, f'z_{layer}')),)
    return drawn[::-1] if self.upward else drawn

  def log_prob(self, z: tuple) -> Array:
    drawn = z[::-1] if self.upward else z
    return functools.reduce(operator.add, (
        conditional(drawn[:i]).log_prob(drawn[i])
        for i, conditional in enumerate(self.conditionals)))


# ------------------------------------------------------------- divergences


def one_sample(q: Distribution, p: Distribution, z: PyTree) -> Array:
  """log q(z) - log p(z) in nats, [B]; its mean over z ~ q is KL(q || p), for any q and p."""
  return q.log_prob(z) - p.log_prob(z)


def gaussian_kl(q: Normal, p: Normal, z: PyTree = None) -> Array:
  """KL(q || p) = 1/2 sum (r - 1 - log r + (mean_q - mean_p)^2 / std_p^2), r = std_q^2 / std_p^2.

  Nats, [B].  This is the closed form for two `Normal` distributions; z is not read.
  """
  r = jnp.square(q.std / p.std)
  gap = (q.mean - p.mean) / p.std
  return 0.5 * sum_over_data(r - 1.0 - jnp.log(r) + jnp.square(gap))


# ------------------------------------------------------------------ bounds


def elbo(data: Array, keys: Array, *, encoder: Distribution, decoder: LatentDecoder,
         prior: Distribution, divergence: Divergence = one_sample, beta: float = 1.0
         ) -> tuple[Array, dict[str, Array]]:
  """-ELBO, an unbiased estimate from one z ~ q: nats [B], {'reconstruction', 'latent'} [B].

  Kingma and Welling (2014), eq. 6 with `one_sample` and eq. 7 with `gaussian_kl`.  data: [B, ...];
  keys: [B]; encoder: q(z | x) of these examples; decoder: log p(data | z).  beta: the result is
  reconstruction + beta latent, Higgins et al. (2017).  The bound is the sum of the terms, for every
  beta.
  """
  z = encoder.sample(random.stream(keys, 'z'))
  terms = {'reconstruction': -decoder(data, z), 'latent': divergence(encoder, prior, z)}
  return terms['reconstruction'] + beta * terms['latent'], terms


def hierarchical(data: Array, keys: Array, *, encoder: Sequence[Conditional],
                 decoder: LatentDecoder, prior: Sequence[Conditional],
                 divergence: Divergence = one_sample,
                 beta: float = 1.0) -> tuple[Array, dict[str, Array]]:
  """-ELBO of layers that are inferred from the top down: Sonderby et al. (2016).

  encoder, prior: of z_L, ..., z_1, each a function of the tuple of latents above: () for z_L,
  (z_L, ..., z_2) for z_1.  decoder: log p(data | (z_L, ..., z_1)).  Returns nats [B] and
  {'reconstruction', 'latent', 'z_L', ..., 'z_1'} [B]; 'latent' is the sum of the divergences of the
  layers, and the other terms are those divergences.  The bound is reconstruction + latent; it is
  the result if beta = 1.  An encoder that infers in another order is a `Joint`, for `elbo`.
  """
  above, layers = (), {}
  for i, (conditional_q, conditional_p) in enumerate(zip(encoder, prior, strict=True)):
    name, q, p = f'z_{len(encoder) - i}', conditional_q(above), conditional_p(above)
    z = q.sample(random.stream(keys, name))
    above += (z,)
    layers[name] = divergence(q, p, z)
  terms = {'reconstruction': -decoder(data, above), 'latent': sum_of_terms(layers)}
  return terms['reconstruction'] + beta * terms['latent'], {**terms, **layers}


class LatentChain(NamedTuple):
  """A Markov chain q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), and its factors from above."""
  first: Distribution                  # q(z_1 | x)
  up: Sequence[Conditional]            # z_{l-1} -> q(z_l | z_{l-1}),     l = 2 ... L
  last: Distribution                   # q(z_L | x)
  posterior: Sequence[Conditional]     # z_l -> q(z_{l-1} | z_l, x),      l = 2 ... L

  def sample(self, keys: Array) -> list[Array]:
    """[z_1, ..., z_L], upwards."""
    path = [self.first.sample(random.stream(keys, 'z_1'))]
    for l, up in enumerate(self.up, start=2):
      path.append(up(path[-1]).sample(random.stream(keys, f'z_{l}')))
    return path


def gaussian_chain(first: Normal, scales: Sequence[Array], stds: Sequence[Array]) -> LatentChain:
  """q(z_l | z_{l-1}) = N(scale z_{l-1}, std^2), l = 2 ... L, with its reverse by Bayes' rule.

  With q(z_{l-1} | x) = N(m, v):  q(z_l | x) = N(scale m, scale^2 v + std^2), and q(z_{l-1} | z_l,
  x) has variance w = v std^2 / (scale^2 v + std^2) and mean w (m / v + scale z_l / std^2).
  scales, stds: L - 1 each, broadcastable against z.
  """
  up, posterior, q = [], [], first
  for a, s in zip(scales, stds, strict=True):
    total = jnp.hypot(a * q.std, s)
    share = jnp.square(q.std / total)  # of z_l's variance: gain of z_l, times its scale
    up.append(lambda z, a=a, s=s: Normal(a * z, s))
    posterior.append(lambda z, a=a, s=s, q=q, total=total, share=share: Normal(
        jnp.square(s / total) * q.mean + a * share * z, q.std * s / total))
    q = Normal(a * q.mean, total)
  return LatentChain(first, up, q, posterior)


def markovian(data: Array, keys: Array, *, encoder: LatentChain, decoder: LatentDecoder,
              prior: Distribution, generator: Sequence[Conditional],
              divergence: Divergence = gaussian_kl
              ) -> tuple[Array, dict[str, Array]]:
  """-ELBO of a Markovian hierarchical VAE, at one path of latents drawn upwards by its encoder.

  generator: z_l -> p(z_{l-1} | z_l), l = 2 ... L; prior: p(z_L); decoder: log p(data | z_1).
  Returns nats [B] and {'reconstruction', 'latent', 'diffusion'} [B], whose sum they are.  'latent'
  is the divergence at z_L, and 'diffusion' the sum of the divergences of the transitions.  The
  terms 'z_1' ... 'z_{L-1}' are these divergences, each named by its variable.  Sohl-Dickstein et
  al. (2015), section 2.4; Ho et al. (2020), eq. 5.
  """
  path = encoder.sample(keys)
  transitions = {
      f'z_{l}': divergence(q(path[l]), p(path[l]), path[l - 1])
      for l, (q, p) in enumerate(zip(encoder.posterior, generator, strict=True), start=1)}
  terms = {'reconstruction': -decoder(data, path[0]),
           'latent': divergence(encoder.last, prior, path[-1]),
           'diffusion': sum(transitions.values(), jnp.zeros(len(data)))}
  return sum_of_terms(terms), {**terms, **transitions}


# ------------------------------------------------- the diffusion of `vlb`


def process_chain(process: Process, x: Array, steps: int) -> LatentChain:
  """The encoder of a diffusion model of T = `steps`: z_1 ... z_{T+1} at times 0, 1/T, ..., 1.

  q(z_0 | x) = N(alpha_0 x, sigma_0^2) and q(z_t | z_s) = N(alpha_t / alpha_s z_s, sigma_t^2 tau),
  Kingma et al. (2021), appendix A, on any curve.  x: [B, ...].  In float32 `vlb.discrete` keeps
  more digits: here the divergences are differences of means that are nearly equal.
  """
  levels = _levels(process, x, steps)
  first, *_ = levels
  pairs = list(zip(levels[1:], levels[:-1], strict=True))
  return gaussian_chain(Normal(first.alpha * x, first.sigma),
                        [t.alpha / s.alpha for t, s in pairs],
                        [t.sigma * jnp.sqrt(processes.tau(t, s)) for t, s in pairs])


def denoising_generator(denoise: Denoiser, process: Process, x: Array, steps: int,
                        cond: PyTree = None) -> list[Conditional]:
  """p(z_s | z_t) = q(z_s | z_t, x_hat(z_t)) of the steps of `process_chain`.

  x: [B, ...]; only its shape and precision are used.  Kingma et al. (2021), appendix A.
  """
  def at(t):
    return process(jnp.full(x.shape[:1], t, x.dtype))

  def transition(i):
    at_t, at_s = at(i / steps), at((i - 1) / steps)
    return lambda z: Normal(
        *processes.posterior(z, denoise(z, at_t, cond).x, at_t, at_s))
  return [transition(i) for i in range(1, steps + 1)]


def _levels(process, x, steps):
  return [process(jnp.full(x.shape[:1], i / steps, x.dtype)).expand(x) for i in range(steps + 1)]
