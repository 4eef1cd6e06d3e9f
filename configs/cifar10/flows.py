"""CIFAR-10 by flow matching, rectified flow, reflow, one step, and minimised curvature.

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/flows.py:rectified --workdir=RUN --data_dir=DIR
  python scripts/make_pairs.py --workdir=RUN --out=./pairs --count=1000000
  python scripts/train.py --config=configs/cifar10/flows.py:reflow --workdir=RUN2 --init_from=RUN \
    --config.data.name=./pairs

After the colon:

  flow_matching   Lipman et al. (2023), the path of optimal transport
  rectified       Liu et al. (2023): DDPM++ that reads 999 t, batch 128, Adam 2e-4 after 5,000 steps
                  of warm-up, gradients clipped at norm 1, dropout 0.15, an average of rate 0.999999
  reflow          the same on a million pairs or more, made to a tolerance of 1e-5; the average has
                  rate 0.9999
  distilled       one step, on pairs of the flow that it starts from.  The loss is L2.  The loss of
                  the paper is LPIPS of images of 32x32, which needs two files of weights:
                  --config.model.metric=lpips --config.model.lpips=vgg16-397923af.pth,vgg.pth
  curvature       Lee, Kim and Ye (2023): beta 20, Adam 2e-4, batch 128, 500,000 steps, an average
                  of rate 0.9999, a small U-Net as the encoder

All have the network DDPM++, with 61,804,419 parameters.  In the paper, `flow_matching` had the
network of ADM, with sizes that could not be checked here.  Our path goes from log-SNR 16.5 to -20.
The papers have a sigma_min of 1e-5 and times from 1e-3 instead.  The length of the papers'
trainings could not be checked, except for `curvature`.
Hardware and time: days on accelerators; not run here.
To reach, as published: flow_matching 2.99 bits/dim (`ode/uniform`, K draws), FID 6.35 at 142
evaluations; rectified FID 2.58 at 127; reflow FID 3.36 at 110; distilled FID 6.18 (of the first
flow) and 4.85 (of the second).  curvature: figures not verified.
"""
import ml_collections

from vdm_jax import inputs, recipes
from vdm_jax.errors import require_choice
from vdm_jax.published import lpips
from vdm_jax.published.score_sde import MODELS
from vdm_jax.systems import networks
from vdm_jax.systems.flows import curvature, flow_matching, rectified_flow
from vdm_jax.typing import Experiment

SYSTEMS = {'flow_matching': flow_matching, 'rectified': flow_matching, 'reflow': rectified_flow,
           'distilled': rectified_flow, 'curvature': curvature}
RATES = {'rectified': 0.999999}


def get_config(which: str = 'rectified') -> ml_collections.ConfigDict:
  require_choice('config', which, SYSTEMS)
  config = recipes.published(recipes.cifar10(
      SYSTEMS[which].default_config(which=which, dropout=0.15, logsnr_max=16.5,
                                    **{'lpips': ''} if which == 'distilled' else {})))
  config.data.update(shape=(32, 32, 3), levels=256, classes=10, batch_size=128, augment=False)
  config.optimizer.learning_rate = 2e-4
  config.ema = {'ema': RATES.get(which, 0.9999)}
  config.train.steps = 500_000 if which == 'curvature' else 10_000_000
  if which in ('reflow', 'distilled'):
    rectified_flow.of_pairs(config, './pairs')
    config.train.steps = 500_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  which = config.model.which
  net = networks.configured(MODELS['vp/cifar10_ddpmpp_continuous'], config)
  shared = {'net': net, 'read': inputs.lines(999.0)}
  if which == 'reflow':
    return rectified_flow.reflow(config, **shared)
  if which == 'distilled':
    compare = lpips.of_config(config, size=32)  # not enlarged, as in public code
    return rectified_flow.distilled(config, perceptual=compare, **shared)
  if which == 'curvature':
    return curvature.experiment(config, **shared)
  return flow_matching.experiment(config, **shared)
