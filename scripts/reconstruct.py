"""Reconstructs volumes from few measurements, with a run's model as the prior of slices.

  python scripts/prepare_data.py phantoms --data_dir=DIR
  python scripts/reconstruct.py --workdir=runs/ct_slices --volume=DIR/phantoms/volumes.npz \\
    --peak=1.5 --views=8 --out=reconstructed.png

Volumes are measured slice by slice, with noise, or the file has the measurements.  The picture and
the report compare the mean of several samples with reconstructions without a prior: filtered
back-projection, least squares, and total variation.  The state of the sampler is kept beside the
picture until it is written, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import reconstruct

flags.adopt_module_key_flags(reconstruct)

if __name__ == '__main__':
  cli.run(reconstruct.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/ct_slices', 'volume': 'phantoms.npz', 'out': 'reconstructed.png'},
      kept='The state is kept, and the same command goes on from there.')
