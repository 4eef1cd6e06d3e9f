"""TFDS builders for data sets that TFDS lacks.

They write array_record, and need neither TensorFlow nor a connection.  A builder that gives encoded
PNG bytes to its Image feature never calls TensorFlow.  A builder that gives an array does.
"""
import contextlib
import io
import os

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def png(image: np.ndarray) -> bytes:
  """uint8 [H, W, C] with C = 1 or 3 -> PNG, lossless."""
  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format='PNG')
  return buffer.getvalue()


class Digits(tfds.core.GeneratorBasedBuilder):
  """The 1,797 handwritten digits that come with scikit-learn: 8 x 8, grey levels 0 .. 16.

  Every sixth image, from index 0, is for testing (300).  The other 1,497 are for training.  Both
  keep scikit-learn's order.  Source: the test part of "Optical Recognition of Handwritten Digits",
  E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository.
  """
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='The handwritten digits of scikit-learn: 8 x 8, grey levels 0 .. 16.',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1)),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    from sklearn.datasets import load_digits  # a second of imports, once per data_dir
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[..., None], digits.target
    test = np.arange(len(images)) % 6 == 0
    return {'train': self._generate_examples(images[~test], labels[~test]),
            'test': self._generate_examples(images[test], labels[test])}

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': png(image), 'label': int(label)}


def generate(builder: tfds.core.DatasetBuilder) -> str:
  """Writes the builder's data set as array_record and returns its directory.

  TFDS writes beside the final directory and renames at the end.  So a killed run leaves nothing
  that looks finished.  If two runs write at once, one wins and the other uses its result.  Raises
  OSError that names the flag if the directory cannot be written.
  """
  directory = os.fspath(builder.data_path)
  tfds.disable_progress_bar()  # its bars know no totals
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself there
      builder.download_and_prepare(file_format='array_record')
  except OSError as error:
    if not os.path.exists(os.path.join(directory, 'dataset_info.json')):
      raise OSError(f'cannot write {directory} ({error}): name another place with '
                    '--data_dir') from error
  finally:
    tfds.enable_progress_bar()
  return directory
