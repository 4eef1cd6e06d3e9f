"""A run of seconds for the tests of commands: images of 4 x 4 pixels, a network of one number."""
from vdm_jax import runs, samplers
from vdm_jax.runs import workdir
from vdm_jax.samplers import grids

SHAPE = (4, 4, 1)
# The cheapest evaluation, with one compiled program for all of them.
ONCE = {'times': 1, 'batch_size': 4}
CONFIG = '''
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.systems.variational import vdm


class Net(nn.Module):
  """z scaled, and shifted by class: the least that trains, and that labels reach."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    y = self.param('scale', nn.initializers.constant(0.2), ()) * z
    if cond is not None:
      y += 0.3 * nn.Embed(3, 1)(cond)[:, None, None]  # of three classes
    return y


def get_config():
  config = vdm.default_config()
  config.data.update(name='NAME', validation=8, batch_size=8)
  config.model.update(class_conditional=CONDITIONAL)
  config.optimizer.update(learning_rate=0.01, warmup_steps=1)
  config.ema = {'ema': 0.5, 'fast': 0.1}
  config.train.update(steps=4, log_every=1, validate_every=2, checkpoint_every=2,
                      pictures_every=0, keep=2)
  return config


def build(config):
  return vdm.experiment(config, net=Net(), schedule=schedules.LearnedLinear(6.0, -4.0))
'''


def by(steps, name='ancestral', make=samplers.ancestral, **options):
  return runs.Method(name, make, 'uniform', lambda process: grids.uniform(steps), **options)


def make_run(folder, data, conditional):
  """A finished run of four steps."""
  file = folder / 'tiny.py'
  file.write_text(CONFIG.replace('NAME', str(data)).replace('CONDITIONAL', str(conditional)))
  runs.train(workdir.import_config(file).get_config(), file, folder / 'run')
  return folder / 'run'
