"""Files as `torch.save` writes them, without torch: a zip of a pickle and the bytes of tensors."""
import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_KINDS = {'float32': 'Float', 'float16': 'Half', 'int64': 'Long', 'int32': 'Int'}


class Named:
  """Pickles as the name module.name, whatever that is."""

  def __init__(self, module: str, name: str):
    self.module, self.name = module, name


class _Storage(NamedTuple):
  key: str
  array: np.ndarray


class _Pickler(pickle._Pickler):

  def __init__(self, stream):
    super().__init__(stream, 2)
    self.storages = []

  def persistent_id(self, obj):
    if not isinstance(obj, _Storage):
      return None
    kind = Named('torch', f'{_KINDS[obj.array.dtype.name]}Storage')
    return 'storage', kind, obj.key, 'cpu', obj.array.size

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Named):
      self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())
    elif isinstance(obj, np.ndarray):
      obj = np.array(obj, order='C')
      storage = _Storage(str(len(self.storages)), obj)
      self.storages.append(storage)
      strides = tuple(step // obj.itemsize for step in obj.strides)
      self.save(Named('torch._utils', '_rebuild_tensor_v2'))
      self.save((storage, 0, obj.shape, strides, False, collections.OrderedDict()))
      self.write(pickle.REDUCE)
    else:
      super().save(obj, save_persistent_id)


def write(path: str | Path, tree: Any) -> None:
  """`torch.save(tree, path)`, where arrays stand for tensors, and `Named` for classes."""
  stream = io.BytesIO()
  pickler = _Pickler(stream)
  pickler.dump(tree)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', stream.getvalue())
    for key, array in pickler.storages:
      archive.writestr(f'archive/data/{key}', array.tobytes())
