"""The file of encoded images, `.vdmz`, and the checks before anything is decoded.

  4 bytes   'VDMZ'
  2 bytes   version of the format, little-endian like all that follows
  4 bytes   length of the header
  32 bytes  SHA-256 of all that is before and after it
  header    JSON, compressed by zlib: the images' names, the model and chain that coded them
  payload   uint32 words of the lanes, one lane after another

The header of a lossy file has its `kind`, diffc or uqdm, and all its tables in `coded`.

A changed or cut payload decodes to wrong images, often without an error.  So the checksum is tested
first, then the fingerprints of the model and of the machine.  Only then does the decoder run.
"""
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.codec.bits_back import Lane
from vdm_jax.errors import InputError

__all__ = ['Container', 'VERSION', 'read', 'require_same', 'write']

MAGIC, VERSION = b'VDMZ', 1
LOSSLESS = 'bits_back'  # the kind of a file that does not say its kind
_FIXED = struct.Struct('<4sHI32s')
_DIGESTED = 10  # bytes before the checksum
_REMEDY = 'copy it again, or encode the images again'


class Container(NamedTuple):
  """header: JSON's values, among them `count`, `shape`, `levels`, `steps`, `seed`.

  The header of a lossy file has a `kind`, and its payload is one lane.
  """
  header: dict[str, Any]
  lanes: list[Lane]
  overhead: int = 0  # bytes before the payload

  @property
  def kind(self) -> str:
    return self.header.get('kind', LOSSLESS)


def write(path: str | Path, header: dict[str, Any], lanes: Sequence[Lane]) -> int:
  """Writes the file; returns the number of bytes before the payload."""
  header = {**header, 'lanes': [[len(lane.words), lane.lowest] for lane in lanes]}
  text = zlib.compress(json.dumps(header, separators=(',', ':')).encode(), 9)
  payload = b''.join(np.asarray(lane.words, '<u4').tobytes() for lane in lanes)
  start = _FIXED.pack(MAGIC, VERSION, len(text), b'')[:_DIGESTED]
  digest = hashlib.sha256(start + text + payload).digest()
  Path(path).write_bytes(start + digest + text + payload)
  return _FIXED.size + len(text)


def read(path: str | Path) -> Container:
  """The content of the file.  Raises InputError: no such file, a wrong checksum, a newer version.
  """
  try:
    content = Path(path).read_bytes()
  except OSError as error:
    raise InputError('file', str(path), f'it cannot be read ({error.strerror})',
                     'name a .vdmz file') from None
  if content[:4] != MAGIC or len(content) < _FIXED.size:
    raise InputError('file', str(path), 'it is not a complete .vdmz file',
                     _REMEDY)
  _, version, length, digest = _FIXED.unpack_from(content)
  if version > VERSION:
    raise InputError('file', str(path), f'it has version {version} of the format, and this program '
                     f'reads up to {VERSION}', 'update vdm_jax, or copy it again')
  body = content[_FIXED.size:]
  if hashlib.sha256(content[:_DIGESTED] + body).digest() != digest:
    raise InputError('file', str(path), 'it is damaged: its checksum does not agree', _REMEDY)
  try:
    header = json.loads(zlib.decompress(body[:length]))
    words = np.frombuffer(body[length:], '<u4').astype(np.uint32)
    sizes, lowest = zip(*header['lanes'], strict=True)
    if sum(sizes) != len(words):
      raise ValueError('some words belong to no lane')
    parts = np.split(words, np.cumsum(sizes)[:-1])
  except (zlib.error, ValueError, KeyError, TypeError):  # the work of another program
    raise InputError('file', str(path), 'it is damaged: its header and its payload do not agree',
                     _REMEDY) from None
  return Container(header, [Lane(*lane) for lane in zip(parts, lowest, strict=True)],
                   _FIXED.size + length)


def require_same(container: Container, field: str, value: Any, problem: str, remedy: str) -> None:
  """Raises InputError unless the header's `field` is `value`, so that nothing else is decoded."""
  if container.header.get(field) != value:
    raise InputError('file', None, problem, remedy)
