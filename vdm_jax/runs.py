"""What the commands do with a run's directory: train it, evaluate it, sample from it."""
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.table
import tqdm
from absl import logging

from vdm_jax import (
    data,
    devices,
    files,
    guidance,
    likelihood,
    pictures,
    random,
    samplers,
    workdir,
)
from vdm_jax.decoders import bits_per_dim
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.evaluation.features import checksum
from vdm_jax.likelihood import closed_forms, density, gaussian, relations
from vdm_jax.likelihood import estimates as naming
from vdm_jax.likelihood import schedules as other_schedules
from vdm_jax.samplers import analytic, grids
from vdm_jax.samplers.drawing import draw, draw_own, draw_path
from vdm_jax.samplers.sampling import check_grid
from vdm_jax.train import loop
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.typing import Denoiser, Experiment, Model, Process, PyTree, Sampler


class Guidance(NamedTuple):
  """Classifier-free guidance of weight w where low <= logsnr <= high."""
  weight: float
  low: float = -np.inf
  high: float = np.inf

  def of(self, model: Model) -> Model:
    """`model` so guided; it has `null`."""
    unconditional = guidance.told(model.denoise, model.null)
    guided = guidance.classifier_free(model.denoise, unconditional, self.weight)
    return model._replace(denoise=guidance.within(model.denoise, guided, self.low, self.high))


class Method(NamedTuple):
  """A sampler and its grid, and the names that files and messages give them."""
  name: str
  make: Callable[[Denoiser, Process], Sampler]
  grid: str
  times: Callable[[Process], np.ndarray]  # -> [N + 1], from 1 down to 0
  variances: bool = False  # `make` takes a third argument, `analytic.Variances` of this model
  head: bool = False       # the network has to have one for the variances of its steps, 'v'


def _even(steps: int) -> Callable[[Process], np.ndarray]:
  return lambda process: grids.uniform(steps)


ANCESTRAL = Method('ancestral', samplers.ancestral, 'uniform', _even(250))


# ------------------------------------------------------------------ train


def train(config: ml_collections.ConfigDict, config_file: str | Path, directory: str | Path, *,
          init_from: str = '', profile: int = 0) -> dict[str, float]:
  """Trains `config` in `directory`, or goes on with the run there.  The last validation's means.

  init_from: a workdir whose averaged weights a new run starts from.  Raises InputError.
  """
  loop.check(config)
  spec = data.resolve(config.data)
  # What was read from the data becomes part of the run: later commands need no data for it.
  config = config.copy_and_resolve_references()
  config.data.update(shape=spec.shape, levels=spec.levels, classes=spec.classes)
  experiment = workdir.import_config(config_file).build(config)
  found = experiment.data.describe()
  workdir.prepare(directory, config, config_file)
  if jax.process_index() == 0:
    print(found)
    if 0 < config.optimizer.get('decay_steps', 0) < config.train.steps:
      print(f'The learning rate is 0 from step {config.optimizer.decay_steps:,} on '
            '(--config.optimizer.decay_steps): later steps move the averages alone.')
  initial = None
  if init_from:  # read when a run begins: one that goes on needs it no more
    initial = lambda params: transfer(params, workdir.load_trained(init_from).params)
  return loop.train(experiment, config, directory, initial=initial, profile=profile,
                    pictures=lambda params: _preview(experiment, spec, params, config.seed))


def transfer(params: PyTree, other: PyTree) -> PyTree:
  """`params` with the values of `other` wherever name and shape agree; the rest is reported."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  name = lambda path: '/'.join(entry.key for entry in path)
  found = {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(other)[0]}
  out, missing = [], []
  for path, leaf in leaves:
    value = found.pop(name(path), None)
    fits = value is not None and value.shape == leaf.shape
    out.append(jnp.asarray(value, leaf.dtype) if fits else leaf)
    if not fits:
      missing.append(name(path))
  if len(missing) == len(out):
    raise InputError('--init_from: none of its parameters has a name and shape of this model.')
  for what, names in (('missing there or of another shape, initialised afresh', missing),
                      ('left over', list(found))):
    if names:
      logging.warning('--init_from: %s: %s', what, ', '.join(names))
  return jax.tree.unflatten(treedef, out)


def _preview(experiment: Experiment, spec, params: PyTree, seed: int) -> np.ndarray:
  """A few samples, uint8 [H, W, 3]: enough to see whether training goes anywhere."""
  count = 16 if len(spec.shape) == 3 else 2000
  parts = draw(experiment.model, params, samplers.ancestral, times=grids.uniform(64), start=0,
               stop=count, seed=seed, batch_size=count, cond=_conditions(spec.classes, None))
  return pictures.samples(np.concatenate([part.data for part in parts]), spec.levels)


def train_seeds(config: ml_collections.ConfigDict, config_file: str | Path, directory: str | Path,
                seeds: Sequence[int], **options) -> None:
  """One run for each seed, in `directory/seed_N`, and a table of their last validations."""
  results = {}
  for seed in seeds:
    config.seed = seed
    results[seed] = train(config, config_file, Path(directory) / f'seed_{seed}', **options)
  names = list(results[seeds[0]])
  table = rich.table.Table('seed', *names, title='validation')
  for seed, values in results.items():
    table.add_row(str(seed), *(f'{values[name]:.4f}' for name in names))
  table.add_section()
  columns = [[results[seed][name] for seed in seeds] for name in names]
  table.add_row('mean', *(f'{np.mean(column):.4f}' for column in columns))
  if len(seeds) > 1:
    table.add_row('std', *(f'{np.std(column, ddof=1):.4f}' for column in columns))
  metrics_lib.show(table)


# --------------------------------------------------------------- evaluate


def evaluate(directory: str | Path, *, split: str = 'test', estimates: Sequence[str] = (),
             schedules: bool = False, repeats: int = 1, times: int = 32, importance: int = 1,
             ode_tolerance: float = 1e-5, ode_start: float | None = None, probes: int = 1,
             probe: str = 'rademacher', average: str = '', step: int | str = 'latest',
             seed: int = 0, batch_size: int = 512,
             examples: int | None = None, data_dir: str = '') -> likelihood.Ledger:
  """Estimates the likelihood of every image of a split; writes the ledger, the bits, two pictures.

  estimates: names of `likelihood.estimates`; the continuous-time bound, 'vlb', is always there.
  schedules: that bound also under other schedules of the same ends.  times, importance,
  ode_tolerance, ode_start, probes, probe: see `likelihood.estimates.Options`.  batch_size:
  evaluations of the network at a time.  examples: only the first so many images.  A row is the same
  whatever else is asked for.  Writes ledger.json, bits.npz, bits_by_noise.png and curves.png into
  `directory`; for another split than test their names end in _train or _validation.

  Raises InputError: before anything is computed, where flags, names or the kind of model are at
  fault; at the end, when all else is written, for an estimate that is not finite.
  """
  directory = Path(directory)
  if split not in ('train', 'validation', 'test'):
    raise InputError(f'--split={split}: choose train, validation or test.')
  for flag, value in {'repeats': repeats, 'batch_size': batch_size, 'examples': examples}.items():
    require_at_least(flag, value)
  options = naming.Options(times, importance, ode_tolerance, probes, probe, ode_start)
  naming.check_options(options)
  asked = naming.parse(estimates)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir)
  experiment, params = trained.experiment, trained.params
  spec = data.resolve(trained.config.data)
  model = experiment.model(params)
  _require_denoiser(model, directory)
  if _of_latents(model):
    raise InputError(f'--workdir={directory}: this model is one of latents, and has no likelihood '
                     'of images; sample from it.')
  one = {'image': np.zeros((1, *spec.shape), np.uint8),
         **_conditions(spec.classes, None)(np.arange(1))}
  # Of levels that differ from pixel to pixel, the mean.
  logsnr_at = jax.jit(lambda params, t: jnp.mean(
      experiment.model(params).process(t).logsnr.reshape(len(t), -1), axis=1))
  ends = [float(u) for u in logsnr_at(params, jnp.array([0.0, 1.0]))]
  steps = trained.config.get('model', {}).get('timesteps', 0)
  chain = bool(np.isposinf(ends[0]) and steps)  # which begins at the data themselves
  if chain:
    asked = naming.of_chain(asked, options, model, one, steps)
    ends[0] = float(logsnr_at(params, jnp.array([1.0 / steps]))[0])
  naming.check_model(asked, options, model, one)
  if np.isinf(ends).any():
    raise InputError(f'the log-SNR of this model runs from {ends[0]:g} to {ends[1]:g}, where '
                     'the bound has no value: give its schedule two finite ends in the config '
                     '(BetaLinear: t_min=1e-5).')
  if schedules and (chain or not other_schedules.movable(model)):
    raise InputError('--schedules: this model has a bound or a process of its own, and so no other '
                     'schedule, or one for each pixel; leave it out.')
  part = experiment.data.split(split)
  if not len(part):
    raise InputError(f'--split={split}: this run has no such images; choose another.')
  count = min(len(part), examples or len(part))
  about = {'dataset': {'name': part.spec.name, 'version': part.version, 'split': split,
                       'source_split': part.source_split, 'examples': count, 'of': len(part),
                       'sha256': part.sha256(), 'levels': part.spec.levels},
           'checkpoint': {'step': trained.step, 'average': trained.average}}

  # The bound is that of objectives.vlb, with one log-SNR for all pixels.
  plain = model.bound is None and not naming.level_axes(model) and not chain
  found = naming.Found(
      _moments(experiment, model) if plain else None,
      _variances(trained, grids.uniform(50), seed)
      if any(estimate.variance == 'analytic' for estimate in asked) else None)
  measure = functools.partial(
      naming.measure, options=options, params=params, split=part, shape=spec.shape,
      levels=spec.levels, seed=seed, repeats=repeats, batch_size=batch_size, count=count,
      found=found)
  given = {'logsnr_max': ends[0], 'logsnr_min': ends[1], **about}
  wanted = [(estimate, experiment.model, given) for estimate in asked]
  if schedules:
    wanted += [(asked[0], other_schedules.under(experiment.model, name),
                given | {'estimate': f'vlb ({name})', 'schedule': name})
               for name in other_schedules.SCHEDULES]
  measured, failed = [], []
  for estimate, of, more in wanted:
    try:
      measured.append(measure(estimate, model=of, given=more))
    except InputError as error:  # what was measured before it is not lost
      if not measured:
        raise
      failed.append(str(error))
  bound = density.density(measured[0].draws, spec.shape, found.moments)
  checks = relations.check(measured, _closed_forms(part, count, times * repeats, *ends) if plain
                           else None)
  if plain:
    checks.append(density.check(bound))

  ledger = likelihood.Ledger(**about, rows=[m.row for m in measured],
                             config=trained.config.to_dict(), checks=checks)
  ending = '' if split == 'test' else f'_{split}'
  written = directory / f'ledger{ending}.json'
  if jax.process_index() == 0:
    written.unlink(missing_ok=True)  # until the rest is of one evaluation again
    save_npz(directory / f'bits{ending}.npz', times_per_image=times, split=split,
             step=trained.step, **{f'{m.row["estimate"]}/{name}': u for m in measured
                                   for name, u in m.bits.items()})
    each = measured[0].bits['total'].mean(axis=0)
    shown = pictures.extremes(each)
    pictures.save_png(directory / f'bits_by_noise{ending}.png', pictures.bits_by_noise(
        bound, each, part.get(shown)['image'], each[shown], spec.levels, ledger.rows[0]))
    t = np.linspace(0.0, 1.0, 201)
    key_init, *_ = jax.random.split(jax.random.key(trained.config.seed), 3)
    initial = jax.jit(lambda key: logsnr_at(experiment.init(key), t))
    pictures.save_png(directory / f'curves{ending}.png', pictures.curves(
        metrics_lib.read(directory), t, np.asarray(initial(key_init)),
        np.asarray(logsnr_at(params, t)), ledger.rows[0]['bits_per_dim'], split))
    # Last: where there is a ledger, the rest is there too.
    files.write_text(written, ledger.to_json())
  if failed:
    raise InputError(f'{" ".join(failed)}  All other rows are in {written}.')
  return ledger


def _moments(experiment: Experiment, model: Model) -> gaussian.Moments:
  """Mean and covariance of the training images, of 20,000 at most."""
  part = experiment.data.split('train')
  return gaussian.fit(part, model.encode, part.spec.levels, limit=20_000)


def _closed_forms(part, count: int, draws: int, logsnr_max: float, logsnr_min: float
                  ) -> dict[str, tuple[np.ndarray, float]]:
  """The end terms of each image, in bits/dim [N], and the error of a mean over so many draws."""
  shape = part.spec.shape
  table, variance = closed_forms.reconstruction(part.spec.levels, logsnr_max)
  pieces, of_all = [], 0.0
  for first in range(0, count, 1000):
    images = part.get(np.arange(first, min(first + 1000, count)))['image']
    pieces.append(closed_forms.end_terms(images, table, logsnr_min))
    of_all += variance[images].sum()
  errors = {'reconstruction': bits_per_dim(np.sqrt(of_all / draws) / count, shape), 'latent': 0.0}
  return {name: (bits_per_dim(np.concatenate([piece[name] for piece in pieces]), shape), error)
          for name, error in errors.items()}


def report(directory: str | Path) -> likelihood.Ledger:
  """The ledger of the last evaluation.  Raises InputError if it is not of the newest checkpoint."""
  path, ledger = _read_ledger(directory)
  checkpoints = Checkpoints(directory, read_only=True)
  newest = max(checkpoints.steps(), default=None)
  checkpoints.close()
  if ledger.checkpoint['step'] != newest:
    raise InputError(f'{path} is of step {ledger.checkpoint["step"]}, the newest checkpoint of '
                     f'step {newest}: evaluate it again.')
  return ledger


def _read_ledger(directory: str | Path) -> tuple[Path, likelihood.Ledger]:
  path = Path(directory) / 'ledger.json'
  if not path.exists():
    raise InputError(f'{directory} has no ledger.json: evaluate it first (scripts/evaluate.py '
                     f'--workdir={directory}).')
  fields = json.loads(path.read_text())
  if 'checks' not in fields:
    raise InputError(f'{path} was written by an older version: evaluate it again.')
  return path, likelihood.Ledger(**fields)


def evaluated(directories: Sequence[str | Path]) -> dict[str, likelihood.Evaluated]:
  """What `evaluate` left in each directory, under its name.  Raises InputError."""
  out = {}
  for directory in directories:
    path, ledger = _read_ledger(directory)
    with np.load(path.with_name('bits.npz')) as bits:
      if bits['step'] != ledger.checkpoint['step']:
        raise InputError(f'{directory}: bits.npz is of step {bits["step"]}, ledger.json of step '
                         f'{ledger.checkpoint["step"]}: evaluate it again.')
      out[str(directory).rstrip('/')] = likelihood.Evaluated(ledger, {
          row['estimate']: bits[f'{row["estimate"]}/total'].mean(axis=0) for row in ledger.rows})
  return out


def save_npz(path: Path, **arrays) -> None:
  """np.savez_compressed, whole or not at all."""
  with files.whole(path) as partial:
    np.savez_compressed(partial, **arrays)


# ----------------------------------------------------------------- sample


def _conditions(classes: int, label: int | None):
  """Image numbers -> what the model may be conditioned on: labels in turn, nothing augmented."""
  def batch(numbers):
    labels = numbers % max(classes, 1) if label is None else np.full_like(numbers, label)
    return {'label': labels.astype(np.int32), 'augmented': np.zeros(len(numbers), np.float32)}
  return batch


def sample(directory: str | Path, out: str | Path, *, method: Method | None = None,
           count: int = 64, seed: int = 0, label: int | None = None, average: str = '',
           step: int | str = 'latest', batch_size: int = 64, trace: str | Path = '',
           guided: Guidance | None = None) -> int | None:
  """Draws `count` images into `out`: a .png, or an .npz that is resumed where it was left.

  method: `ANCESTRAL` if not given.  A run without a denoiser draws its own samples, if it can (an
  autoencoder, a chain of bits), and takes no method.  trace: a .png of the first eight images on
  their way.  Image i of a seed is the same however many are drawn.  guided: of a model that has
  `null`.  Returns the evaluations of the network for each image (of an adaptive method the most in
  a batch), 0 if all were there already, None where they are not counted.  Raises InputError.
  """
  out, trace = Path(out), Path(trace)
  if out.suffix not in ('.png', '.npz'):
    raise InputError(f'--out={out}: a file ending in .png or .npz.')
  if trace != Path() and trace.suffix != '.png':
    raise InputError(f'--trace={trace}: a file ending in .png.')
  for flag, value in {'count': count, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  trained = workdir.load_trained(directory, average=average, step=step)
  spec = data.resolve(trained.config.data)
  conditional = trained.config.get('model', {}).get('class_conditional', False)
  model = trained.experiment.model(trained.params)
  if not hasattr(model, 'denoise') and hasattr(model, 'sample'):
    if method or trace != Path() or label is not None or guided:
      raise InputError(f'--workdir={directory}: this run has no denoiser and draws its own '
                       'samples; leave out --sampler, --steps, --grid, --trace, --label and '
                       '--guidance.')
    own = functools.partial(draw_own, trained.experiment.model, trained.params, stop=count,
                            seed=seed, batch_size=batch_size)
    _write(out, own, count, spec.levels, trained, {'seed': seed})
    return None
  _require_denoiser(model, directory)
  method = method or ANCESTRAL
  if label is not None and not conditional:
    raise InputError(f'--label={label}: this model is not conditioned on classes.')
  if label is not None and not 0 <= label < spec.classes:
    raise InputError(f'--label={label}: the classes are 0 .. {spec.classes - 1}.')
  one = {'image': np.zeros((1, *spec.shape), np.uint8),
         **_conditions(spec.classes, None)(np.arange(1))}
  if method.head and 'v' not in naming.heads(model, one):
    raise InputError(f"--sampler={method.name}: this model's network has no head for the variance; "
                     'train one (configs/digits_iddpm_hybrid.py), or choose another sampler.')
  if guided and trained.config.get('model', {}).get('clip', False):
    raise InputError('--guidance: this run clips its estimates (config.model.clip) before they '
                     'could be guided; guide from Python, and clip last: vdm_jax.guidance.')
  if guided and model.null is None:
    raise InputError(f'--guidance={guided.weight:g}: this model has not learned to do without a '
                     'label; train one that has (configs/digits_cfg.py).')
  if guided and method.variances:
    raise InputError(f'--guidance={guided.weight:g}: the variances of --sampler={method.name} are '
                     'those of the model without it; choose another sampler.')
  times = method.times(model.process)
  check_grid(times)
  make = method.make
  if method.variances:  # images are coded in [-1, 1], which bounds their variance
    make = functools.partial(make, variances=_variances(trained, times, seed),
                             data_range=(-1.0, 1.0))
  # The plan looks at the grid before anything is compiled: a method may ask for more steps, say.
  make(model.denoise, model.process).plan(jnp.asarray(times, jnp.float32))
  latents = _of_latents(model)
  if latents and (out.suffix == '.png' or trace != Path()):
    raise InputError(f'--out={out}: the samples of this model are latents, no images; choose an '
                     '.npz, and leave out --trace.')

  cond = _conditions(spec.classes, label)
  counted = []
  at = trained.experiment.model
  drawn = (lambda params: guided.of(at(params))) if guided else at

  def pieces(start):
    for piece in draw(drawn, trained.params, make, times=times, start=start, stop=count, seed=seed,
                      batch_size=batch_size, cond=cond):
      counted.append(piece.evaluations)
      yield piece

  about = {'sampler': method.name, 'grid': method.grid, 'steps': len(times) - 1,
           'times': hashlib.sha256(times.tobytes()).hexdigest()[:16], 'seed': seed, 'label': label,
           **({'guidance': list(guided)} if guided else {})}
  labels = {'labels': cond(np.arange(count))['label']} if conditional else {}
  _write(out, pieces, count, 0 if latents else spec.levels, trained, about, labels)
  if trace != Path():
    frames = np.unique(np.linspace(0, len(times) - 1, 12).round().astype(int))
    path = draw_path(drawn, trained.params, make, times=times, seed=seed, cond=cond,
                     count=min(count, 8) if len(spec.shape) == 3 else count,
                     frames=frames.tolist())
    if jax.process_index() == 0:
      pictures.save_png(trace, pictures.strip(path, spec.levels))
  return max(counted, default=0) * (2 if guided else 1)


def _write(out: Path, pieces, count: int, levels: int, trained: workdir.Trained, about: dict,
           labels: dict | None = None) -> None:
  """Draws and writes `out`.  pieces: first number -> `Batch`es; levels: 0 for latents.

  about: what the samples depend on beside the weights.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  if out.suffix == '.png':
    parts = list(_with_bar(pieces(start=0), 0, count))
    if jax.process_index() == 0:
      pictures.save_png(out, pictures.samples(np.concatenate(parts), levels))
  else:
    dtype = np.float32 if not levels else np.uint8 if levels <= 256 else np.int32
    about = {**about, 'checkpoint': trained.step, 'average': trained.average,
             'weights': checksum(trained.params)}
    _draw_resumably(out, about, count, pieces, dtype, labels or {})


def _require_denoiser(model, directory: str | Path) -> None:
  if not hasattr(model, 'denoise'):
    raise InputError(f'--workdir={directory}: this run has no denoiser to evaluate or to sample '
                     'by; vdm_jax.load gives what it made.')


def _of_latents(model: Model) -> bool:
  """Whether what is drawn are no images yet."""
  x = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
  return jnp.issubdtype(jax.eval_shape(model.decode, x).dtype, jnp.floating)


def _variances(trained: workdir.Trained, times: np.ndarray, seed: int) -> analytic.Variances:
  """The variances that Analytic-DPM needs, estimated on images of the training split.

  At the times of the grid, or 50 of them; elsewhere they are interpolated.
  """
  part = trained.experiment.data.split('train')
  levels = times[np.unique(np.linspace(0, len(times) - 1, 50).round().astype(int))]
  size = devices.whole_batch(min(64, len(part)))

  def estimate(given, xs):
    (params, key), (batch, rows) = given, xs
    m = trained.experiment.model(params)
    condition = m.cond(batch)
    return analytic.estimate_variances(
        lambda z, level, _=None: m.denoise(z, level, condition), m.process,
        m.encode(batch['image']), jnp.asarray(levels, jnp.float32), random.per_example(key, rows))

  estimate = devices.over_rows(estimate)
  given = devices.replicate((trained.params, jax.random.key(seed)))
  found = []
  batches = list(devices.padded_rows(0, min(512, len(part) // size * size), size))
  for rows, _ in tqdm.tqdm(batches, desc='variances of the model', unit='batch',
                           disable=jax.process_index() != 0):
    local = devices.mine(rows)
    found.append(jax.device_get(estimate(given, devices.place((part.get(local), local)))))
  return analytic.pool(found)


def _with_bar(pieces, start: int, count: int):
  with tqdm.tqdm(total=count, initial=start, unit='image', desc='sampling', dynamic_ncols=True,
                 disable=jax.process_index() != 0) as bar:
    for piece in pieces:
      yield piece.data
      bar.update(len(piece.numbers))


def _draw_resumably(out: Path, about: dict, count: int, pieces, dtype, labels: dict) -> None:
  """Images in parts beside `out`, put together at the end; what is there is not drawn again.

  Parts belong to all that the images depend on, `about`; each is named after its first image.
  """
  tag = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
  parts = out.with_name(f'{out.name}.{tag}.parts')
  parts.mkdir(exist_ok=True)
  done = devices.said_by_first(lambda: sum(map(len, _consecutive(parts))))
  for images in _with_bar(pieces(start=min(done, count)), min(done, count), count):
    if jax.process_index() == 0:
      save_npz(parts / f'part_{done:09d}.npz', images=images.astype(dtype))
    done += len(images)
  if jax.process_index() != 0:
    return
  save_npz(out, images=np.concatenate(list(_consecutive(parts)))[:count], **labels,
           about=json.dumps({**about, 'count': count}))
  shutil.rmtree(parts)


def _consecutive(parts: Path) -> Iterator[np.ndarray]:
  """The images of the parts from number 0 on, up to the first that is missing."""
  done = 0
  while (file := parts / f'part_{done:09d}.npz').exists():
    with np.load(file) as part:
      images = part['images']
    done += len(images)
    yield images


__all__ = ['ANCESTRAL', 'Guidance', 'Method', 'evaluate', 'sample', 'train', 'train_seeds',
           'transfer']
