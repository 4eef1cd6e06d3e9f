"""The ledger's view of an estimate: a `Family` reads its names, and describes each estimate.

The ledger uses nothing else, so a family of your own is measured, checked and written like the
families of `families`.
"""
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.errors import InputError, require_at_least
from vdm_jax.ledger.rows import Measured
from vdm_jax.likelihood.gaussian import Moments
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.samplers.analytic import Variances
from vdm_jax.typing import Array, Model, PyTree

__all__ = ['ABOUT', 'PROBES', 'HostEstimator', 'Request', 'Family', 'Options', 'TrainingStatistics',
           'about', 'check_options']

PROBES = ('rademacher', 'gaussian', 'exact')


# (model, split, how many of its images, keys of the R repetitions, progress) -> {name: [R, N]}, for
# all images together; a number [] is a field of the row.  split: `get(rows)` -> batch.
HostEstimator = Callable[[Model, Any, int, Array, bool], dict[str, np.ndarray]]


class Options(NamedTuple):
  """The settings that flags give for all estimates."""
  times: int = 32            # draws of the time, for an image
  importance: int = 1        # draws of a dequantiser
  ode_tolerance: float = 1e-5  # of the adaptive method, absolute and relative
  probes: int = 1
  probe: str = 'rademacher'
  ode_start: float | None = None  # where the flow ends and one Gaussian step around the denoised
                             # data begins; None: at t = 0
  repeats: int = 1           # independent repetitions of all draws
  batch_size: int = 512      # evaluations of the network at a time
  seed: int = 0              # of the draws


class TrainingStatistics(NamedTuple):
  """The statistics of the training split that some estimates need."""
  moments: Moments | None = None      # for immse
  variances: Variances | None = None  # for /analytic

  def only(self, names: Sequence[str]) -> 'TrainingStatistics':
    """The statistics of these names.  Raises ValueError for a name that was not read."""
    missing = [name for name in names if getattr(self, name) is None]
    if missing:
      raise ValueError(f'{", ".join(missing)}: not read from the training split')
    return TrainingStatistics(**{name: getattr(self, name) for name in names})


class Request(NamedTuple):
  """A requested estimate: a name, and the settings that its family reads in the name."""
  name: str
  family: 'Family'
  settings: Any


class Family(NamedTuple):
  """A kind of estimate, with its names in `--estimates` and in the rows of the ledger.

  The functions after the first two get the name and its settings together, as a `Request`.
  """
  name: str
  # A name -> its settings, any value but None; None: this is no name of the family.
  parse: Callable[[str], Any]
  # (request, options, levels of the data, what `needs` named) -> the estimator.  Levels are None of
  # real numbers.  None: `on_host` has it.
  estimator: Callable[[Request, Options, int | None, TrainingStatistics], Estimator] | None
  # (request, options, model, a batch of any size) -> which `TrainingStatistics` it needs.
  # Raises InputError, with the remedy, for what this model cannot have.  Computes nothing.
  needs: Callable[[Request, Options, Model, PyTree], Sequence[str]] = lambda *_: ()
  # (request, options, whether the model has a dequantiser, which its bound includes) -> what its
  # row says beside its numbers, of the fields in ABOUT.
  describe: Callable[[Request, Options, bool], dict] = lambda *_: {}
  # (request, options, shape of the data) -> how many examples of the network an image makes at
  # a time.
  width: Callable[[Request, Options, tuple[int, ...]], int] = lambda *_: 1
  # (request, key of the seed) -> the key of its draws.  Estimates of one key have the same draws,
  # so that their differences have less noise; of others they are independent, so that one checks
  # the other.
  key: Callable[[Request, Array], Array] = lambda request, key: request.family.draws(key)
  # (request, options) -> whether it has a value for a model whose log-SNR begins at infinity.
  at_data: Callable[[Request, Options], bool] = lambda *_: True
  # As `estimator`, of what cannot run under `jit`, or is no function of one image and its key.
  on_host: Callable[[Request, Options, int | None, TrainingStatistics], HostEstimator] | None = None
  # (its row, all rows) -> what must hold of it: see `relations.compare`.
  relations: Callable[[Measured, Sequence[Measured]], list[dict]] = lambda *_: []
  remedy: str = 'choose another --step or --average'  # where a result is not finite
  accepts: str = ''  # the forms of its names, for people

  def request(self, name: str = '') -> Request:
    """The estimate of this name; by default, of the family's own name.  Raises InputError."""
    settings = self.parse(name or self.name)
    if settings is None:
      raise InputError('estimates', name or self.name, f'{self.name} has no such settings',
                       f'choose {self.accepts or self.name}')
    return Request(name or self.name, self, settings)

  def draws(self, key: Array, number: int = 0) -> Array:
    """A key that no other family has.  number: which key of several."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(self.name.encode())), number)


ABOUT = ('estimate', 'family', 'kind', 'model', 'steps', 'paths', 'variance', 'schedule',
          'decoder', 'dequantiser', 'importance', 'start', 'tolerance', 'error_beside', 'probe',
          'probes', 'times_per_image')


def about(request: Request, options: Options, dequantised: bool = False) -> dict:
  """The description of an estimate in its row, beside the numbers; None if a field does not apply.

  dequantised: whether the model has its own dequantiser, which its bound includes.
  """
  return (dict.fromkeys(ABOUT)
          | {'estimate': request.name, 'family': request.family.name, 'kind': 'estimate'}
          | request.family.describe(request, options, dequantised))


def check_options(options: Options) -> None:
  """Raises InputError, with the name of the flag."""
  for name in ('times', 'importance', 'probes', 'repeats', 'batch_size'):
    require_at_least(name, getattr(options, name))
  if not 0.0 < options.ode_tolerance < 1.0:
    raise InputError('ode_tolerance', options.ode_tolerance, 'it must be between 0 and 1',
                     'give 1e-5, for example')
  if options.probe not in PROBES:
    raise InputError('probe', options.probe, 'there is no such choice',
                     f'choose one of {", ".join(PROBES)}')
  if options.ode_start is not None and not 0.0 < options.ode_start < 1.0:
    raise InputError('ode_start', options.ode_start, 'it must be a time between 0 and 1',
                     'give 1e-3, for example')
