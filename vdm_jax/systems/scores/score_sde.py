"""Networks of the score: NCSN, the score SDEs, EDM.

`experiment` combines the published process in continuous time, the published inputs of the network
and the published weighting of the error.  The same evaluation of the network gives the loss and the
bound, and both are reported.
"""
from collections.abc import Callable

import ml_collections
from flax import linen as nn

from vdm_jax import targets
from vdm_jax.inputs import Inputs, logsnr
from vdm_jax.objectives import check_limits, proposals, vlb, weighted_diffusion
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems import compose, networks
from vdm_jax.typing import Array, Curve, Denoiser, Experiment, Schedule, Target, Weighting


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a published network of the score."""
  return compose.default_config(**{'timesteps': 0, **networks.published_fields()} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: Schedule,
               curve: Curve, weight: Weighting, target: Target = targets.eps,
               inputs: Inputs = logsnr,
               wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
               trained_at: Callable[[Array], Array] = lambda t: t, ends_denoised: bool = True,
               condition: str | None = '', encoder: nn.Module | None = None,
               beside: tuple[str, ...] = ()) -> Experiment:
  """The experiment of `config` with this network, process and weighting.

  The loss is `weighted_diffusion` with this weight, divided by D ln 2.

  Args:
    net, schedule, curve, target, inputs, condition, encoder, beside: as for `compose.experiment`.
    weight: the weighting of the error.
    wrap: a function that turns the network's denoiser into another, such as an energy's.
    trained_at: t ~ U[0, 1] -> the times of training, such as the times of a ladder.
    ends_denoised: let samples end in x_hat, as in NCSNv2 (Song and Ermon 2020) and later papers,
      where the noise of the last step is visible.

  Raises InputError; also if the weighted loss has no limit at an end of the process.
  """
  compose.require_continuous(config)
  check_limits(GaussianProcess(schedule, curve), weight)

  def objective(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
    # Where it is only measured, times are even in log-SNR: under some of these schedules the
    # bound's estimate at even times is rarely near its mean.
    t, share = ((trained_at(t), 1.0) if context.train else proposals.by_logsnr(process)(t))
    loss, terms = weighted_diffusion(wrap(denoise), process, x, t, keys, cond, weight=weight)
    bound = vlb.bound_terms(process, x, t, keys, data, decoder, terms['eps_error'], share)
    return share * loss, {'vlb': sum(bound.values()), **bound,
                          'eps_error': share * terms['eps_error']}

  base = compose.experiment(config, net=net, schedule=schedule, curve=curve, target=target,
                            inputs=inputs, objective=objective, condition=condition,
                            encoder=encoder, beside=beside)

  def model(params, keys=None):
    m = base.model(params, keys)
    return m._replace(denoise=wrap(m.denoise), ends_denoised=ends_denoised)

  return base._replace(model=model)
