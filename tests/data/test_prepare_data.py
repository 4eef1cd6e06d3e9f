"""Preparation: what is read back by TFDS is what the archives held, in TFDS's own order."""
import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]
TFDS = ROOT.parent / 'shared' / 'tfds'

# The order in which TFDS's own cifar10 3.0.2 holds the test images numbered below 40.
TFDS_ORDER = [16, 37, 36, 13, 27, 30, 19, 15, 6, 22, 31, 39, 1, 8, 12, 21, 25, 9, 32, 4, 3, 35, 29,
              33, 38, 2, 7, 20, 23, 24, 14, 10, 34, 26, 18, 5, 28, 11, 0, 17]


def archive(path):
  content = path.read_bytes()
  return prepare.Archive(f'file://{path}', len(content), hashlib.sha256(content).hexdigest())


def cifar10(folder):
  """A small archive with the inner format of cifar-10-binary.tar.gz, its images and labels."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  files = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  sizes = [2, 3, 2, 2, 2, 40]
  images = [rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8) for n in sizes]
  labels = [rng.integers(0, 10, n).astype(np.uint8) for n in sizes]
  names = '\n'.join(f'class{i}' for i in range(10)) + '\n\n'
  contents = {'batches.meta.txt': names.encode()}
  for file, x, y in zip(files, images, labels, strict=True):
    contents[file] = b''.join(bytes([k]) + b''.join(im[:, :, c].tobytes() for c in range(3))
                              for k, im in zip(y, x, strict=True))
  path = folder / 'cifar-10-binary.tar.gz'
  with tarfile.open(path, 'w:gz') as tar:
    for file, content in contents.items():
      info = tarfile.TarInfo(f'cifar-10-batches-bin/{file}')
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return path, np.concatenate(images), np.concatenate(labels)


def mnist(folder):
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  arrays, paths = {}, []
  for prefix, n in (('train', 7), ('t10k', 4)):
    for kind, shape in (('images-idx3', (n, 28, 28)), ('labels-idx1', (n,))):
      array = rng.integers(0, 10, shape).astype(np.uint8)
      header = bytes([0, 0, 8, len(shape)]) + b''.join(k.to_bytes(4, 'big') for k in shape)
      path = folder / f'{prefix}-{kind}-ubyte.gz'
      path.write_bytes(gzip.compress(header + array.tobytes()))
      arrays[prefix, kind] = array
      paths.append(path)
  return paths, arrays


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cifar10')
  path, images, labels = cifar10(folder / 'archives')
  line = prepare.prepare('cifar10', str(folder), [str(path)], [archive(path)])
  assert line == f'cifar10 is prepared in {folder}/cifar10/3.0.2'
  return folder, images, labels


def test_tfds_reads_back_the_cifar10_that_the_archive_held(prepared):
  import tensorflow_datasets as tfds
  folder, images, labels = prepared
  for split, start, n in (('train', 0, 11), ('test', 11, 40)):
    source = tfds.data_source('cifar10', split=split, data_dir=str(folder))
    assert len(source) == n
    for example in source:
      name, number = example['id'].decode().split('_')
      assert name == split
      np.testing.assert_array_equal(example['image'], images[start + int(number)])
      assert example['label'] == labels[start + int(number)]
  names = tfds.builder('cifar10', data_dir=str(folder)).info.features['label'].names
  assert names == [f'class{i}' for i in range(10)]


def test_images_are_in_the_order_that_tfds_gives_them(prepared):
  import tensorflow_datasets as tfds
  source = tfds.data_source('cifar10', split='test', data_dir=str(prepared[0]))
  assert [int(example['id'].split(b'_')[1]) for example in source] == TFDS_ORDER


@pytest.mark.skipif(not TFDS.exists(), reason=f'no prepared data sets in {TFDS}')
def test_the_files_are_those_that_tfds_writes(prepared):
  ours, theirs = prepared[0] / 'cifar10' / '3.0.2', TFDS / 'cifar10' / '3.0.2'
  assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
  assert (ours / 'features.json').read_text() == (theirs / 'features.json').read_text()


def test_our_own_reader_agrees_with_tfds(prepared):
  import tensorflow_datasets as tfds
  config = data.default_config()
  config.update(name='cifar10', data_dir=str(prepared[0]))
  split = data.Data(config).split('test')
  source = tfds.data_source('cifar10', split='test', data_dir=str(prepared[0]))
  np.testing.assert_array_equal(split.get(np.arange(40))['image'], [e['image'] for e in source])


def test_what_is_prepared_already_is_left_alone_and_said(prepared):
  assert 'already prepared' in prepare.prepare('cifar10', str(prepared[0]))


def test_mnist_is_found_among_the_renamed_downloads_of_tfds(tmp_path):
  import tensorflow_datasets as tfds
  paths, arrays = mnist(tmp_path / 'elsewhere')
  archives = [archive(path) for path in paths]
  downloads = tmp_path / 'downloads' / 'manual'
  downloads.mkdir(parents=True)
  for i, path in enumerate(paths):
    path.rename(downloads / f'storage.example_{i}.gz')
  prepare.prepare('mnist', str(tmp_path), [], archives)
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    source = tfds.data_source('mnist', split=split, data_dir=str(tmp_path))
    read = {e['image'].tobytes(): int(e['label']) for e in source}
    images, labels = arrays[prefix, 'images-idx3'], arrays[prefix, 'labels-idx1']
    assert read == {x.tobytes(): int(y) for x, y in zip(images, labels, strict=True)}


def test_a_file_that_is_not_the_official_one_is_refused_and_nothing_is_written(tmp_path):
  path, *_ = cifar10(tmp_path / 'archives')
  right = archive(path)
  path.write_bytes(path.read_bytes()[:-1])
  for given in (path, path.parent):
    with pytest.raises(ValueError, match=f'not the official.*expected {right.sha256}'):
      prepare.prepare('cifar10', str(tmp_path / 'out'), [str(given)], [right])
  assert not (tmp_path / 'out' / 'cifar10').exists()


def test_offline_one_line_says_which_files_to_get_and_what_to_run(tmp_path, monkeypatch):
  def offline(*args, **kwargs):
    raise OSError('no network')
  monkeypatch.setattr(prepare.urllib.request, 'urlopen', offline)
  for name, count in (('cifar10', 1), ('mnist', 4)):
    archives = prepare.official_archives(name)
    assert len(archives) == count
    with pytest.raises(FileNotFoundError) as error:
      prepare.prepare(name, str(tmp_path))
    message = str(error.value)
    assert '\n' not in message and 'no network' in message
    for wanted in archives:
      assert wanted.url in message and wanted.sha256 in message
    assert f'prepare_data.py {name} --data_dir={tmp_path} --from=' in message
  with pytest.raises(FileNotFoundError, match='not found in'):
    prepare.prepare('cifar10', str(tmp_path), [str(tmp_path)])


def test_a_download_is_kept_only_if_its_checksum_holds(tmp_path):
  path, *_ = cifar10(tmp_path / 'server')
  right = archive(path)
  out = tmp_path / 'out'
  with pytest.raises(FileNotFoundError, match='gave sha256'):
    prepare.prepare('cifar10', str(out), [], [right._replace(sha256='0' * 64)])
  assert os.listdir(out / 'downloads') == []
  prepare.prepare('cifar10', str(out), [], [right])
  assert (out / 'downloads' / path.name).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_the_script_prepares_the_digits_twice_and_refuses_what_it_cannot(tmp_path):
  run = lambda *args: subprocess.run(
      [sys.executable, str(ROOT / 'scripts' / 'prepare_data.py'), *args], text=True,
      capture_output=True)
  first, second = (run('digits', f'--data_dir={tmp_path}') for _ in range(2))
  assert (first.returncode, second.returncode) == (0, 0)
  assert first.stdout == f'digits is prepared in {tmp_path}/digits/1.0.0\n'
  assert 'already prepared' in second.stdout
  other = run('celeb_a', f'--data_dir={tmp_path}')
  assert other.returncode == 2
  assert 'tfds build celeb_a' in other.stderr and 'Traceback' not in other.stderr
