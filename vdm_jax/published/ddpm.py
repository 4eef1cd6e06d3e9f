"""Checkpoints of DDPM (Ho et al. 2020) as huggingface/diffusers has them, for `nn.unets.ddpm`.

The files are state dicts of the `UNet2DModel` of diffusers, to which the original checkpoints were
converted:

    down_blocks.1.resnets.0.time_emb_proj.weight   down_1_0/residual/embedding/kernel
    up_blocks.2.attentions.1.to_q.bias             up_2_1/self_attention/query/bias

The attention's maps have older names in the public files: `query`, `key`, `value` and `proj_attn`.
Both kinds of name are read, and the newer names are written.
"""
from collections.abc import Mapping

import numpy as np

from vdm_jax.nn.unets import ddpm
from vdm_jax.published import fitting
from vdm_jax.typing import Array, PyTree

_HINT = 'compare features, multipliers, blocks and attention_resolutions'

# Names here -> published names, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^embedding/dense0/', r'time_embedding/linear_1/'),
    (r'^embedding/dense1/', r'time_embedding/linear_2/'),
    (r'^norm_out/', r'conv_norm_out/'),
    (r'^(down|up)sample_(\d+)/', r'\1_blocks/\2/\1samplers/0/conv/'),
    (r'^mid_(\d)/(residual|self_attention)/', r'mid_block/\2/\1/'),
    (r'^(down|up)_(\d+)_(\d+)/(residual|self_attention)/', r'\1_blocks/\2/\4/\3/'),
    (r'/residual/', r'/resnets/'),
    (r'/self_attention/', r'/attentions/'),
    (r'/embedding/', r'/time_emb_proj/'),
    (r'/shortcut/', r'/conv_shortcut/'),
    (r'/norm/', r'/group_norm/'),
    (r'/query/', r'/to_q/'),
    (r'/key/', r'/to_k/'),
    (r'/value/', r'/to_v/'),
    (r'/out/', r'/to_out/0/'),
)
_newer = fitting.renaming((r'\.query\.', '.to_q.'), (r'\.key\.', '.to_k.'),
                          (r'\.value\.', '.to_v.'), (r'\.proj_attn\.', '.to_out.0.'))


def published(name: str) -> str:
  """'down_0_1/residual/norm1/scale' -> 'down_blocks.0.resnets.1.norm1.weight'."""
  return fitting.torch_leaf(_renamed(name))


def with_newer_names(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The parameters `flat` of diffusers, with the newer names of an attention's maps."""
  return {_newer(name): array for name, array in flat.items()}


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  return fitting.fit(with_newer_names(flat), like, published, layout=fitting.from_torch,
                     hint=_HINT)


def to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `from_flat`: the parameters by their published names."""
  return fitting.flat(params, published, layout=fitting.to_torch)


_256 = ddpm.UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)

# By the name on the Hugging Face hub, where each has a `google/` before it.  The settings are those
# of its config.json; dropout, which is not in it, is of Ho et al. (2020), appendix B.  All were
# trained on the linear chain of 1000 steps.
MODELS: dict[str, ddpm.UNet] = {
    'ddpm-cifar10-32': ddpm.UNet(),
    **{f'ddpm-{of}-256': _256 for of in ('celebahq', 'bedroom', 'church', 'cat')},
    **{f'ddpm-ema-{of}-256': _256 for of in ('celebahq', 'bedroom', 'church', 'cat')},
}
SHAPES = {name: (32, 32, 3) if name == 'ddpm-cifar10-32' else (256, 256, 3) for name in MODELS}
