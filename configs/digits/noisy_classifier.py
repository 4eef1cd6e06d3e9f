"""A classifier of noisy digits, whose gradient guides the samples of another run.

  python scripts/train.py --config=configs/digits/noisy_classifier.py \
    --workdir=runs/digits_noisy_classifier

Dhariwal and Nichol (2021), section 4: the downward half of their U-Net, at the noise levels of the
other configs of digits.  The classifier is not a diffusion model: it learns the label.
metrics.jsonl has its accuracy over all levels and for each quarter of time; accuracy_1 is nearest
the data.  In Python, the classifier can guide any model of these levels:

  model, noisy = load('runs/vdm'), load('runs/digits_noisy_classifier')
  unlabelled = guidance.conditioned_on(model.denoise, lambda label: None)
  denoise = guidance.classifier(unlabelled, guidance.label_gradient(noisy.logits), scale=2.0)

The `cond` of this denoiser is a label for each image, [B].
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import data, inputs, recipes, schedules
from vdm_jax.nn.unets.adm import UNetClassifier
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems import compose, networks
from vdm_jax.systems.guided import noisy_classifier
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # One block at each resolution.
  config = recipes.digits(vdm.default_config(features=32, blocks=1, groups=8), steps=1000)
  config.optimizer.learning_rate = 2e-3
  config.train.validate_every = 250
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m, ends = config.model, compose.end_points(config)
  compose.require_continuous(config)
  net = UNetClassifier(features=m.features, multipliers=(1, 2), blocks=m.blocks,
                       attention_resolutions=(4,), head_features=16, groups=m.groups,
                       classes=data.resolve(config.data).classes)
  return noisy_classifier.experiment(
      config, net=networks.configured(net, config), inputs=inputs.scaled(*ends),
      process=GaussianProcess(schedules.Linear(*ends)))
