"""A small convolutional classifier, for the features that it makes of an image."""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import Dropout, require_images, require_sizes
from vdm_jax.typing import Array


class ConvClassifier(nn.Module):
  """Convolutions that halve the image, the mean over positions, a hidden layer, logits.

  For each of `channels` there are two 3x3 convolutions, the first of stride 1 and the second of
  stride 2.  A GroupNorm with groups of eight channels and a relu follow each convolution.  The
  features are the output of the hidden layer after its relu.
  """
  classes: int
  channels: tuple[int, ...] = (32, 64)
  features: int = 64
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> tuple[Array, Array]:
    """x: [B, H, W, C]; keys: [B] -> logits [B, classes], features [B, `features`].

    Raises InputError: data that are no images; no features.
    """
    require_images(x)
    require_sizes(self, features=1)
    h = x
    for i, channels in enumerate(self.channels):
      for name, stride in ((f'conv{i}', 1), (f'down{i}', 2)):
        h = nn.Conv(channels, (3, 3), stride, name=name)(h)
        h = nn.relu(nn.GroupNorm(None, group_size=8, name=f'{name}_norm')(h))
    h = nn.relu(nn.Dense(self.features, name='hidden')(jnp.mean(h, axis=(1, 2))))
    return nn.Dense(self.classes, name='logits')(
        Dropout(self.dropout, name='dropout')(h, keys)), h
