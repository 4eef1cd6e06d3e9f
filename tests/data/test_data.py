"""Data: the oracles are the arrays that were written, counts, and published numbers."""
import hashlib
import itertools
import json
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vdm_jax import data
from vdm_jax.data import arrays, augmentation, fields, fingerprints, pipeline, stores
from vdm_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TFDS = ROOT.parent / 'shared' / 'tfds'
needs_tfds = pytest.mark.skipif(not TFDS.exists(), reason=f'no prepared data sets in {TFDS}')


def make(**fields):
  config = data.default_config()
  config.update(fields)
  return data.Data(config)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A directory into which two builders prepared the digits at once."""
  from vdm_jax.data import builders
  path = tmp_path_factory.mktemp('tfds')
  first, second = (builders.Digits(data_dir=str(path)) for _ in range(2))
  generators = second._split_generators

  def overtaken(dl_manager):
    builders.generate(first)
    return generators(dl_manager)

  second._split_generators = overtaken
  builders.generate(second)
  return path


def numbered(path, n=23, shape=(4, 4, 3)):
  """An .npz whose image i is filled with i, so that a batch shows which images it holds."""
  images = np.broadcast_to(np.arange(n, dtype=np.uint8).reshape(n, *[1] * len(shape)), (n, *shape))
  labels = np.arange(n)
  np.savez(path, x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
  return str(path)


# The data sets.


@pytest.mark.long
def test_of_two_preparations_at_once_one_is_used_and_nothing_else_is_left(data_dir):
  assert os.listdir(data_dir / 'digits') == ['1.0.0']


def test_the_digits_are_scikit_learns_split_at_every_sixth(data_dir):
  from sklearn.datasets import load_digits
  digits = load_digits()
  d = make(data_dir=str(data_dir))
  assert d.spec == fields.of_images('digits', (8, 8, 1), 17, 10)
  train, test = (d.split(s).get(np.arange(n)) for s, n in (('train', 1497), ('test', 300)))
  assert len(d.split('train')) == 1497 and len(d.split('test')) == 300
  np.testing.assert_array_equal(test['image'][..., 0], digits.images[::6])
  np.testing.assert_array_equal(test['label'], digits.target[::6])
  kept = [i for i in range(1797) if i % 6]
  np.testing.assert_array_equal(train['image'][..., 0], digits.images[kept])
  np.testing.assert_array_equal(train['label'], digits.target[kept])
  assert train['image'].dtype == np.uint8 and train['label'].dtype == np.int32


def test_a_histogram_of_each_pixel_codes_the_digits_at_the_known_2_422_bits(data_dir):
  d = make(data_dir=str(data_dir))
  train, test = (d.split(s).get(np.arange(len(d.split(s))))['image'].reshape(-1, 64)
                 for s in ('train', 'test'))
  counts = (train[:, :, None] == np.arange(17)).sum(0) + 0.5
  p = counts / counts.sum(1, keepdims=True)
  assert -np.log2(p[np.arange(64), test]).mean() == pytest.approx(2.422, abs=5e-4)


@pytest.mark.long
@needs_tfds
def test_cifar10_has_its_published_counts_and_second_moment():
  d = make(name='cifar10', data_dir=str(TFDS))
  assert d.spec == fields.of_images('cifar10', (32, 32, 3), 256, 10)
  assert (len(d.split('train')), len(d.split('test'))) == (50_000, 10_000)
  assert d.split('test').version == '3.0.2'
  square = [((2 * (b['image'] + 0.5) / 256 - 1)**2).mean() for b in d.split('test').chunks()]
  sizes = [len(b['image']) for b in d.split('test').chunks()]
  assert np.average(square, weights=sizes) == pytest.approx(0.2526525, abs=5e-8)
  np.testing.assert_array_equal(
      np.bincount(d.split('test').get(np.arange(10_000))['label']), 10 * [1000])


@pytest.mark.long
@needs_tfds
def test_mnist_has_its_published_counts_by_class():
  d = make(name='mnist', data_dir=str(TFDS), memory_gb=0.01)
  assert d.spec == fields.of_images('mnist', (28, 28, 1), 256, 10)
  assert (len(d.split('train')), len(d.split('test'))) == (60_000, 10_000)
  np.testing.assert_array_equal(
      np.bincount(d.split('test').get(np.arange(10_000))['label']),
      [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_the_swirl_has_the_moments_of_its_formula():
  d = make(name='swirl')
  assert d.spec == fields.of_images('swirl', (2,), 256, 0)
  x = d.split('train').get(np.arange(50_000))['image'].astype(float)
  # E over theta, whose density is 2 theta / (3 pi)^2; floor takes half a level off the mean and
  # adds the variance 1/12 of a uniform rounding.
  theta = (np.arange(100_000) + 0.5) / 100_000 * 3 * np.pi
  density = 2 * theta / (3 * np.pi)**2 * (3 * np.pi) / 100_000
  arm = 4 * (2 * theta + np.pi) * np.stack([np.cos(theta), np.sin(theta)])
  mean = (arm * density).sum(1)
  variance = (arm**2 * density).sum(1) - mean**2 + 1 + 1 / 12
  np.testing.assert_array_less(abs(x.mean(0) - (mean + 120 - 0.5)), 4 * x.std(0) / 50_000**0.5)
  error = ((x - x.mean(0))**2).std(0) / 50_000**0.5
  np.testing.assert_array_less(abs(x.var(0) - variance), 4 * error)
  assert 'label' not in d.batch(0)
  assert d.split('test').sha256() != make(name='swirl').split('train').sha256()


def moments(*arcs):
  """Mean and covariance of points [n, 2], each taken to be as probable as any other."""
  points = np.concatenate(arcs)
  return points.mean(0), np.cov(points.T, bias=True)


def formula(name):
  """Mean and covariance of a formula in levels, before the noise, and the noise's variance."""
  u = (np.arange(20_000) + 0.5) / 20_000
  circle = lambda angle: np.stack([np.cos(angle), np.sin(angle)], -1)
  if name == 'swiss_roll':
    angle = 1.5 * np.pi * (1 + 2 * u)
    return *moments(8 * (angle[:, None] * circle(angle) + 16)), 1.6**2
  if name == 'moons':
    arc = circle(np.pi * u)
    arcs = [60 * (a - [0.5, 0.25]) + 128 for a in (arc, [1, 0.5] - arc)]
    return *moments(*arcs), (60 / 16)**2
  if name == 'rings':
    return np.full(2, 128.0), 26**2 * 7.5 / 2 * np.eye(2), (26 / 12)**2
  return np.full(2, 128.0), 56**2 / 2 * np.eye(2), 7**2  # eight_gaussians


@pytest.mark.parametrize('name', ['swiss_roll', 'moons', 'rings', 'eight_gaussians'])
def test_points_in_the_plane_have_the_moments_of_their_formula(name):
  d, n = make(name=name), 50_000
  assert d.spec == fields.of_images(name, (2,), 256, 0)
  x = d.split('train').get(np.arange(n))['image'].astype(float)
  mean, covariance, noise = formula(name)
  # Rounding down takes half a level off the mean and adds the variance 1/12 of a uniform one.
  np.testing.assert_array_less(abs(x.mean(0) - (mean - 0.5)), 4 * x.std(0) / n**0.5)
  products = (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None]
  np.testing.assert_array_less(
      abs(products.mean(0) - covariance - (noise + 1 / 12) * np.eye(2)),
      4 * products.std(0) / n**0.5)
  assert d.split('test').sha256() != make(name=name).split('train').sha256()


def test_the_checkerboard_is_uniform_on_eight_squares():
  d = make(name='checkerboard')
  assert d.spec == fields.of_images('checkerboard', (2,), 256, 0)
  x = d.split('train').get(np.arange(50_000))['image'].astype(int)
  square, inside = x // 64, x % 64
  assert not (square.sum(1) % 2).any()
  for cell in (square @ [4, 1], inside[:, 0], inside[:, 1]):
    _, counts = np.unique(cell, return_counts=True)
    assert len(counts) in (8, 64)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_heartbeat_is_one_of_five_sequences():
  d = make(name='heartbeat')
  assert d.spec == fields.of_images('heartbeat', (20,), 2, 0)
  x = d.split('train').get(np.arange(50_000))['image']
  found, counts = np.unique(x, axis=0, return_counts=True)
  np.testing.assert_array_equal(found[::-1], np.tile(np.eye(5), 4))
  assert stats.chisquare(counts).pvalue > 1e-4


def test_a_data_set_that_is_not_here_is_declared_by_tfds_so_that_a_config_builds(tmp_path):
  d = make(name='cifar10', data_dir=str(tmp_path))
  assert d.spec == fields.of_images('cifar10', (32, 32, 3), 256, 10)
  with pytest.raises(FileNotFoundError, match='python scripts/prepare_data.py cifar10 --data_dir='
                                              f'{tmp_path}'):
    d.batch(0)
  with pytest.raises(FileNotFoundError, match='tfds build celeb_a --data_dir=.*TensorFlow'):
    make(name='celeb_a', data_dir=str(tmp_path)).split('test')


def test_a_configured_spec_needs_no_data():
  d = make(name='downsampled_imagenet/64x64', data_dir='/nowhere', shape=(64, 64, 3), levels=256)
  assert d.spec == fields.of_images('downsampled_imagenet/64x64', (64, 64, 3), 256, 0)


def declare(data_dir, name, version, splits, file_format):
  """Writes what TFDS knows about a data set, without its records."""
  folder = data_dir / name / version
  folder.mkdir(parents=True)
  image = {'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image',
           'image': {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '-1', '3']}}}
  (folder / 'features.json').write_text(json.dumps({
      'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict',
      'featuresDict': {'features': {'image': image}}}))
  (folder / 'dataset_info.json').write_text(json.dumps({
      'name': name.split('/')[0], 'version': version, 'fileFormat': file_format,
      'splits': [{'name': split, 'shardLengths': [str(n)], 'numBytes': '1', 'filepathTemplate':
                  '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'} for split, n in splits]}))


@pytest.mark.parametrize('count, word', [(49_999, 'old'), (50_000, 'new')])
def test_the_two_downsampled_imagenets_are_told_apart_by_their_validation_count(
    tmp_path, count, word):
  declare(tmp_path, 'downsampled_imagenet/32x32', '2.0.0',
          [('train', 1_281_149), ('validation', count)], 'array_record')
  store = stores.open_store('downsampled_imagenet/32x32', str(tmp_path), image_size=32)
  assert store.version == f'2.0.0, {word} ({count:,} validation images)'
  assert (store.test.name, store.test.length) == ('validation', count)
  assert store.fields[0].shape == (32, 32, 3)


def test_records_without_random_access_are_refused_with_the_remedy(tmp_path):
  declare(tmp_path, 'mnist', '3.0.1', [('train', 2), ('test', 2)], 'tfrecord')
  with pytest.raises(ValueError, match='is tfrecord, not array_record.*prepare_data.py mnist'):
    make(name='mnist', data_dir=str(tmp_path)).batch(0)


# Files of one's own.


@pytest.mark.parametrize('array, shape, levels', [
    (np.arange(12 * 4).reshape(12, 2, 2), (2, 2, 1), 48),
    (np.full((12, 3, 2, 3), 127, np.uint8), (3, 2, 3), 128),
    (np.full((12, 3, 2, 3), 128, np.int64), (3, 2, 3), 256),
    (np.arange(24).reshape(12, 2) % 2 == 1, (2,), 2),
])
def test_an_array_file_is_read_as_it_is_and_every_sixth_is_for_test(
    tmp_path, array, shape, levels):
  np.save(tmp_path / 'x.npy', array)
  d = make(name=str(tmp_path / 'x.npy'))
  assert d.spec == fields.of_images(str(tmp_path / 'x.npy'), shape, levels, 0)
  flat = lambda split: d.split(split).get(np.arange(len(d.split(split))))['image'].reshape(-1)
  np.testing.assert_array_equal(flat('test'), array[[0, 6]].reshape(-1))
  np.testing.assert_array_equal(
      flat('train'), array[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]].reshape(-1))


@pytest.mark.parametrize('keys, classes', [
    (('x_train', 'y_train', 'x_test', 'y_test'), 5), (('train', 'test'), 0),
    (('images', 'labels'), 7), (('whatever',), 0)])
def test_an_npz_file_is_read_by_its_keys(tmp_path, keys, classes):
  images = np.arange(14 * 4, dtype=np.uint8).reshape(14, 2, 2, 1)
  labels = np.arange(14)[:, None] % 7  # Keras keeps an axis
  arrays = {'x_train': images[:5], 'y_train': labels[:5], 'x_test': images[5:8],
            'y_test': labels[:3], 'train': images[:5], 'test': images[5:8], 'images': images,
            'labels': labels, 'whatever': images}
  np.savez(tmp_path / 'x.npz', **{key: arrays[key] for key in keys})
  d = make(name=str(tmp_path / 'x.npz'))
  assert d.spec.classes == classes
  if 'train' in keys or 'x_train' in keys:
    assert (len(d.split('train')), len(d.split('test'))) == (5, 3)
  else:
    assert (len(d.split('train')), len(d.split('test'))) == (11, 3)
  batch = d.split('train').get([0, 1])
  assert ('label' in batch) == bool(classes)
  first = 0 if len(d.split('train')) == 5 else 1
  x = 'whatever' if 'whatever' in keys else 'image'
  np.testing.assert_array_equal(batch[x], images[first:first + 2])
  if classes:
    np.testing.assert_array_equal(batch['label'], labels[first:first + 2, 0])


def save_images(root, names, size=(5, 4), mode='RGB'):
  rng = np.random.default_rng(0)
  pictures = {}
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == 'RGB' else (size[1], size[0])
    pictures[name] = rng.integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pictures[name]).save(path)
  return pictures


def test_a_folder_is_split_at_every_sixth_in_order_and_its_subfolders_are_classes(tmp_path):
  names = [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(4)]
  pictures = save_images(tmp_path, names)
  d = make(name=str(tmp_path))
  assert d.spec == fields.of_images(str(tmp_path), (4, 5, 3), 256, 2)
  test = d.split('test').get([0, 1])
  np.testing.assert_array_equal(test['image'], [pictures['cat/0.png'], pictures['dog/2.png']])
  np.testing.assert_array_equal(test['label'], [0, 1])
  train = d.split('train').get(np.arange(6))
  np.testing.assert_array_equal(
      train['image'], [pictures[n] for n in names if n not in ('cat/0.png', 'dog/2.png')])


def test_a_folder_with_train_and_test_keeps_them_and_grey_images_have_one_channel(tmp_path):
  pictures = save_images(tmp_path, ['train/a.png', 'train/b.png', 'test/c.png'], mode='L')
  d = make(name=str(tmp_path))
  assert d.spec.shape == (4, 5, 1) and d.spec.classes == 0
  train = d.split('train').get([0, 1])
  np.testing.assert_array_equal(
      train['image'][..., 0], [pictures['train/a.png'], pictures['train/b.png']])
  assert len(d.split('test')) == 1 and 'label' not in train


def test_images_of_several_sizes_ask_for_image_size_and_with_it_are_cropped_at_the_centre(tmp_path):
  save_images(tmp_path, ['a.png', 'b.png'])
  save_images(tmp_path, ['c.png'], size=(4, 4))
  with pytest.raises(ValueError, match=r'4 x 4 and 4 x 5.*; set config.data.image_size'):
    make(name=str(tmp_path)).batch(0)
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200  # all that the central square shows
  Image.fromarray(wide).save(tmp_path / 'a.png')
  d = make(name=str(tmp_path), image_size=4)
  assert d.spec.shape == (4, 4, 3)
  assert (d.split('test').get([0])['image'] == 200).all()


@pytest.mark.parametrize('array, message', [
    (np.full((9, 4, 4), np.nan), 'not finite'), (np.full((9, 4), 'a'), 'it holds <U1'),
    (np.full((9, 4, 4), -1), 'values from -1 to -1'),
    (np.full((9, 4, 4), 300), 'values from 300 to 300'),
    (np.zeros(9, int), r'shape \(9,\)'),
    (np.zeros((9, 3, 8, 8), int), 'channels come last'),
])
def test_arrays_that_are_no_images_are_refused_with_the_reason(tmp_path, array, message):
  np.save(tmp_path / 'x.npy', array)
  with pytest.raises(ValueError, match=message):
    make(name=str(tmp_path / 'x.npy')).batch(0)


@pytest.mark.parametrize('fields, message', [
    ({'shape': (8, 8, 3)}, r'config.data.shape=\(8, 8, 3\): .*\(4, 4, 3\).*leave it empty'),
    ({'shape': (4, 4, 3), 'levels': 9}, 'config.data.levels=9: .*the value 22; set 23 or more'),
    ({'classes': 3}, 'config.data.classes=3: .*23 classes'),
    ({'validation': 23}, 'config.data.validation=23: .*23 examples.*choose 22 at most'),
    ({'image_size': 8}, 'config.data.image_size=8: .*resize the arrays'),
    ({'batch_size': 0}, 'config.data.batch_size=0: it must be 1 or more'),
    ({'batch_size': -8}, 'config.data.batch_size=-8: it must be 1 or more'),
    ({'workers': -1}, 'config.data.workers=-1: it must be 0 or more'),
    ({'image_size': -4}, 'config.data.image_size=-4: it must be 0 or more'),
    ({'validation': -1}, 'config.data.validation=-1: it must be 0 or more'),
    ({'classes': -1}, 'config.data.classes=-1: it must be 0 or more'),
    ({'memory_gb': -0.5}, 'config.data.memory_gb=-0.5: it must be 0 or more'),
    ({'memory_gb': float('nan')}, 'config.data.memory_gb=nan: it must be 0 or more'),
    ({'levels': 1}, 'config.data.levels=1: values have 2 levels or more'),
    ({'levels': -1}, 'config.data.levels=-1: values have 2 levels or more'),
    ({'shape': (4, 0, 3)}, r'config.data.shape=\(4, 0, 3\): every axis'),
])
def test_a_config_that_does_not_fit_the_data_is_refused_by_field(tmp_path, fields, message):
  with pytest.raises(InputError, match=message):
    make(name=numbered(tmp_path / 'x.npz'), **fields).batch(0)


def test_names_that_are_nothing_are_refused_with_a_hint(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  with pytest.raises(InputError, match='not a data set of TFDS.*write ./photos for the folder'):
    make(name='photos', data_dir=str(tmp_path)).batch(0)
  with pytest.raises(FileNotFoundError, match='no folder /no/such'):
    make(name='/no/such').batch(0)
  with pytest.raises(FileNotFoundError, match='no file x.npy'):
    make(name='x.npy').batch(0)
  with pytest.raises(ValueError, match='too few images'):
    make(name='./photos').batch(0)
  (tmp_path / 'photos.zip').write_bytes(b'PK')
  with pytest.raises(InputError, match="name='./photos.zip': it is a file"):
    make(name='./photos.zip').batch(0)


@pytest.mark.parametrize('name, message', [
    ('my-photos', 'write ./my-photos for a folder'), ('a b', 'write ./a b for a folder'),
    ('', 'not a data set of TFDS'), ('photos.zip', 'unpack it'), ('photos.tar.gz', 'unpack it'),
    ('cifar-10', 'write cifar10, or ./cifar-10 for a folder'), ('CIFAR10', 'write cifar10, or'),
    ('digit', 'write digits, or'), ('swirls', 'write swirl, or'),
    ('cifar10/nope', 'BuilderConfig nope not found.*configurations and versions of cifar10'),
    ('cifar10:9.9.9', 'cannot be loaded at version 9.9.9, only: 3.0.2'),
    ('cifar10/a=b', "unexpected keyword argument 'a'"), ('cifar10/', 'Parsing builder name'),
])
def test_a_name_that_no_data_set_can_have_is_refused_in_one_line_with_what_was_meant(
    tmp_path, name, message):
  with pytest.raises(InputError, match=message) as error:
    make(name=name, data_dir=str(tmp_path)).batch(0)
  assert '\n' not in str(error.value) and f'config.data.name={name!r}: ' in str(error.value)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='--data_dir'):
    make(data_dir=str(tmp_path / 'file' / 'below')).batch(0)


# Pictures of every kind.


GREY = np.random.default_rng(1).integers(0, 256, (4, 5)).astype(np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (4, 5, 3)).astype(np.uint8)


def palette_of(grey):
  """The same picture, whose palette holds the grey levels in another order."""
  order = np.random.default_rng(3).permutation(256).astype(np.uint8)
  image = Image.fromarray(np.argsort(order).astype(np.uint8)[grey])
  image.putpalette(np.repeat(order, 3).tobytes())
  assert image.mode == 'P'
  return image


def with_alpha(pixels, alpha):
  image = Image.fromarray(pixels)
  image.putalpha(Image.fromarray(alpha))
  return image


def png(bits, kind, width, height, content):
  """A PNG that Pillow does not write: of 16 bits a channel."""
  chunk = lambda name, body: (struct.pack('>I', len(body)) + name + body
                              + struct.pack('>I', zlib.crc32(name + body)))
  rows = np.frombuffer(content, np.uint8).reshape(height, -1)
  return b''.join([
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)),
      chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))),
      chunk(b'IEND', b'')])


def read_both(tmp_path, name, image, **options):
  """The test image of a folder of two of these pictures, and its `describe()`."""
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    if isinstance(image, bytes):
      (tmp_path / folder / name).write_bytes(image)
    else:
      image.save(tmp_path / folder / name, **options)
  d = make(name=str(tmp_path), levels=256)
  return d.split('test').get([0])['image'][0], d.describe()


OPAQUE = np.full((4, 5), 255, np.uint8)


@pytest.mark.parametrize('name, image', [
    ('x.png', Image.fromarray(GREY)), ('x.tif', Image.fromarray(GREY)),
    ('x.pgm', Image.fromarray(GREY)), ('x.gif', Image.fromarray(GREY)),
    ('x.png', with_alpha(GREY, OPAQUE)), ('x.tif', with_alpha(GREY, OPAQUE)),
    *((f'x.{ending}', palette_of(GREY)) for ending in ('png', 'gif', 'tif', 'bmp')),
    ('x.tif', palette_of(GREY).convert('PA'))],
    ids=lambda v: v if isinstance(v, str) else v.mode)
def test_grey_pictures_of_every_mode_have_one_channel_and_their_own_levels(tmp_path, name, image):
  pixels, described = read_both(tmp_path, name, image)
  np.testing.assert_array_equal(pixels[..., 0], GREY)
  assert pixels.shape == (4, 5, 1) and '4 x 5 x 1' in described


def test_a_bilevel_picture_has_one_channel_of_0_and_255(tmp_path):
  pixels, _ = read_both(tmp_path, 'x.png', Image.fromarray(GREY > 127))
  np.testing.assert_array_equal(pixels[..., 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize('name, image', [
    ('x.png', Image.fromarray(COLOUR)), ('x.ppm', Image.fromarray(COLOUR)),
    ('x.png', with_alpha(COLOUR, OPAQUE)), ('x.tif', with_alpha(COLOUR, OPAQUE)),
    *((f'x.{ending}', Image.fromarray(COLOUR).quantize(20)) for ending in ('png', 'gif')),
    ('x.tif', Image.fromarray(COLOUR).convert('CMYK'))],
    ids=lambda v: v if isinstance(v, str) else v.mode)
def test_colour_pictures_of_every_mode_have_three_channels(tmp_path, name, image):
  pixels, described = read_both(tmp_path, name, image)
  np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))
  if image.mode != 'P':
    np.testing.assert_array_equal(pixels, COLOUR)
  assert '4 x 5 x 3' in described


@pytest.mark.parametrize('pixels', [GREY, COLOUR], ids=['grey', 'colour'])
def test_alpha_is_laid_on_white_and_what_it_hides_is_not_seen(tmp_path, pixels):
  alpha = np.random.default_rng(4).integers(1, 255, (4, 5)).astype(np.uint8)
  alpha[0], alpha[1] = 0, 255
  read, described = read_both(tmp_path, 'x.png', with_alpha(pixels, alpha))
  a = alpha[..., None] / 255.0
  expected = a * pixels.reshape(4, 5, -1) + (1 - a) * 255
  assert abs(read - expected).max() <= 0.5 + 1e-9
  np.testing.assert_array_equal(read[0], np.full_like(read[0], 255))
  np.testing.assert_array_equal(read[1], pixels.reshape(4, 5, -1)[1])
  assert '2 images with alpha laid on white' in described


@pytest.mark.parametrize('image, hidden, grey', [
    (Image.fromarray(GREY), int(GREY[0, 0]), True),
    (Image.fromarray(COLOUR), tuple(map(int, COLOUR[0, 0])), False),
    (palette_of(GREY), int(np.asarray(palette_of(GREY))[0, 0]), True)],
    ids=['L', 'RGB', 'P'])
def test_a_transparent_colour_is_alpha_too(tmp_path, image, hidden, grey):
  read, _ = read_both(tmp_path, 'x.png', image, transparency=hidden)
  expected = (GREY[..., None] if grey else COLOUR).copy()
  expected[(expected == expected[0, 0]).all(-1)] = 255
  np.testing.assert_array_equal(read, expected)


def test_images_are_resized_after_alpha_is_gone(tmp_path):
  """Else a hidden colour would shine through the edges."""
  hidden = np.zeros((8, 8, 3), np.uint8)
  hidden[:, 4:] = 255
  read_both(tmp_path, 'x.png', with_alpha(hidden, np.where(hidden[..., 0] > 0, 255, 0).astype(
      np.uint8)))
  d = make(name=str(tmp_path), image_size=4, levels=256)
  assert (d.split('test').get([0])['image'] == 255).all()


SIXTEEN = np.arange(20, dtype='>u2').tobytes()


@pytest.mark.parametrize('name, image', [
    ('x.png', Image.fromarray(256 * GREY.astype(np.uint16))),
    ('x.tif', Image.fromarray(GREY.astype(np.int32))),
    ('x.tif', Image.fromarray(GREY.astype(np.float32))),
    ('x.png', png(16, 2, 5, 4, 3 * SIXTEEN)), ('x.png', png(16, 4, 5, 4, 2 * SIXTEEN)),
    ('x.png', png(16, 6, 5, 4, 4 * SIXTEEN)),
    ('x.ppm', b'P6 5 4 65535\n' + 3 * SIXTEEN), ('x.ppm', b'P6 5 4 1023\n' + 3 * SIXTEEN),
    ('x.pgm', b'P5 5 4 1023\n' + SIXTEEN)], ids=[
        'I;16', 'I', 'F', 'RGB of 16 bits', 'LA of 16 bits', 'RGBA of 16 bits', 'PPM of 16 bits',
        'PPM of 10 bits', 'PGM of 10 bits'])
def test_more_than_8_bits_a_channel_are_refused_in_colour_as_in_grey(tmp_path, name, image):
  with pytest.raises(InputError, match=f'/{name} has more than 8 bits.*save it with 8 bits'):
    read_both(tmp_path, name, image)


def test_a_picture_of_another_colour_space_is_refused_as_what_it_is(tmp_path):
  with pytest.raises(InputError, match='is stored as LAB, which is neither grey nor RGB'):
    read_both(tmp_path, 'x.tif', Image.fromarray(COLOUR).convert('LAB'))


def test_a_picture_larger_than_pillow_opens_is_not_called_damaged(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9)
  with pytest.raises(InputError, match='larger than the 18 pixels that Pillow opens; scale it'):
    read_both(tmp_path, 'x.png', Image.fromarray(GREY))


@pytest.mark.parametrize('names', [('a.png', 'b.png'), ('b.png', 'a.png')])
def test_grey_pictures_among_colour_have_three_equal_channels_whichever_comes_first(
    tmp_path, names):
  for name, pixels in zip(names, (GREY, COLOUR), strict=True):
    Image.fromarray(pixels).save(tmp_path / name)
  d = make(name=str(tmp_path), levels=256)
  both = {name: d.split(split).get([0])['image'][0]
          for name, split in (('a.png', 'test'), ('b.png', 'train'))}
  np.testing.assert_array_equal(both[names[0]], np.stack(3 * [GREY], -1))
  np.testing.assert_array_equal(both[names[1]], COLOUR)
  assert '1 grey image read as three equal channels' in d.describe()


# What lies in a folder.


def test_hidden_files_and_other_kinds_are_left_out_and_counted(tmp_path):
  names = [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(4)]
  pictures = save_images(tmp_path, names)
  save_images(tmp_path, ['.ipynb_checkpoints/0-checkpoint.png', 'cat/.ipynb_checkpoints/0.png'])
  (tmp_path / 'cat' / '._0.png').write_bytes(b'resource fork')
  (tmp_path / '.DS_Store').write_bytes(b'')
  for name in ('Thumbs.db', 'dog/notes.TXT', 'README'):
    (tmp_path / name).write_bytes(b'')
  d = make(name=str(tmp_path))
  assert d.spec.classes == 2 and len(d.split('train')) + len(d.split('test')) == 8
  np.testing.assert_array_equal(d.split('test').get([0])['image'][0], pictures['cat/0.png'])
  assert ('left out: 4 hidden files, 3 files of other kinds (.db, .txt, no ending)'
          in d.describe())


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
  save_images(tmp_path / '.photos', ['a.png', 'b.png'])
  assert len(make(name=str(tmp_path / '.photos')).split('train')) == 1


@pytest.mark.parametrize('train, test', [('Train', 'Test'), ('TRAIN', 'Val'), ('train', 'Valid')])
def test_splits_are_found_in_any_case_and_what_lies_beside_them_is_said(tmp_path, train, test):
  save_images(tmp_path, [f'{train}/cat/a.png', f'{train}/dog/b.png', f'{test}/cat/c.png',
                         'extra/d.png'])
  d = make(name=str(tmp_path))
  assert (len(d.split('train')), len(d.split('test')), d.spec.classes) == (2, 1, 2)
  assert f'left out: 1 image outside of {train} and {test}' in d.describe()


def test_two_spellings_of_one_split_are_refused(tmp_path):
  save_images(tmp_path, ['train/a.png', 'Train/b.png', 'test/c.png'])
  with pytest.raises(InputError, match='it holds Train and train; merge them'):
    make(name=str(tmp_path)).batch(0)


def test_two_pictures_are_enough_and_one_is_too_few(tmp_path):
  pictures = save_images(tmp_path, ['a.png', 'b.png'])
  d = make(name=str(tmp_path), batch_size=4)
  np.testing.assert_array_equal(d.batch(3)['image'], [pictures['b.png']] * 4)
  np.testing.assert_array_equal(d.split('test').get([0])['image'], [pictures['a.png']])
  with pytest.raises(InputError, match='config.data.validation=1: .*has 1 examples.*; add ex'):
    make(name=str(tmp_path), validation=1).batch(0)
  (tmp_path / 'b.png').unlink()
  with pytest.raises(InputError, match='too few images: 0 for training, 1 for test'):
    d = make(name=str(tmp_path)).batch(0)


def test_a_class_that_no_image_is_left_of_to_train_on_is_named(tmp_path):
  save_images(tmp_path, ['ant/a.png', *(f'bee/{i}.png' for i in range(4)), 'cat/z.png'])
  d = make(name=str(tmp_path))  # ant/a.png is the first, and so for testing
  assert d.spec.classes == 3
  assert 'without an image to train on: class 0' in d.describe()
  assert 'without an image to train on: class 0, 2' in make(
      name=str(tmp_path), validation=1).describe()
  assert 'without an image' not in make(name=numbered(tmp_path / 'x.npz')).describe()


@pytest.mark.parametrize('largest, warns', [(62, True), (127, True), (128, False)])
def test_dark_pictures_say_how_to_keep_256_levels(tmp_path, monkeypatch, largest, warns):
  for name in ('a.png', 'b.png'):
    Image.fromarray(np.full((4, 4), largest, np.uint8)).save(tmp_path / name)
  said = []
  monkeypatch.setattr(pipeline.logging, 'warning', lambda text, *args: said.append(text % args))
  assert make(name=str(tmp_path)).spec.levels == (largest + 1 if warns else 256)
  assert [f'taken to have {largest + 1} levels; --config.data.levels=256' in line
          for line in said] == [True] * warns
  make(name=str(tmp_path), levels=256).batch(0)
  assert len(said) == warns


# Array files that are not as they should be.


IMAGES = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)


@pytest.mark.parametrize('arrays, message', [
    ({'x_train': IMAGES, 'y_train': np.arange(6), 'x_test': IMAGES},
     'it holds y_train and no y_test; add y_test, or leave out y_train'),
    ({'x_train': IMAGES, 'x_test': IMAGES, 'y_test': np.arange(6)},
     'it holds y_test and no y_train; add y_train'),
    ({'images': IMAGES, 'labels': np.arange(6) + 1},
     'its labels are 1 to 6, and class 0 has no image; number them from 0.*classes=7'),
    ({'images': IMAGES, 'labels': np.array([0, 1, 3, 0, 1, 3])}, 'class 2 has no image'),
    ({'images': IMAGES, 'labels': np.arange(6) + 2**40}, f'from {2**40} to .*one class 0, 1'),
    ({'images': IMAGES, 'labels': np.arange(6) - 1}, 'from -1 to 4; needed is one class'),
    ({'images': IMAGES, 'labels': np.arange(6.0)}, 'float64.*needed is one class 0, 1'),
    ({'images': IMAGES, 'labels': np.eye(6, dtype=int)}, r'\(6, 6\); needed is one class'),
    ({'images': IMAGES[:0], 'labels': np.arange(0)}, r'shape \(0, 2, 2\) and so holds nothing'),
    ({'x_train': IMAGES, 'x_test': IMAGES[:0]}, r'x_test\] has shape \(0, 2, 2\)'),
    ({'images': IMAGES[:, :0]}, r'shape \(6, 0, 2\) and so holds nothing; give every axis'),
    ({'images': IMAGES[:1]}, 'it has 0 examples for training and 1 for test'),
    ({'images': 0 * IMAGES}, 'all its values are 0'),
    ({'images': np.array([IMAGES, None], object)}, 'holds Python objects'),
])
def test_an_array_file_with_a_fault_is_refused_in_one_line(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(InputError, match=message) as error:
    make(name=str(tmp_path / 'x.npz')).batch(0)
  assert '\n' not in str(error.value)


def test_an_npy_without_images_is_refused_as_what_it_is(tmp_path):
  np.save(tmp_path / 'x.npy', IMAGES[:0])
  with pytest.raises(InputError, match=r'shape \(0, 2, 2\) and so holds nothing'):
    make(name=str(tmp_path / 'x.npy')).batch(0)


def test_classes_that_are_asked_for_may_have_no_images(tmp_path):
  np.savez(tmp_path / 'x.npz', images=IMAGES, labels=np.arange(6) + 1)
  d = make(name=str(tmp_path / 'x.npz'), classes=8)
  assert d.spec.classes == 8
  np.testing.assert_array_equal(d.split('train').get(np.arange(5))['label'], np.arange(5) + 2)
  assert 'without an image to train on: class 0, 1, 7' in d.describe()


def test_a_file_that_is_something_else_is_said_to_be_that(tmp_path):
  path = tmp_path / 'x.npy'
  path.write_text('1,2,3\n4,5,6\n')
  with pytest.raises(InputError, match=r"holds text \('1,2,3'\), not an array; write .*numpy.save"):
    make(name=str(path)).batch(0)
  path.write_bytes(bytes(range(200, 256)))
  with pytest.raises(InputError, match='it is not a NumPy file'):
    make(name=str(path)).batch(0)
  np.savez(tmp_path / 'y.npz', images=IMAGES)
  path.write_bytes((tmp_path / 'y.npz').read_bytes())
  with pytest.raises(InputError, match='a .npz file by what it holds; rename it'):
    make(name=str(path)).batch(0)
  path.write_bytes(b'')
  with pytest.raises(InputError, match='x.npy cannot be read.*damaged'):
    make(name=str(path)).batch(0)


# The fingerprint.


def test_a_fingerprint_names_the_files_that_are_new_gone_or_of_another_size(tmp_path):
  save_images(tmp_path, [f'{i:02d}.png' for i in range(9)])
  Image.fromarray(COLOUR).save(tmp_path / '.hidden.png')
  before = make(name=str(tmp_path)).fingerprint()
  assert before == json.loads(json.dumps(before))
  assert data.changes(before, make(name=str(tmp_path), batch_size=3).fingerprint()) == ''
  save_images(tmp_path, ['new/a.png'])
  (tmp_path / '03.png').unlink()
  with (tmp_path / '04.png').open('ab') as file:
    file.write(b'more')
  after = make(name=str(tmp_path)).fingerprint()
  assert data.changes(before, after) == (
      '1 added (new/a.png), 1 removed (03.png), 1 changed (04.png)')
  save_images(tmp_path, ['b.png', 'c.png', 'd.png'])
  assert data.changes(before, make(name=str(tmp_path)).fingerprint()).startswith(
      '4 added (b.png, c.png, d.png, ...), ')


def test_a_fingerprint_of_many_parts_lists_none_and_still_tells_them_apart(monkeypatch):
  monkeypatch.setattr(fingerprints, 'LISTED', 2)
  parts = {'a': 1, 'b': 2, 'c': 3}
  one, same, other = map(fingerprints.of, (parts, dict(reversed(parts.items())), {**parts, 'c': 4}))
  assert 'parts' not in one and data.changes(one, same) == ''
  assert data.changes(one, other) == '3 parts then and 3 now, not all the same'


@pytest.mark.parametrize('ending', ['npz', 'npy'])
def test_a_fingerprint_sees_one_pixel_of_an_array_file(tmp_path, ending):
  prints = []
  for i, value in enumerate((0, 0, 1)):
    changed = IMAGES.copy()
    changed[3, 1, 1] = value
    path = tmp_path / f'{i}.{ending}'
    if ending == 'npy':
      np.save(path, changed)
    else:
      np.savez(path, x_train=IMAGES, x_test=changed)
    prints.append(make(name=str(path)).fingerprint())
  assert data.changes(prints[0], prints[1]) == ''
  expected = 'x_test' if ending == 'npz' else 'the array'
  assert data.changes(prints[0], prints[2]) == f'1 changed ({expected})'


def test_a_large_array_file_is_known_by_its_size_its_ends_and_blocks_between(tmp_path):
  path = tmp_path / 'x'
  content = bytearray(1000)
  path.write_bytes(content)
  marks = {arrays._digest(path, 10, 7)}
  for place in (0, 5, 500, 999):
    content[place] = 1
    path.write_bytes(content)
    marks.add(arrays._digest(path, 10, 7))
  path.write_bytes(bytes(1001))
  assert len(marks | {arrays._digest(path, 10, 7)}) == 6


def test_prepared_data_and_formulas_are_known_by_version_and_counts(data_dir):
  assert make(data_dir=str(data_dir)).fingerprint()['parts'] == {
      'digits/1.0.0 train': 1497, 'digits/1.0.0 test': 300}
  assert make(name='swirl').fingerprint()['parts'] == {'swirl train': 50_000, 'swirl test': 10_000}


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
  from tests.support import tiny_config
  from vdm_jax.runs import workdir
  photos, run = tmp_path / 'photos', tmp_path / 'run'
  save_images(photos, [f'{i}.png' for i in range(8)])
  config = tiny_config.get_config()
  config.data.name = str(photos)
  prepare = lambda: workdir.prepare(run, config, tiny_config.__file__,
                                    data.Data(config.data).fingerprint())
  prepare()
  (run / 'checkpoints' / '10').mkdir(parents=True)
  prepare()
  kept = (run / 'config.json').read_text()
  save_images(photos, ['more/9.png'])
  changed = r'have changed since this run began: 1 added \(more/9.png\); restore'
  with pytest.raises(InputError, match=changed):
    prepare()
  config.seed += 1
  with pytest.raises(InputError, match=r'seed: .*\n  the data: 1 added \(more/9.png\)'):
    prepare()
  config.seed -= 1
  assert (run / 'config.json').read_text() == kept
  older = json.loads(kept)
  del older['fingerprint']  # as runs were kept before
  (run / 'config.json').write_text(json.dumps(older))
  prepare()
  assert workdir.changed_data(run, data.Data(config.data).fingerprint()) == ''


def test_a_run_goes_on_with_its_data_under_another_name_and_from_another_directory(tmp_path,
                                                                                   monkeypatch):
  from tests.support import tiny_config
  from vdm_jax.runs import workdir
  for name in 'ab':
    (tmp_path / name).mkdir()
  run, photos = tmp_path / 'run', tmp_path / 'a' / 'photos'
  save_images(photos, [f'{i}.png' for i in range(8)])
  config = tiny_config.get_config()
  config.data.name = './photos'
  prepare = lambda config: workdir.prepare(run, config, tiny_config.__file__,
                                           data.Data(config.data).fingerprint())
  monkeypatch.chdir(photos.parent)
  prepare(config)
  (run / 'checkpoints' / '10').mkdir(parents=True)
  assert workdir.read_config(run).data.name == './photos'
  monkeypatch.chdir(tmp_path / 'b')
  found = workdir.read_config(run)
  assert found.data.name == str(photos)
  prepare(found)
  photos.rename(tmp_path / 'b' / 'moved')
  config.data.name = './moved'
  prepare(config)
  monkeypatch.chdir(tmp_path / 'a')
  assert workdir.read_config(run).data.name == str(tmp_path / 'b' / 'moved')
  save_images(tmp_path / 'a' / 'others', ['9.png', '8.png'])
  config.data.name = './others'
  with pytest.raises(InputError, match=r'data.name: .*\n  the data: 2 added'):
    prepare(config)


# Splits.


@pytest.mark.parametrize('hold_out', [True, False])
def test_validation_is_the_end_of_train_and_held_out_if_so_configured(tmp_path, hold_out):
  d = make(name=numbered(tmp_path / 'x.npz'), validation=4, hold_out=hold_out, batch_size=23)
  assert d.split('validation').get(np.arange(4))['image'][:, 0, 0, 0].tolist() == [19, 20, 21, 22]
  seen = set(np.concatenate([d.batch(k)['label'] for k in range(2)]))
  assert seen == set(range(19 if hold_out else 23))
  assert d.split('validation').source_split == 'x_train'
  assert f'{19 if hold_out else 23} to train on, 4 for validation' in d.describe()


def test_a_class_that_is_left_out_is_only_in_the_test_images(tmp_path):
  path, labels = str(tmp_path / 'x.npz'), np.arange(12) % 4
  images = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 1))
  np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
  d = make(name=path, left_out=2, validation=3, batch_size=6)
  kept = [i for i in range(12) if i % 4 != 2]
  whole = [*d.split('train').get(np.arange(6))['image'][:, 0, 0, 0],
           *d.split('validation').get(np.arange(3))['image'][:, 0, 0, 0]]
  assert whole == kept and sorted(d.batch(0)['image'][:, 0, 0, 0]) == kept[:6]
  assert len(d.split('test')) == 12 and d.spec.classes == 4
  assert 'without an image to train on: class 2' in d.describe()
  with pytest.raises(InputError, match=r'config.data.left_out=4: the classes are 0 .. 3; give a'):
    make(name=path, left_out=4).split('train')


def test_sha256_is_that_of_the_pixels_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, 'CHUNK', 3)
  d = make(name=numbered(tmp_path / 'x.npz'))
  expected = hashlib.sha256(b''.join(bytes([i]) * 48 for i in range(5))).hexdigest()
  assert d.split('test').sha256() == expected


def test_an_index_outside_of_a_split_raises_rather_than_wraps(tmp_path):
  d = make(name=numbered(tmp_path / 'x.npz'))
  for index in (-1, 5):
    with pytest.raises(IndexError, match='test split has 5'):
      d.split('test').get([index])


# The batch of a step.


@pytest.mark.parametrize('batch_size', [4, 23, 60])
def test_every_image_comes_once_an_epoch_and_none_is_dropped(tmp_path, batch_size):
  d = make(name=numbered(tmp_path / 'x.npz'), batch_size=batch_size)
  stream = np.concatenate([d.batch(k)['label'] for k in range(23)])
  epochs = stream.reshape(batch_size, 23)  # 23 steps are batch_size epochs
  np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(23), (batch_size, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == batch_size


def test_orders_are_uniform_and_another_seed_is_another_order(tmp_path):
  path = tmp_path / 'x.npz'
  d = make(name=numbered(path, n=3), batch_size=3)
  epochs = 3000
  seen = [tuple(d.batch(k)['label']) for k in range(epochs)]
  counts = np.array([seen.count(order) for order in itertools.permutations(range(3))])
  expected = epochs / 6
  chi2 = ((counts - expected)**2 / expected).sum()
  assert counts.sum() == epochs and chi2 < 25.7  # 1 - 1e-4 of chi^2 with 5 degrees of freedom
  other = make(name=str(path), batch_size=3, seed=1)
  same = np.mean([tuple(other.batch(k)['label']) == seen[k] for k in range(600)])
  assert abs(same - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 600)**0.5


@pytest.mark.parametrize('augment', [False, True])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(tmp_path, augment):
  d = make(name=numbered(tmp_path / 'x.npz'), batch_size=12, augment=augment)
  whole = d.batch(5)
  for count in (2, 3, 4):
    parts = [d.batch(5, i, count) for i in range(count)]
    for key, value in whole.items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
  with pytest.raises(ValueError, match='config.data.batch_size=12: it cannot be divided over 5'):
    d.batch(0, 0, 5)


def check_stream(stream, d, start, **where):
  for k, batch in enumerate(itertools.islice(stream, 5)):
    expected = d.batch(start + k, **where)
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(batch[key], value)
      assert batch[key].dtype == value.dtype
  stream.close()


def test_a_stream_started_at_step_k_reads_batch_k(tmp_path):
  d = make(name=numbered(tmp_path / 'x.npz'), batch_size=8, augment=True)
  check_stream(d.stream(40, 1, 2), d, 40, process_index=1, process_count=2)


@pytest.mark.long
def test_worker_processes_make_the_batches_that_ram_makes(tmp_path):
  fields = {'name': numbered(tmp_path / 'x.npz'), 'batch_size': 8, 'augment': True}
  large = make(**fields, memory_gb=0.0, workers=2)
  check_stream(large.stream(7, 1, 2), make(**fields), 7, process_index=1, process_count=2)


def test_prepared_records_read_one_by_one_are_those_of_ram(data_dir):
  small, large = (make(data_dir=str(data_dir), memory_gb=gb) for gb in (1.0, 0.0))
  for key, value in small.batch(3).items():
    np.testing.assert_array_equal(large.batch(3)[key], value)


def test_augmentation_draws_the_eight_symmetries_at_their_rates():
  n = 6000
  image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
  u = np.random.default_rng(0).uniform(size=(3, n))
  changed = augmentation.flips_and_turns(
      {'image': np.broadcast_to(image, (n, 3, 3, 1)), 'label': np.arange(n)}, u, 'image')
  out, augmented = changed['image'], changed['augmented']
  np.testing.assert_array_equal(changed['label'], np.arange(n))
  symmetries = [np.rot90(base, k).tobytes() for base in (image, image[:, ::-1]) for k in range(4)]
  counts = np.array([sum(x.tobytes() == s for x in out) for s in symmetries])
  p = np.array([1 / 4, 1 / 12, 1 / 12, 1 / 12] * 2)  # flip: 1/2; no turn: 1/2, else 1/3 each
  assert counts.sum() == n
  np.testing.assert_array_less(abs(counts / n - p), 4 * (p * (1 - p) / n)**0.5)
  changed = (out != image).any((1, 2, 3))
  np.testing.assert_array_equal(augmented, changed.astype(np.float32))


def test_training_augments_and_evaluation_does_not(tmp_path):
  np.save(tmp_path / 'x.npy', np.arange(90 * 9).reshape(90, 3, 3) % 256)
  plain, d = (make(name=str(tmp_path / 'x.npy'), augment=on, batch_size=75) for on in (False, True))
  batch, before = d.batch(0), plain.batch(0)
  same = (batch['image'] == before['image']).all((1, 2, 3))
  np.testing.assert_array_equal(batch['augmented'], 1.0 - same)
  assert 0 < same.sum() < 75 and 'augmented' not in before
  test = d.split('test').get([3])
  np.testing.assert_array_equal(test['image'], plain.split('test').get([3])['image'])
  np.testing.assert_array_equal(test['augmented'], np.zeros(1, np.float32))
  with pytest.raises(ValueError, match='config.data.augment=True: it turns images'):
    make(name='swirl', augment=True).batch(0)
