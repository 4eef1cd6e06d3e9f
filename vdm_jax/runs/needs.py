"""The capabilities that each command needs of a run's model, and checks of its weights."""
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.data import Field, Spec, Split, is_path
from vdm_jax.errors import InputError
from vdm_jax.likelihood import bounds
from vdm_jax.runs.workdir import Trained
from vdm_jax.typing import (
  CAPABILITIES,
  Bounds,
  Captions,
  Codes,
  Denoises,
  Features,
  Forecasts,
  Model,
  Plans,
  PyTree,
  Reconstructs,
  Samples,
  denoises,
)


class Need(NamedTuple):
  """The need for one of several capabilities."""
  any_of: tuple[type, ...]
  to: str      # what for, after "to": 'evaluate it'
  remedy: str
  script: str = ''  # the one that does it, if it is a next one after training


_DIFFUSION = 'name a run of a diffusion model (configs/digits/vdm.py); vdm_jax.load gives this one'
NEEDS = {
    'evaluate': Need((Denoises,), 'evaluate it', _DIFFUSION, 'evaluate.py'),
    'sample': Need((Denoises, Samples), 'sample from it', _DIFFUSION, 'sample.py'),
    'edit': Need((Denoises,), 'edit images by it', _DIFFUSION),
    'restore': Need((Denoises,), 'restore images by it', _DIFFUSION),
    'harmonise': Need((Denoises,), 'write voices by it',
                      'name a run of configs/applications/chorales.py'),
    'volumes': Need((Denoises,), 'reconstruct volumes by it',
                    'name a run of configs/applications/ct_slices.py'),
    'distil_scene': Need((Denoises,), 'teach a scene',
                         'name a run of configs/text/glide_shapes.py'),
    'purify': Need((Denoises,), 'bring images back from noise', _DIFFUSION),
    'make_pairs': Need((Denoises,), 'make pairs', _DIFFUSION),
    'compare_samplers': Need((Denoises,), 'compare samplers', _DIFFUSION),
    'score_captions': Need((Denoises,), 'draw what captions say',
                           'name a run of configs/text/glide_shapes.py'),
    'score_clip': Need((Denoises,), 'draw what texts say', 'name a run of configs/text/emoji.py'),
    'score_expressions': Need((Denoises,), 'draw expressions',
                              'name a run of configs/text/markup.py'),
    'score_music': Need((Denoises, Samples, Reconstructs), 'score its music',
                        'name a run of configs/applications/chorales.py'),
    'time_sampling': Need((Denoises,), 'choose the times of training', _DIFFUSION),
    'learn_schedule': Need((Denoises,), 'measure its schedule', _DIFFUSION),
    'convergence': Need((Denoises,), 'bound the error of its samples',
                        'name a run of configs/plane/spiral.py'),
    'benchmark': Need((Denoises,), 'measure its evaluations',
                      'name a config or run of a diffusion model (configs/digits/vdm.py)'),
    'compress': Need((Codes,), 'compress by it', _DIFFUSION),
    'gallery': Need((Denoises, Samples), 'show what it draws',
                    'name a run of configs/plane/spiral.py'),
    'features': Need((Features,), 'score samples by it',
                     'train a classifier (configs/digits/classifier.py)'),
    'reconstruct': Need((Reconstructs,), 'measure its reconstructions',
                        'name a run of an autoencoder (configs/digits/latent.py:autoencoder)',
                        'evaluate.py'),
    'caption': Need((Captions,), 'measure its captions',
                    'name a run of a captioner (configs/text/captioner.py)', 'evaluate.py'),
    'forecast': Need((Forecasts,), 'forecast by it',
                     'name a run of configs/applications/greensboro.py', 'forecast.py'),
    'plan': Need((Plans,), 'plan by it', 'name a run of configs/applications/pendulum.py',
                 'plan.py'),
    'first_stage': Need((Reconstructs,), 'diffuse its latents',
                        'train an autoencoder (configs/digits/latent.py:autoencoder)'),
}
_DOES = {Denoises: 'denoises', Samples: 'samples', Bounds: 'bounds the likelihood',
         Features: 'has features', Codes: 'codes images', Reconstructs: 'reconstructs examples',
         Captions: 'captions images', Forecasts: 'forecasts time series',
         Plans: 'plans'}


def require(model: Any, command: str, value: Any, field: str = 'workdir') -> Any:
  """`model`, if it has a capability that the command needs.

  value: the name of the run, as the user gave it in `field`.

  Raises InputError if not.  The error names the run, its kind, its abilities, and those needed.
  """
  need = NEEDS[command]
  if isinstance(model, need.any_of):
    return model
  does = [_DOES[one] for one in CAPABILITIES if isinstance(model, one)]
  able = ' or '.join(_DOES[one] for one in need.any_of)
  raise InputError(field, str(value), f'this run made {_indefinite(type(model).__name__)}, which '
                   f"{' and '.join(does) or 'does nothing that commands need'}; a model that "
                   f'{able} is needed to {need.to}', need.remedy)


def require_likelihood(model: Any, directory: Path) -> None:
  """Raises InputError for a model that 'evaluate' does not take, or without a likelihood."""
  require(model, 'evaluate', directory)
  if model.is_latent:
    raise InputError('workdir', str(directory), 'this model draws latents, and has no likelihood '
                     'of data', 'sample from it')
  bounds.require_likelihood(model, str(directory))


def scripts(model: Any) -> list[str]:
  """The names of the scripts that are next after training, and take this model.

  [] if none does: the run of a classifier, for example, is read by commands about other runs.
  """
  able = {name: need.script for name, need in NEEDS.items()
          if need.script and isinstance(model, need.any_of)}
  if 'evaluate' in able:
    try:
      require_likelihood(model, Path())
    except InputError:
      del able['evaluate']
  return list(dict.fromkeys(able.values()))


def require_prior(model: Model, directory: Path) -> None:
  """Raises InputError for a model whose data are not images that a denoiser estimates."""
  for holds, problem in ((model.latent is None, 'it draws latents of its own'),
                         (model.data_space and not model.is_latent, 'it is a model of latents'),
                         (not model.coupled, 'its noise was coupled with the data, so it has no '
                          'score')):
    if not holds:
      raise InputError('workdir', str(directory), f'this model cannot be a prior: {problem}',
                       'name the run of another model')


def _indefinite(name: str) -> str:
  return f'{"an" if name[0] in "AEI" else "a"} {name}'


def by_name(params: PyTree) -> dict[str, Any]:
  """The leaves by their paths, 'net/dense/kernel', in the order of the tree."""
  return {'/'.join(entry.key for entry in path): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def misfits(params: PyTree, other: PyTree) -> dict[str, tuple]:
  """{name: (shape in `params`, shape in `other`)} where they differ; None: it is not there."""
  own, there = ({name: np.shape(leaf) for name, leaf in by_name(tree).items()}
                for tree in (params, other))
  return {name: (own.get(name), there.get(name)) for name in sorted(own.keys() | there.keys())
          if own.get(name) != there.get(name)}


def finite(trained: Trained) -> None:
  """Raises InputError if the weights of a run are not finite."""
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params)):
    raise InputError('step', trained.step, f'these weights ({trained.average}) are not finite: '
                     'training had diverged', 'choose another --step or --average')


def data_field(model: Any, spec: Spec) -> Field:
  """The field of the data that the model makes."""
  return spec[model.field] if denoises(model) else spec.x


def texts(model: Any, spec: Spec) -> list[Field]:
  """The texts that the model is told."""
  names = model.conditions(np.arange(1))
  return [spec[name] for name in names if name in spec and spec[name].texts is not None]


def text_field(model: Any, spec: Spec, flag: str = 'prompt') -> Field:
  """The text that the model is told.

  Raises InputError if it is told none, or several; flag: the name of the text in the error.
  """
  found = texts(model, spec)
  if len(found) != 1:
    told = ', '.join(field.name for field in found) or 'no text'
    named = 'name the field: --condition=FIELD=TEXT' if found else 'leave it out'
    raise InputError(flag, None, f'this model is told {told}', named if flag == 'prompt' else
                     'name a run of a model that is told one text (systems.texts)')
  return found[0]


def draws_data(model: Any) -> bool:
  """Whether samples of the model are data: latents are not."""
  return not model.is_latent if denoises(model) else isinstance(model, Samples)


def split(trained: Trained, name: str) -> Split:
  """A split of a run's data.  Raises InputError if the data are not where the run found them."""
  try:
    return trained.experiment.data.split(name)
  except FileNotFoundError:
    place = trained.config.data.name
    if not is_path(place):
      raise  # which says how to prepare them
    raise InputError('data_name', place, 'the data of this run are not there',
                     'say where they are now') from None
