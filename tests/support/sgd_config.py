"""The run of tiny_config with plain gradient descent and a matrix large enough to be sharded.

Adam divides a gradient by its size: one that is too large by the number of devices would go
unseen, and one that is zero but for rounding would not.
"""
import optax

from . import tiny_config


def get_config():
  config = tiny_config.get_config()
  config.model.features = 8192
  return config


def build(config):
  return tiny_config.build(config)._replace(tx=optax.sgd(3e-5))
