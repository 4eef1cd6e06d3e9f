"""Imports a published weight file as a run, so that every command for runs can use it at once.

  source               files of                        models, by file                  config
  google-vdm           google-research/vdm             the config, cifar10_aug, ...     of that name
  ddpm                 huggingface/diffusers           published.ddpm.MODELS            ddpm
  improved-diffusion   openai/improved-diffusion       published.openai.MODELS          adm
  guided-diffusion     openai/guided-diffusion         published.openai.MODELS          adm
  dit                  facebookresearch/DiT            published.dit.MODELS             dit
  score-sde            yang-song/score_sde_pytorch     published.score_sde.MODELS       score_sde
  edm                  NVlabs/edm                      published.edm.MODELS             edm
  ncsnv2               ermongroup/ncsn, ncsnv2         published.ncsnv2.MODELS          ncsnv2
  sd-vae               diffusers, stable-diffusion     any autoencoder                  autoencoder
  taesd                madebyollin/taesd, diffusers    any tiny autoencoder             autoencoder
  latent-diffusion     CompVis/latent-diffusion        compvis.AUTOENCODERS             autoencoder
                                                       compvis.LATENT_DIFFUSIONS        latent
  stable-diffusion     CompVis, diffusers              Stable Diffusion v1 of any size  latent
  glide                openai/glide-text2im            published.glide.MODELS           glide
                                                       clip: both towers                noisy_clip

If a file has averaged parameters, these are taken, as in the publications.  Folders of diffusers
are read for sd-vae, taesd and stable-diffusion, not for the others.

A file of an autoencoder says what size its network has (`published.autoencoders`).  So its settings
go from the file into the config of the run.  The same holds for a model that is told a text
(`published.stable_diffusion`).  The file of its tokeniser is copied into the run.
"""
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import data, random
from vdm_jax.data import tokenisers
from vdm_jax.data.fields import CAPTION
from vdm_jax.errors import InputError, renamed, require, require_at_least, require_choice
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.published import (
  autoencoders,
  compvis,
  ddpm,
  dit,
  edm,
  glide,
  google_vdm,
  ncsnv2,
  openai,
  readers,
  score_sde,
  stable_diffusion,
)
from vdm_jax.runs import needs, workdir
from vdm_jax.systems import networks, texts
from vdm_jax.systems.latent.autoencoder import FIRST_STD
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.typing import PyTree

Flat = Mapping[str, np.ndarray]


class Codebase(NamedTuple):
  """A public codebase that weights come from."""
  models: Collection[str]
  config: Callable[[str], tuple[str, tuple[str, ...]]]    # model -> config file, its variant
  params: Callable[[Flat, PyTree, str], PyTree]           # file, params here, model -> params


def _there(flat: Flat, *prefixes: str) -> Flat:
  """The part of `flat` under the first prefix that exists; all of `flat` if none exists."""
  for prefix in prefixes:
    if any(name.startswith((f'{prefix}.', f'{prefix}/')) for name in flat):
      return readers.subtree(flat, prefix)
  return flat


def _of_net(from_flat: Callable[[Flat, PyTree], PyTree]) -> Callable[[Flat, PyTree, str], PyTree]:
  return lambda flat, like, model: {'net': from_flat(flat, like['net'])}


def _google(flat: Flat, like: PyTree, model: str) -> PyTree:
  return google_vdm.fit(_there(_there(flat, 'ema_params', 'params'), 'params'), like)


def _score_sde(flat: Flat, like: PyTree) -> PyTree:
  shadows = _there(flat, 'ema.shadow_params')
  weights = _there(flat, 'model')
  if shadows is not flat:
    weights = score_sde.averaged(weights, [shadows[str(i)] for i in range(len(shadows))])
  return score_sde.from_flat(weights, like)


def _ncsnv2(flat: Flat, like: PyTree, model: str) -> PyTree:
  return {'net': ncsnv2.from_flat(_there(flat, '4', '0'), like['net'], ncsnv2.MODELS[model])}


def _by_variant(name: str) -> Callable[[str], tuple[str, tuple[str, ...]]]:
  return lambda model: (f'published/{name}', (model,))


# Not the classifiers and upsamplers, which take more than an image.
_OPENAI = Codebase([name for name, net in openai.MODELS.items() if openai.is_diffusion(net)],
                   _by_variant('adm'), _of_net(openai.from_flat))
_GOOGLE = {'cifar10': ('cifar10/vdm', ()), 'cifar10_aug': ('cifar10/augmented', ()),
           'imagenet32': ('imagenet/vdm', ('32',)), 'imagenet64': ('imagenet/vdm', ('64',))}
SOURCES = {
    'google-vdm': Codebase(_GOOGLE, _GOOGLE.get, _google),
    'ddpm': Codebase(ddpm.MODELS, _by_variant('ddpm'), _of_net(ddpm.from_flat)),
    'improved-diffusion': _OPENAI,
    'guided-diffusion': _OPENAI,
    'dit': Codebase(dit.MODELS, _by_variant('dit'), _of_net(
        lambda flat, like: dit.from_flat(_there(flat, 'ema'), like))),
    'score-sde': Codebase(score_sde.MODELS, _by_variant('score_sde'), _of_net(_score_sde)),
    'edm': Codebase(edm.MODELS, _by_variant('edm'), _of_net(edm.from_flat)),
    'ncsnv2': Codebase(ncsnv2.MODELS, _by_variant('ncsnv2'), _ncsnv2),
}


class Weights(NamedTuple):
  """The weights of files, before the network that they belong to is built."""
  model: str
  config: tuple[str, tuple[str, ...]]                # config file, its variant
  params: Callable[[PyTree], PyTree]                 # params here, shapes -> params
  files: tuple[Path, ...]
  settle: Callable[[ml_collections.ConfigDict], None] = lambda config: None
                                                     # sets what the files say of the config


def _stage(net: PyTree) -> PyTree:
  """The parameters of a first stage.  No file has the standard deviation of its p(x | y)."""
  return {'net': net, 'log_std': np.float32(math.log(FIRST_STD))}


def _open_autoencoder(file: Path, model: str) -> Weights:
  """An autoencoder alone, from a file of any code."""
  read = autoencoders.read(file)
  name = autoencoders.name(read.net)
  if model:
    require_choice('model', model, autoencoders.NETWORKS)
    require(model == name, 'model', model, f'the file is of {name or "another network"}',
            'leave it out')

  def settle(config):
    config.model.update(autoencoders.settings(read.net))
  return Weights(name or file.stem, ('published/autoencoder', (name,) if name else ()),
                 lambda like: _stage(read.params), read.files, settle)


def _require_no_folder(file: Path, is_one: bool) -> None:
  """Raises InputError if `file` is the folder of a latent diffusion in the format of diffusers."""
  require(not is_one, 'in', f'{file}', 'it is a folder of diffusers, which is read for Stable '
          'Diffusion alone', 'give the file of CompVis (model.ckpt), or import the autoencoder of '
          'this folder by the source sd-vae')


def _open_latent_diffusion(file: Path, model: str) -> Weights:
  """A whole latent diffusion of CompVis, or an autoencoder alone."""
  model = model or file.stem
  if model in compvis.TEXT_ENCODERS:
    return _open_told(file, model)
  whole = any((file / part).exists() for part in ('model_index.json', 'unet'))
  _require_no_folder(file, file.is_dir() and (whole or model in compvis.LATENT_DIFFUSIONS))
  if model not in compvis.LATENT_DIFFUSIONS:
    require(model not in compvis.UNETS, 'model', model, 'it completes images, and is told their '
            'known part', 'use its network from Python: vdm_jax.published.compvis.UNETS')
    known = model in compvis.AUTOENCODERS
    return _open_autoencoder(file, model if known else '')
  parts, read = autoencoders.read_diffusion(file)
  trained = compvis.LATENT_DIFFUSIONS[model]
  scale = parts.scale if trained.scale is None else trained.scale
  require(scale is not None, None, None, 'it has no scale_factor, which this model multiplies its '
          'latents by', 'give the published file')

  def settle(config):
    config.autoencoder.model.update(autoencoders.settings(read.net))
  return Weights(model, ('published/latent', (model,)), lambda like: {
      'net': compvis.diffusion_from_flat(parts, like['net']), 'autoencoder': _stage(read.params),
      'scale': np.float32(scale)}, read.files, settle)


def _open_told(file: Path, model: str) -> Weights:
  """A whole latent diffusion that is told a text."""
  model = model or 'stable-diffusion-v1'
  require_choice('model', model, compvis.TEXT_ENCODERS)
  _require_no_folder(file, file.is_dir() and compvis.LATENT_DIFFUSIONS[model].tokeniser != 'clip')
  read, trained = stable_diffusion.read(file, model), compvis.LATENT_DIFFUSIONS[model]
  scale = trained.scale if read.scale is None else read.scale
  published = compvis.TEXT_ENCODERS[model]
  require(type(read.encoder) is type(published), None, None,
          f'its text encoder is a {type(read.encoder).__name__}, and {model} has a '
          f'{type(published).__name__}', 'name the model in the file')
  require(read.encoder.levels == published.levels, None, None, f'its text encoder has '
          f'{read.encoder.levels:,} tokens, and the tokeniser of {model} has {published.levels:,}',
          'give a model that reads the published tokens')

  def settle(config):
    config.autoencoder.model.update(autoencoders.settings(read.autoencoder.net))
    config.unet.update(networks.sizes(read.unet))
    config.text.update(texts.settings(read.encoder))
    config.data.text_length = read.encoder.length
    if read.betas:
      config.model.beta_ends = read.betas
    if read.merges:
      config.data.merges = str(read.merges.absolute())
    if read.side:
      config.data.update(shape=(read.side, read.side, 3), image_size=read.side)
  return Weights(model, ('published/latent', (model,)), lambda like: {
      **read.params(like), 'autoencoder': _stage(read.autoencoder.params),
      'scale': np.float32(scale)}, read.files, settle)


_TOWERS = {'image': 'clip_image_enc', 'text': 'clip_text_enc'}  # published files of GLIDE's CLIP


def _open_noisy_clip(folder: Path) -> Weights:
  """Both towers of GLIDE's noise-aware CLIP, from a folder with their files."""
  require(folder.is_dir(), 'in', f'{folder}', 'it is one file, and the noise-aware CLIP has two',
          f'name a folder with {" and ".join(f"{name}.pt" for name in _TOWERS.values())}')
  read = {}
  for kind, name in _TOWERS.items():
    found = sorted(path for path in folder.iterdir() if path.stem == name)
    require(len(found) == 1, 'in', f'{folder}', f'it has {len(found)} files {name}.*, the {kind} '
            'tower', 'keep one of each tower')
    read[kind] = found[0]
  text, image = (readers.read(read[kind]) for kind in ('text', 'image'))
  reads, sees = glide.text_tower_of(text), glide.image_tower_of(image)
  caption = tokenisers.field(CAPTION, tokenisers.Settings('clip', reads.length))
  levels = caption.levels or 0

  def settle(config):
    config.model.update({name: getattr(sees, name) for name in (
        'features', 'depth', 'attention_heads', 'patch', 'outputs', 'steps')})
    config.text.update({**texts.settings(reads), 'levels': levels})
    spec = data.resolve(config.data)
    patches = len(image['blocks.input.w_pos']) - 1
    side = sees.patch * math.isqrt(patches)
    require(side * side == sees.patch**2 * patches, 'in', f'{folder}', f'its image tower reads '
            f'{patches} patches, which is no square', 'give the published file')
    config.data.update(data.Spec(spec.name, (
        spec.x._replace(shape=(side, side, 3)), caption)).to_config())
    config.data.text_length = reads.length
  return Weights('clip', ('published/noisy_clip', ()), lambda like: {
      'net': glide.tower_from_flat(image, like['net']),
      'encoder': glide.tower_from_flat(glide.with_tokens(text, levels), like['encoder']),
      'scale': np.float32(math.log(glide.LOGIT_SCALE))}, tuple(read.values()), settle)


def _open_glide(file: Path, model: str) -> Weights:
  """A U-Net of GLIDE and its text transformer; or its noise-aware CLIP."""
  if model == 'clip':
    return _open_noisy_clip(file)
  require(file.is_file(), 'in', f'{file}', 'it is a directory', 'name the file of weights, or '
          'choose --model=clip for the folder of the noise-aware CLIP')
  model = model or file.stem
  require_choice('model', model, [*glide.MODELS, 'clip'])
  flat = readers.read(file)
  net, encoder, known = glide.unet_of(flat), glide.text_of(flat), glide.MODELS[model]
  told = lambda net: [name for name in ('text', 'super_resolution', 'inpainting')
                      if getattr(net, name)]
  require(told(net) == told(known), None, None, f'its network has {" and ".join(told(net))}, and '
          f'{model} has {" and ".join(told(known))}', 'name the model in the file')

  def settle(config):
    config.unet.update(networks.sizes(net))
    config.text.update(texts.settings(encoder))
  return Weights(model, ('published/glide', (model,)), lambda like: {
      'net': glide.unet_from_flat(flat, like['net']),
      'encoder': glide.text_from_flat(flat, like['encoder'])}, (file,), settle)


def _open_decoded(file: Path, model: str, autoencoder: Path) -> Weights:
  """DiT, whose latents an autoencoder decodes."""
  try:
    read = autoencoders.read(autoencoder)
    settings = autoencoders.settings(read.net)
    require((settings['latent_channels'], len(settings['multipliers'])) == (4, 4), None, None,
            f'it has latents of {settings["latent_channels"]} channels and halves images '
            f'{len(settings["multipliers"]) - 1} times; DiT knows 4 channels and 3 times',
            'give the autoencoder of Stable Diffusion, or TAESD')
  except InputError as error:
    raise InputError('autoencoder', f'{autoencoder}', f'it cannot be read: {error}') from None
  of = SOURCES['dit']

  def settle(config):
    config.autoencoder.model.update(settings)

  def params(like):
    net = of.params(readers.read(file), like, model)
    scale = dit.SCALE if read.scale is None else read.scale
    return net | {'autoencoder': _stage(read.params), 'scale': np.float32(scale)}
  return Weights(model, ('published/dit', (f'{model},images',)), params, (file, *read.files),
                 settle)


# Sources whose files say which network they hold: (file or folder, model) -> weights.
OPENED: dict[str, Callable[[Path, str], Weights]] = {
    'sd-vae': _open_autoencoder, 'taesd': _open_autoencoder,
    'latent-diffusion': _open_latent_diffusion, 'stable-diffusion': _open_told,
    'glide': _open_glide}


def _open(source: str, file: Path, model: str, autoencoder: Path | None) -> Weights:
  """The weights of `file`.  Raises InputError."""
  if autoencoder is not None:
    require(source == 'dit', 'autoencoder', f'{autoencoder}', 'only dit takes its autoencoder from '
            'another file', 'leave it out')
  if source in OPENED:
    try:
      return OPENED[source](file, model)
    except InputError as error:
      if error.field is not None:
        raise
      raise InputError('in', f'{file}', f'it cannot be read as {source}: {error}') from None
  if not file.is_file():
    raise InputError('in', f'{file}', 'it is a directory', 'name the file of weights' if source !=
                     'dit' else 'name the file of facebookresearch/DiT (DiT-XL-2-256x256.pt), '
                     'because folders of diffusers are not read for this source')
  of, model = SOURCES[source], model or file.stem
  if model not in of.models:
    raise InputError('model', model, 'this source has no such model',
                     f'choose one of {", ".join(of.models)}')
  if autoencoder is not None:
    return _open_decoded(file, model, autoencoder)
  return Weights(model, of.config(model), lambda like: of.params(readers.read(file), like, model),
                 (file,))


def _require_fit(like: PyTree, params: PyTree, file: Path, config: str) -> None:
  """Raises InputError unless `params` are those of the network of the config, `like`.

  The settings of a config cannot follow all that a file tells: its data have 3 channels.
  """
  for name, (wanted, there) in needs.misfits(like, params).items():
    raise InputError('in', f'{file}', f'it has {name} of shape {there}, and the network of '
                     f'{config} {wanted}', 'give weights of that network')


def _settle_texts(config: ml_collections.ConfigDict, merges: str | Path, image_size: int) -> None:
  """Puts the tokeniser's file and the size of the images into the config.

  Raises InputError for a file of another tokeniser, or for a model that is told no text.
  """
  told = 'text' in config
  for name, value in (('merges', merges), ('image_size', image_size)):
    require(told or not value, name, f'{value}', 'this model is told no text', 'leave it out')
  if not told:
    return
  if image_size:
    require_at_least('image_size', image_size)
    require(not config.data.found, 'image_size', image_size, 'this model has images of one size',
            'leave it out')
    config.data.update(shape=(image_size, image_size, 3), image_size=image_size)
  if merges:
    config.data.merges = str(files.user_path('merges', merges).absolute())
  with renamed({'config.data.merges': 'merges'}):
    tokenisers.of(data.resolve(config.data)[CAPTION])


class Imported(NamedTuple):
  model: str
  config: str       # FILE.py, or FILE.py:VARIANT
  parameters: int


def import_weights(source: str, file: str | Path, out: str | Path, configs: str | Path,
                   model: str = '', autoencoder: str | Path = '', merges: str | Path = '',
                   image_size: int = 0) -> Imported:
  """Makes `out` a run at step 0 that has the weights in `file`.

  Args:
    source: a row of the table above.
    file: the file of weights, or a folder of diffusers.
    model: which of the source's models the weights are.  Default: the file's name, or what the file
      says.
    configs: the folder of the config files.
    autoencoder: the file or the folder of the autoencoder that decodes the latents of DiT.
      Default: its samples are latents.
    merges: the file of the tokeniser, for a model that is told a text.  Default: the folder's own.
    image_size: the side of the images, for a model that is told a text.  Default: as published, or
      as the folder says.

  Raises InputError, and then writes nothing.  The reasons are an unknown source or model, a file
  without weights or with other parameters, or an `out` that is not empty.
  """
  if source not in SOURCES and source not in OPENED:
    raise InputError('source', source, 'there is no such choice',
                     f'choose one of {", ".join([*SOURCES, *OPENED])}')
  file, out = files.user_path('in', file), files.run_directory('out', out)
  decoder = files.user_path('autoencoder', autoencoder) if autoencoder else None
  for field, path in (('in', file), ('autoencoder', decoder)):
    if path is not None and not path.exists():
      raise InputError(field, f'{path}', 'there is no such file', 'name the file of weights')
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError('out', f'{out}', 'it is there already',
                     'choose another directory, or an empty one')
  weights = _open(source, file, model, decoder)
  name, variant = weights.config
  config_file = Path(configs) / f'{name}.py'
  code = workdir.source(config_file)
  module = code.module()
  config = module.get_config(*variant)
  weights.settle(config)
  _settle_texts(config, merges, image_size)
  experiment = module.build(config)
  like = jax.eval_shape(experiment.init, random.key(config.seed))

  try:
    params = weights.params(like)
  except InputError as error:
    raise InputError('in', f'{file}', f'it cannot be read as {weights.model}: {error}') from None
  _require_fit(like, params, file, name)
  integers = [path for path, u in jax.tree_util.tree_flatten_with_path(params)[0]
              if not jnp.issubdtype(u.dtype, jnp.inexact)]
  if integers:
    raise InputError('in', f'{file}', f'{jax.tree_util.keystr(integers[0])} holds whole numbers',
                     'give weights')
  params = jax.tree.map(lambda u: np.asarray(u, np.float32), params)
  wrong = [path for path, u in jax.tree_util.tree_flatten_with_path(params)[0]
           if not np.isfinite(u).all()]
  if wrong:
    raise InputError('in', f'{file}', f'{jax.tree_util.keystr(wrong[0])} is not finite',
                     'give other weights')

  if 'autoencoder' in config:  # as of a run that copies it: see `stages`
    with config.unlocked():
      config.autoencoder.sha256 = checksum(params['autoencoder'])
  digest = hashlib.sha256()
  for read in weights.files:
    with read.open('rb') as opened:
      while block := opened.read(2**20):
        digest.update(block)
  # Made beside it and renamed: a run is there whole, or not at all.
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
    folder = Path(folder) / 'run'
    workdir.prepare(folder, config, code)
    checkpoints = Checkpoints(folder)
    checkpoints.save(step_lib.init(params, experiment.tx, experiment.ema, experiment.aux))
    checkpoints.close()
    files.write_text(folder / 'imported.json', json.dumps(
        {'source': source, 'model': weights.model, 'sha256': digest.hexdigest(),
         'file': ', '.join(read.name for read in weights.files)}, indent=2))
    if out.exists():
      out.rmdir()
    folder.rename(out)
  return Imported(weights.model, ':'.join([str(config_file), *variant]),
                  sum(math.prod(u.shape) for u in jax.tree.leaves(params)))
