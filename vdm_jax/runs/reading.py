"""Images that the user gives to a command: pictures on disk, and images of a run's data."""
import numpy as np

from vdm_jax.data import Field, tokenisers
from vdm_jax.data import images as image_files
from vdm_jax.errors import InputError, require
from vdm_jax.machine import files
from vdm_jax.runs import needs, workdir


def image(flag: str, name: str, trained: workdir.Trained, x: Field, field: Field | None = None
          ) -> tuple[np.ndarray, str]:
  """An image as x, and its caption: data:SPLIT:INDEX of the run's data, or the path of a picture.

  field: of the captions, or None.  Without a caption it is ''.  Raises InputError about the flag.
  """
  kind, *rest = name.split(':')
  if kind == 'data' and len(rest) == 2:
    split, index = rest
    require(split in ('train', 'validation', 'test') and index.isdecimal(), flag, name,
            'it is not of the form data:SPLIT:INDEX', 'write data:test:0, for example')
    part = needs.split(trained, split)
    require(int(index) < len(part), flag, name, f'the split has {len(part):,} images',
            'choose one of them')
    row = part.get([int(index)])
    if field is None or field.name not in row:
      return row[x.name][0], ''
    return row[x.name][0], tokenisers.of(field).decode(row[field.name])[0]
  read = pixels(flag, name, x.shape[-1])
  require(read.shape == x.shape, flag, name, f'it has {read.shape[0]} x {read.shape[1]} '
          f'pixels, and the model makes {x.shape[0]} x {x.shape[1]}', 'resize it')
  require(x.levels is not None, flag, name, 'the data of this run are real numbers, and a '
          'picture has integers', 'take an image of the data: data:test:0')
  assert x.levels is not None
  return np.round(read * ((x.levels - 1) / 255.0)).astype(x.dtype), ''


def pixels(flag: str, name: str, channels: int) -> np.ndarray:
  """The pixels of a picture file, uint8 [H, W, channels].  Raises InputError about the flag."""
  require(channels in image_files.MODES, flag, name, f'the images of this run have {channels} '
          'channels, and no picture has so many', 'take an image of the data: data:test:0')
  path = files.user_path(flag, name)
  require(path.is_file(), flag, name, 'there is no such file', 'name a picture, or an image of the '
          'data: data:test:0')
  try:
    return image_files.decode(path, str(path), channels, 0)
  except InputError as error:
    raise InputError(flag, name, error.problem, error.remedy) from None
