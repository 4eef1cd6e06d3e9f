"""The flags and the `main` of scripts/distil_scene.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.errors import require
from vdm_jax.runs import scenes
from vdm_jax.scenes import SCENES

WORKDIR = cli.run_directory('The directory of a run whose model is conditioned on text.')
OUT = cli.path('out', 'The .png file to write: the scene from all around.  The .npz of the same '
               'name gets the scene itself.')
OVERWRITE = cli.overwrite()
VIEW = flags.DEFINE_multi_string('view', None, 'What the scene should show from a side: '
                                 'DEGREES=TEXT (TEXT alone: at 0 degrees).  Give one flag for each '
                                 'side.')
SCENE = flags.DEFINE_string('scene', 'voxels', f'One of {", ".join(SCENES)}.  Only voxels look '
                            'different from different sides.')
GUIDANCE = flags.DEFINE_float('guidance', 3.0, 'The weight of classifier-free guidance; 0: none.')
STEPS = flags.DEFINE_integer('steps', 1000, 'Steps of Adam.')
BATCH_SIZE = cli.batch_size(8, 'Pictures of the scene in a step, of all views in turn.')
RATE = flags.DEFINE_float('rate', None, 'The learning rate of Adam.  Default: 0.005 for mlp, '
                          'otherwise 0.05.')
JITTER = flags.DEFINE_float('jitter', 0.0, 'How many degrees a picture may be off its view, to '
                            'each side.')
FIRST = flags.DEFINE_float('first', 0.02, 'The least time of the noise.')
LAST = flags.DEFINE_float('last', 0.98, 'The largest time of the noise.')
FRAMES = flags.DEFINE_integer('frames', 12, 'Pictures in the .png, of a scene that turns.')
JUDGE = flags.DEFINE_bool('judge', None, 'Whether the judge of shapes names what each view shows.  '
                          'Default: only if the data of the run are shapes.')
SEED = cli.seed('the noise')
OF_RUN = cli.of_run()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  require(not MEASURED.value or JUDGE.value is not False, 'measured', MEASURED.value,
          'the table holds the words of the judge', 'leave out --judge=false')
  cli.check_row(MEASURED.value, ROW.value, scenes.FIGURES)
  result = scenes.distil(WORKDIR.value, OUT.value, [scenes.view(text) for text in VIEW.value or ()],
                         judge=True if MEASURED.value else JUDGE.value, **cli.values(
                             SCENE, GUIDANCE, STEPS, BATCH_SIZE, RATE, JITTER, FIRST, LAST, FRAMES,
                             SEED, OVERWRITE, *OF_RUN))
  print('\n'.join(scenes.report(result)))
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, scenes.figures(result))
  elif MEASURED.value:
    cli.keep(MEASURED.value, 'What a scene shows from each side', scenes.verdicts(result))
  cli.wrote(OUT.value, OUT.value.removesuffix('.png') + '.npz')
