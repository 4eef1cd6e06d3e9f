"""Weight files: what PyTorch and others wrote comes back, and nothing else ever happens.

The files in tests/data were made by PyTorch; tests/data/README.md says how.
"""
import collections
import hashlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors

from vdm_jax.errors import InputError
from vdm_jax.published import readers

DATA = Path(__file__).parents[1] / 'data'
PUBLIC = ('torch_zip.pt', 'torch_legacy.pt', 'edm_like.pkl')


# ------------------------------------------------------------ what comes back


@pytest.mark.parametrize('name', ['torch_zip.pt', 'torch_legacy.pt'])
def test_both_formats_of_pytorch_come_back(name):
  flat = readers.read(DATA / name)
  base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
  want = {
      'net.weight': base, 'net.turned': base.transpose(2, 1, 0), 'net.part': base[1, 1:, ::2],
      'net.bias': np.float64([1.5, -2.0]), 'half': np.float16([0.1, 65504]),
      'bfloat': np.array([0.1, 3e38], ml_dtypes.bfloat16), 'long': np.int64([2**40, -1]),
      'int': np.int32([7, -7]), 'short': np.int16([-300]), 'char': np.int8([-3]),
      'byte': np.uint8([200]), 'bool': np.array([True, False]),
      'none': np.zeros((0, 3), np.float32), 'scalar': np.array(0.25, np.float32),
      'expanded': np.float32([[1, 1, 1], [2, 2, 2]])}
  state = readers.subtree(flat, '0')
  assert state.keys() == want.keys()
  for key, array in want.items():
    assert state[key].dtype == array.dtype, key
    np.testing.assert_array_equal(state[key], array, err_msg=key)
  # Of the rest of a training state: numbers and tensors, no text.
  rest = {key: array for key, array in flat.items() if not key.startswith('0.')}
  assert rest.keys() == {'1.state.0.step', '1.state.0.exp_avg', '1.lr', '2', '3.0'}
  assert rest['1.lr'] == 0.5 and rest['2'] == 12
  np.testing.assert_array_equal(rest['1.state.0.exp_avg'], [1, 1])


def test_of_an_edm_pickle_the_average_comes_back_and_its_source_is_not_executed():
  assert b'class Precond' in (DATA / 'edm_like.pkl').read_bytes()
  flat = readers.read(DATA / 'edm_like.pkl')
  assert set(flat) == {'scales', 'enc.8x8_conv.weight', 'enc.8x8_conv.resample_filter',
                       'norm.weight', 'norm.bias'}
  np.testing.assert_array_equal(flat['enc.8x8_conv.weight'],
                                np.arange(4, dtype=np.float32).reshape(2, 2) / np.float32(3))
  np.testing.assert_array_equal(flat['enc.8x8_conv.resample_filter'],
                                np.full((1, 1, 2, 2), 0.25, np.float32))
  np.testing.assert_array_equal(flat['scales'], np.float16([0.1, -2.5]))
  np.testing.assert_array_equal(flat['norm.weight'], [1, 1])


def test_npz_and_flax_come_back_and_a_part_of_them_can_be_picked(tmp_path):
  weight, half = np.float32([[1, 2], [3, 4]]), jnp.bfloat16([0.5, 3.0])
  np.savez(tmp_path / 'w.npz', **{'a/b': weight, 'c': np.int64(3)})
  flat = readers.read(tmp_path / 'w.npz')
  assert set(flat) == {'a/b', 'c'}
  np.testing.assert_array_equal(flat['a/b'], weight)

  tree = {'step': 7, 'params': {'net': {'w': -weight}},
          'ema_params': {'net': {'w': weight, 'half': half}, 'list': [np.zeros(2), np.ones(1)]}}
  (tmp_path / 'checkpoint_7').write_bytes(flax.serialization.to_bytes(tree))
  flat = readers.read(tmp_path / 'checkpoint_7')
  assert flat['step'] == 7
  average = readers.subtree(flat, 'ema_params')
  assert set(average) == {'net/w', 'net/half', 'list/0', 'list/1'}
  np.testing.assert_array_equal(average['net/w'], weight)
  assert average['net/half'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(average['net/half'], half)
  np.testing.assert_array_equal(readers.subtree(flat, 'params/net')['w'], -weight)
  with pytest.raises(InputError, match="nothing under 'ema'; choose one of .*ema_params"):
    readers.subtree(flat, 'ema')


ARRAYS = {'a/kernel': np.arange(12, dtype=np.float32).reshape(3, 4).T,  # columns first in memory
          'a/b': np.array(1.5), 'half': np.array([0.1, -3], ml_dtypes.bfloat16),
          'none': np.zeros((0, 2), np.float16), 'n': np.int32([[1], [-2]])}


def test_safetensors_come_back_with_their_text(tmp_path):
  path = tmp_path / 'w.safetensors'
  readers.write_safetensors(path, ARRAYS, {'step': '12'})
  flat = readers.read(path)
  assert flat.keys() == ARRAYS.keys()
  for key, array in ARRAYS.items():
    assert flat[key].dtype == array.dtype and flat[key].shape == array.shape
    np.testing.assert_array_equal(flat[key], array)
  with safetensors.safe_open(path, 'numpy') as file:
    assert file.metadata() == {'step': '12'}


def test_safetensors_are_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'w.safetensors'
  path.write_bytes(b'before')
  with pytest.raises(Exception, match='object|dtype'):
    readers.write_safetensors(path, {'a': np.array([None])}, {})
  assert path.read_bytes() == b'before' and os.listdir(tmp_path) == [path.name]


# ---------------------------------------------------------------- bad files


def refused(path, match=None):
  with pytest.raises(InputError, match=match) as error:
    readers.read(path)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_what_is_no_weight_file_is_refused_with_what_is(tmp_path):
  refused(tmp_path / 'none.pt', 'no such file')
  refused(tmp_path, 'a directory')
  path = tmp_path / 'x.pt'
  for data in (b'', b'\0', b'GIF89a' + bytes(50), b'{"a": 1}', b'\x80', bytes(90)):
    path.write_bytes(data)
    message = refused(path)
    assert 'no weight file' in message and 'safetensors.torch.save_file' in message
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'nothing')
  refused(path, 'a zip archive without weights')
  np.savez(tmp_path / 'o.npz', a=np.array([None], object))
  refused(tmp_path / 'o.npz', 'allow_pickle')


def samples(folder):
  """The bytes of a file of every format."""
  readers.write_safetensors(folder / 'w.safetensors', ARRAYS, {})
  np.savez(folder / 'w.npz', a=np.arange(30.0))
  (folder / 'w.msgpack').write_bytes(
      flax.serialization.to_bytes({'params': {'w': np.arange(30.0), 'b': np.ones(2)}}))
  paths = [*(DATA / name for name in PUBLIC),
           *(folder / name for name in ('w.safetensors', 'w.npz', 'w.msgpack'))]
  return {path.name: path.read_bytes() for path in paths}


@pytest.mark.first(4)
@pytest.mark.parametrize('name', [*PUBLIC, 'w.safetensors', 'w.npz', 'w.msgpack'])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
  data = samples(tmp_path)[name]
  path = tmp_path / f'cut_{name}'
  places = sorted({*range(0, 40), *range(40, len(data), max(1, len(data) // 150)),
                   *range(len(data) - 12, len(data))})
  for place in places:
    path.write_bytes(data[:place])
    refused(path)


@pytest.mark.first(5)
@pytest.mark.parametrize('name', [*PUBLIC, 'w.safetensors', 'w.npz', 'w.msgpack'])
def test_a_file_with_a_wrong_byte_is_read_or_refused_and_nothing_else(tmp_path, name):
  data = samples(tmp_path)[name]
  path = tmp_path / f'wrong_{name}'
  rng = np.random.default_rng(0)
  for _ in range(150):
    place = rng.integers(len(data))
    path.write_bytes(data[:place] + bytes([rng.integers(256)]) + data[place + 1:])
    try:
      flat = readers.read(path)
    except InputError as error:
      assert '\n' not in str(error)
    else:
      assert all(isinstance(array, np.ndarray) for array in flat.values())


# ---------------------------------------------------------- hostile pickles


class Calls:
  """Pickles as a call of `function` with `args`."""

  def __init__(self, function, *args):
    self.parts = function, args

  def __reduce__(self):
    return self.parts


def named(module, name, *args):
  """A pickle that calls module.name(*args), whatever that is."""
  pickled = b''.join(pickle.dumps(arg, 2)[2:-1] for arg in args)
  return b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b'(' + pickled + b'tR.'


def as_zip(data, storage=b''):
  """A pickle where PyTorch has its own."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w') as archive:
    archive.writestr('archive/data.pkl', data)
    archive.writestr('archive/version', '3\n')
    archive.writestr('archive/data/0', storage)
  return stream.getvalue()


def as_legacy(data):
  dumps = lambda value: pickle.dumps(value, 2)
  return (dumps(0x1950a86a20f9469cfc6c) + dumps(1001) + dumps({'little_endian': True}) + data
          + dumps([]))


@pytest.fixture
def canary(tmp_path):
  """What no file may touch."""
  path = tmp_path / 'canary'
  yield path
  assert not path.exists()


def hostile(canary):
  code = f"open({str(canary)!r}, 'w').write('x')"
  touch = f'touch {canary}'
  return {
      'posix.system': pickle.dumps({'ema': Calls(os.system, touch)}),
      'builtins.eval': pickle.dumps(Calls(eval, code)),
      'builtins.exec': pickle.dumps([Calls(exec, code)], 2).replace(b'__builtin__', b'builtins'),
      'subprocess.check_output': named('subprocess', 'check_output', ['touch', str(canary)]),
      'builtins.open': named('builtins', 'open', str(canary), 'w'),
      'builtins.getattr': named('builtins', 'getattr', 'os', 'system'),
      'torch.load': named('torch', 'load', str(canary)),
      'torch.hub.load': named('torch.hub', 'load', 'a', 'b'),
      'torch.nn.modules.module.os.system': named('torch.nn.modules.module', 'os.system', touch),
      'numpy.load': named('numpy', 'load', str(canary), None, True),
      'collections.OrderedDict.fromkeys': named('collections', 'OrderedDict.fromkeys', [1]),
      'operator.attrgetter': named('operator', 'attrgetter', '__class__'),
      'copyreg._reconstructor': named('copyreg', '_reconstructor', 1),
      'pathlib.PosixPath': named('pathlib', 'PosixPath', str(canary)),
      'argparse.Namespace': named('argparse', 'Namespace'),
  }


@pytest.mark.parametrize('wrap', [lambda data: data, as_zip, as_legacy],
                         ids=['plain', 'zip', 'legacy'])
def test_a_pickle_that_asks_for_anything_but_tensors_is_refused_by_that_name(
    tmp_path, canary, wrap):
  path = tmp_path / 'x.pt'
  for name, data in hostile(canary).items():
    path.write_bytes(wrap(data))
    message = refused(path)
    assert f"asks for '{name}'" in message
    assert 'nothing was executed' in message and not canary.exists()


def test_a_hostile_pickle_within_the_bytes_of_a_tensor_is_refused(tmp_path, canary):
  path = tmp_path / 'x.pkl'
  inner = as_legacy(pickle.dumps(Calls(os.system, f'touch {canary}')))
  for bytes_ in (inner, pickle.dumps(Calls(os.system, f'touch {canary}'))):
    path.write_bytes(b'\x80\x04' + b'ctorch.storage\n_load_from_bytes\n'
                     + pickle.dumps(bytes_, 4)[2:-1] + b'\x85R.')
    refused(path, r'posix\.system')


def test_the_source_within_an_edm_pickle_is_text(tmp_path, canary):
  meta = {'type': 'class', 'version': 6, 'class_name': 'A', 'state': {'x': 1},
          'module_src': f"open({str(canary)!r}, 'w')\nclass A: pass"}
  path = tmp_path / 'x.pkl'
  path.write_bytes(b'\x80\x02}U\x03emactorch_utils.persistence\n_reconstruct_persistent_obj\n'
                   + pickle.dumps(meta, 2)[2:-1] + b'\x85Rs.')
  assert readers.read(path) == {}


def test_names_that_are_allowed_cannot_be_altered_by_a_file(tmp_path, canary):
  """The opcode BUILD sets attributes of whatever it is given."""
  before = readers.read(DATA / 'torch_zip.pt')
  path = tmp_path / 'x.pkl'
  state = pickle.dumps({'__call__': 1, '_run': 2, 'held': 3, 'dtype': 4}, 2)[2:-1]
  for name in readers._NAMES:
    module, _, attribute = name.rpartition('.')
    for change in (state, b'N' + state + b'\x86'):
      path.write_bytes(b'\x80\x02c' + f'{module}\n{attribute}\n'.encode() + change + b'b.')
      refused(path)
  path.write_bytes(b'\x80\x02ctorch.nn.modules.linear\nLinear\nN' + state + b'\x86b.')
  refused(path)
  after = readers.read(DATA / 'torch_zip.pt')
  assert after.keys() == before.keys()
  for key, array in before.items():
    np.testing.assert_array_equal(after[key], array)


class Storage(pickle.Pickler):
  """Writes a persistent id where it meets ..., as PyTorch does for storages."""

  def persistent_id(self, value):
    return value.pid if isinstance(value, Pid) else None


class Pid(collections.namedtuple('Pid', 'pid')):
  pass


def tensor(pid, *args):
  """A pickle of _rebuild_tensor_v2(storage, *args)."""
  stream = io.BytesIO()
  Storage(stream, 2).dump((Pid(pid), *args))
  body = stream.getvalue().removeprefix(b'\x80\x02')[:-1]
  return b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n' + body + b'R.'


class FloatStorage:
  """Pickles as the name torch.FloatStorage."""


def floats(count, *args):
  data = tensor(('storage', FloatStorage, '0', 'cpu', count), *args)
  return data.replace(f'c{__name__}\nFloatStorage\n'.encode(), b'ctorch\nFloatStorage\n')


def test_shapes_strides_and_offsets_are_checked_against_the_bytes(tmp_path):
  path = tmp_path / 'x.pt'
  numbers = np.arange(6, dtype=np.float32)

  def read(count, *args):
    path.write_bytes(as_zip(floats(count, *args, False, collections.OrderedDict()),
                            numbers.tobytes()))
    return readers.read(path)['']

  np.testing.assert_array_equal(read(6, 1, (2, 2), (1, 3)), [[1, 4], [2, 5]])
  np.testing.assert_array_equal(read(6, 5, (), ()), 5.0)
  for wrong in (
      (6, 2, (2, 2), (1, 3)), (6, -1, (2,), (1,)), (6, 5, (2,), (-1,)), (6, 0, (-2,), (1,)),
      (7, 0, (2,), (1,)), (-1, 0, (2,), (1,)), (True, 0, (1,), (1,)), (6, 0, (2, 2), (1,)),
      (6, 0, (7,), (1,)), (6, 6, (1,), (1,)), (6, 0, (2.0,), (1,)), (6, 0, (2**40,), (1,)),
      (6, 0, (2,), (2**62,)), (6, 0, (2**40, 2**40), (0, 0))):
    with pytest.raises(InputError, match='truncated or damaged'):
      read(*wrong)


def test_a_number_that_asks_for_memory_takes_none(tmp_path):
  path = tmp_path / 'x.pt'
  huge = struct.pack('<Q', 2**40)
  for data in (b'\x80\x04N' + b'r\xff\xff\xff\x7f' + b'.',         # a memo of 2^31 places
               b'\x80\x05' + b'\x96' + huge + b'.',                # an array of 2^40 bytes
               b'\x80\x04' + b'\x8e' + huge + b'.', b'\x80\x04\x95' + huge + b'.'):
    path.write_bytes(data)
    try:
      assert readers.read(path) == {}
    except InputError:
      pass


def test_lists_within_themselves_or_without_end_are_refused(tmp_path):
  loop = []
  loop.append(loop)
  doubled = []
  for _ in range(60):
    doubled = [doubled, doubled]
  path = tmp_path / 'x.pt'
  for endless in (loop, doubled):
    path.write_bytes(pickle.dumps(endless))
    refused(path, 'truncated or damaged')


def test_a_file_whose_name_tells_its_hash_must_have_it(tmp_path):
  """The convention of PyTorch's published weights; eight digits without a letter are a date."""
  content = (DATA / 'torch_zip.pt').read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  for name in (f'net-{digest[:8]}.pth', 'net-20231201.pth', 'net-0000000a.pt'):
    (tmp_path / name).write_bytes(content)
    assert readers.read(tmp_path / name)
  (tmp_path / 'net-0000000a.pth').write_bytes(content)
  refused(tmp_path / 'net-0000000a.pth', f'its SHA-256 begins with {digest[:8]}, and its name says'
          ' 0000000a; download it again')
