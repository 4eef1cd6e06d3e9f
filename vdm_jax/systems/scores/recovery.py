"""Diffusion recovery likelihood (Gao, Song, Poole, Wu and Kingma 2021): energies by contrast.

The energy E(z, t) of noisy data is the energy of `energy.half_square`, and so a `Denoiser`.  It is
trained by maximum likelihood of z_s given the noisier z_t, where a short Langevin chain draws the
negatives: see `objectives.recovery` and `samplers.recovery`.  No score and no noise is a target.

As every time has its energy, all samplers and all rows of the ledger apply.  The sampler of the
paper is `recovery`.  The row `ais` of the ledger estimates log Z_0, and so the likelihood under the
energy.
"""
from collections.abc import Callable

import jax
import ml_collections
from flax import linen as nn

from vdm_jax import processes, targets
from vdm_jax.errors import InputError
from vdm_jax.objectives import vlb
from vdm_jax.objectives.recovery import recovery
from vdm_jax.samplers.recovery import chain, check
from vdm_jax.systems import compose
from vdm_jax.systems.scores import energy
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Curve, Denoiser, Experiment, Schedule, Target
from vdm_jax.units import bits_per_dim


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM, and those of the chain of negatives."""
  return vdm.default_config(**{
      'levels': 16,       # T: z_t has its time 1 / T after z_s
      'moves': 10,        # K, of a chain of Langevin moves
      'step_size': 0.2,   # of a move, in units of the variance of q(z_s | z_t, x); below 2
      'metropolis': False,  # a Metropolis test after each move, for twice the evaluations
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: Schedule,
               curve: Curve = processes.vp, target: Target = targets.eps,
               energy_of: Callable[[Denoiser], energy.Energy] = energy.half_square) -> Experiment:
  """An energy of this network, by recovery likelihood on all levels.

  The loss of training is E(z_s) - E(z_s^-), divided by D ln 2; its value has no meaning.  The loss
  of validation is the bound, which chooses the best checkpoint.  Training reports the bound too.
  Model.denoise has the energy in Estimate.extra.

  Raises InputError for fewer than two levels, no moves, or a step size outside of (0, 2); and as
  `compose.experiment` does.
  """
  m = config.model
  compose.require_continuous(config)
  compose.require(config, 'levels', m.levels >= 2, 'there is no level between data and noise',
                  'give the number of levels of the chain, such as 16')
  try:
    check(m.moves, m.step_size)
  except InputError as error:
    compose.require(config, str(error.field), False, error.problem, error.remedy)
  base = compose.experiment(config, net=net, schedule=schedule, curve=curve, target=target)

  def model(params, keys=None):
    of = base.model(params, keys)
    return of._replace(denoise=energy.denoiser(energy_of(of.denoise)))

  def loss(params, batch, context):
    keys = compose.dropout_keys(context)
    of, frozen = model(params, keys), model(jax.lax.stop_gradient(params), keys)
    x, cond = of.encode(batch[of.field]), of.cond(batch)
    bound, terms = vlb.continuous(frozen.denoise, of.process, x, context.t, context.keys, cond,
                                  data=batch[of.field], decoder=of.decoder)
    bits = {name: bits_per_dim(u, of.shape)
            for name, u in {'bits_per_dim': bound, **terms}.items()}
    if not context.train:
      return bits['bits_per_dim'], bits
    denoise = lambda z, level, _=None: frozen.denoise(z, level, cond)
    draw = lambda keys, z_t, at_t, at_s: chain(
        denoise, keys, z_t, at_t, at_s, moves=m.moves, step_size=m.step_size,
        log_prob=energy.log_prob(denoise) if m.metropolis else None)
    nats, parts = recovery(of.denoise, of.process, x, context.t, context.keys, cond, draw=draw,
                           levels=m.levels)
    return bits_per_dim(nats, of.shape), bits | parts

  return base._replace(loss=loss, model=model)
