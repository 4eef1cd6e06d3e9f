"""The digits with classifier-free training: `digits_ddpm` that forgets a tenth of the labels.

  python scripts/train.py --config=configs/digits_cfg.py --workdir=runs/digits_cfg
  python scripts/sample.py --workdir=runs/digits_cfg --guidance=1 --out=guided.png

Ho and Salimans (2022).  eps = (1 + w) eps(z, label) - w eps(z) with the w of --guidance; w,LOW,HIGH
guides where log-SNR is in that interval only.
Hardware, time and what it reaches: see configs/README.md.
"""
import digits_ddpm
import ml_collections

from vdm_jax.systems import label_dropping, vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_ddpm.get_config()
  config.optimizer.decay_steps = config.train.steps = 550  # three minutes
  config.ema = {'ema': 0.985}
  config.model.label_dropping = 0.1
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  vdm.require(config, 'class_conditional', config.model.class_conditional,
              'a network without labels has none to drop; leave it True')
  share = config.model.label_dropping
  vdm.require(config, 'label_dropping', 0.0 < share < 1.0, 'a probability between 0 and 1')
  return label_dropping.experiment(digits_ddpm.build(config), share)
