"""The tiny autoencoder of Stable Diffusion's latents (Bohan 2023, github.com/madebyollin/taesd).

It maps images to the latents of a diffusion model, and back, with 64 features at all resolutions.
It was distilled from the autoencoder of Stable Diffusion.  Its latents are already multiplied by
the factor s of latent diffusion.  Images are in [-1, 1], as for the other autoencoders; the public
code has them in [0, 1].
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import require_halvable, torch_init, upsample
from vdm_jax.typing import Array


class Block(nn.Module):
  """relu(h + conv(relu(conv(relu(conv(h)))))): [B, H, W, C] -> the same."""
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, h: Array) -> Array:
    conv = lambda name: Conv(h.shape[-1], kernel_init=torch_init, name=name,
                             weight_gradient=self.weight_gradient)
    x = nn.relu(conv('conv0')(h))
    return nn.relu(h + conv('conv2')(nn.relu(conv('conv1')(x))))


class TinyAutoencoder(nn.Module):
  """y = E(x) and x' = D(y).

  channels: of the images.  latent_channels: of y.  features: of the convolutions.  halvings: of the
  images.
  """
  channels: int = 3
  latent_channels: int = 4
  features: int = 64
  halvings: int = 3
  weight_gradient: WeightGradient = 'auto'

  def setup(self):
    conv = lambda features, stride=1, bias=True: nn.Conv(
        features, (3, 3), stride, padding=1, use_bias=bias, kernel_init=torch_init)
    blocks = lambda n: [Block(self.weight_gradient) for _ in range(n)]
    self.encode_in, self.encode_out = conv(self.features), conv(self.latent_channels)
    self.encode_first = Block(self.weight_gradient)
    self.encode_blocks = blocks(3 * self.halvings)
    self.downsample = [conv(self.features, 2, False) for _ in range(self.halvings)]
    self.decode_in, self.decode_out = conv(self.features), conv(self.channels)
    self.decode_blocks = blocks(3 * self.halvings)
    self.upsample = [conv(self.features, bias=False) for _ in range(self.halvings)]
    self.decode_last = Block(self.weight_gradient)

  def encode(self, x: Array) -> Array:
    """y: [B, H / 8, W / 8, latent_channels].  x: [B, H, W, C] in [-1, 1].

    Raises InputError: images that cannot be halved so often.
    """
    require_halvable(x, self.halvings)
    h = self.encode_first(self.encode_in(0.5 * (x + 1.0)))
    for i in range(self.halvings):
      h = self.downsample[i](h)
      for block in self.encode_blocks[3 * i:3 * i + 3]:
        h = block(h)
    return self.encode_out(h)

  def decode(self, y: Array) -> Array:
    """x': [B, 8 h, 8 w, C].  y: [B, h, w, latent_channels], which is kept within about -3 .. 3."""
    h = nn.relu(self.decode_in(3.0 * jnp.tanh(y / 3.0)))
    for i in range(self.halvings):
      for block in self.decode_blocks[3 * i:3 * i + 3]:
        h = block(h)
      h = self.upsample[i](upsample(h))
    return 2.0 * self.decode_out(self.decode_last(h)) - 1.0

  def __call__(self, x: Array) -> Array:
    """D(E(x)): the images x, encoded and decoded."""
    return self.decode(self.encode(x))
