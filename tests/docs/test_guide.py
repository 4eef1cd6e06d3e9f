"""The programs of docs/guide run as they are printed, and do what their pages say."""
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import certification, oracles, processes, runs, schedules, weightings
from vdm_jax import objectives as objectives_lib
from vdm_jax.train import metrics

GUIDE = Path(__file__).parents[2] / 'docs' / 'guide'


def program(page: str, file: str) -> str:
  """The Python block of a page that is this file."""
  [block] = re.findall(rf'```python\n(# {file}\n.*?)```', (GUIDE / page).read_text(), re.DOTALL)
  return block


@pytest.mark.long
def test_the_sampler_has_the_order_that_its_page_claims(tmp_path):
  path = tmp_path / 'my_sampler.py'
  path.write_text(program('your_sampler.md', 'my_sampler.py'))
  rows = certification.certify(runpy.run_path(str(path))['midpoint'], order=2)
  assert {row.curve for row in rows} == {'vp', 've', 'flow', 'sub_vp', 'ends'}
  assert all(row.passed and row.evaluations_per_step == 2 for row in rows)


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
  path = tmp_path_factory.mktemp('mine') / 'my_objective.py'
  path.write_text(program('your_objective.md', 'my_objective.py'))
  return path


def of_the_library(*args):
  return objectives_lib.weighted_diffusion(*args, weight=weightings.min_snr(5.0))


@pytest.mark.long
@pytest.mark.parametrize('whose', ['of the page', 'of the library'])
def test_min_snr_has_the_error_of_the_best_denoiser_on_gaussian_data(mine, whose):
  """min(SNR, 5) E|x - x_hat|^2, with the variance of x given z: 1 / (1 / v + SNR) a dimension."""
  objective = {'of the page': runpy.run_path(str(mine))['min_snr'],
               'of the library': of_the_library}[whose]
  process, std, n = processes.GaussianProcess(schedules.Linear(4.0, -4.0)), 0.5, 40_000
  keys = jax.random.split(jax.random.key(0), n)
  x = 0.3 + std * jax.random.normal(jax.random.key(1), (n, 3))
  for t in (0.1, 0.5, 0.9):
    losses = np.asarray(objective(oracles.Gaussian(0.3, std), process, x, jnp.full(n, t), keys)[0])
    snr = np.exp(4.0 - 8.0 * t)
    exact = min(snr, 5.0) * 3.0 / (1.0 / std**2 + snr)
    assert abs(losses.mean() - exact) < 4.0 * losses.std() / np.sqrt(n)


@pytest.mark.long
def test_the_objective_of_the_page_is_that_of_the_library_draw_by_draw(mine):
  assert len(mine.read_text().splitlines()) <= 24
  process = processes.GaussianProcess(schedules.Linear(4.0, -4.0))
  args = (oracles.Gaussian(0.3, 0.5), process, jax.random.normal(jax.random.key(1), (64, 3)),
          jnp.linspace(0.0, 1.0, 64), jax.random.split(jax.random.key(0), 64))
  mine = runpy.run_path(str(mine))['min_snr']
  np.testing.assert_allclose(mine(*args)[0], of_the_library(*args)[0], rtol=2e-4, atol=1e-5)


@pytest.mark.long
def test_the_objective_of_the_page_trains_and_is_evaluated_by_the_usual_commands(mine, tmp_path):
  module = runpy.run_path(str(mine))
  config = module['get_config']()
  config.data.update(batch_size=16, data_dir=str(tmp_path / 'data'))
  config.model.update(features=8, blocks=1, groups=2)
  config.train.update(steps=60, log_every=20, validate_every=60, checkpoint_every=60,
                      pictures_every=0)
  config.optimizer.update(learning_rate=5e-3, warmup_steps=5, decay_steps=60)
  runs.train(config, mine, tmp_path / 'run')
  losses = [r['loss'] for r in metrics.read(tmp_path / 'run') if r['kind'] == 'train']
  assert losses[-1] < 0.9 * losses[0]
  ledger = runs.evaluate(tmp_path / 'run', times=4, examples=16, batch_size=64)
  # An upper bound on an entropy of at least 0: it exceeds what a trained model reaches.
  assert ledger.rows[0]['bits_per_dim'] > 1.8
