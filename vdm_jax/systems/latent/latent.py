"""Latent diffusion, the second stage: a diffusion model of the latents of a trained autoencoder.

Rombach et al. (2022), section 3.2, eq. 2.  The model of z = s y is any system of real data; y are
the latents of an autoencoder that is trained no more (`systems.latent.autoencoder`).  s is 1 over
the standard deviation of the latents of a first batch (their appendix G).  Without s, the noise of
t = 1 does not hide y.

With y ~ q(y | x), the encoder's draw, and the decoder's p(x | y),

  -log P(x) <= E[-log p(x | y)] + E[log q(z | x)] + the bound on -log p(z) of the diffusion
               decoding           encoding          reconstruction + latent + diffusion

where log q(z | x) = log q(y | x) - D log s, for D numbers of y.  So the terms of a latent model add
up to a bound on the probability of the images, in bits per dimension of the images.  The gradient
of the bound by the diffusion model is the gradient of its last part alone.

Training may read the moments of q(y | x) in the place of x (config.data.latents).  It draws y from
them by the same keys, so its losses are the same to rounding.  Validation and all commands read x.

A codebook's encoder gives an image a vector h at each position, and the index k of the vector e_k
that is nearest to h.  The decoder sees e_k alone.  So the latents of an image are its indices, and
they are discrete.  The bound treats them as `vdm` treats pixels, with the entries s e_k of the
codebook in the place of levels,

  p(k | z_0) proportional to N(z_0; alpha_0 s e_k, sigma_0^2)         `decoders.Codebook`
  -log P(x) <= -log p(x | k) + the bound on -log P(k) of the diffusion
               decoding        reconstruction + latent + diffusion

of vectors z = s e_k.  This bound holds for every network and every noise.  Under equal odds of all
entries, -log P(k) is log(entries) at each position.  An encoding term, and so -D log s, is absent:
k is a function of x.

Two things can be diffused in training (`config.model.quantised`).  Rombach et al. (2022) diffuse
h, and the decoder rounds what is drawn to the nearest e_k.  The likelihood is that of e_k in both
cases.  But a network that was trained on h does not know the codebook, and its bound is loose.  To
measure a likelihood, diffuse e_k.

If y is a function of x without a codebook, it has no law, and the model draws images but has no
likelihood.

The parameters are params['autoencoder'], params['scale'] and those of the system.  The optimiser
moves the latter alone.
"""
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, decoders, random
from vdm_jax.data import fields
from vdm_jax.data.latents import LOG_VARIANCE, MEAN
from vdm_jax.errors import InputError, renamed, require
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.objectives import vlb
from vdm_jax.systems import compose
from vdm_jax.systems.latent import autoencoder as autoencoders
from vdm_jax.systems.latent.autoencoder import Autoencoder
from vdm_jax.train import step
from vdm_jax.typing import Array, Experiment, Model, PyTree, Schedule, denoises
from vdm_jax.units import bits_per_dim, sum_of_terms

_NO_INDICES = ('this system bounds a density of the latents, and the latents of a codebook are '
               'discrete, so the model has no likelihood')
_NO_DENSITY = ('the latents of this autoencoder are a function of the data, without a density, so '
               'the model has no likelihood')


def add(config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict | None = None
        ) -> ml_collections.ConfigDict:
  """`config`, the config of a system, with the fields of an autoencoder beside it.

  settings: `config.model` of the autoencoder, such as `autoencoder.default_config().model`, which
  is the default.  A new run replaces these by the settings of the run that it names.
  """
  own: Any = autoencoders.default_config().model if settings is None else settings
  with config.unlocked():
    config.model.autoencoder = ''  # the run of the autoencoder that a new run takes
    config.model.scale = 0.0       # s; 0: measured on the first batch
    config.model.quantised = False  # whether the vectors of a codebook are diffused, or h before it
    config.autoencoder = {
        'sha256': '',              # of its parameters, when the run began
        'model': own.copy_and_resolve_references()}
  return config.lock()


def default_config(settings: ml_collections.ConfigDict | None = None, **model
                   ) -> ml_collections.ConfigDict:
  """The fields of a diffusion of latents whose network is the config's own; settings: see `add`."""
  return add(compose.default_config(**{
      'class_conditional': False,
      'logsnr_max': 13.3,    # of a schedule with fixed ends, for latents of standard deviation 1
      'logsnr_min': -5.0,
      'timesteps': 0,        # T of the bound that is trained; 0: continuous time
  } | model), settings)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: nn.Module | Schedule,
               autoencoder: nn.Module | None = None, **options) -> Experiment:
  """`compose.experiment` of the latents, with this network of latents and this schedule.

  autoencoder: see `of`.  options: further arguments of `compose.experiment`, such as `target`,
  `objective`, `inputs` and `heads`.
  """
  return of(config, lambda inner: compose.experiment(inner, net=net, schedule=schedule, **options),
            autoencoder=autoencoder)


def of(config: ml_collections.ConfigDict, build: Callable[[ml_collections.ConfigDict], Experiment],
       *, autoencoder: nn.Module | None = None,
       change: Callable[[PyTree, Array], PyTree] | None = None) -> Experiment:
  """The experiment that `build` makes of latents, between the data and an autoencoder's.

  The loss is the system's own loss of z, the latents of the data.  Its parts of a bound are
  reported in bits per dimension of the data.  Validation adds 'decoding' and 'encoding', and their
  sum, 'bits_per_dim'.  With a codebook, all parts of the bound are those of the indices.  Only
  validation reports them, and only if the vectors are diffused.  The ledger has them in any case.
  `Experiment.model` gives the system's `Model`, which encodes data as z and decodes z as data.

  Args:
    build: the system, a function from a config to an experiment.  The data of that config are real
      numbers of the shape of the latents.  Its other fields, and the other fields of the data, are
      those of `config`.
    autoencoder: as the argument `net` of `autoencoder.of`.  Default: the network of the settings
      config.autoencoder.model.
    change: (batch, keys) -> batch, what training does to a batch of data before it is encoded.

  Raises InputError for images that the autoencoder cannot halve so often, for a scale below 0, and
  for a system that makes its own steps, or no `Model`.  Raises InputError also if vectors of a
  codebook are to be diffused, and there is no codebook, or the schedule is learned.
  """
  compose.require(config, 'scale', 0.0 <= config.model.scale < math.inf, 'it is no factor',
                  'give a number above 0, or 0 to measure it on the first batch')
  spec = data.resolve(config.data)
  x = spec.x
  net = autoencoder or autoencoders.network(config.autoencoder.model, x.shape[-1])
  with renamed({'groups': 'config.autoencoder.model.groups'}):
    shape = autoencoders.latent_shape(net, x)
  base = build(_of_latents(config, spec, shape))
  require(base.update is None, None, None, 'this system makes its own steps, and latents need the '
          'usual ones', 'take another system')
  made = _made(base)
  require(denoises(made), None, None, f'this system makes a {type(made).__name__}, and latents need'
          ' a model that denoises', 'take another system')
  begins_at_data, names = _begins_at_data(made), _names(base)
  share = math.prod(shape) / math.prod(x.shape)  # bits per number of y -> bits per number of x
  has_codebook = autoencoders.quantises(net)
  quantised = config.model.get('quantised', False)  # runs before it had that field
  if quantised:
    compose.require(config, 'quantised', has_codebook, 'this autoencoder has no codebook',
                    'leave it out, or name a run of the VQ kind')
    compose.require(config, 'quantised', 'schedule' not in names, 'the end of a learned schedule '
                    'has no optimum where latents are discrete', 'leave it out, or take a fixed '
                    'schedule')

  def stage(params) -> Autoencoder:
    a = autoencoders.of(net, params['autoencoder'], x, shape)
    return a.of_vectors() if quantised else a

  random_latents = jax.eval_shape(lambda: autoencoders.of(
      net, autoencoders.init(net, x, random.key(0)), x, shape).encode(
          jnp.zeros((1, *x.shape), x.dtype)))[1] is not None

  def init(key):
    return {**base.init(key), 'autoencoder': autoencoders.init(net, x, jax.random.fold_in(key, 2)),
            'scale': jnp.ones(())}

  def encoded(own, batch) -> tuple[Array, Array | None]:
    """m and log v of q(y | x), which a batch of latents has already; own: the autoencoder."""
    if MEAN not in batch:
      return own.encode(batch[x.name])
    mean = batch[MEAN]  # of a codebook's encoder, h
    return own.vectors(mean) if quantised else mean, batch.get(LOG_VARIANCE)

  def draw(params, batch, keys) -> tuple[Array, Array, Array | None]:
    """y and z = s y, with log q(z | x), which is None if z has no density."""
    y, log_q = autoencoders.drawn(*encoded(stage(params), batch), keys)
    s = params['scale']
    return y, s * y, None if log_q is None else log_q - math.prod(shape) * jnp.log(s)

  def loss(params, batch, context):
    if change is not None and context.train:
      batch = change(batch, context.keys)
    y, z, log_q = draw(params, batch, context.keys)
    losses, terms = base.loss(params, {**batch, x.name: z}, context)
    inner = base.model(params)
    in_bits = {'bits_per_dim', *compose.IN_NATS}
    if inner.bound is not None:  # whose further parts have names of the system's own
      own = lambda: inner.bound({**batch, x.name: z}, context.t, context.keys, inner.steps)[1]
      in_bits |= jax.eval_shape(own).keys()
    terms = {name: share * u if name in in_bits else u for name, u in terms.items()}
    bound = terms.pop('bits_per_dim', None)
    bits = lambda nats: bits_per_dim(nats, x.shape)
    if has_codebook:  # the terms of a bound are those of a density
      parts = {} if context.train or not quantised else of_indices(
          params, batch, context, terms.get('diffusion'))
      return losses, {name: u for name, u in terms.items()
                      if name not in compose.IN_NATS} | parts
    if log_q is None:
      return losses, terms
    terms['encoding'] = bits(log_q)
    if not context.train:  # a call of the decoder, which no gradient needs
      terms['decoding'] = bits(-stage(params).log_prob(batch[x.name], y))
      if bound is not None:
        terms['bits_per_dim'] = bound + terms['decoding'] + terms['encoding']
    return losses, terms

  def of_indices(params, batch, context, diffusion: Array | None) -> dict[str, Array]:
    """The bound of the indices and its parts, in bits; {} if the model has no likelihood.

    diffusion: this part in bits, if the loss has it.  Both are of the same vectors and noise, so
    the network need not be called again, unless the bound also has a first step to the data.
    """
    of, t, keys = model(params), context.t, context.keys
    if of.bound is None or begins_at_data and not of.steps:
      return {}
    bits = lambda parts: {name: bits_per_dim(u, x.shape) for name, u in parts.items()}
    if diffusion is None or begins_at_data or of.inner is None or of.enter is None:
      nats, parts = of.bound(batch, t, keys, of.steps)
      return bits({'bits_per_dim': nats, **parts})
    inside, own = of.enter(batch, keys)
    index, inner = inside[x.name], of.inner
    z = inner.encode(index)
    ends = vlb.end_terms(inner.process, z, z, t, keys, index, inner.decoder, None)
    parts = {**bits(own | ends), 'diffusion': diffusion}
    return {'bits_per_dim': sum_of_terms(parts), **parts}

  def model(params, keys=None):
    drawn = lambda images, keys: draw(params, {x.name: images}, keys)
    return _of_data(base.model(params, keys), stage(params), params['scale'],
                    drawn if random_latents else None, begins_at_data)

  def first_stage(params, trained, batch):
    """The parameters with the autoencoder `trained`, and with s of these data."""
    own = {'autoencoder': {name: trained[name] for name in params['autoencoder']}}
    params = params | jax.tree.map(jnp.asarray, own)
    if config.model.scale:
      return params | {'scale': jnp.float32(config.model.scale)}
    keys = random.per_example(random.key(config.seed), jnp.arange(len(jax.tree.leaves(batch)[0])))
    y = jax.jit(lambda own, batch: autoencoders.drawn(*encoded(stage(own), batch), keys)[0])(
        own, batch)
    std = np.std(np.asarray(y, np.float64))
    require(bool(np.isfinite(std) and std > 0.0), 'config.model.autoencoder',
            config.model.autoencoder, f'the standard deviation of its latents is {std:g}',
            'name the run of another autoencoder')
    return params | {'scale': jnp.float32(1.0 / std)}

  players = {'net': step.Player(loss, base.tx, names)}
  play = step.players(players, base.ema)

  def update(state, batch, key, axis, accumulate: int = 1):
    """The step of the only player, with the usual names of the metrics."""
    state, metrics = play(state, batch, key, axis, accumulate=accumulate)
    return state, {name.removeprefix('net_'): u for name, u in metrics.items()}

  return base._replace(init=init, loss=loss, model=model, data=data.Data(config.data),
                       tx=step.optimisers(players), update=update, first_stage=first_stage,
                       adds=(*base.adds, 'autoencoder', 'scale') if base.adds else ())


def _of_data(m: Model, a: Autoencoder, s: Array, draw: Callable | None, begins_at_data: bool
             ) -> Model:
  """The model `m` of latents z = s y as a model of the data of an autoencoder.

  draw: (data, keys) -> y, z and log q(z | data); None: q has no density.
  """
  def decoder(images, z, level):
    return a.log_prob(images, z / (s * level.expand(z).alpha))

  given = m.latent
  made = m._replace(
      encode=lambda images: s * a.encode(images)[0], decode=lambda z: a.decode(z / s),
      decode_tiled=None if a.odds is not None else (
          lambda z, tile, overlap: a.in_tiles(tile, overlap).decode(z / s)),
      decoder=decoder, data_space=False, latent=None if given is None else (
          lambda keys: _of_data(given(keys), a, s, draw, begins_at_data)))
  if draw is None and (a.codebook is None or m.bound is not None):
    return made._replace(bound=None, dequantise=None,
                         no_likelihood=_NO_DENSITY if a.codebook is None else _NO_INDICES)
  if m.prior is not None and m.bound is None:  # nobody knows the density of its z_1
    return made._replace(dequantise=None)

  inner, enter, dequantise = _of_indices(m, a, s) if draw is None else _of_draws(m, a, draw)
  of_latents: Callable = m.bound or functools.partial(_bound, inner, begins_at_data)
  if m.bound is None:
    inner = inner._replace(bound=of_latents)
    if begins_at_data:  # see `_bound`
      calls = {'bound_variance': 'published', 'bound_evaluations': 2}
      made, inner = made._replace(**calls), inner._replace(**calls)
    made = made._replace(inner=inner, enter=enter)

  def bound(batch, t, keys, steps=0):
    batch, own = enter(batch, keys)
    nats, terms = of_latents(batch, t, keys, steps)
    return nats + sum_of_terms(own), own | terms

  if draw is None:
    codebook: Any = a.codebook
    index_nats = math.prod(m.shape[:-1]) * math.log(len(codebook))
    return made._replace(bound=bound, dequantise=None, index_nats=index_nats)
  # A system with a bound of its own may have no flow of that bound.
  flows = m.bound is None or m.dequantise is not None
  return made._replace(bound=bound, dequantise=dequantise if flows else None)


def _of_draws(m: Model, a: Autoencoder, draw: Callable) -> tuple[Model, Callable, Callable]:
  """The model of z, what enters it, and a dequantiser, of an encoder with a density."""
  def enter(batch, keys):
    y, z, log_q = draw(batch[m.field], keys)
    return {**batch, m.field: z}, {'decoding': -a.log_prob(batch[m.field], y), 'encoding': log_q}

  def dequantise(images, keys):
    y, z, log_q = draw(images, keys)
    return z, log_q - a.log_prob(images, y)
  return m, enter, dequantise


def _of_indices(m: Model, a: Autoencoder, s: Array) -> tuple[Model, Callable, None]:
  """The model of the indices of a codebook, and what enters it."""
  codebook, index = cast(Array, a.codebook), cast(Callable, a.index)
  book = decoders.Codebook(s * codebook)

  def enter(batch, keys):
    y, _ = a.encode(batch[m.field])
    return {**batch, m.field: index(y)}, {'decoding': -a.log_prob(batch[m.field], y)}
  return m._replace(encode=book.encode, decode=book.decode, decoder=book.log_prob), enter, None


def _of_latents(config: ml_collections.ConfigDict, spec: data.Spec, shape: tuple[int, ...]
                ) -> ml_collections.ConfigDict:
  """The config of real data of this shape, in the place of x."""
  inner = config.copy_and_resolve_references()
  latents = data.Spec(spec.name, (fields.reals(spec.x.name, shape), *spec.fields[1:]))
  with inner.unlocked():
    inner.data.update(latents.to_config())
  return inner


def _names(base: Experiment) -> tuple[str, ...]:
  """The parameters of a system, all of which it trains."""
  names = tuple(sorted(jax.eval_shape(base.init, random.key(0))))
  if taken := {'autoencoder', 'scale'} & set(names):
    raise InputError(problem=f'the system has parameters called {", ".join(sorted(taken))}',
                     remedy='call them by another name')
  return names


def _made(base: Experiment) -> Any:
  """The product of a system, of parameters that are not known."""
  unknown = lambda leaf: np.broadcast_to(np.array(np.nan, leaf.dtype), leaf.shape)
  return base.model(jax.tree.map(unknown, jax.eval_shape(base.init, random.key(0))))


def _begins_at_data(m: Model) -> bool:
  """Whether the process begins at infinite log-SNR, as a published chain does.

  A schedule that is learned has finite ends.
  """
  return m.latent is None and bool(np.isposinf(m.process(0.0).logsnr).any())


def _bound(m: Model, at_data: bool, batch: PyTree, t: Array, keys: Array, steps: int = 0
           ) -> tuple[Array, dict[str, Array]]:
  """The bound of a model of latents, on -log p(z) or on -log P(k): nats [B], and its terms."""
  latents, cond = batch[m.field], m.cond(batch)
  real = jnp.issubdtype(latents.dtype, jnp.floating)
  z, decoder = (latents, decoders.normal) if real else (m.encode(latents), m.decoder)
  args = m.denoise, m.process, z, t, keys, cond
  if at_data and steps:
    kernel = {'steps': steps, 'data': latents, 'last': decoders.at_mean(decoder),
              'variance': _variance}
    first = vlb.first_step(m.denoise, m.process, z, keys, cond, **kernel)
    return vlb.discrete(*args, **kernel, decoder=None, first=first)
  if real:
    return vlb.density(*args, steps=steps)
  return one_draw(m._replace(bound=None), batch, t, keys, steps)


def _variance(estimate, at_t, at_s):
  """The variance of a published chain: the network's own, or that of q(z_t | z_s)."""
  own = 'variance' in (estimate.extra or {})
  return (vlb.learned if own else vlb.fixed_large)(estimate, at_t, at_s)
