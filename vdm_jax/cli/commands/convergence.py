"""The flags and the `main` of scripts/convergence.py."""
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import convergence_bounds as bounds

OUT = cli.path('out', 'The .png file to write, and a .json beside it.')
WORKDIR = cli.run_directory('A run of points in the plane.  Without it, the denoiser is exact.')
DATA = flags.DEFINE_string('data', None, f'{", ".join(bounds.DATA)} (the default is the first), a '
                           'set of points, or FILE.py:NAME, an oracle of your own.')
OPTIONS = (
    flags.DEFINE_string('sampler', bounds.GIRSANOV, 'A sampler, as for sample.py.'),
    flags.DEFINE_string('grid', '', "Its grid, as for sample.py.  Default: the sampler's own."),
    flags.DEFINE_float('horizon', None, 'T: alpha is e^-T at the end.  Default: 5; not of a run.'),
    flags.DEFINE_float('stop', None, 'Log-SNR of the last step.  Default: the data; 6 of a run.'),
    flags.DEFINE_float('score_error', None, 'Added to the score, along the first axis.'),
    flags.DEFINE_integer('points', None, 'Points of the quadrature along an axis.'),
    flags.DEFINE_integer('times', 32, 'Of a run: draws for each held-out point.'),
    flags.DEFINE_integer('count', 1000, 'Of a run: held-out points.'), cli.seed('these draws'))
STEPS = flags.DEFINE_list('steps', [*map(str, bounds.STEPS)], 'Numbers of steps.')
OTHERS, MEASURED = (cli.overwrite(), *cli.of_run()), cli.measured()
ROW = flags.DEFINE_string('row', '', 'With --measured: update the rows "ROW, N steps" of a table '
                          'that exists, in the columns that the command measures.')


def main():
  steps = cli.integers('steps', STEPS.value)
  for n in steps if ROW.value else ():
    cli.check_row(MEASURED.value, bounds.row_name(ROW.value, n))
  paths, table = bounds.study(OUT.value, steps=steps, **cli.values(WORKDIR, DATA, *OPTIONS,
                                                                   *OTHERS))
  if ROW.value:
    cli.keep_rows(MEASURED.value, bounds.figures(ROW.value, table))
  else:
    cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(*paths)
