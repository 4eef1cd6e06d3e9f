"""The denoising error under the field's weightings, in continuous time.

Each of `OBJECTIVES` is a target for the network and a weighting of its error.  The schedule is the
cosine between the end points of the data.  EDM draws its own noise levels: see `log_normal`.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import inputs, schedules, targets, weightings
from vdm_jax.objectives import edm, proposals, vlb, weighted_diffusion
from vdm_jax.processes import vp
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import score_sde
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment, Objective

WEIGHTED = {
    'simple': (targets.eps, weightings.simple),              # Ho et al. (2020)
    'p2': (targets.eps, weightings.p2()),                    # Choi et al. (2022)
    'min_snr': (targets.v, weightings.min_snr()),            # Hang et al. (2023)
    'sigmoid': (targets.v, weightings.sigmoid(2.0)),         # Kingma and Gao (2023)
    'snr': (targets.v, weightings.simple),                   # Salimans and Ho (2022), and below
    'truncated_snr': (targets.v, weightings.truncated_snr),
    'snr_plus_one': (targets.v, weightings.snr_plus_one),
}
OBJECTIVES = (*WEIGHTED, 'edm')                                  # Karras et al. (2022)


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{
      'objective': 'simple',  # one of OBJECTIVES
      'sigma_data': 0.7,      # edm: the standard deviation of x
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """The objective of `config.model.objective`; the bound is reported too.

  net: the network.  Default: `networks.unet`.  z is added to its output only if the target is eps.

  Raises InputError for an unknown objective, or if config.model.timesteps is not 0.
  """
  name, net = config.model.objective, net or networks.unet(config)
  compose.require(config, 'objective', name in OBJECTIVES,
                  'there is no such choice', f'choose one of {", ".join(OBJECTIVES)}')
  compose.require_continuous(config)
  schedule = schedules.Cosine(*compose.end_points(config))
  if name == 'edm':
    sigma_data = config.model.sigma_data
    return compose.experiment(config, net=net.clone(adds_z=False), schedule=schedule,
                              target=targets.edm(sigma_data), objective=log_normal(sigma_data))
  target, weight = WEIGHTED[name]
  return score_sde.experiment(
      config, net=net.clone(adds_z=target is targets.eps), schedule=schedule, curve=vp,
      target=target, inputs=inputs.logsnr, weight=weight, ends_denoised=False)


def log_normal(sigma_data: float) -> Objective:
  """The loss of EDM at its own noise levels, and the bound.  Validation takes even log-SNR.

  At log-normal times, the estimate of the bound would be unbiased too.  But it would rarely be near
  its mean, because few of these times are where the bits are.
  """
  def objective(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
    if context.train:
      loss, terms = edm.objective(denoise, process, x, t, keys, cond, sigma_data=sigma_data)
      bound = {**vlb.end_terms(process, x, x, t, keys, data, decoder, None),
               'diffusion': terms['diffusion']}
    else:
      t, share = proposals.by_logsnr(process)(t)
      loss, terms = weighted_diffusion(denoise, process, x, t, keys, cond,
                                       weight=weightings.edm(sigma_data=sigma_data))
      loss = share * loss
      bound = vlb.bound_terms(process, x, t, keys, data, decoder, terms['eps_error'], share)
    return loss, {'vlb': sum(bound.values()), **bound}
  return objective
