"""Draws samples from a run."""
import functools
import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import data, random
from vdm_jax.data import tokenisers
from vdm_jax.data.conditions import Conditions, digest
from vdm_jax.data.fields import AUGMENTED, LABEL
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation.features import checksum
from vdm_jax.guidance import Guidance
from vdm_jax.likelihood.bounds import heads
from vdm_jax.machine import devices, files, sharing
from vdm_jax.runs import needs, notation, pictures, steering, workdir
from vdm_jax.runs.steering import Clip
from vdm_jax.samplers import analytic, catalogue
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.drawing import DrawnBatch, draw, draw_own, draw_path, in_tiles
from vdm_jax.samplers.sampling import check_grid
from vdm_jax.train import check
from vdm_jax.typing import Model, SamplerMaker, denoises


def sample(directory: str | Path, out: str | Path, *, method: Method | None = None,
           count: int = 64, seed: int = 0, label: int | None = None, average: str = '',
           step: int | str = 'latest', batch_size: int = 64, trace: str | Path | None = None,
           guided: Guidance | None = None, clip: Clip | None = None,
           condition: Mapping[str, Any] | None = None, prompts: Sequence[str] = (),
           tile: int | None = None, overlap: int | None = None,
           overwrite: bool = False, data_dir: str = '', data_name: str = '') -> int | None:
  """Draws `count` images into `out`: a .png, a .csv, or an .npz that is resumed where it was left.

  A .csv has a row for each sample: see `files.save_csv`.  If it was not complete, it is resumed
  too.  Of music, a .png shows piano rolls, and a .mid holds the notes of all pieces one after
  another.

  If `out` is an .npz of the same settings and weights, sampling continues until it has `count`
  images.  Any other existing file is refused, unless `overwrite`.  The text of a .png says what the
  picture shows.  Image i of a seed is the same up to rounding, whatever the count and the batch
  size (`samplers.drawing`).

  Args:
    method: the sampler and its grid.  Default: `catalogue.usual`.  A run without a denoiser (an
      autoencoder, a chain of bits) draws its own samples if it can, and takes no method.
    trace: a .png of the first eight images on their way from noise.
    guided: the guidance, for a model that has `null`.
    label, condition: values of the fields that condition the model, `condition` by name; see
      `data.conditions`.
    clip: guidance by a dual encoder, also of a model that is told no text.
    prompts: texts for a model that is told one, and for `clip`; the images take them in turn.
    tile, overlap: decode large latents in tiles of this side, which share so many positions: see
      `samplers.drawing.in_tiles`.  Default: whole.
    data_dir, data_name: where the data are now.  Only methods that use the model's variances read
      the data.

  Returns the evaluations of the network for each sample; for an adaptive method, the most in a
  batch.  The number is 0 if all samples existed already, and None if they are not counted.

  Raises InputError.
  """
  directory = files.run_directory('workdir', directory)
  out, trace = _check_files(out, trace, count, batch_size, overwrite)
  require(overlap is None or tile is not None, 'overlap', overlap, 'without tiles nothing overlaps',
          'set the side of a tile too (tile), or leave it out')
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  spec, at = data.resolve(trained.config.data), trained.experiment.model
  model = needs.require(at(trained.params), 'sample', directory)
  x = needs.data_field(model, spec)
  _check_sizes(count, batch_size, x)
  require(out.suffix != '.mid' or notation.is_music(x), 'out', str(out), 'the samples of this '
          'model are not music', 'choose a .png, an .npz or a .csv')
  draws = {'stop': count, 'seed': seed, 'batch_size': batch_size}
  if not denoises(model):
    _check_own(directory, method, trace, label, guided or clip, condition or prompts or tile)
    own = lambda start: draw_own(at, trained.params, start=start, **draws)
    _write(out, own, count, spec.levels, trained, {'seed': seed}, overwrite)
    return None
  tiled = at if tile is None else lambda params: in_tiles(at(params), tile, overlap)
  model = tiled(trained.params)
  method = method or catalogue.usual(model)
  told = prompts if clip is None or needs.texts(model, spec) else ()
  condition = {**(condition or {}), **_told(model, spec, told)}
  cond = functools.partial(model.conditions, **{'label': label, **condition})
  conditions = cond(np.arange(count))
  _check(model, spec, method, guided, clip)
  times = method.times(model.process)
  steered = steering.steering(clip, model, trained, times, prompts) if clip else None
  make = _maker(method, model, times, trained, seed,
                (-1.0, 1.0) if x.levels and model.data_space else None)
  if model.is_latent and (out.suffix != '.npz' or trace):
    raise InputError('out', str(out), 'the samples of this model are latents, which no picture '
                     'shows',
                     'choose an .npz, and leave out --trace')

  drawn, params = (lambda params: guided.of(tiled(params))) if guided else tiled, trained.params
  given, shown = cond, conditions
  if steered:
    unsteered, params = drawn, {'model': params, 'clip': steered.params}
    drawn = lambda params: steered.of(unsteered(params['model']), params['clip'])
    given = lambda numbers: {**cond(numbers), **steered.batch(numbers)}
    shown = {**steered.told(count), **conditions}
  counted = []

  def pieces(start):
    for piece in draw(drawn, params, make, times=times, start=start, cond=given, **draws):
      counted.append(piece.evaluations)
      yield piece

  about = {**settings(method, times, seed), 'label': label,
           **({'guidance': list(guided.recorded())} if guided else {}),
           **({'tile': tile, 'overlap': overlap} if tile else {}),
           **(steered.recorded() if steered else {})}
  if condition:
    about['condition'] = digest(cond, count)
  levels = 0 if model.is_latent else x.levels
  _write(out, pieces, count, levels, trained, about, overwrite, {
      'labels' if name == LABEL else name: values
      for name, values in shown.items() if name != AUGMENTED or name in (condition or {})})
  if trace:
    frames = np.unique(np.linspace(0, len(times) - 1, 12).round().astype(int))
    path = draw_path(drawn, params, make, times=times, seed=seed, cond=given,
                     count=count if len(x.shape) == 1 else min(count, 8),
                     frames=frames.tolist())
    if jax.process_index() == 0:
      pictures.save_png(trace, pictures.of_paths(path, x), _provenance(about, trained))
  return max(counted, default=0) * (2 if guided else 1)


def draw_kept(out: Path, pieces: Callable[[int], Iterator[DrawnBatch]], count: int, levels: int, *,
              trained: workdir.Trained, about: dict, cond: Conditions, doing: str = 'sampling'
              ) -> np.ndarray:
  """The images 0 .. count - 1 of the .npz `out`: those that are there, or else they are drawn now.

  As in `sample`, finished batches are kept beside `out`, and after a stop the same call goes on.  A
  file of other settings, conditions or weights is replaced.

  Args:
    pieces: number of the first image -> batches, up to image count - 1: see `draw`.
    levels: the images have the values 0 .. levels - 1.
    about: what the images depend on, besides the weights of `trained` and the conditions: see
      `settings`.
    cond: numbers of images [n] -> their conditions, by field.
    doing: the words at the progress bar.
  """
  about = {**about, 'condition': digest(cond, count)}
  _write(out, pieces, count, levels, trained, about, True,
         cond(np.arange(count)), doing)
  sharing.see_alike('out', out, lambda: [out])  # process 0 has written it
  with np.load(out) as file:
    return file['images']


def settings(method: Method, times: np.ndarray, seed: int) -> dict[str, Any]:
  """The sampler, its grid and the seed, as files of samples keep them."""
  return {'sampler': method.name, 'grid': method.grid, 'steps': len(times) - 1,
          'times': hashlib.sha256(times.tobytes()).hexdigest()[:16], 'seed': seed}


# ------------------------------------------------------------------ checks


def _check_files(out: str | Path, trace: str | Path | None, count: int, batch_size: int,
                 overwrite: bool) -> tuple[Path, Path | None]:
  """The paths of both files.  Raises InputError for a file that cannot be written, or exists."""
  resumed = not overwrite and Path(out).suffix == '.npz'  # `_draw_resumably` looks into it
  out = files.output('out', out, '.png', '.npz', '.csv', '.mid', overwrite=overwrite or resumed)
  if out.suffix == '.mid':
    notation.mido()  # refused now
  if trace:
    trace = files.output('trace', trace, '.png', overwrite=overwrite)
    require(trace.absolute() != out.absolute(), 'trace', f'{trace}', 'it is the file of --out',
            'choose another name')
  for flag, value in {'count': count, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  return out, trace or None


def _check_sizes(count: int, batch_size: int, x: data.Field) -> None:
  """Raises InputError for too many images to number or to keep, or for too large a batch."""
  require(count <= 2**30, 'count', count, 'samples have numbers below 2^30', 'ask for fewer')
  devices.require_memory(  # for the images as they are kept
      'count', count, count * math.prod(x.shape) * np.dtype(x.dtype).itemsize)
  check.require_fits('batch_size', min(batch_size, count), x.shape, jax.device_count())


def _check_own(directory, method, trace: Path | None, label, guided, condition) -> None:
  """Raises InputError for settings that only a denoiser has."""
  if method or trace or label is not None or guided or condition:
    raise InputError('workdir', str(directory), 'this run has no denoiser and draws its own '
                     'samples', 'leave out --sampler, --steps, --grid, --trace, --label, '
                     '--condition, --prompt, --guidance, --clip and --tile')


def _told(model: Model, spec: data.Spec, prompts: Sequence[str]) -> dict[str, np.ndarray]:
  """The tokens of these texts, by the name of their field.  Raises InputError."""
  if not prompts:
    return {}
  field = needs.text_field(model, spec)
  return {field.name: tokenisers.tokens(field, prompts, 'prompt')}


def _check(model: Model, spec: data.Spec, method: Method, guided: Guidance | None,
           clip: Clip | None) -> None:
  """Raises InputError for a method or a guidance that does not suit this model."""
  if method.head and 'variance' not in heads(model, spec.zeros(1)):
    raise InputError('sampler', method.name, "this model's network has no head for the variance",
                     'train one (configs/systems.py:iddpm_hybrid), or choose another sampler')
  catalogue.require_suited(method, model)
  if guided:
    guided.of(model)
  for flag, value in (('guidance', guided and guided.weight), ('clip', clip and str(clip.run))):
    require(value is None or not method.variances, flag, value, f'the sampler {method.name} has '
            'the variances of the unguided model', 'choose another sampler')


def _maker(method: Method, model: Model, times: np.ndarray, trained: workdir.Trained, seed: int,
           data_range: tuple[float, float] | None) -> SamplerMaker:
  """The function (denoise, process) -> Sampler of a method.  Raises InputError.

  data_range: the range of x, which also bounds its variance.  None: no bound.
  """
  check_grid(times)
  make: Callable = method.make
  if method.variances:
    make = functools.partial(make, variances=variances_of(trained, times, seed),
                             data_range=data_range)
  # The plan looks at the grid before anything is compiled: a method may ask for more steps, say.
  make(model.denoise, model.process).plan(jnp.asarray(times, jnp.float32))
  return make


# ------------------------------------------------------------------- files


def _provenance(about: dict, trained: workdir.Trained) -> dict:
  """What samples depend on, besides the weights themselves."""
  return {**about, 'checkpoint': trained.step, 'average': trained.average}


def _write(out: Path, pieces, count: int, levels: int | None, trained: workdir.Trained,
           about: dict, overwrite: bool, conditions: dict | None = None, doing: str = 'sampling'
           ) -> None:
  """Draws the samples and writes `out`.

  pieces: first number -> `DrawnBatch`es.  levels: None for real numbers, 0 for latents.  about:
  what the samples depend on, besides the weights.  conditions: the conditions of the samples, which
  are saved with them.  doing: the words at the progress bar.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  x = needs.data_field(trained.experiment.model(trained.params), data.resolve(trained.config.data))
  if out.suffix not in ('.png', '.mid'):
    dtype = np.float32 if not levels else np.uint8 if levels <= 256 else np.int32
    about = {**_provenance(about, trained), 'weights': checksum(trained.params)}
    _draw_resumably(out, about, count, pieces, x.name, dtype, conditions or {}, overwrite, doing)
    return
  parts = list(_with_bar(pieces(0), 0, count, doing))
  if jax.process_index() != 0:
    return
  drawn, provenance = np.concatenate(parts), _provenance(about, trained)
  if out.suffix == '.mid':
    notation.save_midi(out, drawn, notation.sixteenths(trained.config.data.name))
  else:
    shown = ('sampler', 'steps', 'seed', 'checkpoint', 'average')
    caption = ', '.join(f'{name} {provenance[name]}' for name in shown if name in provenance)
    pictures.save_png(out, pictures.captioned(pictures.of_samples(drawn, x), caption), provenance)


def variances_of(trained: workdir.Trained, times: np.ndarray, seed: int) -> analytic.Variances:
  """The variances that Analytic-DPM needs, estimated on images of the training split.

  They are estimated at the times of the grid, or at 50 of these times, and interpolated elsewhere.
  """
  part = needs.split(trained, 'train')
  levels = times[np.unique(np.linspace(0, len(times) - 1, 50).round().astype(int))]
  size = devices.global_batch_size(min(64, len(part)))

  def estimate(shared, xs):
    (params, key), (batch, rows) = shared, xs
    m = trained.experiment.model(params)
    condition, given = m.cond(batch), batch[m.field]
    # A model of latents was trained on draws of them: their means alone have a smaller variance.
    x = (m.encode(given) if m.data_space or m.dequantise is None
         else m.dequantise(given, random.stream(random.per_example(key, rows), 'x'))[0])
    return analytic.estimate_variances(
        lambda z, level, _=None: m.denoise(z, level, condition), m.process,
        x, jnp.asarray(levels, jnp.float32), random.per_example(key, rows))

  estimate = devices.over_rows(estimate)
  shared = devices.replicate((trained.params, random.key(seed)))
  estimates = []
  batches = list(devices.padded_rows(0, min(512, len(part) // size * size), size))
  for rows, _ in tqdm.tqdm(batches, desc='variances of the model', unit='batch',
                           disable=jax.process_index() != 0):
    local = devices.local_rows(rows)
    estimates.append(jax.device_get(estimate(shared, devices.place((part.get(local), local)))))
  return analytic.pool(estimates)


def _with_bar(pieces, start: int, count: int, doing: str):
  with tqdm.tqdm(total=count, initial=start, unit='sample', desc=doing, dynamic_ncols=True,
                 disable=jax.process_index() != 0) as bar:
    for piece in pieces:
      yield piece.data
      bar.update(len(piece.numbers))


def _draw_resumably(out: Path, about: dict, count: int, pieces, name: str, dtype, conditions: dict,
                    overwrite: bool, doing: str) -> None:
  """Draws images in parts beside `out`, and puts the parts together at the end.

  name: of the field that is drawn.

  Existing parts are not drawn again.  The name of their folder has a digest of `about`, all that
  the images depend on.  A part is named after its first image.

  Raises InputError if `out` exists with other settings, unless `overwrite`.
  """
  there = _about(out) if out.exists() else None
  # The digest of the conditions is of all `count` samples: a longer file has another.
  other = sorted(name for name in {*there, *about} - {'count', 'condition'}
                 if there.get(name) != about.get(name)) if there else []
  if there and not _told_alike(out, there['count'], conditions):
    other.append('condition')
  fits = bool(there) and not other and there['count'] <= count
  # All go by what process 0 finds.
  if devices.broadcast_from_first(lambda: fits and there['count'] == count):
    return
  if devices.broadcast_from_first(lambda: not (there is None or fits or overwrite)):
    raise InputError('out', f'{out}', 'it is there already' + (
        f', with another {", ".join(other)}' if other else
        f', with {there["count"]:,} samples' if there else ', and is no file of sample.py'),
                     'choose another name, or ask for `overwrite`')
  tag = files.digest(about)[:16]
  parts = out.with_name(f'{out.name}.{tag}.parts')
  parts.mkdir(exist_ok=True)

  def begun():
    done = sum(map(len, _consecutive(parts)))
    if fits and done < there['count']:
      with np.load(out) as saved:
        files.save_npz(_part(parts, 0), images=saved['images'])
      done = sum(map(len, _consecutive(parts)))
    return done

  done = devices.broadcast_from_first(begun)
  for images in _with_bar(pieces(min(done, count)), min(done, count), count, doing):
    if jax.process_index() == 0:
      files.save_npz(_part(parts, done), images=images.astype(dtype))
    done += len(images)
  if jax.process_index() != 0:
    return
  images = np.concatenate(list(_consecutive(parts)))[:count]
  if out.suffix == '.csv':
    files.save_csv(out, **{name: images, **conditions})
  else:
    files.save_npz(out, images=images, **conditions, about=json.dumps({**about, 'count': count}))
  shutil.rmtree(parts)


def _about(out: Path) -> dict:
  """What the images of an .npz depend on, and their count; {} for a file of another kind."""
  try:
    with np.load(out) as there:
      about = json.loads(str(there['about']))
    return about if {'count', 'weights'} <= about.keys() else {}
  except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
    return {}


def _told_alike(out: Path, count: int, conditions: dict) -> bool:
  """Whether the `count` samples of an .npz have the first of these conditions."""
  with np.load(out) as there:
    return all(name in there and np.array_equal(there[name][:len(values)], values[:count])
               for name, values in conditions.items())


def _part(parts: Path, first: int) -> Path:
  return parts / f'part_{first:09d}.npz'


def _consecutive(parts: Path) -> Iterator[np.ndarray]:
  """The images of the parts from number 0 on, up to the first missing part."""
  done = 0
  while (file := _part(parts, done)).exists():
    with np.load(file) as part:
      images = part['images']
    done += len(images)
    yield images
