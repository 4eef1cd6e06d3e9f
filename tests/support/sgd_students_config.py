"""The teacher and the progressive student of students_config with plain gradient descent, as in
sgd_config: what differs after some steps is then the rounding alone."""
import optax

from vdm_jax.systems.distilled import progressive

from . import students_config


def get_config(system='teacher'):
  return students_config.get_config(system)


def build(config):
  base = students_config.base(config)._replace(tx=optax.sgd(1e-3))
  return progressive.experiment(config, base) if config.model.system == 'progressive' else base
