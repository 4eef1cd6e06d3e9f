"""Restores measured images by a run's model: samples of p(x | y), with their mean and deviation.

  python scripts/restore.py --workdir=RUN --task=inpaint --method=pigdm --images=data:test:0-7 \\
    --out=restored.png
  python scripts/restore.py --workdir=RUN --task=inpaint --method=pigdm --measurements=y.npz \\
    --noise=0.05 --out=restored.png

Images are measured by the task, with noise, and each gets several samples.  The report compares
them with the images: PSNR, SSIM if scikit-image is installed, and how well the samples are spread.
Measurements of your own need no images, and then nothing is compared.
Batches of samples are kept beside the picture until it is written, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import restore

flags.adopt_module_key_flags(restore)

if __name__ == '__main__':
  cli.run(restore.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/digits', 'method': 'pigdm', 'out': 'restored.png'},
      kept='Whole batches of samples are kept, and the same command goes on from there.')
