"""ScoreODE on the digits: the derivatives of the score, matched by fine-tuning of digits_small.py.

  python scripts/train.py --config=configs/digits_scoreode.py --workdir=runs/digits_scoreode \\
    --init_from=runs/digits_small

Lu et al. (2022): the bound, and beside it the errors of the score's Jacobian and of its trace, with
weight `second_order`; `third_order` adds those of the gradient of the trace.
Both are 1 in the public code for images.
Hardware and time: 2 CPU cores, two minutes (a step is 2.8 times one of digits_small.py).
To reach: see the table of objectives in README.md.
"""
import digits_small
import ml_collections

from vdm_jax import schedules
from vdm_jax.objectives import score_ode
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_small.get_config()
  config.model.update(second_order=1.0, third_order=0.0, attention='xla')  # derivatives forwards
  config.optimizer.update(learning_rate=6e-4, decay_steps=300)
  config.ema = {'ema': 0.97}
  config.train.update(steps=300, validate_every=150, checkpoint_every=150)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  vdm.require_continuous(config)
  m = config.model

  def objective(model, batch, context):
    nats, terms = score_ode.objective(
        model.denoise, model.process, model.encode(batch['image']), context.t, context.keys,
        model.cond(batch), data=batch['image'], decoder=model.decoder, second=m.second_order,
        third=m.third_order)
    return nats, {'bits_per_dim': terms.pop('vlb'), **terms}

  return vdm.experiment(config, net=vdm.unet(config), objective=objective,
                        schedule=schedules.Linear(*vdm.end_points(config)))
