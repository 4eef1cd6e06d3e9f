"""Trains the systems of points in the plane and draws them side by side: one picture.

  python scripts/toy_gallery.py --workdir=runs/toys --out=toys.png [--systems=vdm,edm]

Each system takes a minute or two on 2 CPU cores.  Existing runs are not trained again.  --measured
updates the rows of the systems in a table that exists, docs/measured/plane.json.
"""
from pathlib import Path

import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.studies import toys

WORKDIR = cli.run_directory('The directory of the runs.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('systems', list(toys.SYSTEMS), 'Which systems to train.')
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, 'Steps of training.  Default: as in the '
                                   'configs.')
ONLY_SAMPLES = flags.DEFINE_bool('only_samples', False, 'Draws the samples of each system alone, '
                                 'five systems in a line.')
MEASURED = cli.measured()


def main():
  for name in CHOSEN.value if MEASURED.value else []:
    if name in toys.SYSTEMS:  # `study` refuses others
      cli.check_row(MEASURED.value, toys.SYSTEMS[name].row, toys.COLUMNS)
  drawn = toys.study(WORKDIR.value, OUT.value, bootstrap.ROOT / 'configs',
                     **cli.values(OVERWRITE, CHOSEN, TRAIN_STEPS, ONLY_SAMPLES))
  if MEASURED.value:
    cli.keep_rows(MEASURED.value, {toys.SYSTEMS[name].row: toys.figures(name, WORKDIR.value, row)
                                   for name, row in drawn.items()})
  cli.wrote(OUT.value, *(Path(WORKDIR.value, name) for name in drawn))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/toys', 'out': 'toys.png'}, alone=True)
