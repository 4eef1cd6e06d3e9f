"""Evaluates the likelihood of a run: its ledger, the bits of every image, two pictures."""
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vdm_jax import data, files, likelihood, pictures, random, workdir
from vdm_jax.decoders import bits_per_dim
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.likelihood import closed_forms, density, gaussian, relations
from vdm_jax.likelihood import estimates as naming
from vdm_jax.likelihood import schedules as other_schedules
from vdm_jax.runs.needs import conditions, is_of_latents, require_denoiser
from vdm_jax.runs.sampling import variances_of
from vdm_jax.samplers import grids
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.typing import Experiment, Model


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
  require_denoiser(model, directory)
  if is_of_latents(model):
    raise InputError(f'--workdir={directory}: this model is one of latents, and has no likelihood '
                     'of images; sample from it.')
  one = {'image': np.zeros((1, *spec.shape), np.uint8),
         **conditions(spec.classes, None)(np.arange(1))}
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
  changed = workdir.changed_data(directory, experiment.data.fingerprint())
  if changed:
    logging.warning('--workdir=%s: the data have changed since this run began: %s.  The %s split '
                    'may hold images that it was trained on.', directory, changed, split)
  count = min(len(part), examples or len(part))
  about = {'dataset': {'name': part.spec.name, 'version': part.version, 'split': split,
                       'source_split': part.source_split, 'examples': count, 'of': len(part),
                       'sha256': part.sha256(), 'levels': part.spec.levels},
           'checkpoint': {'step': trained.step, 'average': trained.average}}

  # The bound is that of objectives.vlb, with one log-SNR for all pixels.
  plain = model.bound is None and not naming.level_axes(model) and not chain
  found = naming.Found(
      _moments(experiment, model) if plain else None,
      variances_of(trained, grids.uniform(50), seed)
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
    files.save_npz(directory / f'bits{ending}.npz', times_per_image=times, split=split,
             step=trained.step, **{f'{m.row["estimate"]}/{name}': u for m in measured
                                   for name, u in m.bits.items()})
    each = measured[0].bits['total'].mean(axis=0)
    shown = pictures.extremes(each)
    pictures.save_png(directory / f'bits_by_noise{ending}.png', pictures.bits_by_noise(
        bound, each, part.get(shown)['image'], each[shown], spec.levels, ledger.rows[0]))
    t = np.linspace(0.0, 1.0, 201)
    key_init, *_ = jax.random.split(random.key(trained.config.seed), 3)
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
