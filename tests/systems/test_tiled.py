"""Samples of a latent model that are decoded in tiles: the same images, by every way to draw."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.support import latent_config
from vdm_jax import data, guidance, random, runs, schedules
from vdm_jax.errors import InputError
from vdm_jax.guidance import Guidance
from vdm_jax.nn.blocks.layers import upsample
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.latent import latent

METHOD = catalogue.method('ddim', 2, 'uniform')


class Local(nn.Module):
  """Images of 32 x 40 pixels -> half their sides; a decoded pixel looks two positions far."""

  def setup(self):
    self.encoder = nn.Conv(4, (2, 2), 2)
    self.first, self.second = nn.Conv(8, (3, 3)), nn.Conv(1, (3, 3))

  def encode(self, x):
    return tuple(jnp.split(self.encoder(x), 2, axis=-1))

  def decode(self, y):
    return self.second(nn.tanh(upsample(self.first(y))))

  def __call__(self, x):
    return self.decode(self.encode(x)[0])


class Labelled(nn.Module):
  """z + label / 10, and a weight; of no label (10) z alone."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    w = self.param('w', nn.initializers.zeros, ())
    return z + w + jnp.where(cond == 10, 0.0, 0.1 * cond)[:, None, None, None]


def trained(levels):
  """A model of latents with labels, which it can leave out; nothing is trained."""
  config = latent.default_config(class_conditional=True)
  x = (data.fields.integers if levels else data.fields.reals)(
      'image', (32, 40, 1), *[levels] * bool(levels))
  spec = data.Spec('large', (x, data.fields.label(10)))
  with config.unlocked():
    config.data.update(spec.to_config())
  experiment = label_dropping.with_null(latent.experiment(
      config, net=Labelled(), schedule=schedules.Linear(*latent_config.ENDS), autoencoder=Local()))
  params = jax.jit(experiment.init)(random.key(0))
  return workdir.Trained(experiment, config, params, 1, 'raw')


@pytest.mark.long
def test_a_large_image_is_the_same_in_tiles_up_to_rounding():
  of = trained(0)
  model = of.experiment.model(of.params)
  args = {'sampler': 'ddim', 'steps': 2, 'label': [3, 7], 'guidance': 1.0}
  whole = model.sample(random.key(0), 2, **args)
  assert whole.shape == (2, 32, 40, 1) and np.std(whole) > 0.1
  tiled = model.in_tiles(12, 8).sample(random.key(0), 2, **args)  # two positions are not used
  np.testing.assert_allclose(tiled, whole, atol=2e-6)
  z = random.normal(random.each(random.key(1), 1), jnp.zeros((1, *model.shape)))
  decoded = model.decode(z)
  assert np.abs(model.in_tiles(12, 2).decode(z) - decoded).max() > 1e-3  # it looks further
  np.testing.assert_array_equal(model.in_tiles(20).decode(z), decoded)  # no larger than a tile


@pytest.mark.long
def test_a_command_decodes_in_tiles_and_the_file_says_so(tmp_path, monkeypatch):
  of = trained(17)
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: of)
  (tmp_path / 'run').mkdir()
  draw = lambda name, **tiles: runs.sample(
      tmp_path / 'run', tmp_path / name, count=2, method=METHOD, guided=Guidance(1.0), **tiles)
  draw('whole.npz')
  draw('tiled.npz', tile=12, overlap=8)
  whole, tiled = (np.load(tmp_path / name) for name in ('whole.npz', 'tiled.npz'))
  apart = np.abs(whole['images'].astype(int) - tiled['images'])
  assert apart.max() <= 1 and np.mean(apart) < 0.01  # rounding moves few numbers to the next level
  assert whole['images'].std() > 0.5
  assert '"tile": 12, "overlap": 8' in str(tiled['about']) and 'tile' not in str(whole['about'])
  with pytest.raises(InputError, match='it is there already, with another overlap, tile'):
    draw('whole.npz', tile=12, overlap=8)
  for tiles, says in (({'overlap': 2}, 'overlap=2: without tiles nothing overlaps'),
                      ({'tile': 0}, 'tile=0: it must be at least 1'),
                      ({'tile': 4, 'overlap': 4}, r'overlap=4: it must be in 0 \.\. 3')):
    with pytest.raises(InputError, match=says):
      draw('wrong.npz', **tiles)
  assert not (tmp_path / 'wrong.npz').exists()


@pytest.mark.long
def test_a_bound_of_latents_cannot_be_untold():
  """It reads the label by a condition of its own, so its bits would be those with the label."""
  of = trained(17)
  with pytest.raises(InputError, match='untold=True: this model has a bound of its own'):
    guidance.untold(of.experiment.model(of.params))


def test_a_latent_model_that_cannot_decode_in_tiles_is_refused():
  of = trained(0)
  model = of.experiment.model(of.params)._replace(decode_tiled=None)
  with pytest.raises(InputError, match='tile=4: this model decodes no latents of an autoencoder'):
    model.in_tiles(4)
