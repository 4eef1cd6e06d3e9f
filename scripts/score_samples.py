"""Scores samples against a data set by features: Fréchet and kernel distance, precision, recall.

  python scripts/score_samples.py --workdir=runs/digits --sampler=ddim --steps=50 --count=1000 \\
    --reference=digits:train --features=classifier:runs/digits_classifier
  python scripts/score_samples.py --samples=samples.npz --reference=cifar10:train \\
    --features=inception:pt_inception-2015-12-05-6726825d.pth --out=scores.json
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import score_samples

flags.adopt_module_key_flags(score_samples)

if __name__ == '__main__':
  cli.run(score_samples.main, bootstrap.ROOT,
          required={'reference': 'digits:train', 'features': 'pixels'},
          kept='Whole batches of drawn samples are kept, and the same command goes on from there.')
