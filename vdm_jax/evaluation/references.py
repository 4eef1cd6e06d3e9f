"""The reference for samples: the statistics of a data set's features, kept in a file.

    mean, covariance     float64 [D], [D, D]
    count                images they are of
    features             float32 [n, D], of some of the images, in random order
    about                JSON: the name of the data, the extractor and its checksum, shape, levels

A file of other code with `mu` and `sigma` can be read too.  Such a file names neither its extractor
nor the number of images, and has no features for neighbours.
"""
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.features import Extractor, Statistics
from vdm_jax.machine import files


class Reference(NamedTuple):
  """A data set, as an extractor sees it."""
  name: str
  extractor: str          # its name, '' where it is not known
  checksum: str           # of the extractor's weights
  shape: tuple[int, ...]  # of the images, () where it is not known
  levels: int | None      # of the images, 0 where it is not known; None of real numbers
  statistics: Statistics  # of all; count 0 where it is not known
  features: np.ndarray    # float32 [n, D], of some, in random order


def digest(reference: Reference) -> str:
  """The first 16 digits of the SHA-256 of count, mean, covariance and features."""
  out = hashlib.sha256()
  for array in (np.int64(reference.statistics.count), *reference.statistics[1:],
                reference.features):
    out.update(np.ascontiguousarray(array).data)
  return out.hexdigest()[:16]


def save(path: str | Path, reference: Reference) -> None:
  about = {name: getattr(reference, name)
           for name in ('name', 'extractor', 'checksum', 'shape', 'levels')}
  with files.atomic_write(path) as partial:
    np.savez_compressed(partial, **reference.statistics._asdict(), features=reference.features,
                        about=json.dumps(about))


def arrays(path: str | Path, flag: str) -> dict[str, np.ndarray]:
  """All arrays of an .npz.  Raises InputError, naming the flag, for a missing or damaged file."""
  path = files.user_path(flag, path)
  if not path.is_file():
    raise InputError(flag, f'{path}', 'there is no such file', 'give the path of an .npz')
  try:
    with open(path, 'rb') as opened, np.load(opened, allow_pickle=False) as file:
      return {name: file[name] for name in file}
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise InputError(flag, f'{path}', f'it cannot be read ({error})',
                     'give an .npz of arrays') from None


def from_arrays(arrays: Mapping[str, np.ndarray], path: str, extractor: Extractor
                ) -> Reference | None:
  """The reference from a file's arrays; None if they are no statistics.

  Raises InputError if they have other features than the extractor's.
  """
  if {'mu', 'sigma'} <= arrays.keys():
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ('mu', 'sigma'))
    out = Reference(Path(path).name, '', '', (), 0, Statistics(0, mean, covariance),
                    np.empty((0, mean.size), np.float32))
  elif {*Statistics._fields, 'features', 'about'} <= arrays.keys():
    try:
      about = json.loads(str(arrays['about']))
      out = Reference(**{**about, 'shape': tuple(about['shape'])}, statistics=Statistics(
          int(arrays['count']), arrays['mean'], arrays['covariance']), features=arrays['features'])
    except (ValueError, KeyError, TypeError):
      raise InputError('reference', f'{path}', 'it does not say which features its statistics '
                       'are of',
                       'compute them again with save_reference') from None
    # Weights are the same wherever they are kept.
    same = lambda name, checksum: (name.partition(':')[0], checksum)
    if same(out.extractor, out.checksum) != same(*extractor[:2]):
      raise InputError('reference', f'{path}', 'it holds statistics of the features '
                       f'{out.extractor} ({out.checksum or "no weights"}), but the features asked '
                       f'for are {extractor.name} ({extractor.checksum or "no weights"})',
                       'compute them again with save_reference')
  else:
    return None
  shape = out.statistics.covariance.shape
  if out.statistics.mean.ndim != 1 or shape != 2 * out.statistics.mean.shape:
    raise InputError('reference', f'{path}',
                     f'its mean has shape {out.statistics.mean.shape}, and its covariance {shape}',
                     'give a mean [D] and a covariance [D, D]')
  if not all(np.isfinite(u).all() for u in out.statistics[1:]):
    raise InputError('reference', f'{path}', 'its statistics are not finite', 'compute them again')
  values = np.linalg.eigvalsh(out.statistics.covariance)
  if values[0] < -1e-6 * max(values[-1], 0.0) or values[-1] < 0.0:
    raise InputError('reference', f'{path}',
                     f'its covariance has the negative eigenvalue {values[0]:.3g}', 'compute it '
                     'again')
  return out
