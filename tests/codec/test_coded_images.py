"""Real images through real networks: they come back, and their bits are those of the bound."""
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import codec, decoders, processes, random, recipes, schedules
from vdm_jax.codec import rates
from vdm_jax.likelihood import closed_forms
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Estimate, Model

ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / 'shared' / 'tfds'


def experiment(name):
  """VDM with a small network, on these data."""
  config = recipes.IMAGES[name](vdm.default_config(features=8, blocks=1, groups=4))
  config.data.data_dir = str(TFDS)
  return vdm.experiment(config, schedule=schedules.Linear(*compose.end_points(config)))


def model_of(of):
  """With parameters of no training: first ones and noise, so that every layer counts."""
  rng = np.random.default_rng(1)
  return of.model(jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(
      0.0, 0.03, leaf.shape).astype(np.float32), jax.jit(of.init)(random.key(0))))


def require_back(model, images):
  chain = codec.chain(model, 256, 4, lanes=5)
  coded = codec.encode(chain, lambda rows: images[rows], len(images), progress=False)
  found = np.full(images.shape, -1)
  for rows, decoded in codec.decode(chain, coded.lanes, len(images), progress=False):
    found[rows] = decoded
  np.testing.assert_array_equal(found, images)


@pytest.mark.long
@pytest.mark.skipif(not TFDS.is_dir(), reason='../shared/tfds is not there')
@pytest.mark.parametrize('name, shape', [('mnist', (28, 28, 1)), ('cifar10', (32, 32, 3))])
def test_images_of_a_data_set_come_back_byte_for_byte(name, shape):
  of = experiment(name)
  images = of.data.split('test').get(np.arange(20))['image']
  assert images.shape[1:] == shape
  require_back(model_of(of), images)


@pytest.mark.long
@pytest.mark.parametrize('channels', [1, 3])
def test_images_of_odd_sides_come_back_byte_for_byte(channels):
  rng, pixels = np.random.default_rng(0), decoders.Pixels(256)
  weights = jnp.asarray(rng.normal(0.0, 0.2, (3, 3, channels, channels)), jnp.float32)

  def denoise(z, level, cond=None):  # a network of one layer
    at = level.expand(z)
    eps = jnp.tanh(z + jax.lax.conv_general_dilated(
        z, weights, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
    return Estimate((z - at.sigma * eps) / at.alpha, eps)

  process = processes.GaussianProcess(schedules.Linear(13.3, -5.0))
  images = rng.integers(0, 256, (7, 7, 5, channels))
  require_back(Model(denoise, process, pixels.log_prob, pixels.encode, pixels.decode,
                     lambda batch: None, (7, 5, channels)), images)


@pytest.mark.long
def test_where_the_digits_are_known_they_cost_what_their_ends_cost():
  """0.0462 bits/dim: the reconstruction and the latent term, of a chain of any length."""
  part, pixels = experiment('digits').data.split('test'), decoders.Pixels(17)
  images, ends = part.get(np.arange(300))['image'], (7.434, -5.240)  # of a trained run

  def known(z, level, x):
    at = level.expand(z)
    return Estimate(x, (z - at.alpha * x) / at.sigma)

  told = Model(known, processes.GaussianProcess(schedules.Linear(*ends)), pixels.log_prob,
               pixels.encode, pixels.decode, lambda batch: pixels.encode(batch['image']), (8, 8, 1))
  net = rates.net(codec.chain(told, 17, 10, lanes=75),
                  lambda rows: (images[rows], {'image': images[rows]}), 300, seed=0, label='codec',
                  progress=False) / 64
  table, _ = closed_forms.reconstruction(17, ends[0])
  exact = sum(closed_forms.end_terms(images, table, ends[1]).values()) / 64 / np.log(2.0)
  difference = net - exact
  assert abs(difference.mean()) < 4.0 * difference.std(ddof=1) / 300**0.5
  assert exact.mean() == pytest.approx(0.0462, abs=0.001)


# ------------------------------------------------------------ the digits, trained


def script(name, *arguments):
  """A command as users start it: the programs of the tests are not optimised, and are slow."""
  done = subprocess.run([sys.executable, f'scripts/{name}', *map(str, arguments)], cwd=ROOT,
                        env={**os.environ, 'XLA_FLAGS': ''}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def train(folder, config, steps):
  script('train.py', f'--config={config}', f'--workdir={folder}', '--config.model.blocks=1',
         '--config.model.features=12', '--config.model.groups=4', f'--config.train.steps={steps}',
         f'--config.optimizer.decay_steps={steps}', '--config.optimizer.warmup_steps=20',
         f'--config.train.validate_every={steps}', f'--config.train.checkpoint_every={steps}')


CHAINS = '20', '20/analytic', '50', '100'


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """(net, bound) of the 300 test images, bits/dim [300] each, by chain; and the ledger's checks."""
  folder = tmp_path_factory.mktemp('digits')
  train(folder, 'configs/digits/vdm.py', 300)
  names = [f'{family}@{chain}' for chain in CHAINS for family in ('codec', 'vlb')]
  script('evaluate.py', f'--workdir={folder}', f'--estimates={",".join(names)}', '--times=20')
  with np.load(folder / 'bits.npz') as bits:
    found = {chain: [bits[f'{family}@{chain}/total'][0] for family in ('codec', 'vlb')]
             for chain in CHAINS}
  return found, json.loads((folder / 'ledger.json').read_text())['checks']


@pytest.mark.long
@pytest.mark.parametrize('chain', CHAINS)
def test_the_net_rate_of_the_digits_is_their_bound_image_by_image(rows, chain):
  """Within one percent and two standard errors of the paired differences."""
  net, bound = rows[0][chain]
  difference = net - bound
  error = difference.std(ddof=1) / 300**0.5
  assert len(net) == 300 and error < 0.01 * bound.mean()
  assert abs(difference.mean()) < 0.01 * bound.mean() + 2.0 * error


@pytest.mark.long
def test_the_best_variances_save_a_quarter_of_a_bit_of_a_short_chain(rows):
  assert rows[0]['20/analytic'][0].mean() < rows[0]['20'][0].mean() - 0.25


@pytest.mark.long
def test_the_ledger_holds_each_code_against_its_bound(rows):
  checks = {check['name']: check['passed'] for check in rows[1]}
  assert all(checks[f'codec@{chain} <= vlb@{chain}, to 1 %'] for chain in CHAINS)
