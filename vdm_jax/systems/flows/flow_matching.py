"""Flow matching on a path of choice: optimal transport, polynomial, diffusion, cosine.

Lipman et al. (2023).  On straight lines, `ot`, it is the first rectified flow of Liu et al. (2023).
The network reads the time at which rectified flow has the same noise level.  The network predicts
the direction of the curve, eps - x on `flow` and v on `vp`.  This direction is the velocity, up to
a factor that depends on the level alone.

The path begins where log-SNR is logsnr_max, and ends where it is logsnr_min.  So the model has a
bound, which the same evaluation of the network gives.  The model also has every estimate of the
ledger, such as the bits/dim of the flow: `evaluate.py --estimates=ode/uniform --importance=K`, with
K draws of dequantisation.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import inputs, processes, schedules, targets
from vdm_jax.objectives import flow_matching, proposals, vlb
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import scoreflow
from vdm_jax.typing import Curve, Experiment, Objective, Schedule, Target

PATHS = ('ot', 'polynomial', 'vp', 'cosine')


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM's network, and the path."""
  return scoreflow.default_config(**{
      'path': 'ot',
      'degree': 3.0,        # polynomial: alpha = (1 - t)^degree
      'logsnr_min': -20.0,  # vp ends at -10.05, as its SDE does
  } | model)


def on_path(config: ml_collections.ConfigDict) -> tuple[Schedule, Curve, Target]:
  """Schedule, curve and target of config.model.path, between the ends of the data.

  Raises InputError for an unknown path, or for a degree that is not positive.
  """
  m, ends = config.model, compose.end_points(config)
  compose.require(config, 'path', m.path in PATHS, 'there is no such choice',
                  f'choose one of {", ".join(PATHS)}')
  compose.require(config, 'degree', m.degree > 0, 'alpha would not fall', 'give one above 0')
  if m.path == 'vp':
    return scoreflow.vp_sde(config), processes.vp, targets.v
  if m.path == 'cosine':
    return schedules.Cosine(*ends), processes.vp, targets.v
  degree = 1.0 if m.path == 'ot' else m.degree
  return schedules.Polynomial(degree, *ends), processes.flow, targets.flow


def told_time(net: nn.Module) -> nn.Module:
  """A network of `systems.networks` that reads the time of `inputs.lines()`, and does not add z."""
  return net.clone(logsnr_max=0.0, logsnr_min=1.0, adds_z=False)


def with_bound(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
  """The loss of flow matching, and the bound.  Validation takes times that are even in log-SNR."""
  t, share = (t, 1.0) if context.train else proposals.by_logsnr(process)(t)
  loss, terms = flow_matching.objective(denoise, process, x, t, keys, cond)
  bound = vlb.bound_terms(process, x, t, keys, data, decoder, terms['eps_error'], share)
  return share * loss, {'vlb': sum(bound.values()), **bound}


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               read: inputs.Inputs | None = None, objective: Objective = with_bound,
               condition: str | None = '') -> Experiment:
  """Flow matching with this network.

  Args:
    net: (z, time, condition, dropout keys) -> output.  Default: `networks.unet`.
    read: what the network reads, if the network is not of `systems.networks`.
    objective: the loss.
    condition: as in `compose.experiment`.

  Raises InputError for an unknown path, or if config.model.timesteps is not 0.
  """
  compose.require_continuous(config)
  net = net or networks.unet(config)
  if read is None:
    net, read = told_time(net), inputs.lines()
  schedule, curve, target = on_path(config)
  return compose.experiment(config, net=net, schedule=schedule, curve=curve, target=target,
                            inputs=read, objective=objective, condition=condition)
