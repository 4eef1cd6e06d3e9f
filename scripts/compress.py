"""Compresses images by the model of a run: without loss at the rate of its bound, or with loss.

  python scripts/compress.py encode --workdir=runs/digits --T=50 images.npz --out=images.vdmz
  python scripts/compress.py encode --workdir=runs/digits --method=diffc images.npz --out=x.vdmz
  python scripts/compress.py decode x.vdmz --prefix=0.5 --finish=flow --out=decoded
  python scripts/compress.py curve --workdir=runs/digits images.npz --out=rate_distortion.png
  python scripts/compress.py info images.vdmz
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import compress

flags.adopt_module_key_flags(compress)

if __name__ == '__main__':
  cli.run(compress.main, bootstrap.ROOT, arguments=True, alone=True,
          kept='A file that was being written is not left behind.')
