"""The work of scripts/score_samples.py: finds samples, a reference and features, and scores.

Everything is read in batches.  Memory holds the features of all samples, but only of some of the
reference's images.
"""
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from vdm_jax import data
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.evaluation import features, references, scores
from vdm_jax.evaluation import frechet as frechet_distance
from vdm_jax.evaluation.features import Extractor
from vdm_jax.evaluation.references import Reference
from vdm_jax.evaluation.scores import Scores
from vdm_jax.machine import files, sharing
from vdm_jax.nn import inception
from vdm_jax.published import inception as published
from vdm_jax.published import readers
from vdm_jax.runs import needs, sampling, workdir
from vdm_jax.samplers.catalogue import Method
from vdm_jax.values import Bound

__all__ = ['FEATURES', 'INCEPTION', 'Images', 'SPLITS', 'extractor', 'find_reference', 'score']

SPLITS = ('train', 'validation', 'test')
INCEPTION = '6726825d'  # how the SHA-256 of the usual weights begins, by their name
FEATURES = 'pixels, values (of real numbers), classifier:RUN or inception:FILE'


class Images(NamedTuple):
  """Images, or examples of real numbers, that have been found, but not read yet."""
  name: str
  count: int
  read: Callable[[np.ndarray], np.ndarray]  # numbers [n] -> integers or real numbers [n, ...]
  shape: tuple[int, ...]                    # of one
  levels: int | None                        # values are 0 .. levels - 1; None: real numbers


def images_of(part: data.Split, x: data.Field, name: str = '') -> Images:
  """The images of a split: its field `x`.  name: by default the split's."""
  return Images(name or part.name, len(part), lambda rows: part.get(rows)[x.name], x.shape,
                x.levels)


# -------------------------------------------------------------- extractors


def extractor(name: str) -> Extractor:
  """The extractor that --features names.  Raises InputError."""
  kind, _, path = name.partition(':')
  if name == 'pixels':
    return features.pixels()
  if name == 'values':
    return features.values()
  if kind == 'classifier' and path:
    return _classifier(path)
  if kind == 'inception' and path:
    return _inception(path)
  raise InputError('features', name, 'there are no such features', f'choose {FEATURES}')


def _classifier(directory: str) -> Extractor:
  trained = workdir.load_trained(directory)
  model = needs.require(trained.experiment.model(trained.params), 'features',
                        f'classifier:{directory}', 'features')
  return features.of_network(
      f'classifier:{directory}', features.checksum(trained.params),
      lambda params, images: trained.experiment.model(params).features(images), trained.params,
      model.shape, model.levels)


def _inception(path: str) -> Extractor:
  """Inception's 2048 pooled features.  Grey images are repeated to three channels."""
  weights = files.user_path('features', path)
  if not weights.is_file():
    raise InputError('features', f'inception:{weights}', 'there is no such file',
                     "give the usual weights, the pytorch-fid project's "
                     'pt_inception-2015-12-05-6726825d.pth')
  flat = readers.read(weights)
  try:
    params = published.from_flat(flat)
  except InputError as error:
    raise InputError('features', f'inception:{weights}', f'{error}') from None
  with open(weights, 'rb') as file:
    checksum = hashlib.file_digest(file, 'sha256').hexdigest()
  if not checksum.startswith(INCEPTION):
    logging.warning('%s is not the usual file, whose SHA-256 begins with %s: distances by other '
                    'weights are other numbers.', weights, INCEPTION)

  def apply(params, images):
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
      raise InputError('features', 'inception',
                       f'it reads images [H, W, 1 or 3], not {list(images.shape[1:])}',
                       'choose other features')
    colour = jnp.broadcast_to(images, (*images.shape[:-1], 3)).astype(jnp.float32)
    return Bound(params, inception.Inception())(colour)
  return features.of_network(f'inception:{weights.name}', checksum, apply, params, levels=256)


# ----------------------------------------------------- samples, references


def _from_arrays(arrays: dict[str, np.ndarray], path: str, flag: str) -> Images:
  """The images among a file's arrays.  Raises InputError if there are none."""
  key = next((key for key in ('images', 'arr_0', *arrays) if key in arrays), None)
  if key is None or (key not in ('images', 'arr_0') and len(arrays) > 1):
    raise InputError(flag, f'{path}', f'it holds the arrays {", ".join(arrays) or "(none)"}',
                     'give `images` or `arr_0`'
                     + (', or statistics' if flag == 'reference' else ''))
  images = arrays[key]
  real = np.issubdtype(images.dtype, np.floating)
  if images.ndim < 2 or not len(images) or not (real or np.issubdtype(images.dtype, np.integer)):
    raise InputError(flag, f'{path}', f'{key} holds {images.dtype} {list(images.shape)}',
                     'give integers [N, H, W, C], values from 0 on, or real numbers [N, ...]')
  if not real and images.min() < 0:
    raise InputError(flag, f'{path}', f'{key} has the value {images.min()}',
                     'give values from 0 on, or real numbers as floats')
  if real and not np.isfinite(images).all():
    raise InputError(flag, f'{path}', f'{key} holds numbers that are not finite',
                     'leave them out, or mend them')
  name = Path(path).name
  if {'images', 'about'} <= arrays.keys():  # written by scripts/sample.py
    try:
      about = dict(json.loads(str(arrays['about'])))
    except ValueError:
      raise InputError(flag, f'{path}', 'its array `about` is not JSON',
                       'leave it out') from None
    name += ': ' + ', '.join(f'{field} {about[field]}' for field in (
        'sampler', 'steps', 'seed', 'checkpoint', 'average', 'weights') if field in about)
  return Images(name, len(images), lambda rows: images[rows], images.shape[1:],
                None if real else int(images.max()) + 1)


def find_reference(text: str, of: Extractor, data_dir: str = '', data_name: str = ''
                   ) -> Images | Reference:
  """The reference that --reference names: images that are not read yet, or statistics.

  data_dir, data_name: where the data of a config file are now.  Raises InputError.
  """
  name, _, split = text.rpartition(':')
  if split not in SPLITS:
    name, split = text, 'train'
    if text.endswith('.npz'):
      arrays = references.arrays(text, 'reference')
      statistics = references.from_arrays(arrays, text, of)
      if statistics is not None:
        return statistics
      images = _from_arrays(arrays, text, 'reference')
      # What no image reaches may still be allowed.
      return images._replace(levels=images.levels and (256 if images.levels > 128 else 128))
  if name.endswith('.py'):
    config = ml_collections.ConfigDict(
        workdir.open_config(str(files.user_path('reference', name))).data)
    config.name = data_name or config.name
  else:
    config = data.default_config()
    config.name = name
  if data_dir:
    config.data_dir = data_dir
  try:
    part = data.Data(config).split(split)
  except (InputError, FileNotFoundError) as error:
    raise InputError('reference', text, f'{error}') from None
  if not len(part):
    raise InputError('reference', text, f'{config.name} has no {split} images here',
                     'choose another split')
  return images_of(part, part.spec.x, f'{config.name}:{split}')


def _check(flag: str, shape: tuple[int, ...], levels: int | None, of: str,
           other_shape: tuple[int, ...], other_levels: int | None) -> None:
  """Raises InputError if images differ in shape or levels from the other images (() and 0: any)."""
  if other_levels != 0 and (levels is None) != (other_levels is None):
    what = lambda of: 'real numbers' if of is None else 'integers'
    raise InputError(flag, None, f'its values are {what(levels)}, and the values of {of} '
                     f'{what(other_levels)}', 'bring both to one kind')
  if other_shape and tuple(shape) != tuple(other_shape):
    raise InputError(flag, None, f'its images have shape {list(shape)}, and the images of {of} '
                     f'{list(other_shape)}',
                     'bring both to one size')
  if other_levels and levels and (levels > other_levels or levels <= 128 < other_levels):
    raise InputError(flag, None,
                     f'its values are below {levels}, and the values of {of} below {other_levels}',
                     'bring both to one scale')


def _check_features(flag: str, shape: tuple[int, ...], levels: int | None, of: Extractor) -> None:
  """Raises InputError if images, which `flag` names, are not those that the extractor takes."""
  if (levels is None) != (of.levels is None):
    raise InputError('features', of.name, f'the values of the {flag} are '
                     f'{"real numbers" if levels is None else "integers"}, and these features are '
                     f'of {"integers" if levels is None else "real numbers"}',
                     "choose 'values'" if levels is None else "choose 'pixels', or a network's")
  _check(flag, shape, levels, 'the features', of.shape, of.levels)


# ------------------------------------------------------------------- score


def _summary(of: Extractor, reference: Images, batch_size: int, keep: int) -> features.Summary:
  """The summary of one pass over the reference's images."""
  return features.summarise(
      features.extract(of, reference.read, reference.count, batch_size=batch_size,
                       what='reference'), reference.count, keep)


def frechet(by: str, reference: Images, *, batch_size: int = 100
            ) -> Callable[[np.ndarray], float]:
  """A function from samples [n, ...] to their Fréchet distance from the images of `reference`.

  by: the features, see `FEATURES`.  The statistics of the reference are computed once, at the first
  call of the function.

  Raises InputError for features that cannot be computed from such images.
  """
  return _compared(by, reference, batch_size, lambda drawn, target: frechet_distance.distance(
      features.statistics(drawn), target))


def jackknifed(by: str, reference: Images, *, batch_size: int = 100
               ) -> Callable[[np.ndarray], tuple[float, float]]:
  """Like `frechet`, but the distance without the bias of few samples, and its standard error.

  See `evaluation.frechet.jackknifed`.
  """
  return _compared(by, reference, batch_size, frechet_distance.jackknifed)


def _compared(by, reference, batch_size, measure):
  """Samples [n, ...] -> measure(their features, the statistics of the reference)."""
  of = extractor(by)
  _check_features('reference', reference.shape, reference.levels, of)
  target = functools.cache(lambda: _summary(of, reference, batch_size, keep=0).statistics)

  def measured(samples: np.ndarray):
    values = features.extract(of, lambda rows: samples[np.minimum(rows, len(samples) - 1)],
                              len(samples), batch_size=batch_size, what='samples')
    return measure(np.concatenate(list(values)), target())

  return measured


def score(*, samples: str = '', directory: str = '', method: Method | None = None,
          count: int = 1000, seed: int = 0, average: str = '', step: int | str = 'latest',
          reference: str, by: str, out: str = '', save_reference: str = '', batch_size: int = 100,
          data_dir: str = '', data_name: str = '', overwrite: bool = False) -> Scores | None:
  """Scores the images of the file `samples`, or `count` images drawn from the run in `directory`.

  Images may also be examples of real numbers, such as sequences.

  The drawn images are kept in `directory`.  Without samples and without a run, only the statistics
  of the reference are written, and None is returned.

  Args:
    method: the sampler and its grid.  Default: `catalogue.usual`.
    reference: a data set, NAME or NAME:SPLIT (train by default); the data set of a config, FILE.py
      or FILE.py:SPLIT; or an .npz of images or of statistics.
    by: the features, see `FEATURES`.
    out: the JSON of the scores.  Default: scores.json in `directory`.
    save_reference: an .npz into which the statistics of the reference are written.
    data_dir, data_name: where the data of the run, and of a config file, are now.

  Raises InputError for wrong flags or files, and for a data set that is missing or has another
  shape than the samples.  Raises InputError also if `out` or `save_reference` exists, unless
  `overwrite`.
  """
  if samples and directory:
    raise InputError('samples', f'{samples}', 'workdir is given too', 'choose one of them')
  if not (samples or directory or save_reference):
    raise InputError('samples', None, 'no images are to be scored', 'give samples or workdir')
  for flag, value, least in (('count', count, scores.K_COVERAGE + 1),
                             ('batch_size', batch_size, 1)):
    require_at_least(flag, value, least)
  run = files.run_directory('workdir', directory) if directory else None
  to = out or (run / 'scores.json' if run else '')
  written = files.output('out', to, '.json', overwrite=overwrite) if to else None
  statistics_file = (files.output('save_reference', save_reference, '.npz', overwrite=overwrite)
          if save_reference else None)
  of = extractor(by)
  against = find_reference(reference, of, data_dir, data_name)
  if isinstance(against, Images):
    _check_features('reference', against.shape, against.levels, of)

  def check(flag, shape, levels):
    _check_features(flag, shape, levels, of)
    _check(flag, shape, levels, 'the reference', against.shape, against.levels)

  images = None
  if run:
    spec = data.resolve(workdir.read_config(run).data)
    check('workdir', spec.shape, spec.x.levels)
    samples = str(run / f'scored_{method.name}.npz' if method else 'scored.npz')
    sampling.sample(run, samples, method=method, count=count, seed=seed, average=average,
                    step=step, batch_size=batch_size, overwrite=True, data_dir=data_dir,
                    data_name=data_name)
    sharing.see_alike('workdir', samples, lambda: [Path(samples)])  # process 0 has written it
  if samples:
    images = _from_arrays(references.arrays(samples, 'samples'), samples, 'samples')
    if not run:
      check('samples', images.shape, images.levels)

  if isinstance(against, Images):
    summary = _summary(of, against, batch_size, scores.MOST_COMPARED)
    against = Reference(against.name, of.name, of.checksum, against.shape, against.levels, *summary)
  if statistics_file and jax.process_index() == 0:
    references.save(statistics_file, against)
  if images is None:
    return None
  drawn = np.concatenate(list(features.extract(of, images.read, images.count,
                                               batch_size=batch_size, what='samples')))
  result = scores.score(drawn, against, of, images.name)
  if written and jax.process_index() == 0:
    files.write_text(written, scores.to_json(result))
  return result
