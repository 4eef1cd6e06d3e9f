"""Prepares data, without TensorFlow: cifar10, mnist, digits, emoji, chorales, brain, phantoms.

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/prepare_data.py mnist --data_dir=DIR --from=FOLDER_OF_THE_FOUR_FILES
  python scripts/prepare_data.py emoji --data_dir=DIR --from=NotoColorEmoji.ttf,emoji-test.txt
  python scripts/prepare_data.py chorales --data_dir=DIR
  python scripts/prepare_data.py brain --data_dir=DIR
  python scripts/prepare_data.py phantoms --data_dir=DIR

The archives are downloaded, or read from disk (--from).  The chorales come with the package
music21 (pip install "vdm_jax[music]"); it takes some minutes to read them.
The head comes with the package nilearn (pip install "vdm_jax[brain]").  The phantoms are volumes
to reconstruct, and a formula.
It is safe to run the command again.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.data import prepare
from vdm_jax.errors import InputError
from vdm_jax.machine import files

DATA_DIR = cli.path(
    'data_dir', 'The folder to write to.  Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.')
FROM = flags.DEFINE_list(
    'from', [], 'The official archives or the font on disk, or their folders, separated by commas.')


def main(names):
  if len(names) != 1:
    raise InputError(problem='one data set is prepared at a time',
                     remedy='name cifar10, mnist, digits, emoji, chorales, brain or '
                            'phantoms')
  print(prepare.prepare(names[0], DATA_DIR.value or '',
                        [str(files.user_path('from', each)) for each in FROM.value]))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, arguments=True, alone=True)
