"""The first stage of a run: the autoencoder whose latents the run diffuses.

A config of latents has the section `config.autoencoder`, and the field `config.model.autoencoder`,
the run of an autoencoder.  When a run begins, the settings of that autoencoder and the fingerprint
of its parameters are copied into the section.  The parameters are copied into the run's own.  So
the run is loaded and goes on without the run of the autoencoder.

The settings must be known before an experiment is built, and a system knows no runs.  Therefore
`settle` changes the config, and `Experiment.first_stage` puts the parameters in their place.
"""
import math
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections

from vdm_jax import data, random
from vdm_jax.errors import InputError, renamed, require
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import devices
from vdm_jax.runs import needs, workdir
from vdm_jax.typing import Experiment, PyTree

__all__ = ['check', 'own', 'settle']

_FIELD = 'config.model.autoencoder'


def settle(config: ml_collections.ConfigDict, spec: data.Spec, directory: str | Path,
           init_from: str = '') -> Callable[[], workdir.Trained] | None:
  """Puts the settings of its autoencoder into `config`; returns a function that reads its run.

  A run in `directory` that has begun keeps its own settings.  It does not read the run of its
  autoencoder again, which may be gone or trained further.  If another run is named, its fingerprint
  must be the same.  A new run takes the settings of the run that is named by
  config.model.autoencoder, or else of the run of latents that it starts from.  The result is None
  if no run of an autoencoder is named.

  spec: of the run's data.

  Raises InputError for a run of something else, of other data, or of other parameters than those
  that the run in `directory` began with.
  """
  if 'autoencoder' not in config:
    return None
  asked = config.model.autoencoder
  if workdir.begun(directory):
    return _keep(config, workdir.read_config(directory), asked)
  if asked:
    trained = _read(asked, spec)
    _take(config, trained.config.model, checksum(own(trained.params)), _absolute(asked))
    return lambda: trained
  if not init_from:
    return None
  with renamed({'workdir': 'init_from'}):
    kept = workdir.read_config(init_from)
  if 'autoencoder' in kept:
    sha256 = kept.autoencoder.sha256 or checksum(  # older versions imported runs without it
        workdir.load_trained(init_from).params['autoencoder'])
    _take(config, kept.autoencoder.model, sha256, '')
  return None


def _absolute(name: str) -> str:
  return str(Path(name).expanduser().absolute())


def _keep(config: ml_collections.ConfigDict, kept: ml_collections.ConfigDict, asked: str
          ) -> Callable[[], workdir.Trained] | None:
  """The autoencoder of a run that has begun."""
  if 'autoencoder' not in kept:
    return None  # another run, which is refused later
  section, of = kept.autoencoder, kept.model.autoencoder
  if asked and _absolute(asked) != of:  # not what the run itself remembers
    workdir.see_alike(_absolute(asked), _FIELD)
    devices.broadcast_from_first(lambda: require(
        Path(_absolute(asked)).is_dir(), _FIELD, asked, 'there is no such directory',
        'leave it out, since the run has a copy of its autoencoder'))
    if checksum(own(_load(asked).params)) != section.sha256:
      raise InputError(_FIELD, asked, 'its weights are not those that this run began with',
                       'leave it out, since the run has its own copy; or choose another workdir')
    of = _absolute(asked)  # the same weights at another place
  _take(config, section.model, section.sha256, of)
  return (lambda: _same(of, section.sha256)) if of else None


def _load(directory: str) -> workdir.Trained:
  """The run of an autoencoder, as the user named it.  Raises InputError."""
  with renamed({'workdir': _FIELD}):
    return workdir.load_trained(directory)


def _same(directory: str, sha256: str) -> workdir.Trained:
  """The run that a run began with, if its weights are still the same."""
  trained = _load(directory)
  if checksum(own(trained.params)) != sha256:
    raise InputError(_FIELD, directory, 'its weights are not those that this run began with, and '
                     'this run has lost its own copy', 'name a run of the same weights, or choose '
                     'another workdir')
  return trained


def _take(config: ml_collections.ConfigDict, settings: ml_collections.ConfigDict, sha256: str,
          directory: str) -> None:
  with config.unlocked():
    config.autoencoder = {'sha256': sha256, 'model': settings.copy_and_resolve_references()}
    config.model.autoencoder = directory


def own(params: PyTree) -> PyTree:
  """The parameters of an autoencoder, without those of its discriminator."""
  return {name: u for name, u in params.items() if name != 'discriminator'}


def _read(directory: str, spec: data.Spec) -> workdir.Trained:
  """The run of an autoencoder.  Raises InputError if it is none, or of other data."""
  trained = _load(directory)
  needs.require(trained.experiment.model(trained.params), 'first_stage', directory, _FIELD)
  x, here = trained.experiment.data.spec.x, spec.x
  if (x.shape, x.levels) != (here.shape, here.levels):
    raise InputError(_FIELD, directory, f'it encodes {x}, and the data here are {here}',
                     'train an autoencoder on these data')
  return trained


def check(experiment: Experiment, scale: float, first_stage: Callable[[], workdir.Trained] | None,
          start: Callable[[], workdir.Trained] | None) -> None:
  """Raises InputError if a new run of latents has no autoencoder, or one of another network.

  Args:
    scale: config.model.scale.  It cannot change the scale of an autoencoder that `start` gives.
    start: reads the run that it starts from, whose autoencoder and scale it takes if `first_stage`
      is None.
  """
  shapes = jax.eval_shape(experiment.init, random.key(0))
  if first_stage is not None:
    _require_fit(_FIELD, shapes['autoencoder'], own(first_stage().params))
  elif start is not None:
    parts = ('autoencoder', 'scale')
    given = {name: u for name, u in start().params.items() if name in parts}
    _require_fit('init_from', {name: shapes[name] for name in parts}, given)
    s = float(given['scale'])
    require(not scale or math.isclose(scale, s, rel_tol=1e-6), 'config.model.scale', scale,
            f'the run starts with the autoencoder of --init_from and its scale, {s:g}',
            f'leave it out, or also name the autoencoder by --{_FIELD}')
  else:
    raise InputError(_FIELD, None, 'a diffusion of latents needs a trained autoencoder, and none '
                     'is named', 'name its run (configs/digits/latent.py:autoencoder trains one)')


def _require_fit(field: str, shapes: PyTree, params: PyTree) -> None:
  if wrong := needs.misfits(shapes, params):
    name, (wanted, there) = next(iter(wrong.items()))
    more = f', and {len(wrong) - 1} others' if len(wrong) > 1 else ''
    raise InputError(field, None, f'that run has {name} of shape {there}, and the network here '
                     f'{wanted}{more}',
                     'build the config with the same network, or train another autoencoder')
