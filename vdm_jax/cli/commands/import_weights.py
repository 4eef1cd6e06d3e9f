"""The flags and the `main` of scripts/import_weights.py."""
from pathlib import Path

from absl import flags

from vdm_jax import cli
from vdm_jax.runs import importing

SOURCE = flags.DEFINE_enum('source', None, sorted([*importing.SOURCES, *importing.OPENED]),
                           'The public codebase that the file is from.')
IN = cli.path('in', "The file of weights, or a folder of diffusers, or of both towers of GLIDE's "
              'CLIP.')
OUT = cli.run_directory('The directory of the new run.', 'out')
MODEL = flags.DEFINE_string('model', '', 'Which model of the source the file holds.  Default: as '
                            'its name or its content says.')
AUTOENCODER = cli.path('autoencoder', 'The file or folder of the autoencoder that decodes the '
                       'latents of DiT.')
MERGES = cli.path('merges', "The file of a text model's tokeniser: bpe_simple_vocab_16e6.txt.gz "
                  "of CLIP (of GLIDE's CLIP too), vocab.bpe of GPT-2 for GLIDE, or vocab.txt of "
                  'BERT.  The run keeps a copy.')
IMAGE_SIZE = flags.DEFINE_integer('image_size', 0, 'The side of the images of a text model.  '
                                  'Default: as published, or as the folder says.')


def main(configs: Path):
  """configs: the folder of the config files."""
  imported = importing.import_weights(
      SOURCE.value or '', IN.value, OUT.value, configs, MODEL.value, AUTOENCODER.value or '',
      MERGES.value or '', IMAGE_SIZE.value)
  print(f'{imported.model}, {imported.parameters:,} parameters, {imported.config}')
  cli.wrote(OUT.value, then=cli.command('sample.py', workdir=OUT.value, out='samples.png'))
