"""Edits an image by a model conditioned on text, and shows source, mask and edit side by side.

  python scripts/edit.py --workdir=RUN --image=data:test:0 --target='a large blue disk on grey' \\
    --method=diffedit --out=edit.png

The model must be conditioned on text, like the model of configs/text/glide_shapes.py.  --image is
an image of the run's data, or a file.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import edit

flags.adopt_module_key_flags(edit)

if __name__ == '__main__':
  cli.run(edit.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/shapes', 'target': "'a large red disk on white'", 'method': 'diffedit',
      'out': 'edit.png'})
