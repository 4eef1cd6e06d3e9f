"""Variational autoencoders of images: of one layer of latents, of several, and of a Markov chain.

The bounds come from `objectives.variational`, and the networks are perceptrons.  p(pixel | z) is a
normal distribution that is cut into the levels of the data (`DiscretisedNormal`), with learned mean
and width.  A run gives a `VAE`, not a `Model`, because it has no denoiser.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, random
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.nn.blocks.layers import Dropout
from vdm_jax.objectives import variational
from vdm_jax.objectives.variational import Joint, Normal
from vdm_jax.systems import compose
from vdm_jax.systems.compose import IN_NATS, require
from vdm_jax.typing import Array, Experiment, PyTree, brief
from vdm_jax.units import bits_per_dim


class VAE(NamedTuple):
  """A trained autoencoder, which draws samples and bounds the likelihood.

  Latents are a tuple (z_L, ..., z_1), [B, n] each.  Data are integers.
  """
  encode: Callable[[Array, Array], tuple]  # data [B, ...], keys [B] -> latents, a draw of q
  decode: Callable[[tuple], Array]         # latents -> the data nearest to the mean, [B, ...]
  sample: Callable[..., Array]             # keys [B], or key, n -> data [B, ...]
  bound: Callable[[Array, Array], tuple[Array, dict]]  # data, keys -> nats [B], {term: [B]}
  shape: tuple[int, ...]                   # of one image
  levels: int
  field: str = 'image'                     # which field of a batch is the data

  def nats(self, batch: PyTree, *, key: Array) -> Array:
    """One draw of the bound on -log p of each image: nats [B]."""
    images = batch[self.field]
    return self.bound(images, random.each(key, len(images)))[0]

  def __repr__(self) -> str:
    return brief(self)


class Heads(nn.Module):
  """A perceptron of two hidden layers with two heads: [B, n] -> (mean, std > 0), [B, size] each."""
  features: int
  size: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h: Array, keys: Array | None = None) -> tuple[Array, Array]:
    for i in range(2):
      h = nn.swish(nn.Dense(self.features, name=f'dense_{i}')(h))
      h = Dropout(self.dropout, name=f'dropout_{i}')(h, keys)
    mean, width = jnp.split(nn.Dense(2 * self.size, name='heads')(h), 2, axis=-1)
    return mean, nn.softplus(width) + 1e-3  # no density without limit


class Parts(NamedTuple):
  """The functions of a kind of autoencoder; nets: name, inputs [B, n] -> the network's `Normal`."""
  objective: Callable  # nets, params, x [B, D], keys, data, decoder -> nats [B], {term: [B]}
  encode: Callable     # nets, params, x [B, D], keys -> latents
  generate: Callable   # nets, keys -> latents
  decode: Callable     # nets, latents -> Normal of x [B, D]


def default_config(**model) -> ml_collections.ConfigDict:
  return compose.default_config(**{
      'features': 256,   # of the hidden layers of every network
      'latents': (16,),  # dimensions of z_L, ..., z_1
      'dropout': 0.1,
      'beta': 1.0,       # of the latent term in the loss, not in bits_per_dim
  } | model)


def hierarchical(config: ml_collections.ConfigDict) -> Experiment:
  """An autoencoder of L = len(latents) layers, inferred from the top down.  L = 1 is the VAE.

  The loss is the -ELBO of `variational.hierarchical` in bits/dim.  Its terms are 'bits_per_dim',
  'reconstruction', 'latent', and a term for each layer.  `Experiment.model` gives a `VAE`.

  Raises InputError for wrong latents, or for a negative beta.
  """
  sizes, beta = tuple(config.model.latents), config.model.beta
  names = [f'z_{len(sizes) - i}' for i in range(len(sizes))]

  def encoder(nets, x):
    return [lambda above, name=name: nets(f'q_{name}', x, *above) for name in names]

  def prior(nets, like):
    top = lambda _: _standard(like, sizes[0])
    return [top, *(lambda above, name=name: nets(f'p_{name}', *above) for name in names[1:])]

  def objective(nets, params, x, keys, data, decoder):
    return variational.hierarchical(data, keys, encoder=encoder(nets, x), decoder=decoder,
                                    prior=prior(nets, x), divergence=variational.gaussian_kl,
                                    beta=beta)

  parts = Parts(objective,
                encode=lambda nets, params, x, keys: Joint(encoder(nets, x)).sample(keys),
                generate=lambda nets, keys: Joint(prior(nets, keys)).sample(keys),
                decode=lambda nets, latents: nets('p_x', *latents))
  dims = math.prod(data.resolve(config.data).shape)
  shapes = {f'q_{name}': (dims + sum(sizes[:i]), sizes[i]) for i, name in enumerate(names)}
  shapes |= {f'p_{name}': (sum(sizes[:i]), sizes[i]) for i, name in enumerate(names) if i}
  return _experiment(config, shapes | {'p_x': (sum(sizes), dims)}, parts)


def markovian(config: ml_collections.ConfigDict) -> Experiment:
  """An autoencoder of L = len(latents) layers, whose latents form a Markov chain.

  q(z_1 | x) and p(z_{l-1} | z_l) are networks.  q(z_l | z_{l-1}) = N(sqrt(1 - b) z_{l-1}, b) has a
  learned b for each layer and dimension.  So the model is a diffusion of the latents of a VAE, with
  one noise schedule for each dimension and one network for each step.

  The loss is the -ELBO of `variational.markovian` in bits/dim.  Its terms are 'bits_per_dim',
  'reconstruction', 'latent', 'diffusion', and a term for each transition.  `Experiment.model` gives
  a `VAE`.

  Raises InputError for wrong latents, latents of different sizes, or a beta other than 1, because
  this bound has no beta.
  """
  sizes = tuple(config.model.latents)
  require(config, 'latents', len(set(sizes)) == 1,
          'the latents of a Markov chain all have one size', 'give equal sizes')
  require(config, 'beta', config.model.beta == 1.0, 'the Markovian bound has no beta',
          'set it to 1.0')
  steps = range(2, len(sizes) + 1)

  def chain(nets, params, x):
    rates = params['chain']
    return variational.gaussian_chain(nets('q_z_1', x), jnp.sqrt(jax.nn.sigmoid(-rates)),
                                      jnp.sqrt(jax.nn.sigmoid(rates)))

  def generator(nets):
    return [lambda z, l=l: nets(f'p_z_{l - 1}', z) for l in steps]

  def objective(nets, params, x, keys, data, decoder):
    return variational.markovian(
        data, keys, encoder=chain(nets, params, x), decoder=lambda data, z: decoder(data, (z,)),
        prior=_standard(x, sizes[0]), generator=generator(nets))

  def generate(nets, keys):
    down = [lambda above, p=p: p(above[-1]) for p in reversed(generator(nets))]
    return Joint([lambda _: _standard(keys, sizes[0]), *down]).sample(keys)

  parts = Parts(objective, generate=generate,
                encode=lambda nets, params, x, keys: tuple(
                    chain(nets, params, x).sample(keys)[::-1]),
                decode=lambda nets, latents: nets('p_x', latents[-1]))
  dims = math.prod(data.resolve(config.data).shape)
  shapes = {'q_z_1': (dims, sizes[0]), 'p_x': (sizes[0], dims)}
  shapes |= {f'p_z_{l - 1}': (sizes[0], sizes[0]) for l in steps}
  return _experiment(config, shapes, parts, {'chain': jnp.zeros((len(sizes) - 1, sizes[0]))})


def _standard(like, size):
  zeros = jnp.zeros((len(like), size))
  return Normal(zeros, jnp.ones_like(zeros))


def _experiment(config, shapes, parts, more=None):
  """shapes: {name of a network: (inputs, outputs)}; more: further initial parameters.

  Raises InputError for no latents, for latents without dimensions, or for a negative beta.
  """
  spec, m = data.resolve(config.data), config.model
  require(config, 'latents', len(m.latents) > 0 and min(m.latents) > 0,
          'it must list the dimensions of z_L, ..., z_1', 'give one or more, each positive')
  require(config, 'beta', m.beta >= 0.0, 'it is negative', 'give 0 or more')
  modules = {name: Heads(m.features, size, m.dropout) for name, (_, size) in shapes.items()}
  pixels, decoder = Pixels(spec.levels), DiscretisedNormal(spec.levels)
  flat = lambda images: pixels.encode(images).reshape(len(images), -1)
  image = lambda x: x.reshape(len(x), *spec.shape)

  def init(key):
    keys = dict(zip(modules, jax.random.split(key, len(modules)), strict=True))
    return {'net': {**(more or {}), **{
        name: module.init(keys[name], jnp.zeros((1, shapes[name][0])))['params']
        for name, module in modules.items()}}}

  def bound_nets(params, keys=None):
    def nets(name, *inputs):
      own = None if keys is None else random.stream(keys, name)  # masks of its own
      return Normal(*modules[name].apply({'params': params['net'][name]},
                                         jnp.concatenate(inputs, axis=-1), own))
    return nets

  def objective(params, images, keys, nets):
    def log_prob(images, latents):
      x = parts.decode(nets, latents)
      return decoder.log_prob(images, image(x.mean), image(x.std))
    nats, terms = parts.objective(nets, params['net'], flat(images), keys, images, log_prob)
    bound = sum(u for name, u in terms.items() if name in IN_NATS)
    return nats, bound, terms

  def loss(params, batch, context):
    nats, bound, terms = objective(params, batch[spec.x.name], context.keys,
                                   bound_nets(params, compose.dropout_keys(context)))
    bits = lambda u: bits_per_dim(u, spec.shape)
    return bits(nats), jax.tree.map(bits, {'bits_per_dim': bound, **terms})

  def model(params, keys=None):
    nets = bound_nets(params, keys)

    def sample(key, n=None):
      keys = random.each(key, n)
      x = parts.decode(nets, parts.generate(nets, keys))
      return pixels.decode(image(x.sample(random.stream(keys, 'x'))))

    return VAE(
        encode=lambda images, keys: parts.encode(nets, params['net'], flat(images), keys),
        decode=lambda latents: pixels.decode(image(parts.decode(nets, latents).mean)),
        sample=sample, bound=lambda images, keys: objective(params, images, keys, nets)[1:],
        shape=spec.shape, levels=spec.levels, field=spec.x.name)

  return compose.assemble(config, init=init, loss=loss, model=model)
