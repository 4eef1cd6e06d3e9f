"""Scores the music of a run on chorales by an n-gram of the training pieces, and by overlap areas.

  python scripts/score_music.py --workdir=runs/chorales --sampler=ancestral --steps=200
  python scripts/score_music.py --workdir=runs/chorales --samples=drawn.npz
  python scripts/score_music.py --data=chorales:quarters

It also scores the test windows, the whole test pieces, and test windows with exchanged parts.  Of
an autoencoder, it scores the test windows after encoding and decoding.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import score_music

flags.adopt_module_key_flags(score_music)

if __name__ == '__main__':
  cli.run(score_music.main, bootstrap.ROOT, alone=True,
          kept='Whole batches of drawn samples are kept, and the same command goes on from there.')
