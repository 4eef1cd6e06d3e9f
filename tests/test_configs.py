"""Every config builds, and its update traces: eval_shape computes no number."""
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import workdir
from vdm_jax.errors import InputError
from vdm_jax.systems import vdm
from vdm_jax.train import loop, parallel
from vdm_jax.train import step as step_lib

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
VARIANTS = [(path, ()) for path in CONFIGS] + [
    (path, ('paper',)) for path in CONFIGS if path.stem == 'cifar10_aug'] + [
    (path, (system,)) for path in CONFIGS if path.stem == 'toy2d'
    for system in ('vp', 'subvp', 've', 'edm')] + [
    (path, (objective,)) for path in CONFIGS if path.stem == 'digits_weighted'
    for objective in workdir.import_config(path).VARIANTS[1:]] + [
    (path, (variant,)) for path in CONFIGS for stem, variant in (
        ('ncsn_digits', 'v2'), ('ssm_swirl', 'implicit')) if path.stem == stem]

# Kingma et al.'s networks: counted from the published code (without the schedule's parameters).
PUBLISHED = {('cifar10', ()): 30_578_179, ('cifar10_aug', ()): 122_137_603,
             ('cifar10_aug', ('paper',)): 139_276_803, ('imagenet32', ()): 122_137_603,
             ('imagenet64', ()): 237_603_843,
             # Counted from the public code of each, with its published settings.
             ('ddpm', ()): 35_746_307, ('adm', ()): 52_546_438, ('edm', ()): 55_733_891,
             ('score_sde', ()): 61_804_419, ('ncsnv2', ()): 29_694_083, ('dit', ()): 674_834_720}


@pytest.mark.parametrize('path,variant', VARIANTS, ids=lambda u: u.stem if isinstance(u, Path)
                         else '-'.join(u))
def test_a_config_builds_and_its_update_traces(path, variant, tmp_path):
  module = workdir.import_config(path)
  config = module.get_config(*variant)
  config.data.data_dir = str(tmp_path)  # without the data, but for those that make themselves
  config.data.batch_size = 2
  experiment = module.build(config)
  spec = experiment.data.spec

  params = jax.eval_shape(experiment.init, jax.random.key(0))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params['net']))
  assert count == PUBLISHED.get((path.stem, variant), count)

  state = jax.eval_shape(lambda p: step_lib.init(p, experiment.tx, experiment.ema, experiment.aux),
                         params)
  assert state.ema.keys() == dict(config.ema).keys()

  batch = {'image': jax.ShapeDtypeStruct((2, *spec.shape), jnp.uint8),
           'label': jax.ShapeDtypeStruct((2,), jnp.int32),
           'augmented': jax.ShapeDtypeStruct((2,), jnp.float32)}
  if not config.data.augment:
    del batch['augmented']
  if path.stem == 'dit':  # of latents, of which there are no data
    with pytest.raises(InputError, match='latents'):
      experiment.loss(params, batch, None)
    return
  update = experiment.update or step_lib.make_step(experiment.loss, experiment.tx, experiment.ema)
  after, metrics = jax.eval_shape(lambda *args: update(*args, parallel.Axis()), state, batch,
                                  jax.eval_shape(lambda: jax.random.key(0)))
  alike = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
  assert all(jax.tree.leaves(alike))
  assert metrics['loss'].shape == ()
  expected = {'bits_per_dim', 'reconstruction', 'latent', 'diffusion'}
  assert metrics.keys() >= {'digits_classifier': {'accuracy'},
                            'digits_noisy_classifier': {'accuracy'},
                            'digits_vae': expected - {'diffusion'},
                            'digits_hvae': expected - {'diffusion'}}.get(path.stem, expected)


@pytest.mark.parametrize('name,field,value', [
    *(('digits_' + name, 'timesteps', 10) for name in (
        'scoreflow', 'soft_truncation', 'resampled', 'idode_vp', 'idode_sp', 'scoreode',
        'learned_schedule')),
    ('ncsn_digits', 'timesteps', 1), ('ncsn_digits', 'sigma_min', 0.0),
    ('ebm_swirl', 'timesteps', 10), ('ssm_swirl', 'timesteps', 10),
    ('toy2d', 'system', 'edm2'), ('ssm_swirl', 'matching', 'none'),
    ('digits_weighted', 'objective', 'iddpm'), ('dpm_heartbeat', 'activity', 1.0),
    ('digits_dit', 'dropout', 0.1), ('digits_small', 'timesteps', -1),
    ('digits_iddpm_hybrid', 'timesteps', 0),
    ('digits_iddpm_vlb', 'timesteps', 0), ('digits_resampled', 'time_bins', 0),
    ('digits_resampled', 'losses_kept', 0), ('digits_dequantised', 'couplings', -1),
    ('digits_scoreflow', 't_min', 1.0), ('digits_soft_truncation', 'truncation_power', -1.0),
    ('digits_small', 'groups', 5), ('digits_diffenc', 'encoder_groups', 5),
    ('digits_mulan', 'encoder_groups', 0), ('cifar10_diffenc', 'encoder_groups', 7)])
def test_a_value_that_a_config_cannot_use_is_refused_by_its_name(name, field, value):
  module = workdir.import_config(CONFIGS[0].with_name(f'{name}.py'))
  config = module.get_config()
  config.model[field] = value
  with pytest.raises(InputError, match=f'--config.model.{field}={value}: '):
    module.build(config)


def test_the_sde_of_scoreflow_starts_at_the_log_snr_of_the_data_s_levels():
  module = workdir.import_config(CONFIGS[0].with_name('digits_scoreflow.py'))
  for name in ('digits', 'swirl'):  # of 17 levels and of 256
    config = module.get_config()
    config.data.name = name
    np.testing.assert_allclose(module.vp_sde(config)(jnp.zeros(())), vdm.end_points(config)[0],
                               rtol=1e-4)
  config.model.t_min = 0.25
  assert module.vp_sde(config).t_min == 0.25


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
