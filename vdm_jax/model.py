"""A trained model in a notebook: one line draws samples, one line bounds the likelihood of data.

  model = vdm_jax.load('runs/digits')
  images = model.sample(random.key(0), 16, steps=20)
  nats = model.nats({'image': images}, key=random.key(1))

The rest of the library takes the record `typing.Model`; systems make the `Model` of this module.
"""
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random, typing
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.guidance import Guidance
from vdm_jax.likelihood.bounds import at_times, require_score
from vdm_jax.likelihood.passes import over_images
from vdm_jax.samplers.drawing import check_start, from_keys, in_tiles
from vdm_jax.samplers.sampling import check_finite, check_grid
from vdm_jax.typing import Array, ArrayLike, Process, PyTree, SamplerMaker

__all__ = ['Grid', 'Model']

# Times, (process, steps) -> times, or a name of `samplers.catalogue`.
Grid = ArrayLike | Callable[[Process, int], ArrayLike] | str


class Model(typing.Model):
  """A `typing.Model` that draws samples (`sample`), bounds -log p (`nats`) and codes (`codec`)."""
  __slots__ = ()

  def sample(self, key: Array, n: int | None = None, *, sampler: str | SamplerMaker | None = None,
             steps: int | None = None, grid: Grid | None = None, label: ArrayLike | None = None,
             condition: Mapping[str, Any] | None = None,
             guidance: float | Guidance | None = None) -> Array:
    """n samples [n, ...]; for the same seed, image i is image i of scripts/sample.py.

    All samples are drawn together.  The compiled program is kept for the next call.

    Args:
      key: one key, together with n; or keys [n].
      sampler: a name of `samplers.catalogue`, or (denoise, process) -> Sampler.  Default:
        'dpmpp_2m', or the sampler that the model was distilled for.
      steps: the number of steps of the grid.  Default: 20, or the number that the model was
        distilled for.
      grid: (process, steps) -> times [N + 1]; or the times from 1 to 0; or a name of the catalogue.
        Default: the sampler's grid in the catalogue.  For most samplers it is even in time.
      label: for a model with labels: a number, or [n].
      condition: values of other fields that condition the model, by name: see `data.conditions`.
      guidance: the weight, or `Guidance` with an interval, for a model that has `null`.

    Raises InputError if an argument does not fit, or if a step is not finite.  The error names that
    step.
    """
    keys = random.each(key, n)
    if guidance is not None and not isinstance(guidance, Guidance):
      guidance = Guidance(guidance)
    if guidance is not None:
      guidance.of(self)  # refused now
    conditions = self._conditions(keys.shape[0], {'label': label, **(condition or {})})
    make, times = self._method(sampler, steps, grid)
    check_grid(times)
    check_start(self, times)
    data, finite = _drawing(_Same(self), make, guidance)(keys, conditions, times)
    check_finite(finite, times, self.process)
    return data

  def in_tiles(self, tile: int, overlap: int | None = None) -> 'Model':
    """The same model, which decodes large latents in tiles: see `samplers.drawing.in_tiles`."""
    return cast(Model, in_tiles(self, tile, overlap))

  def nats(self, batch: PyTree, *, key: Array, draws: int = 32, steps: int = 0,
           batch_size: int = 512) -> np.ndarray:
    """The bound on -log p of each example of a batch: nats [n], the mean over `draws`.

    The times of the draws are evenly spread, as in a ledger.  `units.bits_per_dim(nats, shape)`
    converts the bound to bits/dim.

    Args:
      batch: a batch of the data, {'image': [n, ...], ...}, with the fields that condition the
        model.
      draws: the number of draws of time and noise for each example.
      steps: the T of a chain's bound; 0 gives the bound of continuous time.
      batch_size: the number of evaluations of the network at a time.

    Raises InputError if log-SNR is infinite at an end, where the bound has no value; if the prior
    of the model is implicit; if the model was distilled; or if it is a flow of coupled noise.
    """
    require_at_least('draws', draws)
    require_score(self)
    if self.bound is None:
      ends = np.asarray(self.process(jnp.array([0.0, 1.0])).logsnr)
      require(bool(np.isfinite(ends).all()), None, None, 'log-SNR is infinite at an end of this '
              'model, where its bound has no value', 'evaluate its run: the ledger has the bound '
              'of its chain')
    batch = jax.tree.map(np.asarray, dict(batch))
    conditions = self.conditions(np.arange(len(batch[self.field])))
    for name in conditions.keys() - batch.keys() - {'augmented'}:
      raise InputError('batch', None, f'this model is conditioned on {_plural(name)}, and the '
                       'batch has none',
                       f'add {name!r} of shape [n, ...]')
    batch = conditions | batch  # nothing is augmented
    terms = over_images(at_times(steps, draws), lambda _: self, None, _Rows(batch), key,
                        label='bound', at_once=batch_size // draws, progress=False)
    return terms['nats'][0]

  def codec(self, levels: int, steps: int, **options: Any) -> Any:
    """The `codec.Chain` of T = `steps` steps, for `codec.encode` and `codec.decode`.

    options: `lanes`, `variance` and `kernel` of `codec.chain`.  Raises InputError as `codec.chain`
    does.
    """
    from vdm_jax import codec  # which needs a library that nothing else needs
    return codec.chain(self, levels, steps, **options)

  def _method(self, sampler: str | SamplerMaker | None, steps: int | None, grid: Grid | None
              ) -> tuple[SamplerMaker, np.ndarray]:
    """The function that makes the sampler, and the sampler's times."""
    from vdm_jax.samplers import catalogue
    require_at_least('steps', steps)
    name, usual = self.distilled or ('dpmpp_2m', 20)
    sampler = sampler or name
    named = grid if isinstance(grid, str) else ''
    if isinstance(sampler, str):
      method = catalogue.method(sampler, steps, named, usual=usual)
      require(not method.variances, 'sampler', sampler, 'it takes variances that are estimated on '
              'images', 'draw from the run, by vdm_jax.runs.sample')
      require(not method.head or 'variance' in self._extra(), 'sampler', sampler,
              "this model's network has no head for the variance", 'choose another sampler')
      catalogue.require_suited(method, self)
      make, times = method.make, method.times
    else:
      make, times = sampler, catalogue.on_grid(named or 'uniform', steps, usual=usual)
    if grid is None or named:
      return make, np.asarray(times(self.process))
    return make, np.asarray(grid(self.process, steps or usual) if callable(grid) else grid)

  def _extra(self) -> PyTree:
    """The shapes of `Estimate.extra` by name.  Nothing is computed."""
    def denoise(z):
      cond = self.cond(self.conditions(np.arange(1)))
      return self.denoise(z, self.process(jnp.ones(1)), cond).extra
    return jax.eval_shape(denoise, jnp.zeros((1, *self.shape))) or {}

  def _conditions(self, n: int, values: dict[str, Any]) -> PyTree:
    """The batch of the conditions of n examples.  Raises InputError."""
    batch = self.conditions(np.arange(n), **values)
    label = values['label']
    if 'label' in batch:
      require(label is not None, 'label', None, 'this model is conditioned on labels',
              'give one label, or n labels')
      require(np.shape(label) in ((), (n,)), 'label', np.shape(label), f'{n} examples are drawn',
              'give one number, or one for each')
    return batch


def _plural(field: str) -> str:
  return 'labels' if field == 'label' else field


class _Same:
  """A model as a cache's argument: equal to itself alone, since its closures have no ==.
  """

  def __init__(self, model: Model):
    self.model = model

  def __eq__(self, other) -> bool:
    return self.model is other.model

  def __hash__(self) -> int:
    return id(self.model)


@functools.lru_cache(maxsize=4)
def _drawing(same: _Same, sampler: SamplerMaker, guidance: Guidance | None) -> Callable:
  model = same.model if guidance is None else guidance.of(same.model)

  def run(keys, conditions, times):
    return from_keys(model, sampler, keys, times, conditions)[:2]
  return jax.jit(run)


class _Rows:
  """A batch as a split."""

  def __init__(self, batch: PyTree):
    self.batch = batch

  def __len__(self) -> int:
    return len(next(iter(self.batch.values())))

  def get(self, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], self.batch)
