"""A run of seconds for the tests of editing: shapes, and a network that attends to their words."""
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.latent import HeadsAttention
from vdm_jax.systems import compose, texts
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


class Net(nn.Module):
  """4 x 4 patches, which attend to each other and to the tokens of the text."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    n = len(z)
    h = nn.Dense(8)(z.reshape(n, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(n, 16, 48))
    h += HeadsAttention(2, name='own')(h, h)
    h += 3.0 * HeadsAttention(2, name='cross')(h, cond, True)
    y = nn.Dense(48)(h).reshape(n, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(z.shape)
    return 0.5 * z + y


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.update(name='shapes', tokeniser='words', validation=8, batch_size=8)
  config = texts.add(config, GLIDEText(features=8, depth=1, attention_heads=2, levels=18, length=6,
                                       padding=0, outputs=4), dropped=0.2)
  config.optimizer.update(learning_rate=0.01, warmup_steps=1)
  config.ema = {'ema': 0.5}
  config.train.update(steps=4, log_every=2, validate_every=4, checkpoint_every=4, pictures_every=0)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return texts.experiment(config, lambda **told: compose.experiment(
      config, net=Net(), schedule=schedules.Linear(10.0, -6.0), **told))
