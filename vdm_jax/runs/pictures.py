"""Pictures of samples and of runs.

Every picture can be drawn of one point, and of values that are all equal.  NaN is left out.
"""
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from vdm_jax.data import Field
from vdm_jax.ledger import tables
from vdm_jax.likelihood.density import Density
from vdm_jax.machine import files
from vdm_jax.runs import notation
from vdm_jax.units import BITS_PER_DIM, NATS_PER_DIM, Unit

__all__ = ['bits_by_noise', 'captioned', 'curves', 'extremes', 'labelled', 'of_figure',
           'of_paths', 'of_samples', 'rate_distortion', 'samples', 'save_png', 'strip']

_SLICES = 8  # of a volume that are shown, and volumes, at most


def save_png(path: str | Path, picture: np.ndarray | Figure,
             about: Mapping[str, object] | None = None) -> None:
  """Writes a PNG whole or not at all.  picture: uint8 [H, W, 3], or a figure.

  about: {keyword: value}, written as the text chunks of the PNG.
  """
  text = {name: str(value) for name, value in (about or {}).items()}
  with files.atomic_write(path) as partial:
    if isinstance(picture, Figure):
      picture.savefig(partial, format='png', dpi=110, metadata=text)
    else:
      chunks = PngImagePlugin.PngInfo()
      for name, value in text.items():
        chunks.add_text(name, value)
      Image.fromarray(picture).save(partial, format='png', pnginfo=chunks)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
  """uint8 [H + h, W, 3]: `picture` [H, W, 3] with a line of text below it, if the line fits."""
  font = ImageFont.load_default()
  _, _, right, bottom = font.getbbox(text)
  if right + 8 > picture.shape[1]:
    return picture
  line = Image.new('RGB', (picture.shape[1], int(bottom) + 6), 'white')
  ImageDraw.Draw(line).text((4, 2), text, 'black', font)
  return np.concatenate([picture, np.asarray(line)])


def labelled(picture: np.ndarray, labels: Sequence[str]) -> np.ndarray:
  """uint8 [H + h, W, 3]: `picture` [H, W, 3] of equal columns, with a label below each column."""
  font, width = ImageFont.load_default(), picture.shape[1]
  height = max(int(font.getbbox(label)[3]) for label in labels) + 6
  line = Image.new('RGB', (width, height), 'white')
  for i, label in enumerate(labels):
    middle = (i + 0.5) * width / len(labels)
    ImageDraw.Draw(line).text((middle, 2), label, 'black', font, anchor='ma')
  return np.concatenate([picture, np.asarray(line)])


def _limit(set_limits, low: float, high: float) -> None:
  """Sets the limits of an axis if they are two different numbers.  Otherwise, the axis decides."""
  if np.isfinite([low, high]).all() and low != high:
    set_limits(low, high)


def _finite(values) -> np.ndarray:
  values = np.asarray(values, np.float64)
  return values[np.isfinite(values)]


def samples(data: np.ndarray, levels: int | None) -> np.ndarray:
  """uint8 [H, W, 3]: images side by side, enlarged if they are small; points as a scatter plot.

  data: integers below `levels`, images [n, h, w, c] or points [n, D].  If `levels` is None, real
  numbers: images are shown between their least and largest value, and sequences [n, T(, C)] as
  curves.  Rows of two numbers are shown also as points in the plane.

  An image with two channels is shown as two grey pictures side by side.  Of more than three
  channels, the first three are shown.  Of a point, the first and last coordinates are shown.  A
  point of more than three coordinates is a sequence, and each sequence of integers is one row of
  the picture.  Of a volume (see `_volumes`), a row of slices is shown.
  """
  if levels is None and _are_sequences(data.shape[1:]):
    planar = data.shape[2:] == (2,)
    figure = Figure(figsize=(9 if planar else 6, 4), layout='constrained')
    left, *plane = figure.subplots(1, 1 + planar, squeeze=False)[0]
    _sequences(left, data[:16])
    for axes in plane:
      _in_the_plane(axes, data[:16])
    return of_figure(figure)
  if (volumes := _volumes(data, levels)) is not None:
    depth = volumes.shape[1]
    chosen = np.unique(np.linspace(0, depth - 1, _SLICES).round().astype(int))
    slices = volumes[:_SLICES, chosen]
    return _sheet(slices.reshape(-1, *slices.shape[2:]), levels, across=len(chosen), width=480)
  if data.ndim == 2 and data.shape[1] > 3:
    return _sheet(data[None, :, :, None], levels, across=1, width=480)
  if data.ndim == 2:
    return _scatter(data[None], levels)
  return _sheet(data, levels, across=math.ceil(math.sqrt(len(data))), width=480)


def _are_sequences(shape: tuple[int, ...]) -> bool:
  """Whether real numbers are drawn as curves.  shape: of one example."""
  return len(shape) == 2 or len(shape) == 1 and shape[0] > 3


def _volumes(data: np.ndarray, levels: int | None) -> np.ndarray | None:
  """Volumes as slices [n, D, H, W, C]; None if the data [n, ...] are no volumes.

  Real numbers [n, a, b, c] with c > 4 are volumes without channels, or images of so many channels.
  The pictures [a, b] along the last axis are slices of both.
  """
  if data.ndim == 5:
    return data
  if levels is None and data.ndim == 4 and data.shape[-1] > 4:
    return np.moveaxis(data, -1, 1)[..., None]
  return None


def _middle(data: np.ndarray, levels: int | None) -> np.ndarray:
  """The middle slices [n, H, W, C] of volumes; other data as they are."""
  volumes = _volumes(data, levels)
  return data if volumes is None else volumes[:, volumes.shape[1] // 2]


def _stretched(data: np.ndarray) -> np.ndarray:
  """Real numbers, scaled so that the least is 0 and the largest is 255."""
  low, high = (f(_finite(data), initial=0.0) for f in (np.min, np.max))
  return (data - low) * (255.0 / ((high - low) or 1.0))


def _sequences(axes, data: np.ndarray) -> None:
  """Curves of [n, T] or [n, T, C], each sequence in a colour."""
  for i, one in enumerate(data):
    axes.plot(one, color=f'C{i % 10}', lw=1)
  axes.set_xlabel('row')
  axes.locator_params(axis='x', integer=True)


def _in_the_plane(axes, data: np.ndarray) -> None:
  """The points of [n, T, 2], in the colours of `_sequences`."""
  for i, one in enumerate(data):
    axes.plot(*one.T, '.', color=f'C{i % 10}', ms=3)
  axes.set(aspect='equal', title='the rows as points')


def of_figure(figure: Figure) -> np.ndarray:
  """The figure as a picture: uint8 [H, W, 3]."""
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=110)
  return np.asarray(Image.open(file).convert('RGB'))


def strip(path: np.ndarray, levels: int | None) -> np.ndarray:
  """uint8 [H, W, 3]: the path of each sample, one image a row, from noise (left) to data (right).

  path: integers below `levels`, [frames, n, h, w, c] or points [frames, n, D], as for `samples`.
  Of a volume, the middle slice is shown.
  """
  if levels is None and _are_sequences(path.shape[2:]):
    figure = Figure(figsize=(2 * len(path), 2), layout='constrained')
    for axes, frame in zip(figure.subplots(1, len(path), squeeze=False)[0], path, strict=True):
      _sequences(axes, frame[:8])
    return of_figure(figure)
  if path.ndim == 3:
    return _scatter(path, levels)
  images = np.swapaxes(path, 0, 1).reshape(-1, *path.shape[2:])
  return _sheet(_middle(images, levels), levels, across=len(path), width=960)


def of_samples(data: np.ndarray, x: Field) -> np.ndarray:
  """`samples` of the field x, uint8 [H, W, 3]; music [n, T, voices, 1] is drawn as piano rolls."""
  return notation.piano_roll(data) if notation.is_music(x) else samples(data, x.levels)


def of_paths(path: np.ndarray, x: Field) -> np.ndarray:
  """`strip` of the field x, uint8 [H, W, 3]; music is drawn as piano rolls."""
  if not notation.is_music(x):
    return strip(path, x.levels)
  return notation.piano_roll(np.swapaxes(path, 0, 1).reshape(-1, *path.shape[2:]), len(path))


def _sheet(data: np.ndarray, levels: int | None, across: int, width: int) -> np.ndarray:
  """`across` images a row, enlarged by a whole number up to about `width` pixels."""
  if levels is None:
    data, levels = _stretched(data), 256
  if data.shape[-1] == 2:
    data, across = np.moveaxis(data, -1, 1).reshape(-1, *data.shape[1:3], 1), 2 * across
  n, h, w, c = data.shape
  pixels = np.round(np.nan_to_num(data) * (255.0 / max(levels - 1, 1))).astype(np.uint8)
  pixels = pixels[..., :3] if c >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
  down, gap = math.ceil(n / across), 1
  sheet = np.full((down * (h + gap) + gap, across * (w + gap) + gap, 3), 128, np.uint8)
  for i, image in enumerate(pixels):
    y, x = gap + i // across * (h + gap), gap + i % across * (w + gap)
    sheet[y:y + h, x:x + w] = image
  scale = max(1, width // max(sheet.shape[:2]))
  return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def _of_levels(axes, levels: int | None) -> None:
  if levels is None:
    return
  top = max(levels - 1, 1)
  axes.set(xlim=(0, top), ylim=(0, top), aspect='equal')


def _scatter(clouds: np.ndarray, levels: int | None) -> np.ndarray:
  """clouds: [k, n, D], side by side."""
  size = 4 if len(clouds) == 1 else 2
  figure = Figure(figsize=(size * len(clouds), size), layout='constrained')
  for axes, points in zip(figure.subplots(1, len(clouds), squeeze=False)[0], clouds, strict=True):
    _of_levels(axes, levels)
    axes.scatter(points[:, 0], points[:, -1], s=1)
  return of_figure(figure)


def curves(records: list[dict], t: np.ndarray, initial: np.ndarray, learned: np.ndarray,
           final: float, split: str, unit: Unit = BITS_PER_DIM) -> Figure:
  """A run at a glance: bits/dim against steps, and the schedule before and after.

  Args:
    records: the records of metrics.jsonl.  The loss is drawn if they have no bits/dim.
    t, initial, learned: times, and logsnr at these times before and after training.
    final: bits/dim, evaluated on `split`.
    unit: of all that is in bits/dim here, in the picture.
  """
  figure = Figure(figsize=(9, 3.8), layout='constrained')
  left, right = figure.subplots(1, 2)

  in_bits = any('bits_per_dim' in r for r in records)
  drawn = 'bits_per_dim' if in_bits else 'loss'
  scale = unit.per_bit if in_bits else 1.0
  lines = {kind: [(r['step'], scale * r[drawn]) for r in records
                  if r['kind'] == kind and drawn in r]
           for kind in dict.fromkeys(r['kind'] for r in records if drawn in r)}
  for kind, line in lines.items():
    left.plot(*zip(*line, strict=True), label=kind, marker='.' if len(line) < 40 else None)
  left.set(xlabel='step', ylabel=unit.name if in_bits else 'loss',
           title=f'variational bound: {final * unit.per_bit:.3f} {unit.name} on {split}')
  if in_bits:  # the first steps would flatten the rest
    low = min(_finite([value for line in lines.values() for _, value in line]), default=np.nan)
    high = max(_finite([line[-1][1] for line in lines.values()]), default=np.nan)
    span = high - low  # which is the larger one, where the bits of a density are near 0
    _limit(left.set_ylim, low - 0.05 * max(abs(low), span), high + 0.35 * max(abs(high), span))
  if lines:
    left.legend()

  # The ends are given in figures: what they learn is often less than a line's width.
  ends = lambda name, logsnr: f'{name}: {logsnr[0]:.2f} to {logsnr[-1]:.2f}'
  if np.array_equal(initial, learned):
    right.plot(t, learned, label=ends('fixed', learned))
  else:
    right.plot(t, learned, label=ends('learned', learned))
    right.plot(t, initial, '--', color='grey', label=ends('initial', initial))
  right.set(xlabel='t', ylabel='log-SNR', title='noise schedule')
  right.legend()
  return figure


def extremes(bits: np.ndarray) -> np.ndarray:
  """The numbers of the most likely images, then of the least likely: 32, 16, or all of fewer.

  Each half fills whole rows of the picture.  bits: the bits of every image, [N].
  """
  order = np.argsort(bits)
  half = 16 if len(bits) >= 32 else 8
  return order if len(bits) <= 16 else np.concatenate([order[:half], order[-half:]])


def bits_by_noise(bound: Density, each: np.ndarray, extremes: np.ndarray, bits: np.ndarray,
                  x: Field, row: dict) -> Figure:
  """Where the bits of the bound are, by noise level and by image; of real numbers, the nats.

  Args:
    each: bits/dim of every image [N].
    extremes: the most likely images, then the least likely, as for `samples`.
    bits: bits/dim of `extremes` [n], increasing.
    x: the field of the data; music is drawn as piano rolls.
    row: a row of the ledger.
  """
  levels = x.levels
  figure = Figure(figsize=(13, 8), layout='constrained')
  (density, running), (histogram, shown) = figure.subplots(2, 2)
  unit, per_bit = NATS_PER_DIM if levels is None else BITS_PER_DIM
  one = tables.one(row['dataset'])
  each, bits, parts = each * per_bit, bits * per_bit, {
      name: value * per_bit for name, value in row['parts'].items()}
  bound = bound._replace(**{name: u * per_bit for name, u in bound._asdict().items()
                            if name not in ('edges', 'above') and u is not None})
  name = f'{row["dataset"]["name"]}, {row["dataset"]["split"]}: {len(each):,} {one}s'
  centre = 0.5 * (bound.edges[1:] + bound.edges[:-1])

  density.stairs(bound.mean, bound.edges, baseline=None, color='C0',
                 label='this model, ± 2 standard errors')
  density.stairs(bound.mean + 2 * bound.error, bound.edges, fill=True, color='C0', alpha=0.3, lw=0,
                 baseline=bound.mean - 2 * bound.error)
  top = 1.15 * max(_finite(bound.mean + 2 * bound.error), default=np.nan)
  if bound.gaussian is not None:
    density.stairs(bound.gaussian, bound.edges, baseline=None, color='grey', ls='--',
                   label='best linear denoiser: Gaussian of the training data')
    if bound.above.any():
      density.plot(centre[bound.above], bound.mean[bound.above], 'v', color='C3',
                   label='above it: not trained there, or a bug')
    limit = max(_finite(bound.gaussian), default=np.nan)
    top = min(max(top, 1.05 * limit), 2.0 * top)
  _limit(density.set_ylim, 0.0, top)
  density.set(xlabel='log-SNR', ylabel=f'{unit} per unit of log-SNR',
              title=f'where the {unit.partition("/")[0]} of the diffusion term are')
  density.legend()

  total = float(each.mean())
  running.plot(bound.edges, bound.running, color='C0')
  running.fill_between(bound.edges, bound.running - 2 * bound.running_error,
                       bound.running + 2 * bound.running_error, color='C0', alpha=0.3, lw=0)
  running.axhline(total, color='grey', ls=':', lw=1)
  running.set(xlabel='log-SNR', ylabel=unit,
              title=f'running sum from the data to the noise: {total:.3f} {unit}')
  terms = ''.join(f'\n{value:9.4f} {name}' for name, value in parts.items())
  running.text(0.97, 0.06, terms.strip('\n'), transform=running.transAxes, ha='right', va='bottom',
               family='monospace', fontsize=9)
  for axes in (density, running):
    _limit(axes.set_xlim, bound.edges[-1], bound.edges[0])  # as time runs

  if len(bits_each := _finite(each)):
    low, high = bits_each.min(), bits_each.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # too close for any bins between them
      low, high = low - 0.5, high + 0.5
    histogram.hist(bits_each, bins=min(40, max(5, len(each) // 5)), range=(low, high), color='C0',
                   alpha=0.7)
  histogram.axvline(total, color='grey', ls=':', lw=1)
  histogram.locator_params(axis='y', integer=True)
  histogram.set(xlabel=f'{unit} of an {one}', ylabel=f'{one}s', title=name)

  if levels is None and _are_sequences(extremes.shape[1:]):
    _sequences(shown, np.concatenate([extremes[:1], extremes[-1:]]))
    shown.set_title('the most likely sequence (first colour) and the least likely')
    return figure
  extremes = _middle(extremes, levels)
  shown.set_axis_off()
  if extremes.ndim == 2:
    shown.set_axis_on()
    points = shown.scatter(extremes[:, 0], extremes[:, -1], c=bits, s=12)
    figure.colorbar(points, ax=shown, label=unit)
    _of_levels(shown, levels)
    shown.set_title('the most and the least likely points')
    return figure
  half = -(-len(bits) // 2)
  across = min(half, 8)
  shown.imshow(notation.piano_roll(extremes, across) if notation.is_music(x) else
               _sheet(extremes, levels, across=across, width=960))
  of = lambda part: f'{part[0]:.2f} to {part[-1]:.2f}'
  shown.set_title(f'above, the most likely {one}s: {of(bits[:half])} {unit}\n'
                  f'below, the least likely: {of(bits[half:] if len(bits) > 1 else bits)} {unit}',
                  fontsize='medium')
  return figure


def rate_distortion(points: Mapping[str, list[tuple[float, float]]], count: int) -> Figure:
  """PSNR against bits/dim of each codec.

  points: {name: [(bits/dim, dB), ...]}.  A name with 'ideal' is drawn dashed, in the colour of the
  earlier name that it begins with.  count: the number of images that were coded.
  """
  figure = Figure(figsize=(7, 4.5), layout='constrained')
  axes, colours = figure.subplots(), {}
  for name, line in points.items():
    line = [point for point in line if np.isfinite(point).all()]
    like = next((other for other in colours if name.startswith(other)), '')
    drawn, = axes.plot(*zip(*line, strict=True), label=name, color=colours.get(like),
                       linestyle='--' if 'ideal' in name else '-',
                       marker='' if 'ideal' in name else '.') if line else (None,)
    if drawn is not None:
      colours[name] = drawn.get_color()
  axes.set(xlabel='bits/dim (DiffC and UQDM: of the payload)', ylabel='PSNR, dB',
           title=f'{count:,} images; JPEG, WebP and JXL code them as one sheet')
  axes.set_xlim(left=0.0)
  axes.grid(alpha=0.3)
  if colours:
    axes.legend(fontsize='small')
  return figure
