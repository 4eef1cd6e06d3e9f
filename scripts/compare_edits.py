"""Edits shapes by every method of a run, judges the edits exactly, and draws the first of them.

  python scripts/compare_edits.py --workdir=runs/glide_shapes --out=edits.png

Each edit exchanges one word of the caption of a test image.  Batches of edits are kept in the run's
directory, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import editing

WORKDIR = cli.run_directory('A run of shapes whose model is conditioned on text.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
COUNT = flags.DEFINE_integer('count', 64, 'Edits by each method.')
GUIDANCE = flags.DEFINE_float('guidance', 1.0, 'w of classifier-free guidance.')
STEPS = flags.DEFINE_integer('steps', 30, 'Steps of each method.')
SEED = cli.seed('the words and the noise')
BATCH_SIZE = cli.batch_size(32, 'How many edits are made at a time.')
AVERAGE, STEP = cli.average(), cli.step()
INPAINTING = cli.run_directory('A run of shapes told a part of the image, for one more row '
                               '(glide_shapes.py:inpainting).', 'inpainting')
MEASURED = cli.measured()


def main():
  _, table = editing.study(WORKDIR.value, OUT.value, **cli.values(
      OVERWRITE, COUNT, GUIDANCE, STEPS, SEED, BATCH_SIZE, AVERAGE, STEP, INPAINTING))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/glide_shapes', 'out': 'edits.png'},
      kept='Whole batches of edits are kept, and the same command goes on from there.')
