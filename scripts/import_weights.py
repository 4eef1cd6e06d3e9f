"""Turns published weights into a run that evaluate.py, sample.py and all other commands can use.

  python scripts/import_weights.py --source=improved-diffusion --in=cifar10_uncond_50M_500K.pt \\
    --out=runs/iddpm
  python scripts/import_weights.py --source=dit --in=DiT-XL-2-256x256.pt \\
    --autoencoder=sd-vae-ft-ema --out=runs/dit
  python scripts/import_weights.py --source=stable-diffusion --in=sd-v1-4.ckpt \\
    --merges=bpe_simple_vocab_16e6.txt.gz --out=runs/sd

It reads PyTorch files, NVIDIA's pickles, safetensors, .npz and Flax's msgpack.  It never executes
code in a file.
"""
import functools

import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import import_weights

flags.adopt_module_key_flags(import_weights)

if __name__ == '__main__':
  cli.run(functools.partial(import_weights.main, bootstrap.ROOT / 'configs'), bootstrap.ROOT,
          required={'source': 'score-sde', 'in': 'checkpoint_8.pth', 'out': 'runs/ddpmpp'},
          alone=True)
