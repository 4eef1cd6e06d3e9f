"""The conditions of samples: values of the fields that condition a model."""
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.data import arrays, tokenisers
from vdm_jax.data.fields import LABEL, Batch, Field, Spec
from vdm_jax.errors import InputError, require

Conditions = Callable[..., Batch]  # numbers [n] of samples, and values by field -> a batch


def of(spec: Spec, names: Sequence[str]) -> Conditions:
  """The conditions of a model that reads these fields: (numbers [n], **values) -> batch.

  A value is one value of the field, for all samples, or several values along a further first axis.
  Sample i takes value i mod their number.

  A value may also be a string, or several strings that the samples take in turn.  'rows.npz' and
  'rows.npy' stand for the values in a file: see `arrays.named`.  For a text field any other string
  is a text, which the field's own tokeniser encodes.  For another field it is numbers with commas:
  '0.5,1'.

  By default labels are 0, 1, ... in turn, and texts are empty.  All other fields are zero, which
  means no augmentation.

  The returned function raises InputError for a field that does not condition the model, and for bad
  values.
  """
  fields = tuple(spec[name] for name in names)
  return lambda numbers, **values: _batch(fields, numbers, values)


def _batch(fields: Sequence[Field], numbers: np.ndarray, values: Mapping[str, Any]) -> Batch:
  values = {name: value for name, value in values.items() if value is not None}
  names = [field.name for field in fields]
  for name, value in values.items():
    if name not in names:
      what = 'classes' if name == LABEL else repr(name)
      raise InputError(name, value, f'this model is not conditioned on {what}',
                       f'leave it out{", or give " * bool(names)}{", ".join(names)}')
  numbers = np.asarray(numbers)
  return {field.name: _in_turn(_values(field, values[field.name]), numbers)
          if field.name in values else _default(field, numbers) for field in fields}


def _in_turn(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
  return values[numbers % len(values)]


def _default(field: Field, numbers: np.ndarray) -> np.ndarray:
  if field.name == LABEL and field.levels:
    return (numbers % field.levels).astype(field.dtype)
  if field.texts is not None:
    return np.tile(tokenisers.nothing(field), (len(numbers), 1))
  return np.zeros((len(numbers), *field.shape), field.dtype)


def _read(field: Field, strings: Sequence[str]) -> np.ndarray:
  """The values that strings stand for, in turn: rows of files, texts, numbers.  Raises InputError.
  """
  def one(string):
    if string.endswith(('.npz', '.npy')):
      rows = arrays.named(string, field.name)
      return rows[None] if rows.shape == field.shape else rows
    if field.texts is not None:
      return np.array([string])
    try:
      numbers = np.array([(float if field.levels is None else int)(u) for u in string.split(',')])
    except ValueError:
      kind = 'numbers' if field.levels is None else 'integers'
      raise InputError(field.name, string, f'these are not {kind}', f'give {kind} separated by '
                       'commas, or a .npz file') from None
    size = math.prod(field.shape)
    require(numbers.size == size, field.name, string, f'a value has {size} numbers, and these are '
            f'{numbers.size}', f'give {size}, separated by commas')
    return numbers.reshape(1, *field.shape)

  read = [one(string) for string in strings]
  for string, rows in zip(strings, read, strict=True):
    require(rows.shape[1:] == read[0].shape[1:], field.name, string, f'its shape is '
            f'{rows.shape[1:]}, but the first value has shape {read[0].shape[1:]}',
            'give values of one shape')
  return np.concatenate(read)


def _values(field: Field, value: Any) -> np.ndarray:
  """The values of a field that samples take in turn, [K, ...].  Raises InputError."""
  value = [value] if isinstance(value, str) else value
  if isinstance(value, (list, tuple)) and value and all(isinstance(u, str) for u in value):
    value = _read(field, value)
  if field.texts is not None and np.asarray(value).dtype.kind == 'U':
    return tokenisers.tokens(field, [str(one) for one in value], field.name)
  try:
    values = np.asarray(value, np.float32 if field.levels is None else None)
  except ValueError:
    raise InputError(field.name, value, 'these are not numbers', 'give numbers') from None
  values = values[None] if values.shape == field.shape else values
  if values.shape[1:] != field.shape or not len(values):
    raise InputError(field.name, np.shape(value), f'the shape of a value is {field.shape}',
                     'give one value, or several stacked along a first axis')
  if field.levels is not None:
    if values.dtype.kind not in 'uib':
      raise InputError(field.name, value, f'it must be an integer, 0 .. {field.levels - 1}',
                       'give one of these')
    if values.min() < 0 or values.max() >= field.levels:
      what = 'classes' if field.name == LABEL else 'values'
      raise InputError(field.name, value, f'the {what} are 0 .. {field.levels - 1}',
                       'choose one of these')
  elif not np.isfinite(values).all():
    raise InputError(field.name, value, 'it is not finite', 'give numbers')
  return values.astype(field.dtype)


def digest(of: Conditions, count: int) -> str:
  """Of the conditions of examples 0 .. count - 1, whatever names them: files change their rows."""
  sha = hashlib.sha256()
  for first in range(0, count, 1 << 16):
    numbers = np.arange(first, min(first + (1 << 16), count))
    for name, values in sorted(of(numbers).items()):
      sha.update(name.encode())
      sha.update(np.ascontiguousarray(values).data)
  return sha.hexdigest()[:16]
