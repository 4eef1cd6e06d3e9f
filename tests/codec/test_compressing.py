"""Images to a file and back by a run, and every refusal."""
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import images_run
from vdm_jax import runs
from vdm_jax.codec import container, stack
from vdm_jax.errors import InputError
from vdm_jax.runs import compressing, workdir

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('codec')
  rng = np.random.default_rng(0)
  pictures = folder / 'pictures'
  (pictures / 'more').mkdir(parents=True)
  for name in ('a', 'b', 'more/c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p',
               'q', 'r', 's', 't', 'u', 'v', 'w', 'x'):
    Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(pictures / f'{name}.png')
  return folder


@pytest.fixture(scope='module')
def run(folder):
  return images_run.make_run(folder, folder / 'pictures', False)


@pytest.fixture(scope='module')
def encoded(folder, run):
  out = folder / 'images.vdmz'
  report = compressing.encode(run, folder / 'pictures', out, steps=3, lanes=5, verify=True,
                              progress=False)
  return out, report


@pytest.mark.long
def test_a_folder_of_pictures_comes_back_pixel_by_pixel(folder, encoded, tmp_path):
  out, report = encoded
  written = compressing.decode(out, tmp_path / 'decoded', progress=False)
  assert len(written) == report.count == 24
  for path in (folder / 'pictures').rglob('*.png'):
    decoded = tmp_path / 'decoded' / path.relative_to(folder / 'pictures')
    np.testing.assert_array_equal(np.asarray(Image.open(decoded)), np.asarray(Image.open(path)))


@pytest.mark.long
def test_the_parts_of_a_file_are_its_size(encoded):
  out, report = encoded
  net = report.net * report.dimensions * report.count / 8.0
  assert report.size == out.stat().st_size
  # A stack begins with a state of 63 to 64 bits, and ends in whole words.
  rounding = 8.0 * (report.size - report.header - report.initial - net)
  assert -5 < rounding < 32 * 5
  info = compressing.info(out)
  assert info['steps'] == 3 and info['count'] == 24 and info['bytes'] == report.size
  assert info['names'] == 'a.png, b.png, d.png, ...'


@pytest.mark.long
def test_the_bound_that_is_reported_is_that_of_the_images_and_their_chain(folder, run, encoded):
  report = encoded[1]
  trained = workdir.load_trained(run)
  images = np.stack([np.asarray(Image.open(path)) for path in (folder / 'pictures').rglob('*.png')])
  nats = trained.experiment.model(trained.params).nats(
      {'image': images[..., None]}, key=jax.random.key(7), draws=64, steps=3)
  bits = nats / np.log(2.0) / report.dimensions
  # Both means are over the same images: what is left of their spread are the draws.
  assert abs(report.bound - bits.mean()) < 4.0 * report.bound_error
  assert report.above_error > 0.0 and 0.0 < report.net_error < report.net


@pytest.mark.long
def test_images_that_are_too_many_to_be_held_are_read_a_lane_at_a_time(folder, run, tmp_path,
                                                                      monkeypatch):
  whole = compressing.encode(run, folder / 'pictures', tmp_path / 'whole.vdmz', steps=2, lanes=2,
                             progress=False)
  read, picture = [], compressing._picture
  monkeypatch.setattr(compressing, '_HELD', 100)
  monkeypatch.setattr(compressing, '_picture', lambda *given: read.append(1) or picture(*given))
  groups, encode = [], compressing.bits_back.encode

  def watched(chain, images, *given, **options):
    def counted(rows):
      groups.append(len(rows))
      return images(rows)
    read.clear()
    coded = encode(chain, counted, *given, **options)
    assert len(read) == 24  # each once
    return coded

  monkeypatch.setattr(compressing.bits_back, 'encode', watched)
  few = compressing.encode(run, folder / 'pictures', tmp_path / 'few.vdmz', steps=2, lanes=2,
                           progress=False)
  assert max(groups) == 2
  assert few.net == whole.net and few.bound == pytest.approx(whole.bound)
  assert set(whole.sheet) == {'PNG', 'WebP', 'JPEG XL'} and few.sheet == {}


def test_arrays_are_decoded_in_the_memory_of_a_few(tmp_path):
  count, shape = 3000, (16, 16, 3)
  header = {'count': count, 'shape': shape, 'levels': 256, 'conditions': {'label': [1] * count},
            'names': [f'{i}.png' for i in range(count)]}
  image = np.random.default_rng(0).integers(0, 256, shape)
  decoded = ((np.array([i]), (image[None] + i) % 256) for i in reversed(range(count)))
  tracemalloc.start()
  compressing.save([tmp_path / 'new' / 'images.npz'], decoded, header)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < count * image.size / 4  # a byte for each of a quarter of them
  with np.load(tmp_path / 'new' / 'images.npz') as arrays:
    assert arrays['names'][7] == '7.png'
    assert arrays['labels'].shape == (count,) and arrays['images'].dtype == np.uint8
    np.testing.assert_array_equal(arrays['images'][7], (image + 7) % 256)
  assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['images.npz']


@pytest.mark.first(1)
@pytest.mark.parametrize('name', ['PNG', 'WebP', 'JPEG XL'])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_sheet_of_noise_costs_its_entropy_and_a_plain_one_nearly_nothing(name, channels):
  if name == 'JPEG XL':
    pytest.importorskip('pillow_jxl')
  noise = np.random.default_rng(0).integers(0, 256, (64, 16, 16, channels))
  assert 7.9 < compressing.as_sheet(noise)[name] < 9.0
  assert compressing.as_sheet(np.full_like(noise, 9))[name] < 0.1


@pytest.mark.long
def test_other_arrays_keep_their_labels_and_a_model_of_classes_wants_them(folder, tmp_path):
  pictures = tmp_path / 'classes'
  rng = np.random.default_rng(1)
  for i in range(24):
    (pictures / 'abc'[i % 3]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(
        pictures / 'abc'[i % 3] / f'{i}.png')
  run = images_run.make_run(tmp_path, pictures, True)
  images, labels = rng.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8), np.array([0, 2, 1, 1, 0])
  np.savez(tmp_path / 'given.npz', images=images, labels=labels)
  compressing.encode(run, tmp_path / 'given.npz', tmp_path / 'x.vdmz', steps=2, progress=False)
  compressing.decode(tmp_path / 'x.vdmz', tmp_path / 'out', progress=False)
  for i in range(5):
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / f'{i:05d}.png')),
                                  images[i, ..., 0])
  np.savez(tmp_path / 'bare.npz', images=images)
  with pytest.raises(InputError, match="conditioned on 'label', and the images have none"):
    compressing.encode(run, tmp_path / 'bare.npz', tmp_path / 'y.vdmz', steps=2, progress=False)
  np.savez(tmp_path / 'four.npz', images=images, labels=np.array([0, 2, 1, 1, 3]))
  with pytest.raises(InputError, match="in their array 'label', the classes are 0 .. 2"):
    compressing.encode(run, tmp_path / 'four.npz', tmp_path / 'y.vdmz', steps=2, progress=False)


@pytest.mark.long
def test_a_model_of_augmented_images_codes_them_as_they_are(folder, tmp_path):
  text, file = images_run.CONFIG, tmp_path / 'tiny.py'
  for old, new in [('NAME', str(folder / 'pictures')), ('CONDITIONAL', 'False'),
                   ('batch_size=8', 'batch_size=8, augment=True'),
                   ('nn.Embed(3, 1)(cond)', 'nn.Dense(1)(cond[:, None])')]:
    text = text.replace(old, new)
  file.write_text(text)
  runs.train(workdir.open_config(str(file)), file, tmp_path / 'run')
  report = compressing.encode(tmp_path / 'run', folder / 'pictures', tmp_path / 'x.vdmz', steps=2,
                              verify=True, progress=False)
  assert report.count == 24


@pytest.mark.long
def test_the_ledger_has_the_bits_of_a_file_beside_the_bound(run, tmp_path):
  ledger = runs.evaluate(run, split='validation', estimates=['vlb@3', 'codec@3'], times=32,
                         out=tmp_path)
  rows = {row['estimate']: row for row in ledger.rows}
  coded = rows['codec@3']
  assert (coded['kind'], coded['model'], coded['steps']) == ('code length', 'chain', 3)
  assert coded['examples'] == 8 and coded['evaluations_per_image'] == 6  # there and back
  [check] = [check for check in ledger.checks if check['name'] == 'codec@3 <= vlb@3, to 1 %']
  assert check['passed']
  assert check['difference'] == pytest.approx(
      coded['bits_per_dim'] - rows['vlb@3']['bits_per_dim'])
  with pytest.raises(InputError, match='no head for the variance'):
    runs.evaluate(run, split='validation', estimates=['codec@3/learned'], out=tmp_path)
  with pytest.raises(InputError, match='no such estimate'):
    runs.evaluate(run, split='validation', estimates=['codec'], out=tmp_path)


@pytest.mark.long
def test_a_changed_bit_anywhere_is_noticed_before_decoding(encoded, tmp_path):
  content, bad = encoded[0].read_bytes(), tmp_path / 'bad.vdmz'
  sample = np.random.default_rng(0).integers(48 * 8, len(content) * 8, 64)
  for bit in [*range(48 * 8), *sample.tolist(), len(content) * 8 - 1]:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    bad.write_bytes(changed)
    with pytest.raises(InputError, match=r'damaged|a complete .vdmz file|version') as error:
      compressing.decode(bad, tmp_path / 'out')
    assert len(str(error.value).splitlines()) == 1, bit
  assert not (tmp_path / 'out').exists()


def test_a_file_whose_lanes_are_not_its_words_is_refused(encoded, tmp_path):
  """With a right checksum: the work of another program."""
  content = encoded[0].read_bytes()
  length, = struct.unpack_from('<I', content, 6)
  header = json.loads(zlib.decompress(content[42:42 + length]))
  several = header['lanes']
  short = [[several[0][0] - 1, several[0][1]], *several[1:]]
  for text in (json.dumps(header | {'lanes': short}), json.dumps(header | {'lanes': []}), '[]',
               json.dumps({}), 'no JSON'):
    packed = zlib.compress(text.encode())
    start = struct.pack('<4sHI', b'VDMZ', container.VERSION, len(packed))
    body = packed + content[42 + length:]
    digest = hashlib.sha256(start + body).digest()
    (tmp_path / 'bad.vdmz').write_bytes(start + digest + body)
    with pytest.raises(InputError, match='its header and its payload do not agree'):
      compressing.info(tmp_path / 'bad.vdmz')


@pytest.mark.parametrize('kept', [0, 3, 20, 60, -1])
def test_a_file_that_was_cut_is_refused(encoded, tmp_path, kept):
  (tmp_path / 'cut.vdmz').write_bytes(encoded[0].read_bytes()[:kept])
  with pytest.raises(InputError, match=r'damaged|a complete .vdmz file'):
    compressing.decode(tmp_path / 'cut.vdmz', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def rewritten(source, path, **fields):
  read = container.read(source)
  container.write(path, read.header | fields, read.lanes)
  return path


@pytest.mark.parametrize('fields, message', [
    ({'weights': '0' * 16}, 'other weights than the weights of .*name the run that encoded it'),
    ({'probe': '0' * 32}, 'rounds otherwise than the one that encoded it'),
    ({'tables': '0' * 32}, 'rounds otherwise than the one that encoded it'),
    ({'network_lanes': 4}, 'rounds otherwise than the one that encoded it'),
    ({'run': '/nowhere'}, 'workdir=./nowhere.*say where it is now'),
    ({'names': ['../../x'] * 24}, 'outside of the folder')])
def test_a_file_of_another_model_or_machine_is_refused(encoded, tmp_path, fields, message):
  bad = rewritten(encoded[0], tmp_path / 'bad.vdmz', **fields)
  with pytest.raises(InputError, match=message):
    compressing.decode(bad, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_file_of_a_newer_version_is_refused(encoded, tmp_path):
  content = bytearray(encoded[0].read_bytes())
  content[4:6] = struct.pack('<H', container.VERSION + 1)
  (tmp_path / 'new.vdmz').write_bytes(content)
  with pytest.raises(InputError, match='version 2 of the format.*update vdm_jax'):
    compressing.info(tmp_path / 'new.vdmz')


@pytest.mark.long
def test_what_cannot_be_encoded_is_refused_and_leaves_no_file(folder, run, tmp_path, monkeypatch):
  np.savez(tmp_path / 'wide.npz', images=np.zeros((2, 4, 5, 1), np.uint8))
  np.savez(tmp_path / 'other.npz', pictures=np.zeros((2, 4, 4, 1), np.uint8))
  np.savez(tmp_path / 'none.npz', images=np.zeros((0, 4, 4, 1), np.uint8))
  (tmp_path / 'half.npz').write_bytes((tmp_path / 'none.npz').read_bytes()[:90])
  (tmp_path / 'twins').mkdir()
  for name in ('a.png', 'a.bmp'):
    Image.new('L', (4, 4)).save(tmp_path / 'twins' / name)
  for images, message in ((tmp_path / 'wide.npz', r'their shape is \[4, 5, 1\]'),
                          (tmp_path / 'other.npz', 'name the array `images`'),
                          (tmp_path / 'none.npz', r'\[0, 4, 4, 1\]; give one image or more'),
                          (tmp_path / 'half.npz', 'it cannot be read'),
                          (tmp_path / 'twins', 'two pictures would be decoded as a.png'),
                          (tmp_path / 'nothing', 'there is no such picture'),
                          (folder / 'run', 'it holds no pictures')):
    with pytest.raises(InputError, match=message):
      compressing.encode(run, images, tmp_path / 'x.vdmz', steps=2, progress=False)
  def nothing(*_):
    raise AssertionError('the variances were estimated first')

  monkeypatch.setattr(compressing, 'variances_of', nothing)
  of_17 = tmp_path / 'dark.npz'
  np.savez(of_17, images=np.full((2, 4, 4, 1), 256, np.int32))
  for images, options, message in (
      (folder / 'pictures', {'seed': -1}, 'seed=-1: it is out of range'),
      (folder / 'pictures', {'seed': 5_000_000_000}, 'seed=5000000000: it is out of range'),
      (folder / 'pictures', {'steps': 0}, 'T=0: it must be at least 1'),
      (folder / 'pictures', {'lanes': 0}, 'lanes=0: it must be at least 1'),
      (of_17, {}, 'from 256 to 256; give integers from 0 to 255')):
    with pytest.raises(InputError, match=message):
      compressing.encode(run, images, tmp_path / 'x.vdmz', variance='analytic', **options)
  with pytest.raises(InputError, match='no head for the variance'):
    compressing.encode(run, folder / 'pictures', tmp_path / 'x.vdmz', variance='learned')
  monkeypatch.setattr(compressing.container, 'write', lambda *_: (_ for _ in ()).throw(OSError))
  with pytest.raises(OSError):
    compressing.encode(run, folder / 'pictures', tmp_path / 'x.vdmz', steps=2, progress=False)
  assert not list(tmp_path.glob('x*'))


def test_a_run_without_a_chain_is_refused_and_leaves_no_file(folder, run, tmp_path, monkeypatch):
  trained = workdir.load_trained(run)
  model = lambda params: trained.experiment.model(params)._replace(bound=lambda *_: None)
  monkeypatch.setattr(compressing.workdir, 'load_trained', lambda *_, **__: trained._replace(
      experiment=trained.experiment._replace(model=model)))
  with pytest.raises(InputError, match='has a bound of its own, so its chain cannot be coded'):
    compressing.encode(run, folder / 'pictures', tmp_path / 'x.vdmz', steps=2, progress=False)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('mode, message', [
    ('RGB', 'it has colours, which the model does not code'),
    ('LA', 'it has alpha, which the model does not code'), ('I;16', 'more than 8 bits')])
def test_a_picture_that_would_not_come_back_as_it_is_is_refused(run, tmp_path, mode, message):
  Image.new(mode, (4, 4)).save(tmp_path / 'one.png')
  with pytest.raises(InputError, match=message):
    compressing.encode(run, tmp_path / 'one.png', tmp_path / 'x.vdmz', steps=2, progress=False)
  assert not (tmp_path / 'x.vdmz').exists()


def test_what_could_be_decoded_in_part_only_is_refused_before_it_is_written(encoded, tmp_path):
  names = ['a.png', 'more/c.png']
  header = {'levels': 256, 'shape': [4, 4, 1], 'names': names}
  (tmp_path / 'more').write_text('a file')
  with pytest.raises(InputError, match='nothing can be written into .*more'):
    compressing.targets_in(tmp_path, header, True)
  (tmp_path / 'other' / 'more' / 'c.png').mkdir(parents=True)
  with pytest.raises(InputError, match='c.png is a directory'):
    compressing.targets_in(tmp_path / 'other', header, True)


def test_pictures_are_decoded_as_pictures_and_arrays_of_few_levels_as_arrays(tmp_path):
  header = {'levels': 17, 'shape': [4, 4, 1]}
  assert compressing.targets_in(tmp_path, header | {'names': ['a.jpg', 'more/c.png']}, False) == [
      tmp_path / 'a.png', tmp_path / 'more' / 'c.png']
  arrays = compressing.targets_in(tmp_path, header | {'names': ['00000', '00001']}, False)
  assert arrays == [tmp_path / 'images.npz']


def test_a_picture_with_the_name_of_a_folder_is_refused(run, tmp_path):
  (tmp_path / 'all' / 'a.png').mkdir(parents=True)
  for name in ('a.bmp', 'a.png/b.png'):
    Image.new('L', (4, 4)).save(tmp_path / 'all' / name)
  with pytest.raises(InputError, match='a.bmp would be decoded under the name of a folder'):
    compressing.open_images(tmp_path / 'all', (4, 4, 1))


def test_files_that_are_there_are_kept(folder, run, encoded, tmp_path):
  with pytest.raises(InputError, match='it is there already'):
    compressing.encode(run, folder / 'pictures', encoded[0])
  compressing.decode(encoded[0], tmp_path / 'out', progress=False)
  with pytest.raises(InputError, match='is there already'):
    compressing.decode(encoded[0], tmp_path / 'out')


def test_the_header_is_json_that_another_program_reads(encoded):
  content = encoded[0].read_bytes()
  magic, version, length = struct.unpack_from('<4sHI', content)
  header = json.loads(zlib.decompress(content[42:42 + length]))
  assert (magic, version) == (b'VDMZ', 1)
  assert sum(words for words, _ in header['lanes']) * 4 == len(content) - 42 - length


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_encoding_that_is_killed_half_way_leaves_no_file(folder, run, tmp_path, number):
  process = subprocess.Popen(
      [sys.executable, 'scripts/compress.py', 'encode', str(folder / 'pictures'),
       f'--workdir={run}', f'--out={tmp_path / "x.vdmz"}', '--T=600'], cwd=ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  said = b''
  while b'2/24' not in said:
    assert (more := process.stderr.read1(100)), said
    said += more
  process.send_signal(number)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
  assert b'bits/dim' not in out and not list(tmp_path.iterdir())


def test_a_stack_that_codes_otherwise_is_refused(encoded, tmp_path, monkeypatch):
  """As another version of its library could."""
  words = stack.sample_words()
  words[3] ^= 1
  monkeypatch.setattr(stack, 'sample_words', lambda: words)
  with pytest.raises(InputError, match='its version of JAX or constriction, rounds otherwise'):
    compressing.decode(encoded[0], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


IGNORED = [
    (['encode', 'a.png', 'b.png'], '2 paths are given, but only one is read'),
    (['encode', 'a.png', '--approximate'], '--approximate=True: lossless encoding does not read'),
    (['encode', 'a.png', '--prefix=0.5'], '--prefix=0.5: lossless encoding does not read it'),
    (['encode', 'a.png', '--method=uqdm', '--verify'], '--verify=True: encoding by uqdm does not'),
    (['encode', 'a.png', '--method=diffc', '--lanes=2'], '--lanes=2: encoding by diffc does not'),
    (['curve', 'a.png', '--verify'], '--verify=True: curve does not read it'),
    (['decode', 'FILE', '--finish=mean'], '--finish=mean: decoding a lossless file does not'),
    (['info', 'none.vdmz'], 'none.vdmz: it cannot be read')]
COMMAND = '''
import json, sys
from absl import flags
from absl.testing import flagsaver
from vdm_jax.cli.commands import compress
from vdm_jax.errors import InputError
said = []
for words in json.loads(sys.argv[1]):
  with flagsaver.flagsaver():
    try:
      ordered = sorted(words, key=lambda word: word[0] != '-')  # flags first
      compress.main(flags.FLAGS(['compress.py', '--workdir=run', '--out=x', *ordered])[1:])
    except InputError as error:
      said.append(error.as_flag())
print(json.dumps(said))
'''


@pytest.mark.long
def test_a_flag_that_would_be_ignored_is_refused(encoded):
  """In a process of its own: the commands of a process share their flags."""
  words = [[word.replace('FILE', str(encoded[0])) for word in words] for words, _ in IGNORED]
  done = subprocess.run([sys.executable, '-c', COMMAND, json.dumps(words)], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for said, (_, message) in zip(json.loads(done.stdout), IGNORED, strict=True):
    assert message in said and '--file' not in said


@pytest.mark.long
def test_a_machine_that_rounds_otherwise_is_refused(folder, run, tmp_path):
  """A program for other instructions is another machine on this one."""
  command = [sys.executable, 'scripts/compress.py']
  clean = {**os.environ, 'XLA_FLAGS': '', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  out = tmp_path / 'x.vdmz'
  done = subprocess.run([*command, 'encode', str(folder / 'pictures'), f'--workdir={run}',
                         f'--out={out}', '--T=3'], cwd=ROOT, env=clean, check=True,
                        capture_output=True, text=True)
  for part in ('header', 'initial', 'net', 'vlb@3 of these images: ', 'net - vlb@3: ', 'PNG ',
               'JPEG XL ', 'of the time in the network'):
    assert part in done.stdout
  there = subprocess.run([*command, 'decode', str(out), f'--out={tmp_path / "a"}'], cwd=ROOT,
                         env=clean, capture_output=True, text=True)
  assert there.returncode == 0, there.stderr
  other = subprocess.run([*command, 'decode', str(out), f'--out={tmp_path / "b"}'], cwd=ROOT,
                         env=clean | {'XLA_FLAGS': '--xla_cpu_max_isa=SSE4_2'},
                         capture_output=True, text=True)
  assert other.returncode == 2 and 'rounds otherwise' in other.stderr
  assert not (tmp_path / 'b').exists()
