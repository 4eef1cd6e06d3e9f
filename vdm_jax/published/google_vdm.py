"""Parameters of the official VDM code (google-research/vdm) as parameters here.

The official tree, its names joined by `/`, has two parts.  `score_model/...` is `net` here (a
`nn.unets.vdm.UNet`).  `gamma/...` is `schedule` here (`schedules.LearnedLinear` or
`schedules.Monotone`).  Kernels have the same layout.  The names change, and the blocks down and up
are stacked (`nn.blocks.stack`):

    score_model/down.block_3/GroupNorm_0/scale      net/down/norm1/scale [3]
    score_model/up.attn_0/proj_out/kernel           net/up_attention_0/out/kernel
    score_model/dense0/kernel                       net/embedding/dense0/kernel
    gamma/w                                         schedule/w
"""
from collections.abc import Mapping

import jax
import ml_collections

from vdm_jax import random, schedules
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.unets.vdm import STACKS
from vdm_jax.published import fitting
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Array, PyTree

_HINT = ('compare features, blocks, attention_everywhere and the kind of schedule in the config')

# Ours -> official, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^schedule/', r'gamma/'),
    (r'^net/', r'score_model/'),
    (r'/embedding/(dense\d)/', r'/\1/'),
    (r'/embedding/kernel', r'/cond_proj/kernel'),
    (r'/norm_out/', r'/GroupNorm_0/'),
    (r'/norm1/', r'/GroupNorm_0/'),
    (r'/norm2/', r'/GroupNorm_1/'),
    (r'/norm/', r'/GroupNorm_0/'),
    (r'/shortcut/', r'/nin_shortcut/'),
    (r'/query/', r'/q/'),
    (r'/key/', r'/k/'),
    (r'/value/', r'/v/'),
    (r'/out/', r'/proj_out/'),
    (r'/mid_0/', r'/mid.block_1/'),
    (r'/mid_1/', r'/mid.block_2/'),
    (r'/mid_attention/', r'/mid.attn_1/'),
    (r'/(down|up)_attention_(\d+)/', r'/\1.attn_\2/'),
    (r'/(down|up)_(\d+)/', r'/\1.block_\2/'),
)


def official_name(name: str) -> str:
  """'net/down_0/norm1/scale' -> 'score_model/down.block_0/GroupNorm_0/scale'."""
  return _renamed(name)


def from_flat(flat: Mapping[str, Array], config: ml_collections.ConfigDict) -> PyTree:
  """The official parameters `flat`, {name: array}, as parameters of a VDM with `config`.

  `flat` decides the schedule: `gamma/w` means a LearnedLinear, `gamma/l1` a Monotone, and neither
  means a fixed schedule.  Raises InputError naming every parameter that does not fit.
  """
  if 'gamma/w' in flat:
    schedule = schedules.LearnedLinear()
  elif 'gamma/l1/kernel' in flat:
    schedule = schedules.Monotone(features=flat['gamma/l2/kernel'].shape[-1])
  else:
    schedule = schedules.Linear()
  experiment = vdm.experiment(config, schedule=schedule)
  return fit(flat, jax.eval_shape(experiment.init, random.key(0)))


def fit(flat: Mapping[str, Array], like: PyTree) -> PyTree:
  """The official parameters `flat`, {name: array}, as a tree like `like`.

  like: {'net': ..., 'schedule': ...}, arrays or shapes; a fixed schedule has no entry.
  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  unrolled = jax.eval_shape(lambda u: _of_net(stack.unrolled, u), like)
  params = fitting.fit(flat, unrolled, official_name, hint=_HINT)
  return _of_net(stack.stacked, params)


def to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `fit`: the parameters here by their official names."""
  return fitting.flat(_of_net(stack.unrolled, params), official_name)


def _of_net(change, params: PyTree) -> PyTree:
  """Applies `change`, which stacks or unrolls blocks, to the network's parameters."""
  return {name: change(part, STACKS) if name == 'net' else part for name, part in params.items()}
