"""Flow matching on a path of choice: optimal transport, polynomial, diffusion, cosine.

Lipman et al. (2023).  On straight lines, `ot`, it is the first rectified flow of Liu et al. (2023).
The network is told the time at which rectified flow has its noise level.  It predicts the direction
of the curve, eps - x on `flow` and v on `vp`: the velocity but for a factor of the level alone.

The ends of the path are cut where log-SNR is logsnr_max and logsnr_min.  So the model has a bound,
which the same evaluation of the network gives.  It also has every estimate of the ledger, bits/dim
of the flow among them: `evaluate.py --estimates=ode/uniform --importance=K` makes K draws of
dequantisation.
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

  Raises InputError: there is no such path; a degree that is not positive.
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
  """A network of `systems.networks` that reads the time of `inputs.lines()`; z is not added."""
  return net.clone(logsnr_max=0.0, logsnr_min=1.0, adds_z=False)


def with_bound(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
  """The loss of flow matching, and the bound; validated at times that are even in log-SNR."""
  t, share = (t, 1.0) if context.train else proposals.by_logsnr(process)(t)
  loss, terms = flow_matching.objective(denoise, process, x, t, keys, cond)
  bound = vlb.bound_terms(process, x, t, keys, data, decoder, terms['eps_error'], share)
  return share * loss, {'vlb': sum(bound.values()), **bound}


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               read: inputs.Inputs | None = None, objective: Objective = with_bound,
               condition: str | None = '') -> Experiment:
  """Flow matching with this network, by default `networks.unet`.

  net: of (z, time, condition, dropout keys); read: how z and the level are put to the network,
  where it is not of `systems.networks`.  condition: as in `compose.experiment`.
  Raises InputError: steps; another path.
  """
  compose.require_continuous(config)
  net = net or networks.unet(config)
  if read is None:
    net, read = told_time(net), inputs.lines()
  schedule, curve, target = on_path(config)
  return compose.experiment(config, net=net, schedule=schedule, curve=curve, target=target,
                            inputs=read, objective=objective, condition=condition)
