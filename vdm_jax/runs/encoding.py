"""Encodes the training images of an autoencoder's run once, for diffusions of its latents."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import data
from vdm_jax.data import augmentation, latents
from vdm_jax.data.fields import Batch
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import devices, files
from vdm_jax.runs import needs, stages, workdir, writing
from vdm_jax.train import check as check_lib
from vdm_jax.typing import Array, Experiment

__all__ = ['check', 'encode']


def encode(directory: str | Path, out: str | Path, *, flips: bool = False, batch_size: int = 64,
           data_dir: str = '', data_name: str = '') -> Path:
  """Writes the latents of all training images into the folder `out`, which it returns.

  The autoencoder is that of the run in `directory`, with the weights that a diffusion of its
  latents takes.  `data.latents` describes the folder.  Each batch is written whole, and only some
  batches are in memory.  After an interruption, the same call continues with the next batch, and
  the latents are bit for bit the same.  latents.json records what they depend on, with checksums of
  the autoencoder and of the images.

  Args:
    flips: also encode each image flipped left-right, for training with the augmentation `flips`.
    batch_size: the images at a time.
    data_dir, data_name: the images, if they are not those of the run.  They must have the shape and
      the levels of the run's images.

  Raises InputError for a run of something else, other images, latents that are not finite, and a
  folder that holds anything but these latents, or that another process writes.
  """
  require_at_least('batch_size', batch_size)
  directory, out = files.run_directory('workdir', directory), files.user_path('out', out)
  require(jax.process_count() == 1, 'workdir', str(directory), 'latents are made by one process',
          'start one, and let it have all devices')
  trained = workdir.load_trained(directory)
  needs.finite(trained)
  of = trained.experiment.model
  model = needs.require(of(trained.params), 'first_stage', directory)
  images = data.Data(_images(trained.config.data, model.levels, data_dir, data_name))
  spec = images.spec
  require((spec.x.shape, spec.x.levels) == (model.shape, model.levels), 'data_name',
          images.config.name, f'it has {spec.x}, and the autoencoder was trained on '
          f'{trained.experiment.data.spec.x}', 'name images of this shape')
  if flips:
    augmentation.named('flips', spec)
  size = devices.global_batch_size(batch_size)
  check_lib.require_fits('batch_size', (1 + flips) * size, spec.shape, jax.device_count())
  one = jax.ShapeDtypeStruct((1, *spec.shape), spec.x.dtype)
  density = jax.eval_shape(model.encode, one)[1] is not None
  about = {'autoencoder': checksum(stages.own(trained.params)), **_of_images(images),
           'batch_size': size, 'devices': jax.device_count()}
  count, each = len(images.split('train')), 1 + flips
  writer = latents.writer(
      out, about, count, latents.fields_of(spec, model.latent_shape, density), flips,
      data=images.config.name, checkpoint=trained.step, average=trained.average)

  def moments(params, x):
    mean, log_variance = of(params).encode(x)
    found = {latents.MEAN: mean} | ({latents.LOG_VARIANCE: log_variance} if density else {})
    return jax.tree.map(lambda u: u.astype(jnp.float32), found)

  with writing.resumed(writer, 'image', each) as bar:
    if bar is None:
      return out
    program, params = devices.over_rows(moments), devices.replicate(trained.params)
    for first, batch in _batches(images, size, writer.done // each):
      n = min(size, count - first)
      x = batch.pop(spec.x.name)
      if flips:  # image i, and then image i flipped
        x = np.stack([x, augmentation.flip(x)], axis=1).reshape(each * size, *spec.shape)
      found: dict[str, Array] = jax.device_get(program(params, devices.place(x)))
      if not all(np.isfinite(u).all() for u in found.values()):
        raise InputError('workdir', str(directory), f'latents of the images {first} to '
                         f'{first + n - 1} are not finite', 'name the run of another autoencoder')
      others = {name: np.repeat(u, each, axis=0) for name, u in batch.items()}
      writer.write(each * first, {name: u[:each * n] for name, u in {**found, **others}.items()})
      bar.update(n)
  return out


def _images(own: ml_collections.ConfigDict, levels: int | None, data_dir: str, data_name: str
            ) -> ml_collections.ConfigDict:
  """The config of all training images, without augmentation, with all of their fields."""
  config = data.default_config()
  config.update({name: value for name, value in own.items() if name in config})
  config.update(found=(), shape=(), levels=levels or 0, augment=False, hold_out=False, latents='')
  if data_name:
    config.update(name=data_name, classes=0, fields=())
  if data_dir:
    config.data_dir = data_dir
  return config


def _of_images(images: data.Data) -> dict[str, Any]:
  """All that tells the images from others, and their order."""
  mark = images.fingerprint()
  return {'images': {name: mark[name] for name in ('sha256', 'count')},
          'image_size': images.config.get('image_size', 0), 'shape': list(images.spec.shape)}


def _batches(images: data.Data, size: int, start: int) -> Iterator[tuple[int, Batch]]:
  """The number of the first image of each batch, and the batch, from the batch of `start` on."""
  for i, batch in enumerate(images.in_order('train', size, start // size), start // size):
    yield i * size, batch


def check(config: ml_collections.ConfigDict, experiment: Experiment) -> None:
  """Raises InputError unless training may read the latents in config.data.latents.

  They must be of the run's autoencoder, whose checksum is config.autoencoder.sha256, and of the
  run's images.  The run's config must be a diffusion of latents.
  """
  place = config.data.latents
  require('autoencoder' in config, latents.FIELD, place, 'this config diffuses no latents of an '
          'autoencoder', 'leave it out')
  images = experiment.data
  about = images.latents.about
  if about['autoencoder'] != config.autoencoder.sha256:
    raise InputError(latents.FIELD, place, 'these latents are of an autoencoder with other weights '
                     f'(checksum {about["autoencoder"]}; this run\'s autoencoder has '
                     f'{config.autoencoder.sha256})', 'name latents of this run\'s autoencoder, or '
                     'make them (scripts/encode_latents.py)')
  here = _of_images(images)
  if other := [name for name in here if here[name] != about[name]]:
    raise InputError(latents.FIELD, place, f'these latents are of other images than '
                     f'{config.data.name}: {_differences(about, here, other)}',
                     latents.LATENTS.remedy)


def _differences(there: dict, here: dict, names: list[str]) -> str:
  name = names[0]
  if name == 'images':
    return data.changes(there[name], here[name])
  return f'{name} {there[name]} there, {here[name]} here'
