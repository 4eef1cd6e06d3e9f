"""Makes a picture, or a small 3-D scene, by a model conditioned on text: score distillation.

  python scripts/distil_scene.py --workdir=RUN --out=scene.png \\
    --view='0=a large red disk on white' --view='90=a large red cross on white'

Only the scene is optimised: from each told side the model should see what its text says.  The model
must be conditioned on text, like the model of configs/text/glide_shapes.py.  The state is kept
every 50 steps, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import distil_scene

flags.adopt_module_key_flags(distil_scene)

if __name__ == '__main__':
  cli.run(distil_scene.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/shapes', 'view': "'0=a large red disk on white'", 'out': 'scene.png'},
      kept='The scene is kept every 50 steps, and the same command goes on from there.')
