"""Plans for a pendulum that is to swing up: Decision Diffuser, from recorded episodes.

  python scripts/train.py --config=configs/applications/pendulum.py --workdir=runs/pendulum \
    --config.data.name=pendulum_offline.npz
  python scripts/plan.py --workdir=runs/pendulum --env=Pendulum-v1 --episodes=50

The data are episodes of gymnasium's Pendulum-v1 under a controller, some of whose actions are
random: `observations` [E, 200, 3], `actions` and `rewards` [E, 200], and `epsilon` [E], the share
of random actions.  The controller's own episodes, epsilon = 0, are left out.
To reach: -146 +- 17 in the mean of 50 episodes, told the largest return of training; in 50 others,
-181 +- 21.
Hardware and time: see configs/applications/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.applications import decisions
from vdm_jax.typing import Experiment

# The mean less, and plus, the deviation of cos, sin and speed go to -1 and 1.  A torque changes the
# speed by at most 0.3 in a step, so the speed must not be small in the units of the network.
STATES = (((-0.55, 1.01), (-1.0, 1.0)), ((-0.58, 0.58), (-1.0, 1.0)), ((-3.3, 3.3), (-1.0, 1.0)))
TORQUE = (((-2.0, 2.0), (-1.0, 1.0)),)  # its limits


def get_config(net: str = 'unet') -> ml_collections.ConfigDict:
  require_choice('config', net, decisions.NETS)
  config = decisions.default_config(
      kind='continuous', net=net, features=24 if net == 'unet' else 48, multipliers=(1, 2),
      depth=2, hidden=128, returns_scale=400.0, logsnr_max=12.0,
      logsnr_min=-8.0, steps=6, guidance=2.0, temperature=0.7)
  config.data.episodes.update(horizon=8, where='epsilon>0', discount=0.98, span=100,
                              normaliser='standard', observations=STATES, actions=TORQUE)
  return recipes.plans(config, 'pendulum_offline.npz', steps=2500)


def build(config: ml_collections.ConfigDict) -> Experiment:
  return decisions.experiment(config)
