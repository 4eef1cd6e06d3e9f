"""Variational diffusion models (Kingma, Salimans, Poole and Ho 2021).

The system: the noise estimate of a U-Net on the `vp` curve, a schedule learned with it, discrete
data through the decoder of `decoders.Pixels`, and the variational bound as the loss, in continuous
time or with T steps.  A config chooses the network and the schedule in Python and hands them to
`experiment`.
"""
import dataclasses
import math
from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, predictions, random
from vdm_jax.decoders import Pixels, bits_per_dim
from vdm_jax.errors import InputError
from vdm_jax.inputs import Inputs, logsnr
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.nn import stack
from vdm_jax.nn.convolution import WeightGradient
from vdm_jax.nn.layers import Attention
from vdm_jax.nn.vdm_unet import UNet
from vdm_jax.processes import GaussianProcess, vp
from vdm_jax.schedules import Bound
from vdm_jax.train import loop, optimizer
from vdm_jax.typing import Array, Context, Curve, Experiment, Loss, Model, PyTree, Schedule, Target


def default_config() -> ml_collections.ConfigDict:
  """The CIFAR-10 recipe of the official code; the published configs say where they differ."""
  return ml_collections.ConfigDict({
      'seed': 1,
      'data': data.default_config(),
      'model': {
          'features': 128,
          'blocks': 32,
          'attention_everywhere': False,
          'groups': 32,
          'dropout': 0.1,
          'fourier': (-1, 0),    # octaves: sines of z with periods of 2 levels and of 1
          'class_conditional': False,
          'dtype': 'float32',    # of the network's trunk; or bfloat16
          'scan': True,          # the blocks as loops: a program that does not grow with the depth
          'remat': 'dots',       # kept for the backward pass: 'none' (all), 'dots' or 'block'
          'weight_gradient': 'auto',  # of convolutions: 'xla', 'winograd', 'auto': fastest here
          'attention': 'auto',   # 'xla', 'cudnn' (GPU, bfloat16), 'auto': cudnn where it exists
          'logsnr_max': 13.3,    # of the schedule at first, for 256 levels; see `end_points`
          'logsnr_min': -5.0,
          'timesteps': 0,        # T of the bound that is trained; 0: continuous time
      },
      'optimizer': optimizer.default_config(),
      'ema': {'ema': 0.9999},    # name: rate; the longest is evaluated by default
      'train': loop.default_config(),
  })


def end_points(config: ml_collections.ConfigDict) -> tuple[float, float]:
  """(logsnr_max, logsnr_min) of `config.model` for the data's number of levels.

  The configured maximum is for 256 levels: with fewer, wider ones sigma_0 is the same share of a
  level at 2 log(256 / levels) less.
  """
  levels = data.resolve(config.data).levels
  return config.model.logsnr_max + 2.0 * math.log(levels / 256), config.model.logsnr_min


def unet(config: ml_collections.ConfigDict) -> UNet:
  """The score network of `config.model`.

  Its Fourier features have periods of 2^-octave levels: sin(2^n 2 pi z) with n = octave +
  log2(levels / 2): for 256 levels the exponents 6 and 7 of the published code, 7 and 8 of
  sin(2^n pi z) in Kingma et al. (2021), section 3.4.

  Raises InputError: groups that do not divide the features; no such remat or weight gradient.
  """
  m = config.model
  require_groups(config)
  logsnr_max, logsnr_min = end_points(config)
  spec = data.resolve(config.data)
  one_level = math.log2(spec.levels / 2)
  return configured(
      UNet(features=m.features, blocks=m.blocks, attention_everywhere=m.attention_everywhere,
           groups=m.groups, fourier=tuple(octave + one_level for octave in m.fourier),
           classes=spec.classes if m.class_conditional else 0,
           logsnr_max=logsnr_max, logsnr_min=logsnr_min, scan=m.scan), config)


def configured(net: nn.Module, config: ml_collections.ConfigDict) -> nn.Module:
  """A published network with what `config.model` says of dropout, precision, memory and speed.

  Raises InputError: no such remat, weight gradient or attention; dropout of one that has none.
  """
  m = config.model
  has = {field.name for field in dataclasses.fields(net)}  # DiT has no convolutions, e.g.
  require(config, 'dropout', 'dropout' in has or not m.dropout, 'this network has none; set it 0')
  for name, choices in {'remat': stack.Remat, 'weight_gradient': WeightGradient,
                        'attention': Attention}.items():
    choices = get_args(choices)
    require(config, name, m[name] in choices, f'choose one of {", ".join(choices)}')
  given = {'dropout': m.dropout, 'dtype': jnp.dtype(m.dtype), 'remat': m.remat,
           'weight_gradient': m.weight_gradient, 'attention': m.attention}
  return net.clone(**{name: value for name, value in given.items() if name in has})


def bound_loss(model: Callable[..., Model], shape: tuple[int, ...], steps: int = 0) -> Loss:
  """The model's own bound as a loss, in bits per dimension; steps: T, 0 for continuous time."""
  def loss(params, batch, context):
    m = model(params, random.stream(context.keys, 'dropout') if context.train else None)
    nats, terms = one_draw(m, batch, context.t, context.keys, steps)
    bits = jax.tree.map(lambda u: bits_per_dim(u, shape), {'bits_per_dim': nats, **terms})
    return bits['bits_per_dim'], bits
  return loss


# Minimised in the bound's place: (model, batch, context) -> nats [B], and its terms {name: [B]}.
BatchObjective = Callable[[Model, PyTree, Context], tuple[Array, dict[str, Array]]]
# The terms that are parts of a bound: nats, reported as bits.
IN_NATS = ('bits_per_dim', 'reconstruction', 'latent', 'diffusion')


def require(config: ml_collections.ConfigDict, name: str, holds: bool, remedy: str) -> None:
  """Raises InputError, with the value of `config.model`'s field and the remedy, unless it holds."""
  if not holds:
    raise InputError(f'--config.model.{name}={config.model[name]}: {remedy}.')


def require_continuous(config: ml_collections.ConfigDict) -> None:
  """Raises InputError where a number of steps is given to an objective of continuous time."""
  require(config, 'timesteps', not config.model.timesteps,
          'this objective is of continuous time, and has no steps; leave it 0')


def require_groups(config: ml_collections.ConfigDict, of: str = '') -> None:
  """Raises InputError unless the groups of a network divide its features; of: e.g. 'encoder_'."""
  features, groups = config.model[f'{of}features'], config.model[f'{of}groups']
  require(config, f'{of}groups', groups > 0 and features % groups == 0,
          f'it must divide --config.model.{of}features={features}')


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: nn.Module | Schedule,
               target: Target = predictions.eps, objective: BatchObjective | None = None,
               curve: Curve = vp, heads: tuple[str, ...] = (),
               inputs: Inputs = logsnr) -> Experiment:
  """The experiment of `config` with this network, an estimate of `target`, and this schedule.

  schedule: a Linen module is learned, as params['schedule']; a value is fixed.  The network is
  params['net'].  objective: what is minimised if not the bound, see `BatchObjective`.  curve: that
  of the process.  heads, inputs: what the network's further outputs are called, and what it reads,
  see `predictions.denoiser`.

  The loss is divided by D ln 2: bits per dimension, as in the official code, so that the
  optimiser's epsilon and a clipping norm mean the same.  So are the terms of `IN_NATS`; all others
  of an objective, e.g. squared errors, are divided by D alone: means over the dimensions.

  Raises InputError: timesteps below 0; classes of data that have none, or with `augment`.
  """
  require(config, 'timesteps', config.model.timesteps >= 0,
          'the number of steps of a chain, or 0 for continuous time')
  spec = data.resolve(config.data)
  if config.model.class_conditional and not spec.classes:
    raise InputError(f'--config.model.class_conditional=True, but {spec.name} has no labels.')
  if config.model.class_conditional and config.data.augment:
    raise InputError('--config.model.class_conditional and --config.data.augment exclude each '
                     'other: the network is told one thing, a label or whether x was augmented.')
  learned = isinstance(schedule, nn.Module)
  pixels = Pixels(spec.levels)

  def cond(batch: PyTree) -> PyTree:
    """What the network is told beside z and logsnr: a label, whether x is augmented, nothing."""
    if config.model.class_conditional:
      return batch['label']
    return batch['augmented'] if config.data.augment else None

  def init(key):
    key_net, key_schedule = jax.random.split(key)
    z = jnp.zeros((1, *spec.shape))
    batch = {'label': jnp.zeros(1, jnp.int32), 'augmented': jnp.zeros(1)}
    params = {'net': net.init(key_net, z, jnp.zeros(1), cond(batch))['params']}
    if learned:
      params['schedule'] = schedule.init(key_schedule, jnp.zeros(1))['params']
    return params

  def model(params, keys=None):
    at_time = Bound(params['schedule'], schedule) if learned else schedule
    return Model(denoise=predictions.denoiser(Bound(params['net'], net, keys), target,
                                              inputs, heads),
                 process=GaussianProcess(at_time, curve), decoder=pixels.log_prob,
                 encode=pixels.encode, decode=pixels.decode, cond=cond, shape=spec.shape)

  def loss(params, batch, context):
    m = model(params, random.stream(context.keys, 'dropout') if context.train else None)
    nats, terms = objective(m, batch, context)
    size = math.prod(spec.shape)
    return bits_per_dim(nats, spec.shape), {
        name: bits_per_dim(u, spec.shape) if name in IN_NATS else u / size
        for name, u in terms.items()}

  if objective is None:
    loss = bound_loss(model, spec.shape, config.model.timesteps)
  return Experiment(init=init, loss=loss, model=model, data=data.Data(config.data),
                    tx=optimizer.adamw(config.optimizer), ema=dict(config.ema))
