"""Networks as `config.model` describes them: the U-Net of VDM, and a perceptron for points.

A system takes any network.  Configs build these networks from numbers.
"""
import dataclasses
import math
from typing import Any, TypeVar, get_args

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import WeightGradient
from vdm_jax.nn.blocks.layers import Attention
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.nn.unets.vdm import UNet
from vdm_jax.systems.compose import end_points, require

Network = TypeVar('Network', bound=nn.Module)


def how_computed() -> dict:
  """The fields of `config.model` that say how a network is computed; see `configured`."""
  return {
      'dtype': 'float32',         # of the network's trunk; or bfloat16
      'remat': 'dots',            # kept for the backward pass: 'none' (all), 'dots' or 'block'
      'weight_gradient': 'auto',  # of convolutions: 'xla', 'winograd', 'auto': the fastest here
      'attention': 'auto',        # 'xla', 'cudnn' (GPU, bfloat16), 'auto': cudnn where it exists
  }


def published_fields() -> dict:
  """The fields of `config.model` that every published network has."""
  return {'class_conditional': False, 'dropout': 0.1, **how_computed()}


def configured(net: Network, config: ml_collections.ConfigDict) -> Network:
  """`net` with the dropout, precision, memory and speed that `config.model` sets.

  Raises InputError for an unknown remat, weight gradient, attention or dtype, and for dropout in a
  network that has none.
  """
  m = config.model
  has = {field.name for field in dataclasses.fields(net)}  # DiT has no convolutions, e.g.
  require(config, 'dropout', 'dropout' in has or not m.dropout, 'this network has no dropout',
          'set it to 0')
  for name, choices in {'remat': stack.Remat, 'weight_gradient': WeightGradient,
                        'attention': Attention}.items():
    choices = get_args(choices)
    require(config, name, m[name] in choices, 'there is no such choice',
            f'choose one of {", ".join(choices)}')
  require(config, 'dtype', m.dtype in ('float32', 'bfloat16'), 'there is no such choice',
          'choose float32 or bfloat16')
  settings = {'dropout': m.dropout, 'dtype': jnp.dtype(m.dtype), 'remat': m.remat,
              'weight_gradient': m.weight_gradient, 'attention': m.attention}
  return net.clone(**{name: value for name, value in settings.items() if name in has})


def sizes(net: nn.Module) -> dict[str, Any]:
  """The fields that describe `net`, but for those that `configured` sets, and names of Flax.

  So type(net)(**sizes(net)) has the parameters of `net`.
  """
  others = {'dropout', 'name', 'parent', *how_computed()}
  return {field.name: getattr(net, field.name) for field in dataclasses.fields(net)
          if field.name not in others}


def require_groups(config: ml_collections.ConfigDict, of: str = '') -> None:
  """Raises InputError unless a network's groups divide its features; of: such as 'encoder_'."""
  features, groups = config.model[f'{of}features'], config.model[f'{of}groups']
  require(config, f'{of}groups', groups > 0 and features % groups == 0,
          f'it does not divide config.model.{of}features={features}', 'choose one that does')


def unet(config: ml_collections.ConfigDict) -> UNet:
  """The U-Net of VDM at one resolution, as `config.model` describes it.

  Its Fourier features are sin(2^n 2 pi z) with n = octave + log2(levels / 2), so their periods are
  2^-octave levels.  For 256 levels, n is 6 and 7, as in the published code.  Kingma et al. (2021),
  section 3.4, write sin(2^n pi z), where n is 7 and 8.

  Raises InputError if the groups do not divide the features, and as `configured` does.
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


def mlp(config: ml_collections.ConfigDict, ends: tuple[float, float] | None = None) -> MLP:
  """The residual perceptron of points, for inputs between two `ends`, by default the log-SNR's."""
  m = config.model
  logsnr_max, logsnr_min = ends or end_points(config)
  return MLP(features=m.features, blocks=m.blocks, dropout=m.dropout, logsnr_max=logsnr_max,
             logsnr_min=logsnr_min)
