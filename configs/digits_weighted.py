"""The digits under the field's weightings of the denoising error.

  python scripts/train.py --config=configs/digits_weighted.py:p2 --workdir=runs/digits_p2

After the colon:

  simple          |eps - eps_hat|^2                            Ho et al. (2020), continuous time
  p2              over 1 + SNR                                 Choi et al. (2022)
  min_snr         min(SNR, 5) |x - x_hat|^2, v predicted       Hang et al. (2023)
  sigmoid         sigmoid(2 - logsnr), of the bound's          Kingma and Gao (2023)
  edm             log-normal noise levels, F predicted         Karras et al. (2022)
  snr             |eps - eps_hat|^2, v predicted               Salimans and Ho (2022), and the next
  truncated_snr   max(SNR, 1) |x - x_hat|^2, v predicted
  snr_plus_one    (SNR + 1) |x - x_hat|^2, v predicted
  ddpm            L_simple, 1,000 steps, linear betas          Ho et al. (2020)
  iddpm           L_hybrid, 1,000 steps, cosine betas          Nichol and Dhariwal (2021)

1,400 steps (the last two 1,300), all else as in `digits_small`, but for the schedule: the cosine
between the end points of the other digits.  The last two have their published levels after clean
data, coded with the ends at -1 and 1: log-SNR 9.2 to -10.1 (linear) and 10.1 to -19.8 (cosine).
bits_per_dim is the bound, for them that of their chain.
Hardware, time and what it reaches: see configs/README.md.
"""
import math

import digits_small
import ml_collections

from vdm_jax import data, inputs, predictions, schedules, weightings
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.objectives import edm, times, vlb, weighted_diffusion
from vdm_jax.processes import vp
from vdm_jax.systems import chain, score, vdm
from vdm_jax.typing import Experiment

# What the network predicts, and how its error is weighed.
WEIGHTED = {
    'simple': (predictions.eps, weightings.simple),
    'p2': (predictions.eps, weightings.p2()),
    'min_snr': (predictions.v, weightings.min_snr()),
    'sigmoid': (predictions.v, weightings.sigmoid(2.0)),
    'snr': (predictions.v, weightings.simple),
    'truncated_snr': (predictions.v, weightings.truncated_snr),
    'snr_plus_one': (predictions.v, weightings.snr_plus_one),
}
CHAINS = ('ddpm', 'iddpm')
SIGMA_DATA = 0.7  # the standard deviation of x, which is 0.71
VARIANTS = (*WEIGHTED, 'edm', *CHAINS)


def get_config(variant: str = 'simple') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise InputError(f'--config=configs/digits_weighted.py:{variant}: choose one of '
                     f'{", ".join(VARIANTS)}.')
  config = digits_small.get_config()
  config.model.objective = variant
  config.optimizer.decay_steps = config.train.steps = 1400  # three minutes
  if variant in CHAINS:
    config.model.timesteps = 1000
    config.model.betas = 'cosine' if variant == 'iddpm' else 'linear'
    config.model.variances = variant == 'iddpm'
    config.model.clip = True  # as published; see `chain`
    config.optimizer.decay_steps = config.train.steps = 1300
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  variant, net = config.model.objective, vdm.unet(config)
  vdm.require(config, 'objective', variant in VARIANTS, f'choose one of {", ".join(VARIANTS)}')
  if variant in CHAINS:
    vdm.require(config, 'objective', 'betas' in config.model,
                f'choose it as --config=configs/digits_weighted.py:{variant}')
    # The network reads the number of the step where the others read logsnr, and z on another scale.
    octaves = math.log2(Pixels(data.resolve(config.data).levels).to_ends)
    return chain.experiment(config, net=net.clone(
        logsnr_max=0.0, logsnr_min=config.model.timesteps - 1.0,
        fourier=tuple(n - octaves for n in net.fourier), heads=int(config.model.variances)))
  schedule = schedules.Cosine(*vdm.end_points(config))
  if variant == 'edm':
    vdm.require_continuous(config)
    return vdm.experiment(config, net=net.clone(adds_z=False), schedule=schedule,
                          target=predictions.edm(SIGMA_DATA), objective=log_normal)
  target, weight = WEIGHTED[variant]
  return score.experiment(
      config, net=net.clone(adds_z=target is predictions.eps), schedule=schedule, curve=vp,
      target=target, inputs=inputs.logsnr, weight=weight, ends_denoised=False)


def log_normal(model, batch, context):
  """The loss of EDM at its own noise levels, beside the bound; validated at even log-SNR.

  At log-normal times the bound's estimate would be unbiased too, but rarely near its mean: few of
  them are where the bits are.
  """
  x = model.encode(batch['image'])
  given = (model.denoise, model.process, x, context.t, context.keys, model.cond(batch))
  if context.train:
    loss, terms = edm.objective(*given, sigma_data=SIGMA_DATA)
    bound = {**vlb.end_terms(model.process, x, x, context.t, context.keys, batch['image'],
                             model.decoder, None), 'diffusion': terms['diffusion']}
  else:
    t, share = times.by_logsnr(model.process)(context.t)
    loss, terms = weighted_diffusion(*given[:3], t, *given[4:],
                                     weight=weightings.edm(sigma_data=SIGMA_DATA))
    loss = share * loss
    bound = vlb.beside(model.process, x, t, context.keys, batch['image'], model.decoder,
                       terms['eps_error'], share)
  return loss, {'bits_per_dim': sum(bound.values()), **bound}
