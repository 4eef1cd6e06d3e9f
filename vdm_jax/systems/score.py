"""Networks of the score: NCSN, the score SDEs, EDM.

In continuous time, on the published process, with the published view of the input and the published
weighting of the error: `experiment` puts them together, and reports the bound beside the loss, of
the same evaluation of the network.
"""
from collections.abc import Callable

import ml_collections
from flax import linen as nn

from vdm_jax import predictions
from vdm_jax.inputs import Inputs, logsnr
from vdm_jax.objectives import times, vlb, weighted_diffusion
from vdm_jax.systems import vdm
from vdm_jax.systems.chain import published_model
from vdm_jax.typing import Array, Curve, Denoiser, Experiment, Schedule, Target, Weighting


def default_config() -> ml_collections.ConfigDict:
  """That of `vdm`, with Adam as the score SDEs have it (Song et al. 2021, appendix H)."""
  config = vdm.default_config()
  config.model = ml_collections.ConfigDict({'timesteps': 0, **published_model()})
  config.data.update(validation=1024, hold_out=False)  # published recipes train on all of it
  config.optimizer.update(b2=0.999, warmup_steps=5000, weight_decay=0.0, clip_norm=1.0)
  return config


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: Schedule,
               curve: Curve, weight: Weighting, target: Target = predictions.eps,
               inputs: Inputs = logsnr,
               wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
               trained_at: Callable[[Array], Array] = lambda t: t, ends_denoised: bool = True
               ) -> Experiment:
  """The experiment of `config`; schedule, curve, target, inputs as for `vdm.experiment`.

  The loss is `weighted_diffusion` with this weight, divided by D ln 2.  wrap: what makes of the
  network's denoiser another, e.g. an energy's.  trained_at: t ~ U[0, 1] -> the times of training,
  e.g. those of a ladder.  ends_denoised: samples end in x_hat, as in NCSNv2 (Song and Ermon 2020,
  algorithm 1) and after, where the noise of the last step is visible.  Raises InputError.
  """
  vdm.require_continuous(config)
  wrapped = lambda model: model._replace(denoise=wrap(model.denoise), ends_denoised=ends_denoised)

  def objective(model, batch, context):
    model, x = wrapped(model), model.encode(batch['image'])
    # Where it is only measured, times are even in log-SNR: under some of these schedules the
    # bound's estimate at even times is rarely near its mean.
    t, share = ((trained_at(context.t), 1.0) if context.train else
                times.by_logsnr(model.process)(context.t))
    loss, terms = weighted_diffusion(model.denoise, model.process, x, t, context.keys,
                                     model.cond(batch), weight=weight)
    bound = vlb.beside(model.process, x, t, context.keys, batch['image'], model.decoder,
                       terms['eps_error'], share)
    return share * loss, {'bits_per_dim': sum(bound.values()), **bound,
                          'eps_error': share * terms['eps_error']}

  base = vdm.experiment(config, net=net, schedule=schedule, curve=curve, target=target,
                        inputs=inputs, objective=objective)
  return base._replace(model=lambda params, keys=None: wrapped(base.model(params, keys)))
