"""The types of the library.  Everything else is a function between these types.

Shapes: `B` batch, `...` data.  Times `t`: `[B]` or `[]`; 0 = data, 1 = noise.
Objectives and bounds are in nats per example.  Nats become bits per dimension only at the edges of
the library.
"""
from collections.abc import Callable
from typing import (
    Any,
    NamedTuple,
    Protocol,
    TypeGuard,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax.errors import InputError

__all__ = ['Array', 'ArrayLike', 'Bounds', 'CAPABILITIES', 'Captions', 'Codes', 'Context', 'Curve',
           'Decoder', 'Denoiser', 'Denoises', 'Estimate', 'Experiment', 'Features',
           'Forecasts', 'Level',
           'Loss', 'Model', 'Objective', 'Plans', 'Process', 'PyTree', 'Reconstructs', 'Sampler',
           'SamplerMaker', 'Samples', 'Scalar', 'Schedule', 'Target', 'Update', 'Weighting',
           'brief', 'denoises']

Array = jax.Array
PyTree = Any
Scalar = float | Array  # a number, Python's or one that may be traced: the leaves of values

Schedule = Callable[[Array], Array]             # t -> logsnr, decreasing
Curve = Callable[[Array], tuple[Array, Array]]  # logsnr -> (alpha, sigma)


class Level(NamedTuple):
  """All quantities of one noise level, q(z_t | x) = N(alpha x, sigma^2).

  Fields share the shape of `t`, or carry data axes too (per-pixel schedules).
  alpha, sigma and their time derivatives `d*` are finite; logsnr may be +-inf where
  sigma or alpha vanish.
  """
  t: Array
  logsnr: Array
  alpha: Array
  sigma: Array
  dlogsnr: Array
  dalpha: Array
  dsigma: Array

  def expand(self, z: Array) -> 'Level':
    """Appends axes until every field broadcasts against `z`: [B, ...]."""
    pad = lambda u: jnp.reshape(u, jnp.shape(u) + (1,) * (z.ndim - jnp.ndim(u)))
    return Level(*map(pad, self))


Process = Callable[[ArrayLike], Level]             # t, an array or a number -> level
Target = Callable[[Level], tuple[Array, Array]]    # y = a x + b eps -> (a, b)
Weighting = Callable[[Level], Array]               # level -> w >= 0; 1 is the bound


class Estimate(NamedTuple):
  """The estimate of a denoiser, as x and as eps: z = alpha x + sigma eps."""
  x: Array              # [B, ...]  E[x | z]
  eps: Array            # [B, ...]  E[eps | z]
  extra: PyTree = None  # e.g. a variance head; wrappers keep it (`_replace`)


class Denoiser(Protocol):

  def __call__(self, z: Array, level: Level, cond: PyTree = None, /) -> Estimate:
    """z: [B, ...]; level fields: [B] or []; cond: leaves [B, ...] or None."""
    ...


class Decoder(Protocol):

  def __call__(self, data: Array, z: Array, level: Level, /) -> Array:
    """log p(data | z_0) in nats, [B].  data, z: [B, ...]; level: at t = 0."""
    ...


class Objective(Protocol):

  def __call__(self, denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array, /,
               *args: Any, **kwargs: Any) -> tuple[Array, dict[str, Array]]:
    """Nats per example [B], and its terms {name: [B]}.  x: [B, ...]; t, keys: [B].

    The next argument is `cond`, leaves [B, ...] or None.  After it, each objective has keywords of
    its own, and may require them (`data` and `decoder` of a bound, the `steps` of a chain).  For a
    type checker, these arguments are `*args, **kwargs: Any`.  An objective takes no mean over
    examples.
    """
    ...


def _same(z: Array) -> Array:
  return z


class Sampler(NamedTuple):
  """A reverse-time transition kernel: pure functions, and a plan of numbers for each step.

  A sampler without memory is `Sampler(step)`; its state is z.
  """
  step: Callable[..., PyTree]              # keys [B], state, t, s, plan[i] -> state
  init: Callable[[Array], PyTree] = _same  # z_1 -> state
  value: Callable[[PyTree], Array] = _same  # state -> z
  plan: Callable[[Array], PyTree] = lambda times: None  # times [N+1] -> leaves [N, ...]
  evaluations: int | None = 1          # calls of the denoiser in one step; None: in the
                                       # state's field of that name, since it varies
  extra_evaluations: int = 0           # more calls than that, at most, in one of the steps of a run


SamplerMaker = Callable[[Denoiser, Process], Sampler]


class Context(NamedTuple):
  """The read-only inputs of a loss, besides parameters and data."""
  t: Array             # [B]  stratified over the global batch
  keys: Array          # [B]  one PRNG key per example of the global batch
  step: Array          # []
  ema: PyTree = None   # the averaged parameters (targets of consistency training, ...)
  aux: PyTree = None   # a teacher's parameters, a resampler's history, ...
  train: bool = True   # static; False: no dropout, as in validation


Loss = Callable[[PyTree, PyTree, Context], tuple[Array, dict[str, Array]]]  # -> [B], {name: [B]}
# state, batch, key, axis -> state, metrics.  One that has microbatches takes them as the keyword
# `accumulate`.
Update = Callable[..., tuple[PyTree, dict[str, Array]]]


@runtime_checkable
class Denoises(Protocol):
  """The protocol of models that can be evaluated, and sampled by any sampler."""

  @property
  def denoise(self) -> Denoiser: ...

  @property
  def process(self) -> Process: ...


@runtime_checkable
class Samples(Protocol):
  """The protocol of models that draw data by their own method."""

  @property
  def sample(self) -> Callable[..., Array]:
    """(keys) or (key, n) -> data [n, ...]; example i uses keys[i] alone, see `random.each`."""
    ...


@runtime_checkable
class Bounds(Protocol):
  """The protocol of models that bound the likelihood of data."""

  @property
  def nats(self) -> Callable[..., Array]:
    """(batch, key=...) -> a bound on -log p of each example, nats [B]."""
    ...


@runtime_checkable
class Features(Protocol):
  """The protocol of networks that compute features of data, by which samples are judged."""

  @property
  def features(self) -> Callable[[Array], Array]:
    """Data, integers [B, ...] -> [B, D]."""
    ...


@runtime_checkable
class Codes(Protocol):
  """The protocol of models that encode images without loss, at the rate of their bound."""

  @property
  def codec(self) -> Callable[..., Any]:
    """(levels, steps) -> a `codec.Chain`, for `codec.encode` and `codec.decode`."""
    ...


@runtime_checkable
class Captions(Protocol):
  """The protocol of models that say in words what an image shows."""

  @property
  def caption(self) -> Callable[[Array], Array]:
    """Data, integers [B, ...] -> the tokens of a text for each, integers [B, L]."""
    ...


@runtime_checkable
class Forecasts(Protocol):
  """The protocol of models that draw the rows of a time series that follow its past."""

  @property
  def forecast(self) -> Callable[..., Array]:
    """(batch of histories, keys [B], paths=S, horizon=H) -> [B, S, H, C]."""
    ...


@runtime_checkable
class Plans(Protocol):
  """The protocol of agents, which plan the states to come and the actions that lead there."""

  @property
  def plan(self) -> Callable[..., Any]:
    """(known rows [B, R, O], keys [B], what it is told) -> observations [B, H, O], actions."""
    ...


@runtime_checkable
class Reconstructs(Protocol):
  """The protocol of autoencoders: the first stage of a diffusion of latents."""

  @property
  def reconstruct(self) -> Callable[[Array, Array], Array]:
    """(data [B, ...], keys [B]) -> the data that are decoded from latents of these data."""
    ...

  @property
  def quality(self) -> Callable[[PyTree, Array], dict[str, Array]]:
    """(batch, keys [B]) -> {name: [B, ...]}: what is kept of each example, and at which cost."""
    ...


CAPABILITIES = (Denoises, Samples, Bounds, Features, Codes, Reconstructs, Captions, Forecasts,
                Plans)


def brief(parts: Any) -> str:
  """A NamedTuple's numbers and functions: 'VAE(shape=(8, 8, 1), levels=17: sample, bound)'."""
  plain = {name: part for name, part in parts._asdict().items()
           if isinstance(part, (bool, int, str, tuple)) and not hasattr(part, '_fields')
           and parts._field_defaults.get(name) != part}
  has = [name for name, part in parts._asdict().items() if callable(part)]
  numbers = ', '.join(f'{name}={part!r}' for name, part in plain.items())
  return f'{type(parts).__name__}({numbers}: {", ".join(has)})'


def _no_conditions(numbers: Any, **values: Any) -> PyTree:
  """The conditions of an unconditional model: {}.  Raises InputError of any value."""
  for name, value in values.items():
    if value is not None:
      what = 'classes' if name == 'label' else 'anything'
      raise InputError(name, value, f'this model is not conditioned on {what}', 'leave it out')
  return {}


class Model(NamedTuple):
  """A trained diffusion model, ready for use: a denoiser and all that belongs to it."""
  denoise: Denoiser
  process: Process
  decoder: Decoder                     # log p(data | z_0)
  encode: Callable[[Array], Array]     # data, integers [B, ...] -> x [B, ...]
  decode: Callable[[Array], Array]     # x [B, ...] -> data, the nearest integers
  cond: Callable[[PyTree], PyTree]     # a batch -> what `denoise` is conditioned on, or None
  shape: tuple[int, ...]               # of x, without the batch
  bound: Callable | None = None        # (batch, t, keys, steps) -> nats [B], {term: [B]}: one draw
                                       # of a bound of its own; None: that of objectives.vlb
  bound_variance: str = 'small'        # of the reverse steps of that bound: small, large, learned;
                                       # or published: learned if the network has variances, else
                                       # large
  bound_evaluations: int = 1           # of the network, for a draw of that bound
  latent: Callable | None = None       # keys [B] -> the Model given latents from their prior
  inner: 'Model | None' = None         # of latents of the data: a Model of z whose bound has the
                                       # terms of objectives.vlb; None: it has no such part
  enter: Callable | None = None        # (batch, keys) -> the batch of `inner`, and nats {term:
                                       # [B]}, whose sum with the bound of `inner` is the bound
  index_nats: float | None = None      # of the indices of an example, of equal odds, if the data of
                                       # `inner` are indices of a codebook
  dequantise: Callable | None = None   # (data, keys) -> y, log q(y | data): see dequantisers; None:
                                       # the model has none of its own
  null: Callable[[PyTree], PyTree] | None = None  # cond -> that of an image of which nothing is
                                       # told; None: the model has not learned to do without
  ends_denoised: bool = False          # samples are the estimate of x at the last level: its noise
                                       # is larger than a level of the data
  steps: int = 0                       # T of the chain that it is; 0: a model of continuous time
  distilled: tuple[str, int] | None = None  # the sampler (a name of samplers.catalogue) and the
                                       # steps that it was distilled for: it has no likelihood
  coupled: bool = False                # whether its noise was drawn together with the data, in
                                       # training: its estimates give the velocity of a flow, and no
                                       # score, so neither an SDE nor its bounds describe its data
  clips: bool = False                  # whether `denoise` keeps x_hat in the range of the data
  is_latent: bool = False              # whether the data are latents, and no images yet
  data_space: bool = True              # whether x are the data, scaled to [-1, 1] if they are
                                       # integers; False: they are latents of an autoencoder
  no_likelihood: str = ''              # why it has no likelihood, a clause; '': it has one
  decode_tiled: Callable | None = None  # (x, tile, overlap) -> `decode` in tiles, for large images
                                       # of latents: see samplers.drawing.in_tiles; None: whole
  field: str = 'image'                 # which field of a batch is the data
  prior: Callable | None = None        # keys [B], like [B, ...] -> z_1 [B, ...]; None: of N(0,
                                       # alpha_1^2 + sigma_1^2), `processes.sample_prior`
  conditions: Callable = _no_conditions  # (numbers of samples [n], values by field) -> the batch
                                       # that `cond` reads, without x: see data.conditions

  def __repr__(self) -> str:
    return brief(self)


def denoises(model: Any) -> TypeGuard[Model]:
  """Whether the product of a run can be used as a `Model`."""
  return isinstance(model, Denoises)


class Experiment(NamedTuple):
  """The return value of a config's `build`.  Training, evaluation and sampling use nothing else."""
  init: Callable[[Array], PyTree]      # key -> params
  loss: Loss
  model: Callable[..., Any]            # params (, dropout keys [B]) -> a `Model`, or what else it
                                       # makes: see `CAPABILITIES`
  data: Any                            # data.Data: the splits, read when they are asked for
  tx: Any                              # optax.GradientTransformation
  ema: dict[str, float]                # name -> rate; the longest is evaluated by default
  aux: Any = None                      # the state's `aux` at first: an empty history; or a function
                                       # of the first parameters: a teacher that the run starts from
  update: Update | None = None         # the optimiser's step, if not that of loss, tx and ema
  needs_start: str = ''                # why a new run must start from another's weights, a clause;
                                       # '': it need not
  teacher: Callable[[Any, PyTree], None] | None = None  # of one whose start is a teacher: takes
                                       # what that run made, and its parameters, and raises
                                       # InputError where it cannot teach
  at: Callable[[int], 'Experiment'] | None = None  # the experiment of a checkpoint after so many
                                       # updates; None: it is the same for all
  settled: int = 0                     # the updates after which validation losses are of one
                                       # quantity: those before choose no best checkpoint
  adds: tuple[str, ...] = ()           # parameters that a needed start may lack, by a name on their
                                       # path; they change nothing at first
  first_stage: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None  # (params, those of the run
                                       # of an autoencoder, the first batch) -> the params to begin
                                       # with; None: x are no latents of an autoencoder

  def after(self, updates: int) -> 'Experiment':
    """The experiment of a checkpoint after so many updates: see `at`."""
    return self.at(updates) if self.at else self
