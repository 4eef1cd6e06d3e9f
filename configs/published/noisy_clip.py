"""GLIDE's noise-aware CLIP, whose gradient guides GLIDE to a text: Nichol et al. (2021), 3.4.

  python scripts/import_weights.py --source=glide --model=clip --in=FOLDER \\
    --merges=bpe_simple_vocab_16e6.txt.gz --out=CLIP
  python scripts/sample.py --workdir=BASE --prompt='a red disk on white' --clip=CLIP \\
    --clip_scale=3 --sampler=ancestral_learned --grid=iddpm:100 --count=4 --out=small.npz

FOLDER has both published files, clip_image_enc.pt and clip_text_enc.pt.  BASE is a run of
glide.py:base, whose chain of noise levels is the one here.  The logits are 100 times the cosine.
The sizes are the fields of config.model and config.text, so an import may have others.
Hardware, time and what it reaches: see configs/published/README.md.
"""
import ml_collections

from vdm_jax import data, inputs, recipes
from vdm_jax.data import fields, tokenisers
from vdm_jax.decoders import Pixels
from vdm_jax.nn.text.clip import ImageTower, NoisyCLIP
from vdm_jax.processes import GaussianProcess, Scaled, vp
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import dual_encoder
from vdm_jax.typing import Experiment

SIZES = ('features', 'depth', 'attention_heads', 'patch', 'outputs', 'steps')


def get_config() -> ml_collections.ConfigDict:
  towers = NoisyCLIP()
  # The levels and the length of the tokens are those of the tokeniser.
  config = recipes.published(dual_encoder.default_config(
      towers.text.clone(levels=0, length=0), timesteps=towers.image.steps, betas='cosine',
      **{name: getattr(towers.image, name) for name in SIZES}))
  spec = data.Spec('./captioned', (
      fields.integers('image', (64, 64, 3), 256),
      tokenisers.field('caption', tokenisers.Settings('clip'))))
  config.data.update(name=spec.name, tokeniser='clip', **spec.to_config())
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  to_ends = Pixels(data.resolve(config.data).levels).to_ends
  schedule = chain.table(config, to_ends)
  net = ImageTower(**{name: config.model[name] for name in SIZES}, scaled=True, gelu='exact',
                   key_bias=False)
  return dual_encoder.experiment(
      config, net=networks.configured(net, config), inputs=inputs.chain(schedule),
      process=GaussianProcess(schedule, Scaled(vp, to_ends)))
