"""Measures how well the samples of a text-to-image run on `shapes` follow their captions.

  python scripts/score_captions.py --workdir=runs/glide_shapes --sampler=dpmpp_2m --steps=20

It prints a row for each weight of guidance, and draws the curves with some samples.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import score_captions

flags.adopt_module_key_flags(score_captions)

if __name__ == '__main__':
  cli.run(score_captions.main, bootstrap.ROOT, required={'workdir': 'runs/glide_shapes'},
          kept='Whole batches of samples are kept, and the same command goes on from there.')
