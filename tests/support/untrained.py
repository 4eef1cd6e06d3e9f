"""Runs on disk whose weights are those of the start."""
import jax

from vdm_jax.runs import workdir
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints


def make_run(folder, module, config=None):
  """The directory `folder` of a run of a module of configs, with initial weights."""
  config = config or module.get_config()
  experiment = module.build(config)
  params = jax.jit(experiment.init)(jax.random.key(0))
  workdir.prepare(folder, config, module.__file__)
  checkpoints = Checkpoints(folder)
  checkpoints.save(step_lib.init(params, experiment.tx, experiment.ema, experiment.aux))
  checkpoints.close()
  return folder
