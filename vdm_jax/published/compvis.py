"""Checkpoints of CompVis/latent-diffusion and stable-diffusion as parameters of networks here.

The file of a latent diffusion holds several networks, each under a prefix, which `readers.subtree`
takes off:

    first_stage_model       an autoencoder, of `nn.autoencoders.compvis`
    model.diffusion_model   a U-Net, of `nn.unets.latent` or, without a context, of `nn.unets.adm`
    cond_stage_model        the vectors of labels, or a network of texts: `nn.text.bert`, or in
                            Stable Diffusion the text tower of CLIP, by its names in transformers

The file of an autoencoder alone has no prefix.  Beside the autoencoder it holds the networks of its
loss, under `loss`, which are left out here.  Either file may hold averages, under `model_ema`: the
name of an average is the parameter's without the dots.  `parts` takes a file apart.

Some names of an autoencoder, and of a transformer in a U-Net:

    encoder.down.0.block.1.norm1.weight                         encoder/down_0_1/norm1/scale
    decoder.up.3.upsample.conv.bias                             decoder/upsample_3/bias
    encoder.mid.attn_1.q.weight                                 encoder/mid_attention/query/kernel
    input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight     down_1_attention/block_0/cross/...
"""
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.nn.text.trunk import STACK
from vdm_jax.nn.unets import adm
from vdm_jax.nn.unets.latent import LabelledUNet, LatentUNet
from vdm_jax.published import clip, fitting, openai, readers
from vdm_jax.typing import Array, PyTree

Flat = Mapping[str, np.ndarray]

_HINT_AUTOENCODER = ('compare features, multipliers, blocks, attention_levels, middle_attention, '
                     'channels, latent_channels and entries')
_HINT_UNET = ('compare features, multipliers, blocks, attention_levels, depth, heads and the '
              'channels')

# Names here -> published names, each applied to the whole name.
_of_autoencoder = fitting.renaming(
    (r'/(down|up)_(\d+)_(\d+)_attention/', r'/\1/\2/attn/\3/'),
    (r'/(down|up)_(\d+)_(\d+)/', r'/\1/\2/block/\3/'),
    (r'/downsample_(\d+)/', r'/down/\1/downsample/conv/'),
    (r'/upsample_(\d+)/', r'/up/\1/upsample/conv/'),
    (r'/mid_attention/', r'/mid/attn_1/'),
    (r'/mid_0/', r'/mid/block_1/'),
    (r'/mid_1/', r'/mid/block_2/'),
    (r'/shortcut/', r'/nin_shortcut/'),
    (r'/query/', r'/q/'),
    (r'/key/', r'/k/'),
    (r'/value/', r'/v/'),
    (r'/out/', r'/proj_out/'),
    (r'^moments/', r'quant_conv/'),
    (r'^latent/', r'post_quant_conv/'),
    (r'^codebook$', r'quantize/embedding/embedding'),
)
# Of a transformer, after the names of `openai`, where parts are joined by points.
_of_transformer = fitting.renaming(
    (r'\.1\.in\.', r'.1.proj_in.'),
    (r'\.block_(\d+)\.', r'.transformer_blocks.\1.'),
    (r'\.norm_self\.', r'.norm1.'),
    (r'\.norm_cross\.', r'.norm2.'),
    (r'\.norm_mlp\.', r'.norm3.'),
    (r'\.self\.', r'.attn1.'),
    (r'\.cross\.', r'.attn2.'),
    (r'\.(attn[12])\.query\.', r'.\1.to_q.'),
    (r'\.(attn[12])\.key\.', r'.\1.to_k.'),
    (r'\.(attn[12])\.value\.', r'.\1.to_v.'),
    (r'\.(attn[12])\.out\.', r'.\1.to_out.0.'),
    (r'\.mlp_in\.', r'.ff.net.0.proj.'),
    (r'\.mlp_out\.', r'.ff.net.2.'),
)
_MAPS = re.compile(r'attention/(query|key|value|in|out)/kernel$')  # 1x1 convolutions there


def autoencoder_name(name: str) -> str:
  """Name here -> published name, without its prefix."""
  return fitting.torch_leaf(_of_autoencoder(name))


def unet_name(params: PyTree) -> Callable[[str], str]:
  """Name here -> published name, without its prefix, of such parameters."""
  adm_name = openai.published(params)

  return lambda name: _of_transformer(adm_name(name))


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
  """A published array in the layout here.  The maps of an attention may be 1x1 convolutions."""
  if _MAPS.search(name):
    array = array.reshape(array.shape[:2])
  return fitting.from_torch(name, array)


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """The inverse of `from_torch`: the maps of an attention are [out, in, 1, 1]."""
  array = fitting.to_torch(name, array)
  return array[..., None, None] if _MAPS.search(name) else array


def autoencoder_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Names under `loss` and `model_ema` are left out.  Raises InputError naming every other parameter
  that is missing, left over or of another shape.
  """
  own = {name: array for name, array in flat.items()
         if not name.startswith(('loss.', 'model_ema.'))}
  return fitting.fit(own, like, autoencoder_name, layout=from_torch, hint=_HINT_AUTOENCODER)


def unet_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The same as `autoencoder_from_flat`, but for a `LatentUNet`."""
  return fitting.fit(flat, like, unet_name(like), layout=from_torch, hint=_HINT_UNET)


def autoencoder_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `autoencoder_from_flat`: the parameters by their published names."""
  return fitting.flat(params, autoencoder_name, layout=to_torch)


def unet_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `unet_from_flat`."""
  return fitting.flat(params, unet_name(params), layout=to_torch)


# ------------------------------------------------------- files of several networks


class Parts(NamedTuple):
  """The networks of a file, {name without its prefix: array} each, averaged where there are
  averages; {}: the file has none."""
  autoencoder: Flat
  unet: Flat
  condition: Flat      # the network that encodes what a U-Net is told
  scale: float | None  # s, by which latents are multiplied; None: the file does not say it


_AUTOENCODER = ('encoder.', 'decoder.', 'quant_conv.', 'post_quant_conv.', 'quantize.')
# Tables of the chain, and numbers that are no parameters of a network here.
_TABLES = re.compile(
    r'(betas|(sqrt_|log_)?(one_minus_|recipm?1?_)?alphas_cumprod(_prev)?|posterior_\w+|'
    r'lvlb_weights|logvar|scale_factor|(.*\.)?position_ids|(first_stage_model\.)?loss\..*|'
    r'model_ema\.(decay|num_updates|loss.*))')


def parts(flat: Flat) -> Parts:
  """Takes a file of CompVis apart: a whole latent diffusion, or an autoencoder alone.

  Tables of the chain, position ids and the networks of losses are left out.  Raises InputError
  naming every array that belongs to no part, and parameters that the averages lack.
  """
  prefixes = {name.split('.')[0] for name in flat}
  if 'state_dict' in prefixes:
    return parts(readers.subtree(flat, 'state_dict'))
  under = lambda prefix: {name.removeprefix(prefix): array for name, array in flat.items()
                          if name.startswith(prefix) and not _TABLES.fullmatch(name)}
  whole = bool({'first_stage_model', 'model'} & prefixes)
  autoencoder = under('first_stage_model.') if whole else {
      name: array for name, array in flat.items() if name.startswith(_AUTOENCODER)}
  unet, condition = under('model.diffusion_model.'), under('cond_stage_model.')
  averages = under('model_ema.')
  known = ('first_stage_model.', 'model.diffusion_model.', 'cond_stage_model.', 'model_ema.')
  other = [name for name in flat if not _TABLES.fullmatch(name)
           and not name.startswith(known if whole else ('model_ema.', *_AUTOENCODER))]
  if averages:
    of = (lambda name: f'diffusion_model.{name}') if whole else (lambda name: name)
    own = {of(name).replace('.', ''): name for name in (unet if whole else autoencoder)}
    lack = [name for short, name in own.items() if short not in averages]
    if lack:
      raise InputError(problem=f'its averages lack {fitting.some(lack)}',
                       remedy='give a whole file, or one without model_ema')
    other += [f'model_ema.{short}' for short in averages if short not in own]
    averaged = {name: averages[short] for short, name in own.items()}
    unet, autoencoder = (averaged, autoencoder) if whole else (unet, averaged)
  if other:
    raise InputError(problem=f'it holds {fitting.some(other)}, which belong to no network here',
                     remedy='leave them out of the file')
  scale = flat.get('scale_factor')
  return Parts(autoencoder, unet, condition, None if scale is None else float(scale))


class Places(NamedTuple):
  """Where a code keeps the blocks of an encoder."""
  block: str
  attention: str
  middle: str


_PLACES = Places('encoder.down.{level}.block.{i}.', 'encoder.down.{level}.attn.',
                 'encoder.mid.attn_1.')


def autoencoder_of(flat: Flat, places: Places = _PLACES,
                   groups: int = 32) -> KLAutoencoder | VQAutoencoder:
  """The network of these parameters, by their names and shapes: of any size.

  groups: of the normalisations, which no shape tells; 32 in the public code.
  Raises InputError, in one line, if a part is missing.
  """
  for name in ('encoder.conv_in.weight', 'quant_conv.weight', 'post_quant_conv.weight',
               'decoder.conv_in.weight'):
    if name not in flat:
      raise InputError(problem=f'it has no {name}, so it is no whole autoencoder',
                       remedy='give the file of an encoder and a decoder')
  features, channels = flat['encoder.conv_in.weight'].shape[:2]
  latent_channels = flat['post_quant_conv.weight'].shape[1]
  has = lambda start: any(name.startswith(start) for name in flat)

  def count(start):
    """How many numbers 0, 1, ... can stand in `start`."""
    n = 0
    while has(start(n)):
      n += 1
    return n
  levels = range(count(lambda level: places.block.format(level=level, i=0)))
  width = lambda level: flat.get(f'{places.block.format(level=level, i=0)}conv1.weight',
                                 np.zeros(features)).shape[0]
  trunk = Trunk(
      features=features, multipliers=tuple(width(level) // features for level in levels),
      blocks=count(lambda i: places.block.format(level=0, i=i)),
      attention_levels=tuple(level for level in levels
                             if has(places.attention.format(level=level))),
      middle_attention=has(places.middle), groups=groups)
  codebook = flat.get('quantize.embedding.weight')
  if codebook is None:
    return KLAutoencoder(channels, latent_channels, trunk)
  return VQAutoencoder(channels, latent_channels, len(codebook), trunk)


# ----------------------------------------------------------------- published sizes


def _kl(latent_channels: int, *multipliers: int, attention_levels=()) -> KLAutoencoder:
  return KLAutoencoder(latent_channels=latent_channels, trunk=Trunk(
      multipliers=multipliers, attention_levels=attention_levels))


def _vq(latent_channels: int, entries: int, *multipliers: int, **trunk) -> VQAutoencoder:
  return VQAutoencoder(latent_channels=latent_channels, entries=entries,
                       trunk=Trunk(multipliers=multipliers, **trunk))


# By the folder's name in latent-diffusion's models/first_stage_models.  kl-f8 is Stable
# Diffusion's too.
AUTOENCODERS: dict[str, KLAutoencoder | VQAutoencoder] = {
    'kl-f4': _kl(3, 1, 2, 4),
    'kl-f8': _kl(4, 1, 2, 4, 4),
    'kl-f16': _kl(16, 1, 1, 2, 2, 4, attention_levels=(4,)),
    'kl-f32': _kl(64, 1, 1, 2, 2, 4, 4, attention_levels=(4, 5)),
    'vq-f4': _vq(3, 8192, 1, 2, 4),
    'vq-f4-noattn': _vq(3, 8192, 1, 2, 4, middle_attention=False),
    'vq-f8': _vq(4, 16384, 1, 2, 2, 4, attention_levels=(3,)),
    'vq-f8-n256': _vq(4, 256, 1, 2, 2, 4, attention_levels=(3,)),
    'vq-f16': _vq(8, 16384, 1, 1, 2, 2, 4, attention_levels=(4,)),
}

_lsun = adm.UNet(features=224, blocks=2, head_features=32, scale_shift=False)
_images = {'features': 192, 'multipliers': (1, 2, 3, 5), 'attention_levels': (1, 2, 3)}

# Name -> network, the shape of its z and that of its context, if it reads one.  The settings are in
# the files of latent-diffusion's models/ldm and configs, and of stable-diffusion's configs.
UNETS: dict[str, tuple[adm.UNet | LatentUNet, tuple[int, int, int], tuple[int, int] | None]] = {
    'celeba256': (_lsun, (64, 64, 3), None),
    'ffhq256': (_lsun, (64, 64, 3), None),
    'lsun_beds256': (_lsun, (64, 64, 3), None),
    'lsun_churches256': (
        adm.UNet(features=192, multipliers=(1, 2, 2, 4, 4), blocks=2, attention_heads=8,
                 attention_resolutions=(32, 16, 8, 4), resblock_updown=True), (32, 32, 4), None),
    'inpainting_big': (
        adm.UNet(features=256, blocks=2, attention_heads=8, scale_shift=False,
                 resblock_updown=True, outputs=3), (64, 64, 7), None),
    'cin256-v2': (LatentUNet(**_images, attention_heads=1), (64, 64, 3), (1, 512)),
    'cin256': (LatentUNet(features=256, multipliers=(1, 2, 4), head_features=32),
               (32, 32, 4), (1, 512)),
    'text2img256': (LatentUNet(**_images, head_features=32), (64, 64, 3), (77, 640)),
    'txt2img-f8-large': (LatentUNet(), (32, 32, 4), (77, 1280)),
    'stable-diffusion-v1': (LatentUNet(), (64, 64, 4), (77, 768)),
    'stable-diffusion-v1-inpainting': (LatentUNet(outputs=4), (64, 64, 9), (77, 768)),
}


class LatentDiffusion(NamedTuple):
  """How a U-Net of `UNETS` was trained, as its file of settings says.

  autoencoder: of `AUTOENCODERS`.  betas: the ends of `schedules.scaled_linear_betas`.  classes: of
  its labels; 0: none.  untold: whether "no label" has a vector.  scale: s; None: the file has it.
  tokeniser: of its texts, a kind of `data.tokenisers`; '': it is told none.  side: of its images.
  """
  autoencoder: str
  betas: tuple[float, float] = (0.0015, 0.0195)
  classes: int = 0
  untold: bool = False
  scale: float | None = 1.0
  tokeniser: str = ''
  side: int = 256


# Those that are told nothing, a class or a text.
LATENT_DIFFUSIONS = {
    'celeba256': LatentDiffusion('vq-f4'),
    'ffhq256': LatentDiffusion('vq-f4'),
    'lsun_beds256': LatentDiffusion('vq-f4'),
    'lsun_churches256': LatentDiffusion('kl-f8', (0.0015, 0.0155), scale=None),
    'cin256': LatentDiffusion('vq-f8', classes=1000),
    'cin256-v2': LatentDiffusion('vq-f4', classes=1000, untold=True),
    'text2img256': LatentDiffusion('vq-f4', tokeniser='bert'),
    'txt2img-f8-large': LatentDiffusion('kl-f8', (0.00085, 0.012), scale=0.18215,
                                        tokeniser='bert'),
    'stable-diffusion-v1': LatentDiffusion('kl-f8', (0.00085, 0.012), scale=0.18215,
                                           tokeniser='clip', side=512),
}
# Of those that are told a text.
TEXT_ENCODERS: dict[str, TextTower | LatentBERT] = {
    'text2img256': LatentBERT(features=640),
    'txt2img-f8-large': LatentBERT(),
    'stable-diffusion-v1': TextTower(),
}


def network(name: str) -> adm.UNet | LatentUNet | LabelledUNet:
  """The network of a name of `LATENT_DIFFUSIONS`, which reads labels if it was trained on them."""
  net, _, context = UNETS[name]
  trained = LATENT_DIFFUSIONS[name]
  if not isinstance(net, LatentUNet) or context is None or not trained.classes:
    return net
  return LabelledUNet(net, trained.classes, context[1], trained.untold)


# ------------------------------------------------------- networks of texts

# Names here -> published names, each applied to the whole name.  Two layers there are a block here.
_of_bert = fitting.renaming(
    (r'^tokens/embedding$', r'token_emb/embedding'),
    (r'^tokens/positions$', r'pos_emb/emb/embedding'),
    (r'^norm_out/', r'norm/'),
    (r'^blocks_(\d+)/(norm1|attention)/',
     lambda found: f'attn_layers/layers/{2 * int(found[1])}/{found[2]}/'),
    (r'^blocks_(\d+)/(norm2|mlp)/',
     lambda found: f'attn_layers/layers/{2 * int(found[1]) + 1}/{found[2]}/'),
    (r'/norm[12]/', r'/0/'),
    (r'/attention/qkv/', r'/1/to_qkv/'),
    (r'/attention/out/', r'/1/to_out/'),
    (r'/mlp/dense0/', r'/1/net/0/0/'),
    (r'/mlp/dense1/', r'/1/net/2/'),
)


def text_encoder_of(condition: Flat) -> TextTower | LatentBERT:
  """The network of texts in a file's `Parts.condition`, by its names and shapes.

  Raises InputError if it is none that is here, or if there are other arrays beside it.
  """
  of_clip = any(name.startswith('transformer.text_model.') for name in condition)
  other = [name for name in condition if not name.startswith('transformer.')]
  if other or not (of_clip or 'transformer.token_emb.weight' in condition):
    there = fitting.some(other or condition) or 'nothing'
    raise InputError(problem=f'it has {there} under cond_stage_model, which is no network of texts '
                     'here',
                     remedy='give the file of Stable Diffusion v1, or of txt2img-f8-large')
  if of_clip:
    named = _of_stable_diffusion(condition)
    clip.require_text_alone(named)
    return clip.text_of(named)
  levels, features = condition['transformer.token_emb.weight'].shape
  inner, _ = condition['transformer.attn_layers.layers.0.1.to_q.weight'].shape
  return LatentBERT(
      features, fitting.depth(condition, r'transformer\.attn_layers\.layers\.(\d+)\.') // 2,
      attention_heads=inner // LatentBERT.head_features, levels=levels,
      length=len(condition['transformer.pos_emb.emb.weight']))


def text_encoder_from_flat(condition: Flat, like: PyTree) -> PyTree:
  """The parameters of `text_encoder_of(condition)` as a tree like `like`, arrays or shapes.

  The "BERT" of a file also has a map to the levels of tokens, `to_logits`, which nothing reads; it
  is left out.  Raises InputError naming every other parameter that does not fit.
  """
  if any(name.startswith('transformer.text_model.') for name in condition):
    return clip.text_from_flat(_of_stable_diffusion(condition), like)
  own = {name: array for name, array in condition.items()
         if not name.startswith('transformer.to_logits.')}
  own = fitting.joined(own, r'(.*\.)to_([qkv])\.(weight)', 'qkv', '{0}to_qkv.{1}')
  return fitting.fit(
      own, like, lambda name: f'transformer.{fitting.torch_leaf(_of_bert(name))}',
      layout=fitting.from_torch, hint='compare features, depth, levels and length', stacks={STACK})


def _of_stable_diffusion(condition: Flat) -> dict[str, np.ndarray]:
  return clip.of_transformers(readers.subtree(condition, 'transformer'))


# --------------------------------------------------------------- the U-Net by its file

class Row(NamedTuple):
  """A block on the way down: the channels of its output, and whether attention follows."""
  width: int
  attends: bool


def sized(net: LatentUNet, features: int, rows: list[list[Row]], depth: int) -> LatentUNet:
  """`net` with these sizes.  rows: the blocks of each resolution on the way down, from z on.

  No shape tells the numbers of heads and of groups, which stay.  Raises InputError if a resolution
  has no blocks.
  """
  if not rows or not all(rows):
    raise InputError(problem='its U-Net lacks blocks', remedy='give a whole file')
  widths = [row[0].width for row in rows]
  return net.clone(
      features=features, blocks=len(rows[0]), depth=max(depth, 1),
      multipliers=tuple(width / features if width % features else width // features
                        for width in widths),
      attention_levels=tuple(level for level, row in enumerate(rows) if row[0].attends))


def unet_of(flat: Flat, net: LatentUNet) -> LatentUNet:
  """`net` with the sizes of these parameters, by their names and shapes.

  Raises InputError, in one line, for a part of a U-Net, and for one that reads other channels than
  it returns, as a network for inpainting does.
  """
  for name in ('input_blocks.0.0.weight', 'out.2.weight'):
    if name not in flat:
      raise InputError(problem=f'its U-Net has no {name}', remedy='give a whole file')
  features, channels = flat['input_blocks.0.0.weight'].shape[:2]
  require_same_channels(channels, len(flat['out.2.weight']))
  rows: list[list[Row]] = [[]]
  for k in range(1, fitting.depth(flat, r'input_blocks\.(\d+)\.')):
    kernel = flat.get(f'input_blocks.{k}.0.in_layers.2.weight')
    if kernel is None:  # halves the resolution
      rows.append([])
    else:
      rows[-1].append(Row(len(kernel), f'input_blocks.{k}.1.norm.weight' in flat))
  return sized(net, features, rows, fitting.depth(
      flat, r'middle_block\.1\.transformer_blocks\.(\d+)\.'))


def require_same_channels(reads: int, returns: int) -> None:
  """Raises InputError unless both numbers are the same."""
  if reads != returns:
    raise InputError(problem=f'its U-Net reads {reads} channels and returns {returns}, as for '
                     'inpainting, so it is no model of images alone',
                     remedy='give a model that draws whole images')


def require_unet(parts: Parts) -> None:
  """Raises InputError if the file has no U-Net."""
  if not parts.unet:
    raise InputError(problem='it has no U-Net: no model.diffusion_model.*',
                     remedy='give the file of a whole latent diffusion')


def diffusion_from_flat(parts: Parts, like: PyTree) -> PyTree:
  """The network of a latent diffusion as a tree like `like`, the parameters of `network`.

  Raises InputError if the file has no U-Net, or lacks the vectors of the labels, and as
  `unet_from_flat` does.
  """
  require_unet(parts)
  if 'label' not in like:
    if parts.condition:
      raise InputError(problem=f'it has {fitting.some(parts.condition)} under cond_stage_model, '
                       'and this network is told nothing', remedy='name the model in the file')
    return unet_from_flat(parts.unet, like)
  labels = fitting.fit({f'cond_stage_model.{name}': u for name, u in parts.condition.items()},
                       like['label'], lambda name: f'cond_stage_model.{name}.weight',
                       hint='compare classes and features')
  return {'net': unet_from_flat(parts.unet, like['net']), 'label': labels}
