"""Encodes the training images of an autoencoder's run once, for all later trainings on latents.

  python scripts/encode_latents.py --workdir=runs/vae --out=./latents --data_name=./imagenet --flips
  python scripts/train.py --config=configs/imagenet/dit.py --config.data.name=./imagenet \\
    --config.model.autoencoder=runs/vae --config.data.latents=./latents --workdir=RUN

It writes a folder of arrays: for each image the mean and the log variance of its latent, and its
label.  Training draws a fresh latent each time.  After an interruption, the same command continues,
and gives the same latents bit for bit.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, runs

WORKDIR = cli.run_directory('The run of an autoencoder.')
OUT = cli.path('out', 'The folder of the latents.  The same command resumes it.')
FLIPS = flags.DEFINE_bool('flips', False, 'Also encode each image flipped left-right, for configs '
                          'that flip images in training.')
BATCH_SIZE = cli.batch_size(64, 'How many images are encoded at a time.')
DATA_DIR = cli.data_dir()
DATA_NAME = cli.moved_data('The images: a data set, ./photos or x.npz.  Default: the images of the '
                           'run.')


def main():
  out = runs.encode(WORKDIR.value, OUT.value, **cli.values(FLIPS, BATCH_SIZE, DATA_DIR, DATA_NAME))
  cli.wrote(str(out), then=cli.command('train.py', **{
      'config': 'CONFIG', 'config.model.autoencoder': WORKDIR.value, 'config.data.latents': out,
      'workdir': 'RUN'}))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True,
          required={'workdir': 'runs/vae', 'out': './latents'},
          kept='Whole batches of latents are kept, and the same command goes on from there.')
