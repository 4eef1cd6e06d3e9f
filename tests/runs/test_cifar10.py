"""CIFAR-10 itself: the two terms of its bound that no network changes, and the recipe end to end.

Needs the prepared data set in `../shared/tfds`, beside the checkout.
"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdm_jax import runs
from vdm_jax.runs import workdir

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / 'shared' / 'tfds'

pytestmark = pytest.mark.skipif(not (DATA / 'cifar10').is_dir(),
                                reason='there is no CIFAR-10 in ../shared/tfds')

CONFIG = '''
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.systems.variational import vdm


class Net(nn.Module):
  """The optimal estimate of white noise: next to nothing to compute."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    return self.param('scale', nn.initializers.ones, ()) * z


def get_config():
  config = vdm.default_config()
  config.data.update(name='cifar10', validation=8, batch_size=8)
  config.train.update(steps=1, log_every=1, validate_every=1, checkpoint_every=1, pictures_every=0)
  return config


def build(config):
  return vdm.experiment(config, net=Net(), schedule=schedules.Linear(13.3, -5.0))
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cifar10')
  (folder / 'trivial.py').write_text(CONFIG)
  config = workdir.import_config(folder / 'trivial.py').get_config()
  config.data.data_dir = str(DATA)
  config.data.memory_gb = 0.0  # 16 images are not worth decoding 50,000
  config.data.workers = 0
  runs.train(config, folder / 'trivial.py', folder / 'run')
  return folder / 'run'


def terms_of(run, ending):
  """{term: (mean, standard error over images)} of an evaluation, in bits/dim."""
  with np.load(run / f'bits{ending}.npz') as bits:
    terms = {name: bits[f'vlb/{name}'].mean(axis=0) for name in ('reconstruction', 'latent')}
  return {name: (u.mean(), u.std(ddof=1) / len(u)**0.5) for name, u in terms.items()}


@pytest.mark.long
@pytest.mark.parametrize('examples', [600, 10_000])
def test_reconstruction_and_latent_have_their_known_values_whatever_the_network(run, examples):
  """At the fixed end points 13.3 and -5: 0.010390 and 0.001236 bits/dim on the test set."""
  ledger = runs.evaluate(run, times=1, examples=examples, batch_size=64)
  row = ledger.rows[0]
  assert row['logsnr_max'] == pytest.approx(13.3) and row['logsnr_min'] == pytest.approx(-5.0)
  assert ledger.dataset['examples'] == examples
  terms = terms_of(run, '' if examples == 10_000 else f'_{examples}_examples')
  value, error = terms['reconstruction']
  assert row['parts']['reconstruction'] == pytest.approx(value)
  assert abs(value - 0.010390) < 4 * error and error < 0.02 * 0.010390
  value, error = terms['latent']
  assert row['parts']['latent'] == pytest.approx(value)
  if examples == 10_000:  # the same for every draw
    assert value == pytest.approx(0.0012360, abs=6e-8)
  else:
    assert abs(value - 0.0012360) < 4 * error


@pytest.mark.long
def test_the_recipe_made_small_trains_resumes_and_is_evaluated_by_the_scripts(tmp_path):
  """As a new user would: the config of the paper, with a network of two blocks."""
  def script(name, *flags):
    done = subprocess.run([sys.executable, str(ROOT / 'scripts' / name),
                           f'--workdir={tmp_path / "run"}', *flags], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout

  train = ['--config=' + str(ROOT / 'configs' / 'cifar10' / 'vdm.py'), f'--data_dir={DATA}'] + [
      f'--config.{name}={value}' for name, value in {
          'model.features': 8, 'model.groups': 4, 'model.blocks': 1, 'data.batch_size': 8,
          'data.validation': 8, 'data.memory_gb': 0.0, 'data.workers': 0, 'train.log_every': 1,
          'train.validate_every': 2, 'train.checkpoint_every': 2, 'train.pictures_every': 0,
      }.items()]
  assert 'cifar10 3.0.2: 32 x 32 x 3, 256 levels, 10 classes' in script(
      'train.py', *train, '--config.train.steps=2')
  assert 'Resuming at step 2 of 4' in script('train.py', *train, '--config.train.steps=4')
  printed = script('evaluate.py', '--examples=16', '--times=2', '--repeats=2',
                   '--estimates=vlb@1000')
  ledger = json.loads((tmp_path / 'run' / 'ledger_16_examples.json').read_text())
  assert ledger['dataset']['version'] == '3.0.2' and ledger['checkpoint']['step'] == 4
  assert ledger['dataset']['of'] == 10_000
  for row in ledger['rows']:
    assert f'{row["estimate"]} ' in printed and f'{row["bits_per_dim"]:.4f}' in printed
    assert abs(row['logsnr_max'] - 13.3) < 1e-3 and abs(row['logsnr_min'] + 5) < 1e-3
  script('sample.py', '--steps=2', '--count=4', '--out=samples.png')
  with Image.open(tmp_path / 'samples.png') as picture:
    width, height = picture.size
    assert width == 7 * 67 and 0 < height - 7 * 67 < 30  # a line of text below the images
