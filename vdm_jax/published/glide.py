"""Parameters of GLIDE (openai/glide-text2im): its U-Nets with their texts, its noise-aware CLIP.

The file of a model holds a U-Net, by the names of `published.openai`, and its text transformer, of
`nn.text.glide.GLIDEText`.  Beside ADM's, the U-Net has the keys and values of the text:

    input_blocks.4.1.encoder_kv.weight         down_4_attention/text/kernel
    token_embedding.weight                     tokens/embedding
    padding_embedding                          padding
    transformer.resblocks.3.attn.c_qkv.weight  blocks/attention/qkv/kernel [3]; in the file the
                                               features of a head are side by side: q, k, v of the
                                               first head, then those of the second, ...
    transformer_proj.weight                    out/kernel

The noise-aware CLIP is two files, of the towers of `nn.text.clip.NoisyCLIP`:

    blocks.input.w_voc, blocks.input.w_t       tokens/embedding, time
    blocks.block_3.f_attn.f_q.w, f_k.w, f_v.w  blocks/attention/qkv/kernel [3]
    blocks.block_3.f_attn.f_q.b, f_v.b         blocks/attention/query_value_bias [3]
    blocks.output.f.w                          out/kernel
"""
import re
from collections.abc import Mapping

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.text.clip import ImageTower, TextTower
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import STACK
from vdm_jax.nn.unets import adm
from vdm_jax.published import fitting, openai
from vdm_jax.typing import Array, PyTree

Flat = Mapping[str, np.ndarray]

_OF_TEXT = re.compile(r'(token_embedding\.weight|positional_embedding|padding_embedding|'
                      r'transformer\..*|final_ln\..*|transformer_proj\..*)')

_UNET = {'features': 192, 'head_features': fitting.HEAD, 'resblock_updown': True, 'heads': 1,
         'dropout': 0.1, 'text': True}
_LARGE = {**_UNET, 'multipliers': (1, 1, 2, 2, 4, 4), 'blocks': 2, 'super_resolution': True}
# By the file's name without `.pt`; the settings are those of the public code.  The text transformer
# of each is GLIDEText().
MODELS: dict[str, adm.UNet] = {
    'base': adm.UNet(**_UNET),
    'upsample': adm.UNet(**_LARGE),
    'base_inpaint': adm.UNet(**_UNET, inpainting=True),
    'upsample_inpaint': adm.UNet(**_LARGE, inpainting=True),
}
SHAPES = {name: (256, 256, 3) if net.super_resolution else (64, 64, 3)
          for name, net in MODELS.items()}
CHAINS = {name: openai.TrainedChain(1000, 'linear' if net.super_resolution else 'cosine')
          for name, net in MODELS.items()}

LOGIT_SCALE = 100.0  # of the cosines of the noise-aware CLIP

# Names here -> published names, each applied to the whole name.
_text_renamed = fitting.renaming(
    (r'^tokens/positions$', r'positional_embedding'),
    (r'^tokens/', r'token_embedding/'),
    (r'^padding$', r'padding_embedding'),
    (r'^blocks_', r'transformer/resblocks/'),
    (r'^norm_out/', r'final_ln/'),
    (r'^out/', r'transformer_proj/'),
    (r'/norm(\d)/', r'/ln_\1/'),
    (r'/attention/qkv/', r'/attn/c_qkv/'),
    (r'/attention/out/', r'/attn/c_proj/'),
    (r'/mlp/dense0/', r'/mlp/c_fc/'),
    (r'/mlp/dense1/', r'/mlp/c_proj/'),
)
_tower_renamed = fitting.renaming(
    (r'^tokens/embedding$', r'input/w_voc'),
    (r'^tokens/positions$', r'input/w_pos'),
    (r'^positions$', r'input/w_pos'),
    (r'^time$', r'input/w_t'),
    (r'^patches/kernel$', r'input/patch_proj'),
    (r'^norm_in/', r'input/ln/'),
    (r'^norm_out/', r'output/ln/'),
    (r'^out/', r'output/f/'),
    (r'^blocks_', r'block_'),
    (r'/norm1/', r'/f_attn/ln/'),
    (r'/norm2/', r'/f_mlp/ln/'),
    (r'/attention/qkv/', r'/f_attn/f_qkv/'),
    (r'/attention/query_value_bias$', r'/f_attn/f_qv/b'),
    (r'/attention/out/', r'/f_attn/f_c/'),
    (r'/mlp/dense0/', r'/f_mlp/f_1/'),
    (r'/mlp/dense1/', r'/f_mlp/f_2/'),
    (r'/kernel$', r'/w'),
    (r'/scale$', r'/g'),
    (r'/bias$', r'/b'),
)


def text_name(name: str) -> str:
  """'blocks_0/mlp/dense0/kernel' -> 'transformer.resblocks.0.mlp.c_fc.weight'."""
  return fitting.torch_leaf(_text_renamed(name))


def tower_name(name: str) -> str:
  """'blocks_0/mlp/dense0/kernel' -> 'blocks.block_0.f_mlp.f_1.w'."""
  return 'blocks.' + _tower_renamed(name).replace('/', '.')


# -------------------------------------------------------------------------- the text transformer


def text_of(flat: Flat, heads: int = 0) -> GLIDEText:
  """The text transformer of a file of GLIDE, of any size, by its shapes.

  heads: of an attention, which no shape tells; 0: of 64 features each, as in the published ones.
  Raises InputError if there is no text transformer, or if 64 does not divide its features.
  """
  for name in ('token_embedding.weight', 'positional_embedding', 'transformer_proj.weight'):
    if name not in flat:
      raise InputError(problem=f'it has no {name}, so it is no GLIDE with a text',
                       remedy='give the file of a whole GLIDE')
  levels, features = flat['token_embedding.weight'].shape
  return GLIDEText(features, fitting.depth(flat, r'transformer\.resblocks\.(\d+)\.'),
                   heads or fitting.heads(features), levels=levels,
                   length=len(flat['positional_embedding']), padding=levels - 1,
                   outputs=len(flat['transformer_proj.weight']))


def text_from_flat(flat: Flat, like: PyTree, heads: int = 0) -> PyTree:
  """The text transformer of a file of GLIDE as a tree like `like`, arrays or shapes.

  The U-Net of `flat`, if it is there, is left out.  heads: as in `text_of`.
  Raises InputError naming every parameter that does not fit.
  """
  own = {name: array for name, array in flat.items() if _OF_TEXT.fullmatch(name)}

  def layout(name, array):
    return fitting.from_torch(name, _by_part(array, heads) if '/qkv/' in name else array)
  return fitting.fit(own, like, text_name, layout=layout, stacks={STACK})


def text_to_flat(params: PyTree, heads: int = 0) -> dict[str, Array]:
  """The inverse of `text_from_flat`."""
  def layout(name, array):
    array = fitting.to_torch(name, array)
    return _by_head(array, heads) if '/qkv/' in name else array
  return fitting.flat(params, text_name, layout=layout, stacks={STACK})


def _by_part(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows [head, (q, k, v), feature] -> [(q, k, v), head, feature]."""
  heads = heads or fitting.heads(len(array) // 3)
  return array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _by_head(array: np.ndarray, heads: int) -> np.ndarray:
  heads = heads or fitting.heads(len(array) // 3)
  return array.reshape(3, heads, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


# ---------------------------------------------------------------------------------- the U-Net


def unet_of(flat: Flat, side: int = 0, head_features: int = fitting.HEAD) -> adm.UNet:
  """The U-Net of a file of GLIDE, of any size, by its shapes: see `MODELS` for its settings.

  side: the height of its images, which no shape tells; 0: 256 for an upsampler, else 64.
  head_features: of an attention, which no shape tells either.
  Raises InputError if a part is missing, or if it reads another number of channels.
  """
  def shape(name):
    if name not in flat:
      raise InputError(problem=f'it has no {name}, so it is no U-Net of GLIDE',
                       remedy='give the file of a whole GLIDE')
    return flat[name].shape

  inputs, features = shape('input_blocks.0.0.weight')[1], shape('time_embed.0.weight')[1]
  channels = shape('out.2.weight')[0] // 2  # of y; the others are of the variance
  reads = {channels: (False, False), 2 * channels: (True, False), 2 * channels + 1: (False, True),
           3 * channels + 1: (True, True)}
  if inputs not in reads:
    raise InputError(problem=f'it reads {inputs} channels and returns {channels}, besides the '
                     'variances', remedy=f'give a network that reads one of {sorted(reads)}')
  small, inpainting = reads[inputs]
  side = side or (256 if small else 64)

  # The last block of a resolution on the way up holds a change of size too, which is a second
  # block, or a convolution alone.  Each resolution has as many on the way down, and a part before.
  count = fitting.depth(flat, r'output_blocks\.(\d+)\.')
  changes = re.compile(r'output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight')
  each = 1 + min((int(found[1]) for name in flat if (found := changes.fullmatch(name))),
                 default=count - 1)
  levels = range(count // each if each else 0)
  first = lambda level: f'output_blocks.{(len(levels) - 1 - level) * each}'
  width = lambda level: shape(f'{first(level)}.0.out_layers.3.weight')[0]
  attends = lambda level: f'{first(level)}.1.qkv.weight' in flat
  return adm.UNet(
      features=features, multipliers=tuple(width(level) // features for level in levels),
      blocks=each - 1,
      attention_resolutions=tuple(side >> level for level in levels if attends(level)),
      head_features=head_features,
      scale_shift=shape('middle_block.0.emb_layers.1.weight')[0] == 2 * width(len(levels) - 1),
      resblock_updown=f'input_blocks.{each}.0.op.weight' not in flat,
      heads=1, super_resolution=small, inpainting=inpainting,
      text='middle_block.1.encoder_kv.weight' in flat)


def unet_from_flat(flat: Flat, like: PyTree) -> PyTree:
  """The U-Net of a file of GLIDE as a tree like `like`, arrays or shapes.

  The text transformer of `flat`, if it is there, is left out.
  Raises InputError naming every other parameter that does not fit.
  """
  return openai.from_flat(
      {name: array for name, array in flat.items() if not _OF_TEXT.fullmatch(name)}, like)


def unet_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `unet_from_flat`."""
  return openai.to_flat(params)


# -------------------------------------------------------------------------- the noise-aware CLIP


def text_tower_of(flat: Flat, heads: int = 0) -> TextTower:
  """The text tower of its file, of any size, by its shapes.

  heads: as in `text_of`.  Raises InputError if it is no text tower, and as `text_of`.
  """
  _require_input(flat, 'w_voc', 'text')
  levels, features = flat['blocks.input.w_voc'].shape
  return TextTower(features, _tower_depth(flat), heads or fitting.heads(features), levels=levels,
                   length=len(flat['blocks.input.w_pos']), outputs=len(flat['blocks.output.f.w']),
                   gelu='exact', key_bias=False)


def image_tower_of(flat: Flat, heads: int = 0) -> ImageTower:
  """The image tower of its file, as `text_tower_of`."""
  _require_input(flat, 'w_t', 'image')
  features, _, patch, _ = flat['blocks.input.patch_proj'].shape
  return ImageTower(features, _tower_depth(flat), heads or fitting.heads(features), patch=patch,
                    outputs=len(flat['blocks.output.f.w']), steps=len(flat['blocks.input.w_t']),
                    gelu='exact', key_bias=False)


def _require_input(flat: Flat, name: str, kind: str) -> None:
  if f'blocks.input.{name}' not in flat:
    raise InputError(problem=f'it has no blocks.input.{name}, so it is no {kind} tower of the '
                     'noise-aware CLIP', remedy=f'give the file of the {kind} encoder')


def _tower_depth(flat: Flat) -> int:
  return fitting.depth(flat, r'blocks\.block_(\d+)\.')


def tower_from_flat(flat: Flat, like: PyTree) -> PyTree:
  """A tower of the noise-aware CLIP from its file, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that does not fit.
  """
  own = fitting.joined(flat, r'(.*\.f_attn\.)f_([qkv])\.(w)', 'qkv', '{0}f_qkv.{1}')
  own = fitting.joined(own, r'(.*\.f_attn\.)f_([qv])\.(b)', 'qv', '{0}f_qv.{1}')

  def layout(name, array):
    return array.reshape(2, -1) if name.endswith('_bias') else fitting.from_torch(name, array)
  return fitting.fit(own, like, tower_name, layout=layout, stacks={STACK})


def tower_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `tower_from_flat`."""
  def layout(name, array):
    array = np.asarray(array)
    return array.reshape(-1) if name.endswith('_bias') else fitting.to_torch(name, array)
  flat = {}
  for name, array in fitting.flat(params, tower_name, layout=layout, stacks={STACK}).items():
    joined = re.fullmatch(r'(.*\.f_attn\.)f_(qkv|qv)\.([wb])', name)
    if joined is None:
      flat[name] = array
      continue
    place, parts, kind = joined.groups()
    for part, own in zip(parts, np.split(array, len(parts)), strict=True):
      flat[f'{place}f_{part}.{kind}'] = own
  return flat


def with_tokens(flat: Flat, levels: int) -> dict[str, np.ndarray]:
  """The file of the text tower with the vectors of the tokens 0 .. levels - 1 alone.

  The published table has more rows than its tokeniser has tokens.
  Raises InputError if it has fewer.
  """
  table = flat['blocks.input.w_voc']
  if len(table) < levels:
    raise InputError(problem=f'its text tower has {len(table):,} tokens, and the tokeniser '
                     f'{levels:,}', remedy='give the published file')
  return {**flat, 'blocks.input.w_voc': table[:levels]}
