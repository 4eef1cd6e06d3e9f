"""One picture file -> pixels of 8 bits, by one rule for all of Pillow's modes.

  stored as                                    read as
  bilevel, grey, a palette of only greys       one channel
  colour, a palette with a colour, CMYK        three channels
  any of these with alpha, or with a           the same, laid on white: round(a x + (1 - a) 255)
    transparent colour
  more than 8 bits a channel, Lab              refused

So opaque pixels stay as they are, and the colour of a transparent pixel is lost.  The file's
header decides the mode.  So a colour file has three channels, even if all its pixels are grey.
"""
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vdm_jax.errors import InputError

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # channels -> Pillow's name
BACKGROUND = 255                       # what transparent pixels are laid on, in every channel

_GREY = ('1', 'L', 'LA', 'La')
_PALETTE = ('P', 'PA')
_COLOUR = ('RGB', 'RGBX', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'HSV')


class Header(NamedTuple):
  """What the header of a picture file says."""
  grey: bool
  alpha: bool
  size: tuple[int, int]  # height and width, as seen


def header(path: str) -> Header:
  """The Header of a picture file; pixels are decoded only for GIFs.  Raises InputError."""
  with _opened(path, path) as image:
    turned = image.getexif().get(0x0112, 1) >= 5  # orientation: 5 to 8 swap the sides
    width, height = image.size
    return Header(_is_grey(image), image.has_transparency_data,
                  (width, height) if turned else (height, width))


def decode(file, place: str, channels: int, image_size: int) -> np.ndarray:
  """An encoded image, a path or a stream -> uint8 [H, W, C].  Raises InputError, naming `place`.

  channels: 1, 3, or 4 if alpha belongs to the data.  image_size: if not 0, the largest centred
  square is resampled to this size (Lanczos).
  """
  with _opened(file, place) as image:
    ImageOps.exif_transpose(image, in_place=True)  # cameras store the rotation beside the pixels
    if channels < 4 and image.has_transparency_data:
      image = _on_background(image)
    if image.mode != MODES[channels]:
      image = image.convert(MODES[channels])
    if image_size and image.size != (image_size, image_size):
      image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
  return pixels.reshape(*pixels.shape[:2], -1)


def block_means(images: Any, factor: int) -> Any:
  """The mean of each block of `factor` x `factor` pixels, rounded: [B, H, W, C] -> [B, h, w, C].

  images: integers, an array of NumPy or of JAX, whose sides `factor` divides.  Halves round up.
  """
  count, height, width, channels = images.shape
  blocks = images.astype('int32').reshape(
      count, height // factor, factor, width // factor, factor, channels)
  size = factor * factor
  return ((blocks.sum(axis=(2, 4)) + size // 2) // size).astype(images.dtype)


def unreadable(place: str, error: Exception) -> InputError:
  """The error for a file that is damaged or missing."""
  return InputError(problem=f'{place} cannot be read ({error}): it is damaged, or no such file',
                    remedy='replace it')


def sizes_differ(place: str, one: tuple[int, ...], other: tuple[int, ...]) -> InputError:
  """The error for images [H, W, ...] whose sizes differ, so that they make no batch."""
  by = lambda size: ' x '.join(map(str, size[:2]))
  return InputError(problem=f'the images of {place} differ in size ({by(one)} and {by(other)})',
                    remedy='set config.data.image_size to resize and crop them all')


def stack(images: list[np.ndarray], place: str) -> np.ndarray:
  """[H, W, C] each -> [n, H, W, C].  Raises InputError if the images differ in size."""
  sizes = sorted({image.shape for image in images})
  if len(sizes) > 1:
    raise sizes_differ(place, sizes[0], sizes[-1])
  return np.stack(images)


@contextlib.contextmanager
def _opened(file, place: str) -> Iterator[Image.Image]:
  try:
    with Image.open(file) as image:
      _check_mode(image, place)
      yield image
  except InputError:
    raise
  except Image.DecompressionBombError as error:
    raise InputError(None, None, f'{place} is larger than the {2 * Image.MAX_IMAGE_PIXELS:,} '
                     'pixels that Pillow opens', 'scale it down') from error
  except Exception as error:  # of many types, most of which do not name the file
    raise unreadable(place, error) from error


def _check_mode(image: Image.Image, place: str) -> None:
  stored = _stored(image)
  if stored:
    raise InputError(None, None, f'{place} has more than 8 bits a channel ({stored})',
                     'save it with 8 bits')
  if image.mode not in _GREY + _PALETTE + _COLOUR:
    raise InputError(None, None, f'{place} is stored as {image.mode}, which is neither grey nor '
                     'RGB', 'save it as RGB')


def _stored(image: Image.Image) -> str:
  """How a picture of more than 8 bits a channel is stored; '' for other pictures.

  Pillow opens 16-bit colours as if they had 8 bits, but the arguments of its decoder give the
  depth.
  """
  if image.mode.startswith(('I', 'F')):
    return image.mode
  for tile in image.tile:
    arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    raw = str(arguments[0])
    if raw.endswith((';16B', ';16L', ';16N')):
      return raw
    if image.format == 'PPM' and isinstance(arguments[-1], int) and arguments[-1] > 255:
      return f'{raw}, levels 0 .. {arguments[-1]}'
  return ''


def _is_grey(image: Image.Image) -> bool:
  if image.mode not in _PALETTE:
    return image.mode in _GREY
  if image.palette is None:
    image.load()
  raw, entries = image.palette.getdata()
  one = Image.new('P', (1, 1))  # Pillow unpacks the palette of an image in memory alone
  one.putpalette(entries, raw)
  colours = np.array(one.getpalette()).reshape(-1, 3)
  return bool((colours == colours[:, :1]).all())


def _on_background(image: Image.Image) -> Image.Image:
  if image.mode == 'La':
    image = image.convert('LA')
  pixels = np.asarray(image.convert('RGBA')).astype(np.int32)
  colours, alpha = pixels[..., :3], pixels[..., 3:]
  laid = (alpha * colours + (255 - alpha) * BACKGROUND + 127) // 255
  return Image.fromarray(laid.astype(np.uint8))
