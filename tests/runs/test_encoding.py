"""Latents that are encoded once: made by a command, resumed, refused, and read by training."""
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import commands, latent_config
from vdm_jax import data, runs
from vdm_jax.data import latents, writers
from vdm_jax.errors import InputError
from vdm_jax.machine import config_files
from vdm_jax.runs import workdir
from vdm_jax.typing import Context

FILE = latent_config.__file__


def run_config(stage='latent', **changes):
  config = latent_config.get_config(stage)
  config.train.update(steps=2)
  config.update_from_flattened_dict(
      {name.replace('__', '.'): value for name, value in changes.items()})
  return config


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """The run of an autoencoder of 8x8 digits; in training, it flips its images."""
  place = tmp_path_factory.mktemp('encoding') / 'first'
  runs.train(run_config('autoencoder', data__augment=True, data__augmentation='flips'), FILE, place)
  return place


@pytest.fixture(scope='module')
def encoded(first):
  return runs.encode(first, first.parent / 'latents', flips=True, batch_size=200)


def arrays(place):
  return {path.stem: np.load(path) for path in place.glob('*.npy')}


def images_of(config):
  """All training images, with the held-out ones."""
  config = config.copy_and_resolve_references()
  config.update(hold_out=False, augment=False)
  split = data.Data(config).split('train')
  return split.get(np.arange(len(split)))


@pytest.mark.long
def test_the_moments_of_all_training_images_and_of_their_mirror_images_are_kept(first, encoded):
  trained = workdir.load_trained(first)
  batch, kept = images_of(trained.config.data), arrays(encoded)
  assert kept.keys() == {latents.MEAN, latents.LOG_VARIANCE, 'label'}
  for copy, images in enumerate((batch['image'], batch['image'][:, :, ::-1])):
    mean, log_variance = latent_config.Linear().apply(
        {'params': trained.params['net']}, 2.0 * images / 16.0 - 1.0, method='encode')
    np.testing.assert_allclose(kept[latents.MEAN][copy::2], mean, atol=1e-5)
    np.testing.assert_allclose(kept[latents.LOG_VARIANCE][copy::2], log_variance, atol=1e-5)
    np.testing.assert_array_equal(kept['label'][copy::2], batch['label'])
  assert {path.name for path in encoded.iterdir()} == {
      'latents.json', *(f'{name}.npy' for name in kept)}


@pytest.mark.long
def test_encoding_that_was_killed_goes_on_bit_for_bit_and_holds_a_batch_at_a_time(
    first, encoded, monkeypatch):
  place, sizes = first.parent / 'resumed', []
  write = writers.Writer.write

  def twice(self, row, batch):
    if len(sizes) == 2:
      raise KeyboardInterrupt
    sizes.append(len(batch[latents.MEAN]))
    write(self, row, batch)
  with monkeypatch.context() as patched:
    patched.setattr(writers.Writer, 'write', twice)
    with pytest.raises(KeyboardInterrupt):
      runs.encode(first, place, flips=True, batch_size=200)
  part = place.with_name('resumed.part')
  assert sizes == [400, 400] and not place.exists()
  # A kill loses the rows that the record does not know, and may leave half of them on the disk.
  record = json.loads((part / 'latents.json').read_text())
  assert record['done'] == 800
  (part / 'latents.json').write_text(json.dumps(record | {'done': 400}))
  torn = np.load(part / f'{latents.MEAN}.npy', mmap_mode='r+')
  torn[500:] = np.nan
  torn.flush()
  with pytest.raises(InputError, match=r'config.data.latents=.*: only 400 of its \d.* latents are '
                     'made; let scripts/encode_latents.py finish'):
    latents.open_latents(str(place), data.resolve(run_config().data))
  runs.encode(first, place, flips=True, batch_size=200)
  for name, values in arrays(encoded).items():
    assert arrays(place)[name].tobytes() == values.tobytes()


@pytest.mark.long
def test_latents_that_are_there_are_not_made_again_and_others_are_refused(
    first, encoded, monkeypatch):
  monkeypatch.setattr(writers.Writer, 'write', None)
  assert runs.encode(first, encoded, flips=True, batch_size=200) == encoded
  with pytest.raises(InputError, match='latents of another fields|latents of another count, flips'):
    runs.encode(first, encoded, batch_size=200)


def built(first, place=''):
  """The experiment of latents of the run `first`, and its parameters."""
  config = run_config(data__augment=True, data__augmentation='flips', data__latents=str(place))
  config.autoencoder.model = workdir.read_config(first).model
  experiment = config_files.build(workdir.import_config(FILE), config)
  params = experiment.init(jax.random.key(0))
  own = workdir.load_trained(first).params
  return experiment, params | {'autoencoder': own, 'scale': jnp.float32(0.7)}


@pytest.mark.long
def test_a_batch_of_latents_has_the_loss_of_its_images_and_a_fresh_draw_each_time(first, encoded):
  experiment, params = built(first)
  of_latents, _ = built(first, encoded)
  batch, kept = experiment.data.batch(3), of_latents.data.batch(3)
  assert 'image' not in kept and kept[latents.MEAN].shape == (8, 2, 2, 2)
  assert 0 < batch['augmented'].sum() < 8
  np.testing.assert_array_equal(batch['augmented'], kept['augmented'])

  @jax.jit
  def losses(batch, key):
    context = Context((jnp.arange(8) + 0.5) / 8, jax.random.split(key, 8), jnp.int32(0))
    return experiment.loss(params, batch, context)
  key = jax.random.key(1, impl='threefry2x32')
  (ours, terms), (theirs, others) = losses(kept, key), losses(batch, key)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  assert terms.keys() == others.keys() and 'encoding' in terms
  for name, values in terms.items():
    np.testing.assert_allclose(values, others[name], rtol=1e-4, atol=1e-4, err_msg=name)
  again = losses(kept, jax.random.key(2, impl='threefry2x32'))[1]
  assert (np.abs(again['encoding'] - terms['encoding']) > 1e-3).all()  # of another draw


@pytest.mark.long
def test_a_run_on_latents_is_the_run_on_images_and_validates_on_images(
    first, encoded, tmp_path):
  flips = {'data__augment': True, 'data__augmentation': 'flips', 'model__autoencoder': str(first)}
  moved = shutil.copytree(encoded, tmp_path / 'latents')
  means = [runs.train(run_config(**flips, **more), FILE, tmp_path / name) for name, more in (
      ('images', {}), ('kept', {'data__latents': str(moved)}))]
  assert means[0].keys() == means[1].keys() and {'decoding', 'encoding'} <= means[0].keys()
  ours, theirs = (commands.final_state(tmp_path / name).params for name in ('kept', 'images'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
  shutil.rmtree(moved)  # nothing but training needs it
  model = workdir.load(tmp_path / 'kept')
  assert model.decode(jnp.zeros((1, 2, 2, 2))).shape == (1, 8, 8, 1)
  # The run goes on from images, or from the same latents at another place.
  for more in {'data__latents': ''}, {'data__latents': str(encoded)}:
    runs.train(run_config(**flips, **more, train__steps=2), FILE, tmp_path / 'kept')


@pytest.mark.long
@pytest.mark.parametrize('changes,says', [
    ({'latents': 'none'}, 'it holds no latents; make them'),
    ({'latents': 'plain', 'augment': True, 'augmentation': 'flips'}, 'it has no flipped images'),
    ({'latents': 'latents', 'augment': True}, 'config.data.augmentation=.*of latents is flips'),
    ({'latents': 'foreign'}, 'of an autoencoder with other weights .*name latents of this'),
    ({'latents': 'strange'}, 'of other images than digits: .* parts then and')])
def test_latents_that_are_not_of_this_run_are_refused_before_anything_is_written(
    first, encoded, tmp_path, monkeypatch, changes, says):
  monkeypatch.chdir(tmp_path)
  for name, about in (('latents', {}), ('plain', {'flips': False}),
                      ('foreign', {'autoencoder': '0' * 16}),
                      ('strange', {'images': {'sha256': '0', 'count': 7}})):
    shutil.copytree(encoded, name)
    record = json.loads((encoded / 'latents.json').read_text())
    if name == 'plain':
      record['count'] //= 2
      for path in (tmp_path / name).glob('*.npy'):
        np.save(path, np.load(path)[::2])
    (tmp_path / name / 'latents.json').write_text(json.dumps(
        record | {'about': record['about'] | about}))
  config = run_config(model__autoencoder=str(first))
  config.data.update(changes)
  with pytest.raises(InputError, match=says) as error:
    runs.train(config, FILE, tmp_path / 'run')
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


@pytest.mark.long
def test_only_a_diffusion_of_latents_reads_latents(encoded, tmp_path):
  with pytest.raises(InputError, match='config.data.name=.*: it holds latents.*name the images'):
    data.resolve(run_config(data__name=str(encoded)).data)
  with pytest.raises(InputError, match='config.data.latents=.*: this config diffuses no latents'):
    runs.train(run_config('autoencoder', data__latents=str(encoded)), FILE, tmp_path / 'run')
