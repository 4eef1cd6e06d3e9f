"""Checks the teacher that a run starts from, and keeps the teacher's parameters.

The teacher's parameters are the `aux` of the state.  They are a function of the first parameters,
which `--init_from` gives.  So a config needs no path, and a student is loaded without its teacher.
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import processes, random
from vdm_jax.errors import InputError, require
from vdm_jax.model import Model
from vdm_jax.typing import Array, Experiment, PyTree, denoises


def first_parameters(params: PyTree) -> PyTree:
  """The `aux` of an experiment that starts from its teacher: the first parameters themselves."""
  return params


def require_same(base: Experiment, teacher: Any, params: PyTree) -> None:
  """Raises InputError if the teacher has another shape, process or estimate than `base`.

  base: the experiment that the teacher's own config would build here.  params: the teacher's
  parameters.  The estimates differ if, for example, one network predicts eps and the other v, or if
  the networks read z or the level in different ways.
  """
  if not denoises(teacher):
    raise InputError('init_from', None, f'that run made a {type(teacher).__name__}, which does '
                     'not denoise', 'name a run of a diffusion model')
  own = base.model(_whole(base, params))
  models: tuple[Any, ...] = (own, teacher)
  require(tuple(teacher.shape) == tuple(own.shape), 'init_from', None,
          f'the teacher makes data of {tuple(teacher.shape)}, and the student of '
          f'{tuple(own.shape)}', 'name a run of the same data')
  if difference := processes.difference(
      *(processes.compared_levels(m.process) for m in models), owner='the student'):
    raise InputError('init_from', None, f'the teacher has another process: {difference}',
                     'give config.model the fields of the teacher')
  own_x, its_x = (np.asarray(_estimates(m)) for m in models)
  # The two compute the same, but perhaps in another order.
  if not np.linalg.norm(own_x - its_x) <= 1e-2 * np.linalg.norm(its_x):
    raise InputError('init_from', None, "the teacher's network means something else: with its "
                     'weights the student estimates another x',
                     'give config.model the fields of the teacher (its target or objective, and '
                     'what its network reads)')


def _whole(base: Experiment, params: PyTree) -> PyTree:
  """The parameters of `base`: `params`, and zeros for the parameters that a teacher lacks."""
  there = {jax.tree_util.keystr(path): leaf
           for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  shapes = jax.eval_shape(base.init, random.key(0))
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: there.get(jax.tree_util.keystr(path), jnp.zeros(leaf.shape, leaf.dtype)),
      shapes)


def _estimates(model: Model) -> Array:
  """x_hat at z ~ N(0, alpha^2 + sigma^2), under the first conditions of the data."""
  t = jnp.array(processes.COMPARED_AT[1:-1])
  cond = model.cond(model.conditions(np.arange(t.size)))
  level = model.process(t)
  eps = random.normal(random.per_example(random.key(0), jnp.arange(t.size)),
                      jnp.zeros((t.size, *model.shape)))
  wide = level.expand(eps)
  # Not jitted: the parameters of a large network would be constants of the program.
  return model.denoise(jnp.hypot(wide.alpha, wide.sigma) * eps, level, cond).x


def on_process_of(model: Model, teacher: Model) -> Model:
  """`model` on the process of its teacher, so that a learned schedule is not trained further."""
  return model._replace(process=teacher.process)


def before(update: Array, train: bool) -> Array:
  """The number of the update whose loss is computed after `update` updates.

  In training it is the next update, `update`; in validation it is the last update made.
  """
  return update if train else jnp.maximum(update - 1, 0)
