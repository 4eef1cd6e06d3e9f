"""Networks of the score: NCSN, the score SDEs, EDM.

In continuous time, on the published process, with the published view of the input and the published
weighting of the error: `experiment` puts them together, and reports the bound beside the loss, of
the same evaluation of the network.
"""
import ml_collections
from flax import linen as nn

from vdm_jax.inputs import Inputs
from vdm_jax.objectives import vlb, weighted_diffusion
from vdm_jax.systems import vdm
from vdm_jax.systems.chain import published_model
from vdm_jax.typing import Curve, Experiment, Schedule, Target, Weighting


def default_config() -> ml_collections.ConfigDict:
  """That of `vdm`, with Adam as the score SDEs have it (Song et al. 2021, appendix H)."""
  config = vdm.default_config()
  config.model = ml_collections.ConfigDict({'timesteps': 0, **published_model()})
  config.data.update(validation=1024, hold_out=False)  # published recipes train on all of it
  config.optimizer.update(b2=0.999, warmup_steps=5000, weight_decay=0.0, clip_norm=1.0)
  return config


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: Schedule,
               curve: Curve, target: Target, inputs: Inputs, weight: Weighting) -> Experiment:
  """The experiment of `config`; all but weight as for `vdm.experiment`.

  The loss is `weighted_diffusion` with this weight, divided by D ln 2.  Samples end denoised, as in
  NCSNv2 (Song and Ermon 2020, section 4) and after: the least noise is visible.  Raises InputError.
  """
  vdm.require_continuous(config)

  def objective(model, batch, context):
    x = model.encode(batch['image'])
    loss, terms = weighted_diffusion(model.denoise, model.process, x, context.t, context.keys,
                                     model.cond(batch), weight=weight)
    bound = {**vlb.end_terms(model.process, x, x, context.t, context.keys, batch['image'],
                             model.decoder, None),
             'diffusion': -0.5 * model.process(context.t).dlogsnr * terms['eps_error']}
    return loss, {'bits_per_dim': sum(bound.values()), **bound, **terms}

  base = vdm.experiment(config, net=net, schedule=schedule, curve=curve, target=target,
                        inputs=inputs, objective=objective)
  return base._replace(model=lambda params, keys=None: base.model(params, keys)._replace(
      ends_denoised=True))
