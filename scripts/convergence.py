"""The distance of samples from data whose law is known, beside its bounds, against the steps.

  python scripts/convergence.py --out=bounds.png --data=mixture --steps=10,30,100,300
  python scripts/convergence.py --out=run.png --workdir=runs/spiral --sampler=ancestral

The first command takes an exact denoiser, the second the network of a run of points in the plane,
and estimates its score term on held-out points too.  Both print the terms and the distances.
"""
import bootstrap
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


def main():
  given = cli.values(WORKDIR, DATA, *OPTIONS, *OTHERS)
  paths, table = bounds.study(OUT.value, steps=cli.integers('steps', STEPS.value), **given)
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(*paths)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'out': 'bounds.png'}, alone=True)
