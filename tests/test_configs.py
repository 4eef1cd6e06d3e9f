"""Every config builds, and its loss and model trace: eval_shape computes no number."""
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vdm_jax import workdir
from vdm_jax.train import loop
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
VARIANTS = [(path, ()) for path in CONFIGS] + [
    (path, ('paper',)) for path in CONFIGS if path.stem == 'cifar10_aug']

# Kingma et al.'s networks: counted from the published code (without the schedule's parameters).
PUBLISHED = {('cifar10', ()): 30_578_179, ('cifar10_aug', ()): 122_137_603,
             ('cifar10_aug', ('paper',)): 139_276_803, ('imagenet32', ()): 122_137_603,
             ('imagenet64', ()): 237_603_843}


@pytest.mark.parametrize('path,variant', VARIANTS, ids=lambda u: u.stem if isinstance(u, Path)
                         else '-'.join(u))
def test_a_config_builds_and_its_loss_and_update_trace(path, variant, tmp_path):
  module = workdir.import_config(path)
  config = module.get_config(*variant)
  config.data.data_dir = str(tmp_path)  # without the data, but for those that make themselves
  config.data.batch_size = 2
  experiment = module.build(config)
  spec = experiment.data.spec

  params = jax.eval_shape(experiment.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params['net']))
  assert count == PUBLISHED.get((path.stem, variant), count)

  batch = {'image': jax.ShapeDtypeStruct((2, *spec.shape), jnp.uint8),
           'label': jax.ShapeDtypeStruct((2,), jnp.int32),
           'augmented': jax.ShapeDtypeStruct((2,), jnp.float32)}
  if not config.data.augment:
    del batch['augmented']
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  losses, terms = jax.eval_shape(
      lambda params, batch, t, keys: experiment.loss(params, batch, Context(t, keys, 0)),
      params, batch, jax.ShapeDtypeStruct((2,), jnp.float32), keys)
  assert losses.shape == (2,)
  assert {'bits_per_dim', 'reconstruction', 'latent', 'diffusion'} <= terms.keys()

  state = jax.eval_shape(lambda p: step_lib.init(p, experiment.tx, experiment.ema), params)
  assert state.ema.keys() == dict(config.ema).keys()


@pytest.mark.parametrize('path,variant', VARIANTS, ids=lambda u: u.stem if isinstance(u, Path)
                         else '-'.join(u))
def test_a_configs_schedule_of_work_is_consistent(path, variant):
  config = workdir.import_config(path).get_config(*variant)
  loop.check(config)
  run, rates = config.train, dict(config.ema)
  # What the longest average still holds of the initial weights after the whole run.
  assert max(rates.values()) ** run.steps < 1e-3
  assert config.data.validation > 0
  assert config.optimizer.decay_steps in (0, run.steps)
