"""Public weight files as {name: array}, read without executing any code that they contain.

The first bytes of a file say its format:

  PyTorch      .pt, .pth, .ckpt, in either format: a zip archive, or the older series of pickles
  NVIDIA EDM   .pkl: a pickle of networks with their source code, which is ignored
  safetensors
  NumPy        .npz
  Flax         msgpack, as `flax.serialization` and `flax.training.checkpoints` write it

A pickle is a program: it names functions and calls them.  Here a short list says which names are
allowed, and each name stands for something harmless.  At any other name the file is refused, and
the error says the name.  A tensor is bytes with a shape, strides and an offset.  All three are
checked against the bytes in the file.

The source joins the names of nested parts by '.', or by '/' for Flax, and the same is done here.
Lists number their parts.  Numbers become arrays without axes.  Text and all other values are left
out.
"""
import hashlib
import io
import itertools
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vdm_jax.errors import InputError
from vdm_jax.machine import files

_HASH = re.compile(r'-(?=\d*[a-f])([0-9a-f]{8})\.pth$')  # at least one letter: a date is no hash
_FORMATS = ('readable formats: PyTorch (.pt, .pth, .ckpt), NVIDIA EDM (.pkl), safetensors, .npz, '
            'Flax msgpack')
_CONVERT = ('where torch is installed, and only if you trust the file, '
            'safetensors.torch.save_file(torch.load(FILE)[...], OUT) makes a file of tensors alone')
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {'float64': np.dtype('f8'), 'float32': np.dtype('f4'), 'float16': np.dtype('f2'),
           'bfloat16': _BFLOAT16, 'int64': np.dtype('i8'), 'int32': np.dtype('i4'),
           'int16': np.dtype('i2'), 'int8': np.dtype('i1'), 'uint8': np.dtype('u1'),
           'bool': np.dtype('?')}
_STORAGES = {'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16',
             'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8',
             'Bool': 'bool'}


def read(path: str | Path) -> dict[str, np.ndarray]:
  """All arrays of a weight file, by their names in the file.

  For an EDM pickle, these are the parameters and buffers of the network under the key 'ema'.

  Raises InputError, in one line: no such file; a file in none of these formats; a truncated or
  damaged file; a pickle that asks for anything but tensors; a file NAME-HASH.pth whose SHA-256
  does not begin with HASH, the 8 hexadecimal digits that PyTorch gives its published weights.
  """
  path = Path(path)
  if not path.is_file():
    what = 'it is a directory' if path.is_dir() else 'there is no such file'
    raise InputError(problem=f'{path}: {what}', remedy='name a file of weights')
  with path.open('rb') as file:
    reader = _format(file.read(9))
  if reader is None:
    raise InputError(problem=f'{path} is no weight file, or a truncated one ({_FORMATS})',
                     remedy=f'convert any other kind to safetensors: {_CONVERT}')
  _require_hash(path)
  try:
    return reader(path)
  except InputError as error:
    raise InputError(problem=f'{path}: {error}') from None
  except Exception as error:  # of a damaged file, any: the parsers have no common class of errors
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise InputError(problem=f'{path} is truncated or damaged: {reason}') from None


def _require_hash(path: Path) -> None:
  if told := _HASH.search(path.name):
    with path.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if not found.startswith(told[1]):
      raise InputError(problem=f'{path} is damaged or another file: its SHA-256 begins with '
                       f'{found[:8]}, and its name says {told[1]}', remedy='download it again')


def subtree(flat: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The part of `flat` under a prefix: 'ema_params', 'model', '0'.

  Names are joined by '/' or '.', and the returned names have no prefix.
  Raises InputError if nothing has this prefix.
  """
  out = {name[len(prefix) + 1:]: array for name, array in flat.items()
         if name.startswith((f'{prefix}/', f'{prefix}.'))}
  if not out:
    there = list(dict.fromkeys(re.split(r'[/.]', name)[0] for name in flat))
    raise InputError(problem=f'the file has nothing under {prefix!r}',
                     remedy=f'choose one of {", ".join(there[:20])}'
                     + (', ...' if there[20:] else ''))
  return out


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str]) -> None:
  """Writes {name: array} and some text as safetensors: the whole file, or none of it."""
  arrays = {name: np.array(array, order='C') for name, array in arrays.items()}
  with files.atomic_write(path) as partial:
    safetensors.numpy.save_file(arrays, partial, metadata=dict(metadata))


def _format(data: bytes) -> Callable[[Path], dict[str, np.ndarray]] | None:
  """The function that reads a file whose first bytes are `data`."""
  if data[:4] == b'PK\x03\x04':
    return _read_zip
  if data[8:] == b'{' and data[5:8] == b'\0\0\0':
    return _read_safetensors
  if data[:1] == b'\x80' and data[1:2] in (b'\2', b'\3', b'\4', b'\5'):
    return _read_pickle
  if data[:1] and (0x81 <= data[0] <= 0x8f or data[0] in (0xde, 0xdf)):  # a map
    return _read_msgpack
  return None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  names = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
           'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8',
           'BOOL': 'bool'}
  out = {}
  for name, view in safetensors.deserialize(path.read_bytes()):  # which checks every bound
    if view['dtype'] not in names:
      raise InputError(problem=f'{name} is of {view["dtype"]}', remedy=f'store {", ".join(names)}')
    out[name] = np.frombuffer(view['data'], _DTYPES[names[view['dtype']]]).reshape(view['shape'])
  return out


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
  return _arrays(flax.serialization.msgpack_restore(path.read_bytes()), '/')


def _read_zip(path: Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    entries = archive.namelist()
    if any(name.endswith('.npy') for name in entries):
      with np.load(path, allow_pickle=False) as arrays:
        members = {name: arrays[name] for name in arrays.files}
      return {name: array for name, array in members.items() if isinstance(array, np.ndarray)}
    roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(roots) != 1:
      raise InputError(problem=f'it is a zip archive without weights ({_FORMATS})')
    root, = roots

    def part(name):
      entry = archive.getinfo(name)
      if entry.compress_type != zipfile.ZIP_STORED:
        raise InputError(problem=f'{name} is compressed, which PyTorch never does')
      if entry.file_size > path.stat().st_size:
        raise ValueError(f'{name} should be larger than the file')
      return archive.read(name)  # and checks its CRC

    order = '<'
    if f'{root}byteorder' in entries:
      order = {b'little': '<', b'big': '>'}[part(f'{root}byteorder')]
    storages = {}

    def load(pid):
      kind, marker, key, _, count = pid
      if kind != 'storage':
        raise InputError(problem=f"it refers to a {kind!r}, not to a tensor's storage")
      if key not in storages:
        storages[key] = _Storage(marker.dtype.newbyteorder(order), part(f'{root}data/{key}'))
        storages[key].check(count)
      return storages[key]
    return _arrays(_Unpickler(io.BytesIO(part(f'{root}data.pkl')), load).load(), '.')


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
  """The older format of PyTorch, which begins with a magic number, or one plain pickle."""
  stream = io.BytesIO(path.read_bytes())
  first = _Unpickler(stream, _no_storage).load()
  if first == _MAGIC:
    return _arrays(_legacy(stream), '.')
  ema = first.get('ema') if isinstance(first, dict) else None
  return _arrays(first if not isinstance(ema, _Instance) else ema, '.')


_MAGIC = 0x1950a86a20f9469cfc6c


def _legacy(stream: io.BytesIO) -> Any:
  """The content after the magic number: version, machine, objects, keys of storages, their bytes.
  """
  load = lambda: _Unpickler(stream, _no_storage).load()
  version, machine = load(), load()
  if version != 1001 or not machine['little_endian']:
    raise InputError(problem=f'version {version} of the format, or its byte order, cannot be read',
                     remedy=_CONVERT)
  storages, counts = {}, {}

  def placeholder(pid):
    kind, marker, key, _, count, view = pid
    if kind != 'storage' or view is not None:
      raise InputError(problem='it shares storages in a way that cannot be read', remedy=_CONVERT)
    counts[key] = count
    return storages.setdefault(key, _Storage(marker.dtype, b''))
  out = _Unpickler(stream, placeholder).load()
  keys = load()
  if set(keys) != set(storages) or len(keys) != len(storages):
    raise ValueError('storages are missing')
  for key in keys:
    count, = struct.unpack('<q', stream.read(8))
    if count != counts[key]:
      raise ValueError('a storage has another size than the tensors expect')
    storages[key].data = stream.read(count * storages[key].dtype.itemsize)
    storages[key].check(count)
  return out


def _no_storage(pid):
  raise InputError(problem="it refers to data outside the file, which only PyTorch's own files "
                   'may do')


# ------------------------------------------------------- what pickles may name


class _Storage:
  """The bytes that hold one or several tensors."""
  __slots__ = ('dtype', 'data')

  def __init__(self, dtype: np.dtype, data: bytes):
    self.dtype, self.data = dtype, data

  def check(self, count: int) -> None:
    if type(count) is not int or count < 0 or count * self.dtype.itemsize > len(self.data):
      raise ValueError(f'a storage of {len(self.data)} bytes should have {count} numbers')


class _Tensor(NamedTuple):
  """A view of a storage.  An index is at `offset` plus the sum of its parts times the strides."""
  storage: _Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self) -> np.ndarray:
    sizes = (self.offset, *self.shape, *self.strides)
    if len(self.shape) != len(self.strides) or any(type(u) is not int or u < 0 for u in sizes):
      raise ValueError(f'a tensor has the shape {self.shape} and the strides {self.strides}')
    numbers = np.frombuffer(self.storage.data, self.dtype)
    if 0 in self.shape:
      return np.zeros(self.shape, self.dtype.newbyteorder('='))
    last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides,
                                                               strict=True))
    if last >= len(numbers):
      raise ValueError(f'a tensor reaches to number {last} of {len(numbers)}')
    view = np.lib.stride_tricks.as_strided(
        numbers[self.offset:], self.shape, [step * self.dtype.itemsize for step in self.strides],
        writeable=False)
    if view.size > len(numbers):  # the same numbers again and again
      return view
    return view.astype(self.dtype.newbyteorder('='), order='C', copy=False)


class _Marker(NamedTuple):
  """A thing that is named and never called: a type of storage, a type of number."""
  dtype: np.dtype


class _Call:
  """A function of this module under a public name.  Its attributes cannot be set."""
  __slots__ = ('_run',)

  def __init__(self, run):
    object.__setattr__(self, '_run', run)

  def __setattr__(self, name, value):
    raise AttributeError(name)

  def __call__(self, *args):
    return self._run(*args)


class _Instance(dict):
  """An object whose class is not here: it has the object's data and none of its code."""
  __slots__ = ('state',)

  def __new__(cls, *args):
    out = dict.__new__(cls)
    out.state = {}
    return out

  def __init__(self, *args):
    pass

  def __setstate__(self, state):
    self.state = state if isinstance(state, dict) else {}


class _NumPy:
  """A NumPy type of number, or an array, while a pickle builds it."""
  __slots__ = ('spec', 'state')

  def __init__(self, spec=None):
    self.spec, self.state = spec, None

  def __setstate__(self, state):
    self.state = state

  def dtype(self) -> np.dtype:
    if not isinstance(self.spec, str) or not re.fullmatch('[fiub][1248]', self.spec):
      raise InputError(problem=f'it holds NumPy data of {self.spec!r}, which is not a plain number')
    order = self.state[1] if self.state else '='
    return np.dtype(self.spec).newbyteorder({'<': '<', '>': '>', '|': '|', '=': '='}[order])

  def array(self) -> np.ndarray:
    _, shape, dtype, by_columns, data = self.state
    out = np.frombuffer(data, dtype.dtype())
    return out.reshape(shape, order='F' if by_columns else 'C')


def _tensor(storage, offset, shape, strides, *rest):
  return _Tensor(storage, storage.dtype, offset, tuple(shape), tuple(strides))


def _typed_tensor(storage, offset, shape, strides, requires_grad, hooks, marker, *rest):
  dtype = marker.dtype.newbyteorder(storage.dtype.byteorder)
  return _Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _encoded(text, encoding):
  if encoding != 'latin1':
    raise InputError(problem=f'it asks for the encoding {encoding!r}')
  return text.encode('latin1')


def _persistent(meta):
  out = _Instance()
  out.__setstate__(meta['state'])
  return out


def _nested(data):
  stream = io.BytesIO(data)
  if _Unpickler(stream, _no_storage).load() != _MAGIC:
    raise ValueError('no tensor where there should be one')
  return _legacy(stream)


def _scalar(dtype, data):
  return np.frombuffer(data, dtype.dtype(), count=1)[0].item()


_NAMES = {
    'collections.OrderedDict': OrderedDict,
    'builtins.set': set,
    '__builtin__.set': set,
    '_codecs.encode': _Call(_encoded),
    'torch._utils._rebuild_tensor': _Call(_tensor),
    'torch._utils._rebuild_tensor_v2': _Call(_tensor),
    'torch._utils._rebuild_tensor_v3': _Call(_typed_tensor),
    'torch._utils._rebuild_parameter': _Call(lambda data, *rest: data),
    'torch.storage._load_from_bytes': _Call(_nested),
    'torch.storage.UntypedStorage': _Marker(_DTYPES['uint8']),
    'torch.UntypedStorage': _Marker(_DTYPES['uint8']),
    'torch.Size': _Call(tuple),
    'torch.device': _Call(lambda *args: None),
    'torch_utils.persistence._reconstruct_persistent_obj': _Call(_persistent),
    'numpy.dtype': _Call(lambda spec, *rest: _NumPy(spec)),
    'numpy.ndarray': _Marker(_DTYPES['uint8']),
    **{f'torch.{name}': _Marker(dtype) for name, dtype in _DTYPES.items()},
    **{f'torch.{name}Storage': _Marker(_DTYPES[of]) for name, of in _STORAGES.items()},
    **{f'numpy.{core}.multiarray.{name}': call for core in ('core', '_core')
       for name, call in (('scalar', _Call(_scalar)),
                          ('_reconstruct', _Call(lambda *args: _NumPy())))},
}
# Classes of which only what their instances hold is of interest.
_CLASSES = re.compile(r'torch\.nn\.modules\.[a-z_]+\.[A-Za-z0-9_]+|dnnlib\.util\.EasyDict|'
                      r'pytorch_lightning\.callbacks\.[a-z_]+\.[A-Za-z]+')


# The one in Python: its `memo` is a dict, so that no number in a file makes it take memory.
class _Unpickler(pickle._Unpickler):
  """A pickle.Unpickler that stops at every name outside of `_NAMES` and `_CLASSES`."""
  # Without what no weights need: other ways to call, buffers of any size, a registry of classes.
  dispatch = {code: run for code, run in pickle._Unpickler.dispatch.items()
              if bytes([code]) not in (
                  pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                  pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)}

  def __init__(self, stream: io.BytesIO, load: Callable[[tuple], _Storage]):
    super().__init__(stream)
    self.persistent_load = load
    self._instance = type('_Other', (_Instance,), {'__slots__': ()})  # none outlives the file

  def find_class(self, module: str, name: str) -> Any:
    path = f'{module}.{name}'
    if path in _NAMES:
      return _NAMES[path]
    if _CLASSES.fullmatch(path):
      return self._instance
    raise InputError(problem=f'the pickle asks for {path!r}, which is not a tensor: nothing was '
                     'executed', remedy=f'to take its tensors alone, {_CONVERT}')


def _arrays(tree: Any, joint: str) -> dict[str, np.ndarray]:
  """The arrays in nested dicts, lists and modules, by name."""
  out, visits = {}, itertools.count()

  def visit(part, name):
    if next(visits) > 10**6:  # a few lists that hold each other twice
      raise ValueError('it has more than a million parts')
    if isinstance(part, _Instance) and '_modules' in part.state:
      part = _state_dict(part.state)
    if isinstance(part, _Tensor | _NumPy):
      out[name] = part.array()
    elif isinstance(part, np.ndarray | np.generic | bool | int | float):
      out[name] = np.asarray(part)
    elif isinstance(part, dict | list | tuple):
      for own, inner in dict.items(part) if isinstance(part, dict) else enumerate(part):
        visit(inner, f'{name}{joint}{own}' if name else str(own))
  visit(tree, '')
  return out


def _state_dict(module: dict[str, Any]) -> dict[str, Any]:
  """Parameters, buffers and parts of a PyTorch module's __dict__."""
  out = dict(module['_parameters'])
  passing = module.get('_non_persistent_buffers_set', ())
  out |= {name: part for name, part in module['_buffers'].items() if name not in passing}
  return out | dict(module['_modules'])
