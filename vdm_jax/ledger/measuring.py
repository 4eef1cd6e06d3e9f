"""Measures an estimate on every image of a split: its row, and the bits of every image."""
import time
from collections.abc import Callable

import jax
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.ledger import rows
from vdm_jax.ledger.family import Options, Request, TrainingStatistics, about
from vdm_jax.ledger.rows import Measured
from vdm_jax.likelihood.bounds import BoundSamples, heads
from vdm_jax.likelihood.passes import over_images
from vdm_jax.typing import Model, PyTree
from vdm_jax.units import bits_per_dim

__all__ = ['measure']

_TERMS = ('decoding', 'encoding', 'dequantisation', 'auxiliary', 'reconstruction', 'latent',
          'diffusion', 'reference')


class _Clock:
  """A split that remembers the times of its reads; a pass reads once for each batch."""

  def __init__(self, split):
    self.split, self.reads = split, []

  def __len__(self):
    return len(self.split)

  def get(self, rows):
    self.reads.append((time.perf_counter(), len(np.unique(rows))))
    return self.split.get(rows)

  def read(self, processes: int) -> dict:
    """The speed is measured after the first batch, which compiles; None if there is only one batch.

    processes: the number of processes that share the images.
    """
    end, (start, _), later = time.perf_counter(), self.reads[0], self.reads[1:]
    speed = sum(n for _, n in later) * processes / (end - later[0][0]) if later else None
    return {'seconds': end - start, 'images_per_second': speed}


def measure(request: Request, options: Options, model: Callable[[PyTree], Model], params: PyTree,
            split, *, shape: tuple[int, ...], levels: int | None, statistics: TrainingStatistics,
            count: int | None = None, fields: dict | None = None, progress: bool = True
            ) -> Measured:
  """The estimate on each of the first `count` (default: all) images of `split`.

  model: params -> Model; split: `len`, and `get(rows)` -> batch; shape, levels: of the data, with
  levels None for real numbers; fields: added to the row, or replaced in it.  Draws belong to (seed,
  repetition, image), and do not depend on other estimates.
  Raises InputError if a result is not finite, or if the model cannot have this estimate.
  """
  family, of = request.family, model(params)
  # Latents of images are continuous too, whether or not the model has a flow of them.
  one = split.get(np.arange(1))
  dequantised = of.dequantise is not None or not (of.data_space or of.index_nats)
  row = about(request, options, dequantised)
  row = row | _of_bound(request, row, of, one, levels) | (fields or {})
  # What was read from data is an argument of the program, as parameters are, and no constant in it.
  needed = statistics.only(family.needs(request, options, of, one))

  clock, key = _Clock(split), family.key(request, random.key(options.seed))
  if family.on_host is not None:
    out = family.on_host(request, options, levels, needed)(
        of, clock, min(len(split), count or len(split)),
        jax.vmap(lambda r: jax.random.fold_in(key, r))(np.arange(options.repeats)),
        progress and jax.process_index() == 0)
  else:
    out = over_images(_run(request, options, levels), lambda both: (model(both[0]), both[1]),
                      (params, needed), clock, key, label=row['estimate'], repeats=options.repeats,
                      count=count, progress=progress,
                      at_once=options.batch_size // family.width(request, options, shape))
  bad = np.flatnonzero(~np.isfinite(out['nats']).all(axis=0))
  if len(bad):
    raise InputError('estimates', row['estimate'], f'it is not finite on {len(bad)} examples, the '
                     f'first of them number {bad[0]}', family.remedy)
  last = len(_TERMS)  # `jit` has sorted the names
  nats = {name: out[name] for name in sorted(
      out, key=lambda name: _TERMS.index(name) if name in _TERMS else last)
      if out[name].ndim == 2 and name != 'evaluations'}
  bits = {'total': bits_per_dim(nats.pop('nats'), shape),
          **{name: bits_per_dim(u, shape) for name, u in nats.items()}}
  draws = None
  if 'draws' in out:
    draws = BoundSamples(nats, out['logsnr'], out['draws'], row['steps'] or 0)
  shared = 1 if family.on_host is not None else jax.process_count()
  row |= {name: float(u) for name, u in out.items() if u.ndim == 0} | clock.read(shared)
  return Measured(rows.row(row, bits, out.get('evaluations')), bits, draws)


def _of_bound(request: Request, row: dict, model: Model, batch: PyTree, levels: int | None) -> dict:
  """What a row says of the model's chain, which no name of an estimate tells."""
  found = {}
  if levels is None and row['decoder'] == 'discretised normal':
    found['decoder'] = 'normal'
  if model.index_nats and row['decoder'] in ('of the model', 'discretised normal'):
    found['decoder'] = 'of the codebook'
  # Whole paths, and a chain whose variance or end is named, do not use the model's own bound.
  own = not row['paths'] and not any(getattr(request.settings, name, None)
                                     for name in ('variance', 'ddpm'))
  if model.bound is not None and row['variance'] and own:
    found['variance'] = model.bound_variance
    if model.bound_variance == 'published':
      found['variance'] = 'learned' if 'variance' in heads(model, batch) else 'large'
  return found


def _run(request: Request, options: Options, levels: int | None) -> Callable:
  """The estimator for a model and the statistics read from data."""
  estimator = request.family.estimator
  if estimator is None:
    raise ValueError(f'{request.family.name}: it has neither `estimator` nor `on_host`')

  def run(of, batch, keys):
    of, needed = of
    return estimator(request, options, levels, needed)(of, batch, keys)
  return run
