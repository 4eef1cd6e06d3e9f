"""Parameters of CLIP as parameters of `nn.text.clip.CLIP`, by two sets of names.

openai/CLIP keeps q, k and v of an attention together, and huggingface/transformers keeps them
apart.  Here blocks are stacked (`nn.blocks.stack`):

    openai/CLIP                           transformers                            here
    token_embedding.weight                text_model.embeddings.token_embedding   text/tokens
    transformer.resblocks.3.attn.in_proj  text_model.encoder.layers.3.self_attn   text/blocks [3]
    text_projection                       text_projection.weight, transposed      text/out
    visual.conv1.weight                   vision_model.embeddings.patch_...       image/patches

`of_transformers` gives arrays of transformers the names of openai/CLIP.
"""
import re
from collections.abc import Mapping

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.text.clip import CLIP, ImageTower, TextTower
from vdm_jax.nn.text.trunk import STACK
from vdm_jax.published import fitting
from vdm_jax.typing import Array, PyTree

Flat = Mapping[str, np.ndarray]

_STACKS = {f'text/{STACK}', f'image/{STACK}'}
_HINT = 'compare features, depth, levels, length, patch, outputs and the size of the image'
# Beside the parameters: settings in files of openai/CLIP, a table in those of transformers.
_NO_PARAMETER = re.compile(r'(input_resolution|context_length|vocab_size|(.*\.)?position_ids)')
_OF_TEXT = re.compile(r'(token_embedding\.|positional_embedding$|transformer\.|ln_final\.|'
                      r'text_projection$)')

# By the names of openai/CLIP.  The text tower of ViT-L/14 without its last map is the text encoder
# of Stable Diffusion v1.
MODELS: dict[str, CLIP] = {
    name: CLIP(TextTower(features=width, attention_heads=fitting.heads(width), outputs=width),
               ImageTower(features=image, depth=depth, attention_heads=fitting.heads(image),
                          patch=patch, outputs=width))
    for name, width, image, depth, patch in (
        ('ViT-B/32', 512, 768, 12, 32), ('ViT-B/16', 512, 768, 12, 16),
        ('ViT-L/14', 768, 1024, 24, 14))}
SIDES = dict.fromkeys(MODELS, 224)  # of an image

# Names here -> names of openai/CLIP, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^text/tokens/positions$', r'positional_embedding'),
    (r'^text/tokens/', r'token_embedding/'),
    (r'^text/blocks_', r'transformer/resblocks/'),
    (r'^text/norm_out/', r'ln_final/'),
    (r'^text/out/kernel$', r'text_projection'),
    (r'^image/class$', r'visual/class_embedding'),
    (r'^image/positions$', r'visual/positional_embedding'),
    (r'^image/patches/', r'visual/conv1/'),
    (r'^image/norm_in/', r'visual/ln_pre/'),
    (r'^image/blocks_', r'visual/transformer/resblocks/'),
    (r'^image/norm_out/', r'visual/ln_post/'),
    (r'^image/out/kernel$', r'visual/proj'),
    (r'/norm(\d)/', r'/ln_\1/'),
    (r'/attention/qkv/kernel$', r'/attn/in_proj_weight'),
    (r'/attention/qkv/bias$', r'/attn/in_proj_bias'),
    (r'/attention/out/', r'/attn/out_proj/'),
    (r'/mlp/dense0/', r'/mlp/c_fc/'),
    (r'/mlp/dense1/', r'/mlp/c_proj/'),
)
# Names of transformers -> names of openai/CLIP, but for q, k, v and the last map of the text.
_of_transformers = fitting.renaming(
    (r'^text_model\.embeddings\.token_embedding\.', r'token_embedding.'),
    (r'^text_model\.embeddings\.position_embedding\.weight$', r'positional_embedding'),
    (r'^text_model\.encoder\.layers\.', r'transformer.resblocks.'),
    (r'^text_model\.final_layer_norm\.', r'ln_final.'),
    (r'^vision_model\.embeddings\.class_embedding$', r'visual.class_embedding'),
    (r'^vision_model\.embeddings\.patch_embedding\.', r'visual.conv1.'),
    (r'^vision_model\.embeddings\.position_embedding\.weight$', r'visual.positional_embedding'),
    (r'^vision_model\.pre_layrnorm\.', r'visual.ln_pre.'),  # spelt so there
    (r'^vision_model\.encoder\.layers\.', r'visual.transformer.resblocks.'),
    (r'^vision_model\.post_layernorm\.', r'visual.ln_post.'),
    (r'^text_projection\.weight$', r'text_projection'),
    (r'^visual_projection\.weight$', r'visual.proj'),
    (r'\.self_attn\.', r'.attn.'),
    (r'\.layer_norm(\d)\.', r'.ln_\1.'),
    (r'\.mlp\.fc1\.', r'.mlp.c_fc.'),
    (r'\.mlp\.fc2\.', r'.mlp.c_proj.'),
)


def published(name: str) -> str:
  """'text/blocks_0/mlp/dense0/kernel' -> 'transformer.resblocks.0.mlp.c_fc.weight'."""
  return fitting.torch_leaf(_renamed(name))


def of_transformers(flat: Flat) -> dict[str, np.ndarray]:
  """Arrays of transformers (CLIPModel, CLIPTextModel) by their names in openai/CLIP.

  Raises InputError if an attention lacks its q, k or v.
  """
  named = {_of_transformers(name): array for name, array in flat.items()
           if not _NO_PARAMETER.fullmatch(name)}
  out = fitting.joined(named, r'(.*\.attn\.)([qkv])_proj\.(weight|bias)', 'qkv',
                       r'{0}in_proj_{1}')
  return {name: array.T if name in ('text_projection', 'visual.proj') else array
          for name, array in out.items()}


def require_text_alone(flat: Flat) -> None:
  """Raises InputError naming the arrays that are no part of a text tower."""
  if other := [name for name in flat if not _OF_TEXT.match(name)]:
    raise InputError(problem=f'it holds {fitting.some(other)}, which are no part of a text tower '
                     'of CLIP', remedy='leave them out of the file')


def text_of(flat: Flat, heads: int = 0) -> TextTower:
  """The text tower of these parameters, of any size, by their shapes.

  flat: {name of openai/CLIP: array}.  heads: of an attention, which no shape tells; 0: of 64
  features each, as in all published networks.
  Raises InputError if there is no text tower, or if 64 does not divide its features.
  """
  vectors, positions = flat.get('token_embedding.weight'), flat.get('positional_embedding')
  if vectors is None or positions is None:
    raise InputError(problem='it has no token_embedding and positional_embedding, so it is no text '
                     'tower of CLIP', remedy='give the parameters of CLIP')
  levels, features = vectors.shape
  projection = flat.get('text_projection')
  return TextTower(features, fitting.depth(flat, r'transformer\.resblocks\.(\d+)\.'),
                   heads or fitting.heads(features), levels=levels, length=len(positions),
                   outputs=0 if projection is None else projection.shape[1])


def network_of(flat: Flat, text_heads: int = 0, image_heads: int = 0) -> CLIP:
  """Both towers of these parameters, of any size, by their shapes: see `text_of`.

  Raises InputError if a tower is missing, or if images are read by a ResNet.
  """
  for name in ('visual.class_embedding', 'visual.conv1.weight', 'visual.proj', 'text_projection'):
    if name not in flat:
      raise InputError(problem=f'it has no {name}, so it is no CLIP with a vision transformer',
                       remedy='give the parameters of both towers of a ViT')
  features, _, patch, _ = flat['visual.conv1.weight'].shape
  image = ImageTower(
      features, fitting.depth(flat, r'visual\.transformer\.resblocks\.(\d+)\.'),
      image_heads or fitting.heads(features), patch=patch, outputs=flat['visual.proj'].shape[1])
  return CLIP(text_of(flat, text_heads), image)


def from_flat(flat: Flat, like: PyTree) -> PyTree:
  """Parameters by their names in openai/CLIP as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  own = {name: array for name, array in flat.items() if not _NO_PARAMETER.fullmatch(name)}
  return fitting.fit(own, like, published, layout=_from_torch, hint=_HINT, stacks=_STACKS)


def text_from_flat(flat: Flat, like: PyTree) -> PyTree:
  """The same for a `TextTower` alone.  The image tower of `flat`, if it is there, is left out.

  If the tower has no last map, the map of the file is left out too.
  """
  own = {name: array for name, array in flat.items()
         if _OF_TEXT.match(name) and (name != 'text_projection' or 'out' in like)}
  return from_flat(own, {'text': like})['text']


def to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `from_flat`."""
  return fitting.flat(params, published, layout=_to_torch, stacks=_STACKS)


_AS_HERE = ('text/out/kernel', 'image/out/kernel')  # [in, out] there too


def _from_torch(name: str, array: np.ndarray) -> np.ndarray:
  return array if name in _AS_HERE else fitting.from_torch(name, array)


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
  return array if name in _AS_HERE else fitting.to_torch(name, array)
