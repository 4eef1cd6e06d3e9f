"""The flags and the `main` of scripts/restore.py."""
import jax
from absl import flags

from vdm_jax import cli
from vdm_jax.errors import InputError
from vdm_jax.runs import restoring
from vdm_jax.samplers import conditioned

WORKDIR = cli.run_directory('The directory of the run, whose model is the prior.')
OUT = cli.path('out', 'The .png file to write: image, measurement, sample, mean, deviation.  '
               'Without an image, up to three samples.')
OVERWRITE = cli.overwrite()
TASK = flags.DEFINE_string('task', None, f'What is measured: {", ".join(restoring.TASKS)}.  A mask '
                           'is a picture, white where the image is missing.  NAME is your own '
                           'function of JAX, x [B, H, W, C] -> y [B, ...].')
METHOD = flags.DEFINE_string('method', None, f'One of {", ".join(conditioned.METHODS)}, '
                             f'{restoring.EXACT} (the posterior of Gaussian data with the moments '
                             'of the training images; no network).')
MEASUREMENTS = cli.path('measurements', 'An .npz with measurements y [n, ...] of your own, for '
                        'images in [-1, 1], in the place of --images.  It may have known, bool '
                        '[H, W] or [H, W, C], in the place of --task; and x, the images, if you '
                        'know them.')
IMAGES = flags.DEFINE_list('images', ['data:test:0-7'], "Pictures of the model's size, or images "
                           'of the data: data:test:0, data:test:0-7.')
NOISE = flags.DEFINE_float('noise', 0.1, 'The standard deviation of the noise that is added to the '
                           'measurement, for images in [-1, 1]; of given measurements, of the '
                           'noise in them.')
COUNT = flags.DEFINE_integer('count', 4, 'How many samples of each image.')
STEPS = flags.DEFINE_integer('steps', 100, 'Steps of the sampler.')
CLIP = flags.DEFINE_bool('clip', True, 'Whether the estimate of x is clipped to [-1, 1].')
WIENER = flags.DEFINE_bool('wiener', False, f'Also draw the samples of {restoring.EXACT}, and show '
                           'them beside.')
LABEL = flags.DEFINE_integer('label', None, 'The class that the model is told.  Default: '
                             'none.')
SAMPLES = cli.path('samples', 'Also write x (if it is known), y and all samples to this .npz.')
SEED = cli.seed('the noise')
BATCH_SIZE = cli.batch_size(64, 'How many samples are drawn at a time.')
OF_RUN = cli.of_run()
# A method has the fields of its own flags; their defaults stand in vdm_jax.samplers.conditioned.
OF_METHOD = (
    flags.DEFINE_string('sampler', None, 'pigdm, tmpd, mmps, diffpir, replacement: '
                        f'{" or ".join(conditioned.SAMPLERS)}.  Default: ancestral.'),
    flags.DEFINE_float('std', None, 'pigdm: the standard deviation of the data.  Default: 0.5.'),
    flags.DEFINE_integer('iterations', None, 'mmps: of its solver.  Default: 1.'),
    flags.DEFINE_string('solver', None, 'mmps: gmres or cg.  Default: gmres.'),
    flags.DEFINE_float('strength', None, 'diffpir: the weight of the estimate.  Default: 10.'),
    flags.DEFINE_float('scale', None, 'dps, mcg: the length of a step down the gradient.  Default: '
                       '0.3 for dps, 1 for mcg.'),
    flags.DEFINE_string('over', None, 'dps: example, or batch (one norm of all images, as in its '
                        'public code).  Default: example.'),
    flags.DEFINE_float('eta', None, 'pgdm: the noise of a step, from 0 to 1.  Default: 1.'),
    flags.DEFINE_integer('jump', None, 'repaint: steps of a walk back.  Default: 10.'),
    flags.DEFINE_integer('visits', None, 'repaint: how often a level is visited.  Default: 10.'))


def main():
  fields = cli.values(METHOD, *OF_METHOD)
  if METHOD.value == restoring.EXACT:
    del fields['method']
    for name, value in fields.items():
      raise InputError(name, value, f'{restoring.EXACT} does not read it', 'leave it out')
    method = restoring.EXACT
  else:
    method = conditioned.named(**fields)
  # The images that --images has by default are measured only if nothing is given.
  images = IMAGES.value if IMAGES.present or not MEASUREMENTS.value else []
  result = restoring.restore(
      WORKDIR.value, OUT.value, TASK.value or '', method, images, samples=SAMPLES.value or '',
      **cli.values(MEASUREMENTS, NOISE, COUNT, STEPS, CLIP, WIENER, LABEL, SEED, BATCH_SIZE,
                   OVERWRITE, *OF_RUN))
  if jax.process_index() == 0:
    print('\n'.join(restoring.report(result)))
  cli.wrote(*filter(None, (OUT.value, SAMPLES.value)))
