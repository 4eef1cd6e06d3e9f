"""A spiral in the plane, 8 bits a coordinate: a picture of everything in two minutes.

  python scripts/train.py --config=configs/toy2d.py --workdir=runs/toy2d
  python scripts/train.py --config=configs/toy2d.py:edm --workdir=runs/toy2d_edm

The network is an MLP, the rest is the system of the images.  After the colon the system:

  vdm   Kingma et al. (2021), with a learned linear schedule: the bound
  vp    the VP SDE of Song et al. (2021), linear beta: |eps - eps_hat|^2 at uniform times
  ve    their VE SDE, geometric sigma: the same
  edm   Karras et al. (2022): their preconditioning and weight, on their process

Hardware and time: 2 CPU cores, one minute.
To reach: vdm 5.57 bits/dim (test, continuous-time bound), measured here; the entropy
of the data is 5.49.
"""
import ml_collections

from vdm_jax import inputs, predictions, schedules, weightings
from vdm_jax.errors import InputError
from vdm_jax.nn.mlp import MLP
from vdm_jax.processes import ve, vp
from vdm_jax.systems import score, vdm
from vdm_jax.typing import Experiment

SIGMA_DATA = 0.36  # of the spiral
SYSTEMS = ('vdm', 'vp', 've', 'edm')


def get_config(system: str = 'vdm') -> ml_collections.ConfigDict:
  if system not in SYSTEMS:
    raise InputError(f'--config=configs/toy2d.py:{system}; choose one of {", ".join(SYSTEMS)}.')
  config = vdm.default_config()
  config.data.update(name='swirl', validation=2000, batch_size=512)
  config.model.update(features=128, blocks=4, dropout=0.0)
  config.model.system = system
  config.optimizer.update(learning_rate=2e-3, decay_steps=3000)
  config.ema = {'ema': 0.995}
  config.train.update(steps=3000, log_every=100, validate_every=500, checkpoint_every=1000,
                      pictures_every=1000, keep=2, validation_repeats=4)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m, (logsnr_max, logsnr_min) = config.model, vdm.end_points(config)
  net = lambda high, low: MLP(features=m.features, blocks=m.blocks, dropout=m.dropout,
                              logsnr_max=high, logsnr_min=low)
  system = config.model.get('system', 'vdm')
  if system == 'vdm':
    return vdm.experiment(config, net=net(logsnr_max, logsnr_min),
                          schedule=schedules.LearnedLinear(logsnr_max, logsnr_min))
  if system == 'vp':
    return score.experiment(
        config, net=net(logsnr_max, -10.0), schedule=schedules.BetaLinear(t_min=1e-5), curve=vp,
        target=predictions.eps, inputs=inputs.logsnr, weight=weightings.simple)
  if system == 've':
    # The network sees z / sqrt(1 + sigma^2), of which noise it estimates.
    return score.experiment(
        config, net=net(logsnr_max, -7.0), schedule=schedules.GeometricSigma(0.002, 20.0),
        curve=ve, target=predictions.eps, weight=weightings.simple,
        inputs=lambda z, level: (inputs.edm(1.0)(z, level)[0], inputs.logsnr(z, level)[1]))
  # What the network reads is c_noise, as far as its embedding is concerned another log-SNR.
  return score.experiment(
      config, net=net(logsnr_max, -9.0), schedule=schedules.KarrasSigma(), curve=ve,
      target=predictions.edm(SIGMA_DATA), weight=weightings.edm(sigma_data=SIGMA_DATA),
      inputs=lambda z, level: (inputs.edm(SIGMA_DATA)(z, level)[0], inputs.logsnr(z, level)[1]))
