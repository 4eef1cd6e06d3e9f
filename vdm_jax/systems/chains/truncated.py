"""The first steps of a DDPM chain, and a prior for their end: a generator or a Gaussian.

Zheng, He, Chen and Zhou (2023).  The model makes only the first `config.model.truncated_at` = T' of
the chain's T steps.  The network that denoises in these steps is also the generator: given the
number of the step after them, the network turns noise into z_T'.  There are three losses, each with
its own optimiser: L_simple over the T' steps, the loss of the generator, and the loss of the
discriminator, with R1 in some of the steps.

The prior of a generator is implicit and has no density, so the model has no likelihood.  With a
Gaussian prior, the model has a likelihood.  The mean and the standard deviations of the Gaussian
are parameters.  The bound has the divergence from this Gaussian in place of the divergence from
N(0, 1).

Validation also reports 'prior_energy', the energy distance between draws of the prior and z_T' of
the data, by which the two kinds of prior can be compared.  The estimate uses pairs of neighbouring
examples, so it is too large if the split is sorted by its contents.

The public code trains the prior at the step after T', and samples from that prior in step T'.  Here
both use step T'.  The public code has R1 with gamma 0.01 in every 16th step, which is 0.01 / 16
here.
"""
import functools

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, inputs, random
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.nn.small.discriminator import Discriminator
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.objectives import adversarial, ddpm, truncated_dpm, vlb
from vdm_jax.objectives.variational import Normal
from vdm_jax.processes import Scaled
from vdm_jax.processes import vp as curve_vp
from vdm_jax.systems import compose, networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.train import optimizer, step
from vdm_jax.typing import Array, Experiment, Level, PyTree
from vdm_jax.units import bits_per_dim, sum_of_terms
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a truncated chain, with the published rates of generator and discriminator."""
  return chain.unet_config(**{
      'truncated_at': 100,                   # T', of `timesteps`
      'generator_learning_rate': 2e-5,       # both with b1 = 0
      'discriminator_learning_rate': 2.5e-3,
      'r1': 0.01 / 16,                       # gamma
      'r1_every': 16,                        # steps
      'discriminator_features': 128,
      'discriminator_layers': 3,
  } | model)


def points(config: ml_collections.ConfigDict) -> MLP:
  """The perceptron of points, which reads the number of the step, 0 to `timesteps`."""
  return networks.mlp(config, ends=(0.0, float(config.model.timesteps)))


def _check(config: ml_collections.ConfigDict) -> None:
  m = config.model
  compose.require(config, 'truncated_at', 2 <= m.truncated_at < m.timesteps,
                  f'it does not truncate a chain of {m.timesteps} steps',
                  f'give a number from 2 to {m.timesteps - 1}')
  compose.require(config, 'class_conditional', not m.class_conditional,
                  'the prior does not read labels', 'set it to False')
  compose.require(config, 'variances', not m.variances, 'this loss does not train variances',
                  'set it to False')


def _first_steps(config: ml_collections.ConfigDict, net: nn.Module) -> Experiment:
  """L_simple of the first T' steps alone, on a process that ends with them."""
  _check(config)
  m, to_ends = config.model, Pixels(data.resolve(config.data).levels).to_ends
  whole = chain.table(config, to_ends)
  base = compose.experiment(
      config, net=net, schedule=whole.respaced(jnp.arange(m.truncated_at + 1)),
      curve=Scaled(curve_vp, to_ends), inputs=inputs.chain(whole), condition=None,
      objective=functools.partial(ddpm.simple, steps=m.truncated_at))

  def model(params, keys=None):
    of = base.model(params, keys)
    return of._replace(denoise=chain.within(config, of.denoise), clips=m.clip,
                       steps=m.truncated_at)

  return base._replace(model=model)


def _end(experiment: Experiment, params, n: int) -> Level:
  """The level of z_T', for n examples."""
  return experiment.model(params).process(jnp.ones(n))


def _distance(model, batch: PyTree, keys: Array) -> dict[str, Array]:
  """{'prior_energy': [B]}: the energy distance between a prior and z_T' of the data.

  model: a `Model` with the prior.
  """
  x = model.encode(batch[model.field])
  real = truncated_dpm.truth(x, model.process(jnp.ones(len(x))), keys)
  fake, other = (model.prior(random.stream(keys, name), real) for name in ('prior', 'prior_again'))
  return {'prior_energy': truncated_dpm.energy_distance(fake, other, real)}


# ------------------------------------------------------------- a generator


def adversarial_prior(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
                      judge: nn.Module | None = None) -> Experiment:
  """A truncated chain whose prior is a generator: the network of the chain itself.

  net: (z, step, None, keys) -> output, by default `chains.ddpm.unet`.  judge: z -> logits [B], by
  default `Discriminator`; its parameters are params['discriminator'].

  Raises InputError unless 2 <= T' < T, and for labels or learned variances.
  """
  m, net = config.model, net or chain.unet(config)
  judge = judge or Discriminator(m.discriminator_features, m.discriminator_layers)
  base = _first_steps(config, net)
  shape = data.resolve(config.data).x.shape

  def init(key):
    return {**base.init(key), 'discriminator': judge.init(
        jax.random.fold_in(key, 1), jnp.zeros((1, *shape)))['params']}

  def generate(params, keys: Array, like: Array, dropout: Array | None = None) -> Array:
    """z_T' drawn with these keys [n], in the shape of `like`."""
    after = jnp.full(like.shape[:1], float(m.truncated_at))  # counted from 0, as the network reads
    z = random.normal(random.stream(keys, 'z_1'), like)
    return Bound(params['net'], net, dropout)(z, after, None)

  def model(params, keys=None):
    return base.model(params, keys)._replace(prior=functools.partial(generate, params))

  def loss(params, batch, context):
    losses, terms = base.loss(params, batch, context)
    if not context.train:
      terms = terms | _distance(model(params), batch, context.keys)
    return losses, terms

  def of_generator(params, batch, context):
    like = jnp.zeros((len(context.t), *shape))
    fake = generate(params, random.stream(context.keys, 'generator'), like,
                    compose.dropout_keys(context))
    return adversarial.generator(Bound(params['discriminator'], judge), fake), {}

  def of_discriminator(params, batch, context):
    own = base.model(params)
    x = own.encode(batch[own.field])
    real = truncated_dpm.truth(x, _end(base, params, len(x)), context.keys)
    fake = generate(params, random.stream(context.keys, 'discriminator'), real)
    of = Bound(params['discriminator'], judge)
    losses, terms = adversarial.discriminator(of, real, fake)
    terms['r1'] = adversarial.lazy_r1(of, real, context.step, gamma=m.r1, every=m.r1_every)
    return losses + terms['r1'], terms

  def adam(rate: float):
    own = config.optimizer.copy_and_resolve_references()
    own.update(learning_rate=rate, b1=0.0, weight_decay=0.0)
    return optimizer.named(own)

  players = {
      'denoiser': step.Player(base.loss, base.tx, ('net',)),
      'generator': step.Player(of_generator, adam(m.generator_learning_rate), ('net',)),
      'discriminator': step.Player(of_discriminator, adam(m.discriminator_learning_rate),
                                   ('discriminator',))}
  return base._replace(init=init, model=model, loss=loss, tx=step.optimisers(players),
                       update=step.players(players, base.ema))


# --------------------------------------------------------------- a Gaussian


def gaussian_prior(config: ml_collections.ConfigDict, *, net: nn.Module | None = None
                   ) -> Experiment:
  """A truncated chain whose prior is a Gaussian of independent dimensions, fitted in training.

  The Gaussian's parameters are params['prior']; it begins as N(0, 1).  Their loss is the divergence
  from q(z_T' | x), which is least at the mean and the variance of z_T'.  Validation also reports
  the model's own bound, of the chain with the smaller variance (`vlb.fixed_small`).

  Arguments and errors are as in `adversarial_prior`.
  """
  m = config.model
  base = _first_steps(config, net or chain.unet(config))
  spec = data.resolve(config.data)
  last = DiscretisedNormal(spec.levels).log_prob

  def init(key):
    zeros = jnp.zeros(spec.x.shape)
    return {**base.init(key), 'prior': {'mean': zeros, 'log_std': zeros}}

  def prior(params, n: int) -> Normal:
    each = lambda u: jnp.broadcast_to(u, (n, *u.shape))
    own = params['prior']
    return Normal(each(own['mean']), jnp.exp(each(own['log_std'])))

  def latent(params, x: Array) -> Array:
    return truncated_dpm.latent(x, _end(base, params, len(x)), prior(params, len(x)))

  def model(params, keys=None):
    own = base.model(params, keys)

    def bound(batch, t, keys, steps):
      compose.require(config, 'truncated_at', steps == m.truncated_at,
                      f'the bound of this model has this number of steps, not {steps}',
                      f'ask for vlb@{m.truncated_at}')
      images, cond = batch[own.field], own.cond(batch)
      x = own.encode(images)
      kernel = {'steps': steps, 'data': images, 'last': last}
      first = vlb.first_step(own.denoise, own.process, x, keys, cond, **kernel)
      _, terms = vlb.discrete(own.denoise, own.process, x, t, keys, cond, **kernel, decoder=None,
                              first=first)
      terms['latent'] = latent(params, x)
      return sum_of_terms(terms), terms

    def sample(keys, like):
      return prior(params, len(keys)).sample(random.stream(keys, 'z_1'))

    return own._replace(bound=bound, prior=sample)

  def loss(params, batch, context):
    losses, terms = base.loss(params, batch, context)
    own = model(params)
    of_prior = bits_per_dim(latent(params, own.encode(batch[own.field])), spec.x.shape)
    terms = {**terms, 'latent': of_prior}
    if not context.train:
      nats, parts = own.bound(batch, context.t, context.keys, m.truncated_at)
      terms |= {name: bits_per_dim(u, spec.x.shape)
                for name, u in {**parts, 'bits_per_dim': nats}.items()}
      terms |= _distance(own, batch, context.keys)
    return losses + of_prior, terms

  return base._replace(init=init, model=model, loss=loss)
