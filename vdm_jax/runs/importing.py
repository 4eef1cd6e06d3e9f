"""Imports a published weight file as a run, so that every command for runs can use it at once.

  source               files of                        models, by file                  config
  google-vdm           google-research/vdm             the config, cifar10_aug, ...     of that name
  ddpm                 huggingface/diffusers           published.ddpm.MODELS            ddpm
  improved-diffusion   openai/improved-diffusion       published.openai.MODELS          adm
  guided-diffusion     openai/guided-diffusion         published.openai.MODELS          adm
  dit                  facebookresearch/DiT            published.dit.MODELS             dit
  score-sde            yang-song/score_sde_pytorch     published.score_sde.MODELS       score_sde
  edm                  NVlabs/edm                      published.edm.MODELS             edm
  ncsnv2               ermongroup/ncsn, ncsnv2         published.ncsnv2.MODELS          ncsnv2

If a file has averaged parameters, these are taken, as in the publications.
"""
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.machine import files
from vdm_jax.published import ddpm, dit, edm, google_vdm, ncsnv2, openai, readers, score_sde
from vdm_jax.runs import workdir
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.typing import PyTree

Flat = Mapping[str, np.ndarray]


class Codebase(NamedTuple):
  """A public codebase that weights come from."""
  models: Collection[str]
  config: Callable[[str], tuple[str, tuple[str, ...]]]    # model -> config file, its variant
  params: Callable[[Flat, PyTree, str], PyTree]           # file, params here, model -> params


def _there(flat: Flat, *prefixes: str) -> Flat:
  """The part of `flat` under the first prefix that exists; all of `flat` if none exists."""
  for prefix in prefixes:
    if any(name.startswith((f'{prefix}.', f'{prefix}/')) for name in flat):
      return readers.subtree(flat, prefix)
  return flat


def _of_net(from_flat: Callable[[Flat, PyTree], PyTree]) -> Callable[[Flat, PyTree, str], PyTree]:
  return lambda flat, like, model: {'net': from_flat(flat, like['net'])}


def _google(flat: Flat, like: PyTree, model: str) -> PyTree:
  return google_vdm.fit(_there(_there(flat, 'ema_params', 'params'), 'params'), like)


def _score_sde(flat: Flat, like: PyTree) -> PyTree:
  shadows = _there(flat, 'ema.shadow_params')
  weights = _there(flat, 'model')
  if shadows is not flat:
    weights = score_sde.averaged(weights, [shadows[str(i)] for i in range(len(shadows))])
  return score_sde.from_flat(weights, like)


def _ncsnv2(flat: Flat, like: PyTree, model: str) -> PyTree:
  return {'net': ncsnv2.from_flat(_there(flat, '4', '0'), like['net'], ncsnv2.MODELS[model])}


def _by_variant(name: str) -> Callable[[str], tuple[str, tuple[str, ...]]]:
  return lambda model: (f'published/{name}', (model,))


# Not the classifiers and upsamplers, which take more than an image.
_OPENAI = Codebase([name for name, net in openai.MODELS.items() if openai.is_diffusion(net)],
                   _by_variant('adm'), _of_net(openai.from_flat))
_GOOGLE = {'cifar10': ('cifar10/vdm', ()), 'cifar10_aug': ('cifar10/augmented', ()),
           'imagenet32': ('imagenet/vdm', ('32',)), 'imagenet64': ('imagenet/vdm', ('64',))}
SOURCES = {
    'google-vdm': Codebase(_GOOGLE, _GOOGLE.get, _google),
    'ddpm': Codebase(ddpm.MODELS, _by_variant('ddpm'), _of_net(ddpm.from_flat)),
    'improved-diffusion': _OPENAI,
    'guided-diffusion': _OPENAI,
    'dit': Codebase(dit.MODELS, _by_variant('dit'), _of_net(
        lambda flat, like: dit.from_flat(_there(flat, 'ema'), like))),
    'score-sde': Codebase(score_sde.MODELS, _by_variant('score_sde'), _of_net(_score_sde)),
    'edm': Codebase(edm.MODELS, _by_variant('edm'), _of_net(edm.from_flat)),
    'ncsnv2': Codebase(ncsnv2.MODELS, _by_variant('ncsnv2'), _ncsnv2),
}


class Imported(NamedTuple):
  model: str
  config: str       # FILE.py, or FILE.py:VARIANT
  parameters: int


def import_weights(source: str, file: str | Path, out: str | Path, configs: str | Path,
                   model: str = '') -> Imported:
  """Makes `out` a run at step 0 that has the weights in `file`.

  Args:
    source: a row of the table above.
    model: which of the source's models the weights are.  Default: the file's name.
    configs: the folder of the config files.

  Raises InputError, and then writes nothing.  The reasons are an unknown source or model, a file
  without weights or with other parameters, or an `out` that is not empty.
  """
  if source not in SOURCES:
    raise InputError('source', source, 'there is no such choice',
                     f'choose one of {", ".join(SOURCES)}')
  of = SOURCES[source]
  file, out = files.user_path('in', file), files.run_directory('out', out)
  if not file.is_file():
    raise InputError('in', f'{file}', 'there is no such file', 'name the file of weights')
  model = model or file.stem
  if model not in of.models:
    raise InputError('model', model, 'this source has no such model',
                     f'choose one of {", ".join(of.models)}')
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError('out', f'{out}', 'it is there already',
                     'choose another directory, or an empty one')
  name, variant = of.config(model)
  config_file = Path(configs) / f'{name}.py'
  code = workdir.source(config_file)
  module = code.module()
  config = module.get_config(*variant)
  experiment = module.build(config)
  like = jax.eval_shape(experiment.init, random.key(config.seed))

  flat = readers.read(file)
  try:
    params = of.params(flat, like, model)
  except InputError as error:
    raise InputError('in', f'{file}', f'it cannot be read as {model}: {error}') from None
  integers = [path for path, u in jax.tree_util.tree_flatten_with_path(params)[0]
              if not jnp.issubdtype(u.dtype, jnp.inexact)]
  if integers:
    raise InputError('in', f'{file}', f'{jax.tree_util.keystr(integers[0])} holds whole numbers',
                     'give weights')
  params = jax.tree.map(lambda u: np.asarray(u, np.float32), params)
  wrong = [path for path, u in jax.tree_util.tree_flatten_with_path(params)[0]
           if not np.isfinite(u).all()]
  if wrong:
    raise InputError('in', f'{file}', f'{jax.tree_util.keystr(wrong[0])} is not finite',
                     'give other weights')

  with file.open('rb') as opened:
    digest = hashlib.file_digest(opened, 'sha256').hexdigest()
  # Made beside it and renamed: a run is there whole, or not at all.
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
    folder = Path(folder) / 'run'
    workdir.prepare(folder, config, code)
    checkpoints = Checkpoints(folder)
    checkpoints.save(step_lib.init(params, experiment.tx, experiment.ema, experiment.aux))
    checkpoints.close()
    files.write_text(folder / 'imported.json', json.dumps(
        {'source': source, 'model': model, 'file': file.name, 'sha256': digest}, indent=2))
    if out.exists():
      out.rmdir()
    folder.rename(out)
  return Imported(model, ':'.join([str(config_file), *variant]),
                  sum(math.prod(u.shape) for u in jax.tree.leaves(params)))
