"""Runs without a denoiser that draw their own samples: an autoencoder, a chain of bits."""
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import configs
from vdm_jax import data, guidance, load, random, runs
from vdm_jax.errors import InputError
from vdm_jax.runs import training


@pytest.fixture(scope='module', params=['systems:vae', 'sequences/dpm2015'])
def run(request, tmp_path_factory):
  file, (_, config) = configs.file(request.param), configs.read(request.param)
  config.model.features = 8
  if request.param == 'sequences/dpm2015':
    config.model.update(timesteps=5, blocks=1)
  config.data.update(validation=16, batch_size=16)
  config.optimizer.update(decay_steps=0, warmup_steps=0)
  config.train.update(steps=2, log_every=2, validate_every=2, checkpoint_every=2,
                      pictures_every=2)
  directory = tmp_path_factory.mktemp('own') / 'run'
  runs.train(config, file, directory)
  return directory


@pytest.mark.long
def test_samples_are_those_of_the_model_and_depend_on_seed_and_number_alone(run, tmp_path):
  assert runs.sample(run, tmp_path / 'a.npz', count=9, seed=3, batch_size=4) is None
  with np.load(tmp_path / 'a.npz') as drawn:
    images, about = drawn['images'], json.loads(str(drawn['about']))
  keys = random.per_example(jax.random.key(3), jnp.arange(9))
  np.testing.assert_array_equal(images, jax.jit(load(run).sample)(keys))
  assert (about['seed'], about['checkpoint'], about['count']) == (3, 2, 9)
  runs.sample(run, tmp_path / 'a.png', count=9, seed=3)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.size[0] > 20


@pytest.mark.long
def test_its_samples_are_the_pictures_of_its_training(run):
  with Image.open(run / 'samples' / 'step_2.png') as picture:
    assert len(picture.getcolors()) > 1


def test_a_model_that_draws_nothing_has_no_pictures():
  experiment = types.SimpleNamespace(model=lambda params: types.SimpleNamespace(logits=None))
  spec = data.fields.of_images('', (8, 8, 1), 17, 10)
  assert training._preview(experiment, spec, {}, types.SimpleNamespace(seed=0)) is None


@pytest.mark.long
def test_what_needs_a_denoiser_is_refused(run, tmp_path):
  for more in ({'method': runs.ANCESTRAL}, {'label': 1}, {'trace': 'a.png'},
               {'guided': guidance.Guidance(1.0)}):
    with pytest.raises(InputError, match='draws its own samples; leave out --sampler'):
      runs.sample(run, tmp_path / 'a.npz', **more)
  with pytest.raises(InputError, match='which samples.*; a model that denoises is needed'):
    runs.evaluate(run)
