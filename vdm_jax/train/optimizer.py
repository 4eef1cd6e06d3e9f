"""The optimiser of the VDM recipe: AdamW, linear warm-up, no decay where decay has no meaning.

RAdam, which consistency models are trained with, is another choice.  Muon is a third: it needs
fewer steps, each of which costs more.

AdamW keeps two moments of each parameter's gradient; `moments` says how they are kept:

  'float32'   both as they are: 8 bytes
  'bfloat16'  the first rounded: 6 bytes.  The second stays float32.  With b2 = 0.99 a step changes
              it by about a hundredth, and half a unit in the last place is 1/512 to 1/256 of it.
              For normal gradients, rounding would make it 4 % too large
  'factored'  the first rounded, the second of a matrix [n, m] by n + m numbers: little more than 2
              bytes (see `scale_by_factored_moments`)
"""
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax import contrib

from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.typing import PyTree


def decay_mask(params: PyTree, official: bool = False) -> PyTree:
  """True where weight decay applies: kernels and embeddings of the network.

  Biases, norm scales and all of `params['schedule']` are exempt: pulling a noise schedule's end
  points towards zero is not regularisation.  `official` reproduces the mask of the published VDM
  code.  The only exemption there that ever matches is a name that ends in `bias`, so that code
  decays the group norms' scales and the schedule.
  """
  def decays(path, _):
    names = [entry.key for entry in path]
    if official:
      return not names[-1].endswith('bias')
    return names[0] != 'schedule' and names[-1] in ('kernel', 'embedding')
  return jax.tree_util.tree_map_with_path(decays, params)


def default_config() -> ml_collections.ConfigDict:
  """config.optimizer: the values of the official VDM configs."""
  return ml_collections.ConfigDict({
      'name': 'adamw',       # or 'radam', or 'muon'
      'learning_rate': 2e-4,
      'schedule_learning_rate': 0.0,  # of params['schedule']; 0: the same
      'warmup_steps': 100,   # linear, from 0
      'decay_steps': 0,      # cosine to 0 at this step; 0: constant
      'b1': 0.9,
      'b2': 0.99,
      'eps': 1e-8,
      'moments': 'float32',  # as they are kept: or 'bfloat16', or 'factored' (see above)
      'weight_decay': 0.01,  # decoupled
      'clip_norm': 0.0,      # of the global gradient; 0: none
      'official_decay_mask': False,  # see `decay_mask`
  }).lock()


def learning_rate(config, rate: float | None = None) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then constant, or a cosine to zero at `decay_steps`.

  rate: the highest rate, by default `learning_rate`.  Raises InputError if the decay would end
  before the warm-up.
  """
  rate = config.learning_rate if rate is None else rate
  warmup, end = config.warmup_steps, config.decay_steps
  if end and end <= warmup:
    raise InputError('config.optimizer.decay_steps', end,
                     f'it must be 0, or more than warmup_steps={warmup}', 'give one of these')
  after = optax.cosine_decay_schedule(rate, end - warmup) if end else optax.constant_schedule(rate)
  if not warmup:  # optax takes a linear schedule of no steps to be its first value for ever
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def scale_by_factored_moments(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam with the second moment of each matrix factored, and the first moment in bfloat16.

  Let G be a matrix of gradients, and V the bias-corrected average of G^2 + eps^2.  Then

    V_ij ~ R_i C_j / mean(R),    R_i = mean_j V_ij,  C_j = mean_i V_ij,

  which is exact where V has rank one: Shazeer and Stern (2018), section 3.  The average's decay
  b2 (1 - b2^(t-1)) / (1 - b2^t) corrects its bias: section 7.1.  The first moment is computed last,
  from G / sqrt(V) and not from G.

  The two largest axes of an array are factored if both are at least 128.  Stacked kernels [L, 3, 3,
  C, C'] with fewer than 128 blocks L are factored along the channels, as one matrix for each block
  and tap.  Biases, norm scales and small kernels keep their second moment.  For these, two things
  differ from Adam: the order of the moments, and sqrt(v + eps^2) in place of sqrt(v) + eps.
  """
  decay = lambda step, b2: b2 * (1.0 - b2**step) / (1.0 - b2**(step + 1.0))
  return optax.chain(
      optax.scale_by_factored_rms(decay_rate=b2, epsilon=eps**2, decay_rate_fn=decay),
      optax.ema(b1, debias=True, accumulator_dtype=jnp.bfloat16))


MOMENTS = {
    'float32': optax.scale_by_adam,
    'bfloat16': functools.partial(optax.scale_by_adam, mu_dtype=jnp.bfloat16),
    'factored': scale_by_factored_moments}


def _check(config) -> None:
  """Raises InputError for a number with which no step can be made."""
  for name in ('learning_rate', 'schedule_learning_rate', 'warmup_steps', 'decay_steps', 'eps',
               'weight_decay', 'clip_norm', 'b1', 'b2'):
    value = config.get(name, 0.0)  # a run's config may be older than a field
    below = 1.0 if name in ('b1', 'b2') else math.inf
    require(0.0 <= value < below, f'config.optimizer.{name}', value,
            'it must be in [0, 1)' if below == 1.0 else 'it must be 0 or more, and finite')


def _require_float32(config, name: str) -> None:
  require(config.get('moments', 'float32') == 'float32', 'config.optimizer.moments',
          config.get('moments'), f'{name} keeps its moments in float32', 'leave it at float32')


def adamw(config) -> optax.GradientTransformation:
  """config.optimizer -> AdamW (Loshchilov and Hutter 2019); fields as in `default_config`.

  With a `schedule_learning_rate`, the network and the schedule each have their own AdamW.  Each
  gradient is clipped by its own norm, since the schedule's gradient may be of another quantity.

  Raises InputError: a number outside of its range; no such `moments`; a decay that ends before the
  warm-up.
  """
  # A run's config may be older than a field.
  moments = config.get('moments', 'float32')
  if moments not in MOMENTS:
    raise InputError('config.optimizer.moments', moments, 'there is no such choice',
                     f'choose one of {", ".join(MOMENTS)}')
  return _of(config, MOMENTS[moments])


def radam(config) -> optax.GradientTransformation:
  """config.optimizer -> RAdam (Liu et al. 2020, algorithm 2), with the decay of AdamW.

  The step is shorter while few gradients were seen: the second moment is used from the update on
  at which its variance is known (the sixth for b2 = 0.999), with a factor that grows to 1.

  Raises InputError as `adamw` does; also for moments that are not float32.
  """
  _require_float32(config, 'RAdam')
  return _of(config, optax.scale_by_radam)


def scale_by_muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Muon for the kernels of the network, Adam for all other parameters.

  Muon (Jordan et al. 2024): the average of a matrix of gradients, with decay 0.95 and a look ahead
  (Nesterov), is made orthogonal by five Newton-Schulz iterations.  The result [n, m] is multiplied
  by 0.2 sqrt(max(n, m)).  Then its root mean square is about that of a step of Adam, so both kinds
  of parameters have one learning rate: Liu et al. (2025), `Muon is Scalable for LLM Training`.
  b1, b2 and eps are those of Adam.

  A convolution over two axes is one matrix, [taps C, C'].  Each entry along any other axis has a
  matrix of its own: stacked blocks, and the taps of a convolution over one axis.
  """
  def inputs(kernel):
    return (-4, -3, -2) if kernel.ndim > 3 else (-2,)

  def numbers(kernel):
    return contrib.MuonDimensionNumbers(inputs(kernel), (-1,))

  def scaled(updates, _):
    def one(kernel):
      rows = math.prod(kernel.shape[axis] for axis in inputs(kernel))
      return 0.2 * math.sqrt(max(rows, kernel.shape[-1])) * kernel
    return jax.tree.map(one, updates)

  def label(path, leaf):
    names = [entry.key for entry in path]
    return 'muon' if names[0] != 'schedule' and names[-1] == 'kernel' and leaf.ndim > 1 else 'adam'

  orthogonal = contrib.scale_by_muon(weight_dimension_numbers=lambda u: jax.tree.map(numbers, u))
  return optax.multi_transform(
      {'muon': optax.chain(orthogonal, optax.stateless(scaled)),
       'adam': optax.scale_by_adam(b1, b2, eps)},
      lambda params: jax.tree_util.tree_map_with_path(label, params))


def muon(config) -> optax.GradientTransformation:
  """config.optimizer -> Muon for kernels and Adam for the rest (`scale_by_muon`), with decay.

  Raises InputError as `adamw` does; also for moments that are not float32.
  """
  _require_float32(config, 'Muon')
  return _of(config, scale_by_muon)


NAMES = {'adamw': adamw, 'radam': radam, 'muon': muon}


def named(config) -> optax.GradientTransformation:
  """The optimiser config.optimizer.name.  Raises InputError as the optimisers of `NAMES` do."""
  name = config.get('name', 'adamw')  # a run's config may be older than the field
  require_choice('config.optimizer.name', name, NAMES)
  return NAMES[name](config)


def _of(config, scaling) -> optax.GradientTransformation:
  """Clipping, `scaling` by the moments, decay and the rate of config.optimizer."""
  _check(config)

  def of(rate):
    tx = optax.chain(
        scaling(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay,
                                  lambda params: decay_mask(params, config.official_decay_mask)),
        optax.scale_by_learning_rate(learning_rate(config, rate)))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx) if config.clip_norm else tx

  schedule_rate = config.get('schedule_learning_rate', 0.0)
  if not schedule_rate:
    return of(config.learning_rate)
  labels = lambda params: {
      name: jax.tree.map(lambda _, name=name: 'schedule' if name == 'schedule' else 'rest', part)
      for name, part in params.items()}
  return optax.multi_transform({'schedule': of(schedule_rate), 'rest': of(config.learning_rate)},
                               labels)
