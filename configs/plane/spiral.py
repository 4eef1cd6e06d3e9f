"""A spiral in the plane, 8 bits a coordinate: a picture of everything in a minute or two.

  python scripts/train.py --config=configs/plane/spiral.py --workdir=runs/spiral
  python scripts/train.py --config=configs/plane/spiral.py:edm --workdir=runs/spiral_edm

The network is an MLP; everything else is the same as for images.  After the colon stands the
system:

  vdm   Kingma et al. (2021): the bound, with a learned linear schedule
  vp    the VP SDE of Song et al. (2021), with a linear beta; the loss of all three SDEs is
        |eps - eps_hat|^2 at uniform times
  subvp their sub-VP SDE, with the same alpha
  ve    their VE SDE, with a geometric sigma
  edm   Karras et al. (2022): their preconditioning and weight, on their process

Hardware, time and what it reaches: see configs/plane/README.md; the entropy of the data is 5.49
bits/dim.
"""
import jax.numpy as jnp
import ml_collections

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.errors import require_choice
from vdm_jax.processes import sub_vp, ve, vp
from vdm_jax.systems import networks
from vdm_jax.systems.scores import score_sde
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

SIGMA_DATA = 0.36  # of the spiral
SYSTEMS = ('vdm', 'vp', 'subvp', 've', 'edm')


def get_config(system: str = 'vdm') -> ml_collections.ConfigDict:
  require_choice('config', system, SYSTEMS)
  return recipes.plane(vdm.default_config(features=128, blocks=4, dropout=0.0, system=system))


def build(config: ml_collections.ConfigDict) -> Experiment:
  system = config.model.system
  require_choice('config.model.system', system, SYSTEMS)
  if system == 'vdm':
    return vdm.experiment(config, net=networks.mlp(config))
  schedule, curve, scale = {
      'vp': (schedules.BetaLinear(t_min=1e-5), vp, None),
      # It starts where it has the first noise of `vp`.  At t = 1e-5 its log-SNR would be 27.
      'subvp': (schedules.SameAlpha(schedules.BetaLinear(t_min=6.2e-3)), sub_vp, None),
      # The network sees z as on `vp`, as if the data had this standard deviation.
      've': (schedules.GeometricSigma(0.002, 20.0), ve, 1.0),
      'edm': (schedules.KarrasSigma(), ve, SIGMA_DATA)}[system]
  net = networks.mlp(config, [float(schedule(jnp.asarray(t))) for t in (0.0, 1.0)])

  def read(z, level):
    return inputs.logsnr(z if scale is None else inputs.edm(scale)(z, level)[0], level)

  shared = {'schedule': schedule, 'curve': curve, 'inputs': read}
  if system == 'edm':
    return score_sde.experiment(
        config, net=net.clone(adds_z=False), target=targets.edm(SIGMA_DATA),
        weight=weightings.edm(sigma_data=SIGMA_DATA), **shared)
  return score_sde.experiment(config, net=net, target=targets.eps, weight=weightings.simple,
                          **shared)
