"""DiffEnc (Nielsen et al. 2024): a VDM whose inference model encodes the data at each noise level.

The encoder is a network y = x + h(x, logsnr) with h zero at first.  So a run begins like a VDM,
except for the counter-term.  The generative model does not contain the encoder.  It is the
generative model of a VDM, for the ancestral sampler and samplers of the reverse SDE.  Deterministic
samplers would see half of the encoder's drift, and the ledger has no row `ode`; see
`objectives.diffenc`.
"""
import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, schedules, targets
from vdm_jax.nn.small.diffenc import NoiseLevelEncoder
from vdm_jax.objectives import diffenc
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment, Schedule, Target
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{
      'encoder_features': 64, 'encoder_blocks': 4, 'encoder_groups': 16} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               encoder: nn.Module | None = None, schedule: nn.Module | Schedule | None = None,
               target: Target = targets.v) -> Experiment:
  """As `compose.experiment`, with the network y = encoder(x, logsnr) as params['encoder'].

  By default the network and the encoder are built from `config.model`, and the schedule is linear
  between fixed end points, as in the paper.  The objective is the bound, in continuous time or of
  `config.model.timesteps` steps.
  """
  shape, m = data.resolve(config.data).shape, config.model
  ends = compose.end_points(config)
  net = net or networks.unet(config)
  if encoder is None:
    networks.require_groups(config, 'encoder_')
    encoder = NoiseLevelEncoder(m.encoder_features, m.encoder_blocks, m.encoder_groups, *ends)
  schedule = schedule or schedules.Linear(*ends)
  base = compose.experiment(config, net=net, schedule=schedule, target=target)

  def init(key):
    key, key_encoder = jax.random.split(key)
    x = jnp.zeros((1, *shape))
    return {**base.init(key), 'encoder': encoder.init(key_encoder, x, jnp.zeros(1))['params']}

  def model(params, keys=None):
    m = base.model(params, keys)
    denoise = diffenc.counter_term(m.denoise)
    encode = diffenc.blend(Bound(params['encoder'], encoder))

    def bound(batch, t, keys, steps=0):
      keywords = {'encoder': encode, 'data': batch[m.field], 'decoder': m.decoder}
      args = denoise, m.process, m.encode(batch[m.field]), t, keys, m.cond(batch)
      if steps:
        return diffenc.discrete(*args, steps=steps, **keywords)
      return diffenc.continuous(*args, **keywords)

    return m._replace(denoise=denoise, bound=bound)

  return base._replace(init=init, model=model,
                       loss=compose.bound_loss(model, shape, config.model.timesteps))
