"""Measures how well the samples of a text-to-image run agree with their texts, by a dual encoder.

  python scripts/score_clip.py --workdir=runs/emoji --clip=runs/dual_emoji --sampler=dpmpp_2m \\
    --steps=20

It prints a row for each weight of guidance and one for the real images with the same texts, and
draws some of the samples beside the real images.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import score_clip

flags.adopt_module_key_flags(score_clip)

if __name__ == '__main__':
  cli.run(score_clip.main, bootstrap.ROOT,
          required={'workdir': 'runs/emoji', 'clip': 'runs/dual_emoji'},
          kept='Whole batches of samples are kept, and the same command goes on from there.')
