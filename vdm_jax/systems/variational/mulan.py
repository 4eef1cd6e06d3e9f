"""Learned adaptive noise (MuLAN): every number of every image has a noise schedule of its own.

A network q(h | x) infers a latent h, a k-hot vector, from the image.  The schedules logsnr_i(t; h),
one for each number x_i, and the denoiser depend on h.  With a prior p(h) that is uniform over the
k-hot vectors,

-log p(x) <= E_q(h|x)[bound of a VDM that is given h]  +  KL(q(h | x) || p(h)).
             reconstruction + latent + diffusion          auxiliary

Source: Sahoo, Gokaslan, De Sa and Kuleshov (2024), Diffusion Models With Learned Adaptive Noise.

How such schedules can help.  The diffusion term is a line integral over the vector of SNRs,

1/2 int sum_i (-dlogsnr_i/dt) E(eps_i - eps_hat_i)^2 dt = 1/2 int sum_i (-dSNR_i/dt) mmse_i dt.

If the denoiser is the posterior mean given h at each vector of levels, mmse_i is twice the
derivative of a mutual information by SNR_i (Guo, Shamai and Verdu 2005; Palomar and Verdu 2006).
Then the integrand is a gradient field, and the integral depends only on the ends of the path.  For
every other denoiser, the path matters.  An example is a denoiser that reads the mean of the levels,
and cannot know which levels are high.

A schedule may depend on x only through h.  Otherwise the levels could tell the denoiser more about
x than KL(q(h | x) || p(h)) counts, and the sum would be no bound.

q(h | x) ~ exp(logits . h) over all k-hot h is the conditional Bernoulli distribution (Chen,
Dempster and Liu 1994).  The draw and the KL are exact.  The gradient passes the draw through its
marginals (SIMPLE: Ahmed, Zeng, Niepert and Van den Broeck 2023).  So the gradient is biased, but
the bound is not.

The public code of MuLAN takes the k largest of perturbed logits instead, and passes the gradient
through the normalised logits.  It counts the KL of one softmax choice, which is at most log n.  But
a k-hot vector can carry log C(n, k).
"""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, denoisers, random, schedules, targets
from vdm_jax.errors import InputError
from vdm_jax.nn.small.mulan import Coefficients, LatentEncoder
from vdm_jax.objectives import vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Array, Decoder, Denoiser, Experiment, Level, Process, PyTree, Target
from vdm_jax.values import Bound, value

_LOG_0 = -1e9  # finite, so that no difference of two of them is undefined


# -------------------------------------------------------------- schedules


@value
class PolynomialSchedule:
  """logsnr(t) = max + (min - max) F(t) / F(1),  F(t) = int_0^t (a s^2 + b s + c)^2 ds.

  Sahoo et al. (2024).  a, b, c: [B, ...] give a schedule for each number of each of B examples,
  with the same ends.  logsnr decreases whatever the coefficients are.

  t: [B] or [] -> [B, ...]; with B = 1, t: [N] -> [N, ...].

  Raises ValueError unless there is one time, or one time for each example.
  """
  a: Array
  b: Array
  c: Array
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  def __call__(self, t: Array) -> Array:
    t = jnp.asarray(t)
    shape = jnp.shape(self.a)
    if t.ndim > 1 or t.ndim and shape[:1] not in ((), (1,), t.shape):
      raise ValueError(f't {t.shape}: give one time, or one for each of the {shape[0]} examples')
    t = t.reshape(t.shape + (1,) * (len(shape) - t.ndim))
    before = _area(t, self.a, self.b, self.c)
    # The rest, as the same polynomial in 1 - t: each vanishes at its end, so both ends are exact.
    after = _area(1.0 - t, self.a, -(2.0 * self.a + self.b), self.a + self.b + self.c)
    u = before / (before + after)
    return self.logsnr_max * (1.0 - u) + self.logsnr_min * u


def _area(t, a, b, c):
  """int_0^t (a s^2 + b s + c)^2 ds."""
  return t * (c * c + t * (b * c + t * ((b * b + 2.0 * a * c) / 3.0
                                        + t * (a * b / 2.0 + t * a * a / 5.0))))


def by_mean_logsnr(z: Array, level: Level) -> tuple[Array, Array]:
  """A view of the input for `denoisers.denoiser`: z, and the mean over the data of logsnr [B]."""
  logsnr = jnp.broadcast_to(level.expand(z).logsnr, z.shape)
  return z, jnp.mean(logsnr.reshape(z.shape[0], -1), axis=1)


# ----------------------------------------------------------- k-hot vectors


def _sums(logits, hot):
  """log e_j of the first m weights exp(logits), for m = 0 .. n - 1 [n, hot + 1], and for m = n.

  e_j is the elementary symmetric polynomial: the sum over all j-subsets of the product of weights.
  """
  def add(row, logit):
    with_it = logit + jnp.append(_LOG_0, row[:-1])
    # Not jnp.logaddexp: in a scan its second derivative is wrong where both are equal (JAX 0.10.2),
    # as all logits are when training begins.
    most = jax.lax.stop_gradient(jnp.maximum(row, with_it))
    return most + jnp.log(jnp.exp(row - most) + jnp.exp(with_it - most)), row
  nothing = jnp.where(jnp.arange(hot + 1) == 0, 0.0, _LOG_0).astype(logits.dtype)
  last, before = jax.lax.scan(add, nothing, logits)
  return before, last


def log_normaliser(logits: Array, hot: int) -> Array:
  """log sum_h exp(logits . h) over all h in {0, 1}^n with `hot` ones.  logits: [B, n] -> [B]."""
  return jax.vmap(lambda u: _sums(u, hot)[1][hot])(logits)


def marginals(logits: Array, hot: int) -> Array:
  """E[h] under q(h) ~ exp(logits . h), the gradient of `log_normaliser`: [B, n] -> [B, n]."""
  return jax.grad(lambda u: jnp.sum(log_normaliser(u, hot)))(logits)


def kl_to_uniform(logits: Array, hot: int) -> Array:
  """KL(q(h) || uniform over the k-hot vectors) = logits . E[h] - log Z + log C(n, k): nats [B].

  It is 0 where the logits are equal, and at most log C(n, k).
  """
  mean = jnp.sum(logits * marginals(logits, hot), axis=-1)
  return mean - log_normaliser(logits, hot) + math.log(math.comb(logits.shape[-1], hot))


def draw(keys: Array, logits: Array, hot: int) -> Array:
  """h ~ q(h) ~ exp(logits . h), exactly: zeros and `hot` ones [B, n].  Logits 0 give the prior.

  The entries are drawn from the last to the first, each with its probability given the number of
  ones that are left.
  """
  def one(key, logits):
    before, _ = _sums(logits, hot)
    def choose(left, xs):
      logit, row, u = xs
      with_it = logit + jnp.where(left > 0, row[jnp.maximum(left - 1, 0)], _LOG_0)
      taken = u < jax.nn.sigmoid(with_it - row[left])
      return left - taken, taken.astype(logits.dtype)
    u = random.unit(key, logits.shape)
    return jax.lax.scan(choose, jnp.asarray(hot), (logits, before, u), reverse=True)[1]
  return jax.vmap(one)(keys, logits)


def draw_straight_through(keys: Array, logits: Array, hot: int) -> Array:
  """`draw`, with the gradient of the marginals."""
  mean = marginals(logits, hot)
  return jax.lax.stop_gradient(draw(keys, logits, hot) - mean) + mean


# ------------------------------------------------------------------ bound

# Latents [B, n] -> what depends on them.
ConditionalDiffusion = Callable[[Array], tuple[Denoiser, Process]]


def bound(conditional: ConditionalDiffusion, logits: Array, hot: int, x: Array, t: Array,
          keys: Array, *, steps: int = 0, data: Array, decoder: Decoder
          ) -> tuple[Array, dict[str, Array]]:
  """One-draw estimate of the bound above: nats [B], and its terms.

  The terms are the terms of `vlb.continuous` and 'auxiliary'.

  logits: the logits of q(h | x), [B, n].  steps: T; 0 for continuous time.  The other arguments are
  as for `vlb.continuous`.
  """
  denoise, process = conditional(draw_straight_through(random.stream(keys, 'latent'), logits, hot))
  args = denoise, process, x, t, keys
  nats, terms = (vlb.discrete(*args, steps=steps, data=data, decoder=decoder) if steps
                 else vlb.continuous(*args, data=data, decoder=decoder))
  auxiliary = kl_to_uniform(logits, hot)
  return nats + auxiliary, {**terms, 'auxiliary': auxiliary}


# ------------------------------------------------------------- experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of MuLAN, as in the public configuration for CIFAR-10."""
  return vdm.default_config(**{
      'latent': 50, 'latent_hot': 15, 'schedule_features': 3072, 'encoder_features': 128,
      'encoder_blocks': 4, 'encoder_groups': 32} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               encoder: nn.Module | None = None, schedule: nn.Module | None = None,
               target: Target = targets.eps) -> Experiment:
  """A VDM with k-hot latents of `config.model.latent` numbers, `latent_hot` of them ones.

  Args:
    net: a network that takes latents [B, n] as its `cond` (`classes = n`), and the mean over the
      data of logsnr.
    encoder: x -> logits [B, n].
    schedule: latents -> (a, b, c) of `PolynomialSchedule`, whose ends are the config's.

  By default, the three networks are built from `config.model`.  Their parameters are 'net',
  'encoder' and 'schedule'.

  The `Model` has no denoiser until it is given latents.  For grids and pictures, its process has
  the mean over the pixels of logsnr, at the prior's mean.
  """
  m = config.model
  if m.class_conditional or config.data.augment:
    field = 'config.model.class_conditional' if m.class_conditional else 'config.data.augment'
    raise InputError(field, True, 'this network is conditioned on its latent only',
                     'set it to False')
  if not 0 < m.latent_hot < m.latent:
    raise InputError('config.model.latent_hot', m.latent_hot,
                     f'it must be in 1 .. {m.latent - 1}, below config.model.latent',
                     'give one of these')
  n, hot = m.latent, m.latent_hot
  shape = data.resolve(config.data).shape
  ends = compose.end_points(config)
  net = net or networks.unet(config).clone(classes=n)  # the latent is several labels at once
  if encoder is None:
    networks.require_groups(config, 'encoder_')
    encoder = LatentEncoder(n, m.encoder_features, m.encoder_blocks, m.encoder_groups, m.dropout,
                            networks.unet(config).fourier)
  schedule = schedule or Coefficients(shape, m.schedule_features)
  base = compose.experiment(config, net=net, schedule=schedules.Linear(*ends), target=target)

  def init(key):
    key_base, key_encoder, key_schedule = jax.random.split(key, 3)
    return {**base.init(key_base),
            'encoder': encoder.init(key_encoder, jnp.zeros((1, *shape)))['params'],
            'schedule': schedule.init(key_schedule, jnp.zeros((1, n)))['params']}

  def model(params, keys=None):
    on_latent = denoisers.denoiser(Bound(params['net'], net, keys), target, by_mean_logsnr)
    keys = None if keys is None else random.stream(keys, 'encoder')
    infer = Bound(params['encoder'], encoder, keys)
    coefficients = Bound(params['schedule'], schedule)
    at = lambda latent: PolynomialSchedule(*coefficients(latent), *ends)
    plain = base.model(params)

    def conditional(latent):
      denoise = lambda z, level, cond=None: on_latent(z, level, latent)
      return denoise, GaussianProcess(at(latent))

    def own_bound(batch, t, keys, steps=0):
      x = plain.encode(batch[plain.field])
      return bound(conditional, infer(x), hot, x, t, keys, steps=steps, data=batch[plain.field],
                   decoder=plain.decoder)

    def latent(keys):
      denoise, process = conditional(draw(keys, jnp.zeros((keys.shape[0], n)), hot))
      return plain._replace(denoise=denoise, process=process)

    def mean_logsnr(t):
      t = jnp.asarray(t)
      logsnr = at(jnp.full((1, n), hot / n))(t.reshape(-1))
      return jnp.mean(logsnr.reshape(t.size, -1), axis=1).reshape(t.shape)

    return plain._replace(denoise=_without_latent, process=GaussianProcess(mean_logsnr),
                          bound=own_bound, latent=latent)

  return base._replace(init=init, model=model,
                       loss=compose.bound_loss(model, shape, config.model.timesteps))


def _without_latent(z: Array, level: Level, cond: PyTree = None):
  raise InputError(problem='this denoiser needs a latent for each image',
                   remedy='use `model.bound`, or `model.latent(keys)`, the model for latents '
                   'drawn from the prior')


__all__ = ['ConditionalDiffusion', 'PolynomialSchedule', 'bound', 'by_mean_logsnr',
           'default_config', 'draw', 'draw_straight_through', 'experiment', 'kl_to_uniform',
           'log_normaliser', 'marginals']
