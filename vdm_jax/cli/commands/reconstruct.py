"""The flags and the `main` of scripts/reconstruct.py."""
import jax
from absl import flags

from vdm_jax import cli
from vdm_jax.errors import method_named
from vdm_jax.runs import volumes

WORKDIR = cli.run_directory('The run of an unconditional model of slices, which is the prior.')
VOLUME = cli.path('volume', 'An .npz with volumes [N, Z, H, W] from 0 to --peak, which are '
                  'measured by --views or --mri; or with sinograms [N, Z, P, views] and angles in '
                  'degrees; or with kspace [N, Z, H, W] and known.')
OUT = cli.path('out', 'The .png file to write: truth and reconstructions.  A .json with the scores '
               'and costs is written beside it.')
OVERWRITE = cli.overwrite()
VIEWS = flags.DEFINE_integer('views', None, 'Sum along parallel beams from so many angles.')
MRI = flags.DEFINE_string('mri', '', 'Measure a part of the Fourier transform: every:N (every Nth '
                          'column, and the central 15 %), or a picture, white where it is '
                          'measured.')
NOISE = flags.DEFINE_float('noise', 0.005, 'The standard deviation of the noise, as a share of the '
                           'largest measurement; of given measurements, of the noise in them.')
PEAK = flags.DEFINE_float('peak', None, 'The largest number that volumes may have: that of the '
                          "largest level of the prior's data.  Default: 1; for integers of 8 or 16 "
                          'bits, the largest of their type.')
METHOD = flags.DEFINE_string('method', 'dds', f'One of {", ".join(volumes.METHODS)}.')
STEPS = flags.DEFINE_integer('steps', 50, 'Steps of the sampler.')
COUNT = flags.DEFINE_integer('count', 4, 'How many samples of each volume are averaged.')
TV_WEIGHT = flags.DEFINE_float('tv_weight', 0.04, 'The weight of total variation in the '
                               'reconstruction without a prior, in all three directions.')
SAMPLES = cli.path('samples', 'Also write the truth, y, the samples and all reconstructions to '
                   'this .npz.')
SEED = cli.seed('the noise and the samples')
BATCH_SIZE = cli.batch_size(16, 'How many samples are drawn at a time.')
OF_RUN = cli.of_run()
MEASURED, ROW = cli.measured(), cli.row()
# A method has the fields of its own flags; their defaults stand in vdm_jax.runs.volumes.
OF_METHOD = (
    flags.DEFINE_float('weight', None, 'The weight of total variation across slices, in the units '
                       'of the volumes.  Default: 0.2 for dds, 0.04 for mbir.'),
    flags.DEFINE_float('rho', None, 'The rho of the augmented Lagrangian.  Default: 10.'),
    flags.DEFINE_integer('iterations', None, 'How many conjugate gradients a step takes.  Default: '
                         '20 for dds, 1 for mbir.'),
    flags.DEFINE_float('eta', None, 'dds: the share of new noise in a step.  Default: 1.'),
    flags.DEFINE_float('scale', None, 'dds: a factor of the variance of x given z.  Default: 6.'),
    flags.DEFINE_float('snr', None, 'mbir: the signal-to-noise ratio of the corrector.  Default: '
                       '0.16.'))


def main():
  cli.check_row(MEASURED.value, ROW.value, volumes.COLUMNS)
  method = method_named(volumes.METHODS, **cli.values(METHOD, *OF_METHOD))
  result = volumes.reconstruct(
      WORKDIR.value, VOLUME.value, OUT.value, method=method, samples=SAMPLES.value or '',
      **cli.values(VIEWS, MRI, NOISE, PEAK, STEPS, COUNT, TV_WEIGHT, SEED, BATCH_SIZE, OVERWRITE,
                   *OF_RUN))
  if jax.process_index() == 0:
    print('\n'.join(volumes.report(result)))
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, volumes.figures(result))
  cli.wrote(OUT.value, *filter(None, (SAMPLES.value,)))
