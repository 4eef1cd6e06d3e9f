"""The requirements of every system whose data are pairs of noise and sample: see `data.pairs`."""
import jax
import ml_collections

from vdm_jax import data, random
from vdm_jax.data import pairs
from vdm_jax.errors import InputError, require
from vdm_jax.processes import prior_std
from vdm_jax.typing import Experiment

__all__ = ['require_pairs']


def require_pairs(config: ml_collections.ConfigDict, base: Experiment) -> None:
  """Raises InputError if `base`, an experiment on the data of `config`, cannot learn from them.

  The reasons are data that are not pairs, augmentation, fewer pairs than a batch, or pairs whose
  noise differs from the noise with which sampling from `base` begins.
  """
  spec, place = base.data.spec, config.data.name
  for name in (pairs.NOISE, pairs.SAMPLE):
    require(name in spec and spec[name].levels is None, 'config.data.name', place,
            f'it has no field {name!r} of floats, so it does not hold pairs',
            'make pairs with a trained model (scripts/make_pairs.py)')
  require(not config.data.augment, 'config.data.augment', True,
          f'it would change only {spec.x.name!r}, not the pair {pairs.SAMPLE} and {pairs.NOISE}',
          'set it to False')
  if not (data.is_path(place) and pairs.is_pairs(place)):
    return
  own, theirs = _prior_std(base), pairs.record(place)['about']['prior_std']
  if own is not None and (theirs is None or abs(own - theirs) > 0.01 * own):
    noise = 'is learned' if theirs is None else f'has standard deviation {theirs:g}'
    raise InputError('config.data.name', place, f'its noise {noise}, but the noise of this process '
                     f'has standard deviation {own:g}',
                     'make pairs with a model whose process has this noise')
  there = len(base.data.split('train'))
  require(there >= config.data.batch_size, 'config.data.batch_size', config.data.batch_size,
          f'{place} has {there:,} pairs to train on', 'make more, or choose a smaller batch')


def _prior_std(base: Experiment) -> float | None:
  """The standard deviation of the noise that the model starts from; None if it is learned."""
  shapes = jax.eval_shape(base.init, random.key(0))
  if 'schedule' in shapes:
    return None
  model = base.model({name: {} for name in shapes})
  return None if model.prior else float(prior_std(model.process))
