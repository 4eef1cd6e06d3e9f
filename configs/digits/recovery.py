"""An energy of the noisy digits, trained by recovery likelihood: contrast with a Langevin chain.

  python scripts/train.py --config=configs/digits/recovery.py --workdir=runs/digits_recovery
  python scripts/sample.py --workdir=runs/digits_recovery --sampler=recovery --steps=16 \
    --out=recovery.png
  python scripts/evaluate.py --workdir=runs/digits_recovery --estimates=ais@200x2000

Gao et al. (2021), with the energy E(z, t) = |z - alpha x_hat|^2 / (2 sigma^2), where the network
gives x_hat.  The network is a perceptron of the 64 pixels, because a chain of 8 moves draws the
negatives of each training step.  It is cheap, but does not know which pixels are neighbours.  The
loss of training has no meaning; the loss of validation is the bound.
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import recipes, schedules, targets
from vdm_jax.nn.small.flattened import Flattened
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import recovery
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # At a larger log-SNR, energies must be known more precisely than contrast teaches them.
  config = recipes.digits(recovery.default_config(
      features=128, blocks=3, dropout=0.0, logsnr_max=11.0, moves=8, step_size=0.3), steps=6000)
  config.optimizer.update(learning_rate=2e-3, clip_norm=1.0)
  config.ema = {'ema': 0.995}
  config.train.update(validate_every=1000, checkpoint_every=1000)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = Flattened(networks.mlp(config).clone(adds_z=False))
  return recovery.experiment(config, net=net, target=targets.x,
                             schedule=schedules.Linear(*compose.end_points(config)))
