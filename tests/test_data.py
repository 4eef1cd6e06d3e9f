"""Data: the oracles are the arrays that were written, counts, and published numbers."""
import hashlib
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vdm_jax import data
from vdm_jax.data import pipeline, sources

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def test_of_two_preparations_at_once_one_is_used_and_nothing_else_is_left(data_dir):
  assert os.listdir(data_dir / 'digits') == ['1.0.0']


def test_the_digits_are_scikit_learns_split_at_every_sixth(data_dir):
  from sklearn.datasets import load_digits
  digits = load_digits()
  d = make(data_dir=str(data_dir))
  assert d.spec == data.Spec('digits', (8, 8, 1), 17, 10)
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


@needs_tfds
def test_cifar10_has_its_published_counts_and_second_moment():
  d = make(name='cifar10', data_dir=str(TFDS))
  assert d.spec == data.Spec('cifar10', (32, 32, 3), 256, 10)
  assert (len(d.split('train')), len(d.split('test'))) == (50_000, 10_000)
  assert d.split('test').version == '3.0.2'
  square = [((2 * (b['image'] + 0.5) / 256 - 1)**2).mean() for b in d.split('test').chunks()]
  sizes = [len(b['image']) for b in d.split('test').chunks()]
  assert np.average(square, weights=sizes) == pytest.approx(0.2526525, abs=5e-8)
  np.testing.assert_array_equal(
      np.bincount(d.split('test').get(np.arange(10_000))['label']), 10 * [1000])


@needs_tfds
def test_mnist_has_its_published_counts_by_class():
  d = make(name='mnist', data_dir=str(TFDS), memory_gb=0.01)
  assert d.spec == data.Spec('mnist', (28, 28, 1), 256, 10)
  assert (len(d.split('train')), len(d.split('test'))) == (60_000, 10_000)
  np.testing.assert_array_equal(
      np.bincount(d.split('test').get(np.arange(10_000))['label']),
      [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_the_swirl_has_the_moments_of_its_formula():
  d = make(name='swirl')
  assert d.spec == data.Spec('swirl', (2,), 256, 0)
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
  assert d.spec == data.Spec(name, (2,), 256, 0)
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
  assert d.spec == data.Spec('checkerboard', (2,), 256, 0)
  x = d.split('train').get(np.arange(50_000))['image'].astype(int)
  square, inside = x // 64, x % 64
  assert not (square.sum(1) % 2).any()
  for cell in (square @ [4, 1], inside[:, 0], inside[:, 1]):
    _, counts = np.unique(cell, return_counts=True)
    assert len(counts) in (8, 64)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_heartbeat_is_one_of_five_sequences():
  d = make(name='heartbeat')
  assert d.spec == data.Spec('heartbeat', (20,), 2, 0)
  x = d.split('train').get(np.arange(50_000))['image']
  found, counts = np.unique(x, axis=0, return_counts=True)
  np.testing.assert_array_equal(found[::-1], np.tile(np.eye(5), 4))
  assert stats.chisquare(counts).pvalue > 1e-4


def test_a_data_set_that_is_not_here_is_declared_by_tfds_so_that_a_config_builds(tmp_path):
  d = make(name='cifar10', data_dir=str(tmp_path))
  assert d.spec == data.Spec('cifar10', (32, 32, 3), 256, 10)
  with pytest.raises(FileNotFoundError, match='python scripts/prepare_data.py cifar10 --data_dir='
                                              f'{tmp_path}'):
    d.batch(0)
  with pytest.raises(FileNotFoundError, match='tfds build celeb_a --data_dir=.*TensorFlow'):
    make(name='celeb_a', data_dir=str(tmp_path)).split('test')


def test_a_configured_spec_needs_no_data():
  d = make(name='downsampled_imagenet/64x64', data_dir='/nowhere', shape=(64, 64, 3), levels=256)
  assert d.spec == data.Spec('downsampled_imagenet/64x64', (64, 64, 3), 256, 0)


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
  store = sources.open_store('downsampled_imagenet/32x32', str(tmp_path), image_size=32)
  assert store.version == f'2.0.0, {word} ({count:,} validation images)'
  assert (store.test.name, store.test.length, store.shape) == ('validation', count, (32, 32, 3))


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
  assert d.spec == data.Spec(str(tmp_path / 'x.npy'), shape, levels, 0)
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
  np.testing.assert_array_equal(batch['image'], images[first:first + 2])
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
  assert d.spec == data.Spec(str(tmp_path), (4, 5, 3), 256, 2)
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
  with pytest.raises(ValueError, match=r'4 x 4 and 4 x 5.*--config.data.image_size'):
    make(name=str(tmp_path)).batch(0)
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200  # all that the central square shows
  Image.fromarray(wide).save(tmp_path / 'a.png')
  d = make(name=str(tmp_path), image_size=4)
  assert d.spec.shape == (4, 4, 3)
  assert (d.split('test').get([0])['image'] == 200).all()


@pytest.mark.parametrize('array, message', [
    (np.zeros((9, 4, 4)), 'float64; needed are integers'),
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
    ({'shape': (8, 8, 3)}, '--config.data.shape'),
    ({'shape': (4, 4, 3), 'levels': 9}, '--config.data.levels=9'),
    ({'classes': 3}, '--config.data.classes=3'),
    ({'validation': 23}, '--config.data.validation=23'),
    ({'batch_size': 0}, '--config.data.batch_size=0'),
])
def test_a_config_that_does_not_fit_the_data_is_refused_by_field(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    make(name=numbered(tmp_path / 'x.npz'), **fields).batch(0)


def test_names_that_are_nothing_are_refused_with_a_hint(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  with pytest.raises(FileNotFoundError, match='no TFDS data set.*write ./photos'):
    make(name='photos', data_dir=str(tmp_path)).batch(0)
  with pytest.raises(FileNotFoundError, match='no folder /no/such'):
    make(name='/no/such').batch(0)
  with pytest.raises(FileNotFoundError, match='no file x.npy'):
    make(name='x.npy').batch(0)
  with pytest.raises(ValueError, match='too few images'):
    make(name='./photos').batch(0)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='--data_dir'):
    make(data_dir=str(tmp_path / 'file' / 'below')).batch(0)


# Splits.


@pytest.mark.parametrize('hold_out', [True, False])
def test_validation_is_the_end_of_train_and_held_out_if_so_configured(tmp_path, hold_out):
  d = make(name=numbered(tmp_path / 'x.npz'), validation=4, hold_out=hold_out, batch_size=23)
  assert d.split('validation').get(np.arange(4))['image'][:, 0, 0, 0].tolist() == [19, 20, 21, 22]
  seen = set(np.concatenate([d.batch(k)['label'] for k in range(2)]))
  assert seen == set(range(19 if hold_out else 23))
  assert d.split('validation').source_split == 'x_train'
  assert f'{19 if hold_out else 23} to train on, 4 for validation' in d.describe()


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
  with pytest.raises(ValueError, match='--config.data.batch_size=12'):
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
  out, augmented = pipeline.augment(np.broadcast_to(image, (n, 3, 3, 1)), *u)
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
  with pytest.raises(ValueError, match='--config.data.augment turns images'):
    make(name='swirl', augment=True).batch(0)
