"""The "BERT" of latent diffusion's text-to-image models (Rombach et al. 2022, section 4.3.1).

It has the tokens of BERT (Devlin et al. 2019) and no other part of it.  The transformer is trained
with the U-Net; its heads have 64 features each, whatever the width.
"""
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.nn.text.trunk import Encoded, Tokens, Trunk, norm
from vdm_jax.typing import Array


class LatentBERT(Trunk):
  """A transformer whose tokens read all positions; padding is a token like any other.

  levels         tokens are 0 .. levels - 1
  length         L, tokens of a text
  head_features  of a head

  The defaults are those of txt2img-f8-large, the model of 1.4 billion parameters.
  """
  features: int = 1280
  depth: int = 32
  levels: int = 30_522
  length: int = 77
  head_features: int = 64

  @nn.compact
  def __call__(self, tokens: Array) -> Encoded:
    """The normalised vectors of all tokens; there is no pooled one.  tokens: integers [B, L].

    Raises InputError: tokens of another shape or type.
    """
    require_sizes(self, features=1, depth=1, levels=1, length=1, head_features=1)
    h = Tokens(self.levels, self.length, self.features, name='tokens')(tokens)
    return Encoded(norm('norm_out')(self._blocks(h, bias=False, head_features=self.head_features)),
                   None)
