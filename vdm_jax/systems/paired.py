"""The requirements of every system whose data are pairs of noise and sample: see `data.pairs`."""
import jax
import ml_collections
import numpy as np

from vdm_jax import data, random
from vdm_jax.data import pairs
from vdm_jax.errors import InputError, require
from vdm_jax.processes import compared_levels, difference, prior_std
from vdm_jax.typing import Experiment, Model

__all__ = ['require_pairs']


def require_pairs(config: ml_collections.ConfigDict, base: Experiment, *, carried: bool = False
                  ) -> None:
  """Raises InputError if `base`, an experiment on the data of `config`, cannot learn from them.

  The reasons are data that are not pairs, augmentation, fewer pairs than a batch, or pairs of
  another process.  A learned process is not known yet, and is not compared.

  carried: the process of `base` is another than the teacher's on purpose.  Then only the noise with
  which sampling begins has to be the same.
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
  said, model = pairs.record(place), _model(base)
  own = None if model is None or model.prior else float(prior_std(model.process))
  theirs = said['about']['prior_std']
  if own is not None and (theirs is None or abs(own - theirs) > 0.01 * own):
    noise = 'is learned' if theirs is None else f'has standard deviation {theirs:g}'
    raise InputError('config.data.name', place, f'its noise {noise}, but the noise of this process '
                     f'has standard deviation {own:g}',
                     'make pairs with a model whose process has this noise')
  if model is not None and not carried and said.get('process'):  # older pairs have none
    wrong = difference(compared_levels(model.process), np.array(said['process']), 'this model')
    require(not wrong, 'config.data.name', place, 'a model of another process made its pairs: '
            f'{wrong}', 'give config.model the fields of that model, such as its path')
  there = len(base.data.split('train'))
  require(there >= config.data.batch_size, 'config.data.batch_size', config.data.batch_size,
          f'{place} has {there:,} pairs to train on', 'make more, or choose a smaller batch')


def _model(base: Experiment) -> Model | None:
  """A model whose process is the process of `base`; None if the process is learned."""
  shapes = jax.eval_shape(base.init, random.key(0))
  return None if 'schedule' in shapes else base.model({name: {} for name in shapes})
