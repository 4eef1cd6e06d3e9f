"""Turns published weights into a run that evaluate.py, sample.py and all other commands can use.

  python scripts/import_weights.py --source=improved-diffusion --in=cifar10_uncond_50M_500K.pt \\
    --out=runs/iddpm
  python scripts/import_weights.py --source=dit --in=DiT-XL-2-256x256.pt \\
    --autoencoder=sd-vae-ft-ema --out=runs/dit

It reads PyTorch files, NVIDIA's pickles, safetensors, .npz and Flax's msgpack.  It never executes
code in a file.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.runs import importing

SOURCE = flags.DEFINE_enum('source', None, sorted([*importing.SOURCES, *importing.OPENED]),
                           'The public codebase that the file is from.')
IN = cli.path('in', 'The file of weights, or a folder of diffusers.')
OUT = cli.run_directory('The directory of the new run.', 'out')
MODEL = flags.DEFINE_string('model', '', 'Which model of the source it is.  Default: the name of '
                            'the file, or what the file says.')
AUTOENCODER = cli.path('autoencoder', 'The file or folder of the autoencoder that decodes the '
                       'latents of DiT.')


def main():
  imported = importing.import_weights(
      SOURCE.value, IN.value, OUT.value, bootstrap.ROOT / 'configs', MODEL.value,
      AUTOENCODER.value or '')
  print(f'{imported.model}, {imported.parameters:,} parameters, {imported.config}')
  cli.wrote(OUT.value, then=cli.command('sample.py', workdir=OUT.value, out='samples.png'))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={
      'source': 'score-sde', 'in': 'checkpoint_8.pth', 'out': 'runs/ddpmpp'}, alone=True)
