"""Pictures, read back: the right pixels in the right places, and curves that can be read."""
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vdm_jax.data import fields
from vdm_jax.likelihood import density
from vdm_jax.likelihood.bounds import BoundSamples
from vdm_jax.likelihood.density import Density
from vdm_jax.runs import pictures
from vdm_jax.units import NATS_PER_DIM

GAP = 128  # the grey between images


def tiles(sheet, n, h, w):
  """The images [n, h, w, 3] of an enlarged sheet with one line between them."""
  across = int(np.ceil(n**0.5))
  down = -(-n // across)
  scale = sheet.shape[1] // (across * (w + 1) + 1)
  assert sheet.shape == (scale * (down * (h + 1) + 1), scale * (across * (w + 1) + 1), 3)
  small = sheet[::scale, ::scale]
  np.testing.assert_array_equal(small.repeat(scale, 0).repeat(scale, 1), sheet)
  assert np.all(small[::h + 1] == GAP) and np.all(small[:, ::w + 1] == GAP)
  corners = [(1 + i // across * (h + 1), 1 + i % across * (w + 1)) for i in range(n)]
  return np.stack([small[y:y + h, x:x + w] for y, x in corners])


def test_images_stand_side_by_side_with_their_levels_spread_over_black_to_white():
  data = np.arange(5 * 2 * 3).reshape(5, 2, 3, 1) % 3
  got = tiles(pictures.samples(data, 3), 5, 2, 3)
  expected = np.array([0, 128, 255])[data]  # 127.5 is rounded to even
  np.testing.assert_array_equal(got, np.repeat(expected, 3, axis=-1))


def test_colours_keep_their_order_and_256_levels_their_values():
  data = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3))
  np.testing.assert_array_equal(tiles(pictures.samples(data, 256), 4, 8, 8), data)


def test_of_more_than_three_channels_three_are_shown():
  data = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4))
  np.testing.assert_array_equal(tiles(pictures.samples(data, 256), 1, 4, 4), data[..., :3])


def test_two_channels_are_two_grey_pictures_side_by_side():
  data = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 2))
  sheet = pictures.samples(data, 256)  # two images a row, of two pictures each
  scale = sheet.shape[1] // (4 * 41 + 1)
  small = sheet[::scale, ::scale]
  assert small.shape == (2 * 41 + 1, 4 * 41 + 1, 3)
  for image in range(3):
    for channel in range(2):
      y, x = 1 + image // 2 * 41, 1 + (2 * (image % 2) + channel) * 41
      for colour in range(3):
        np.testing.assert_array_equal(small[y:y + 40, x:x + 40, colour], data[image, ..., channel])


def test_a_caption_is_below_the_picture_and_left_out_where_it_does_not_fit():
  picture = np.full((50, 200, 3), 7, np.uint8)
  got = pictures.captioned(picture, 'sampler ddim')
  np.testing.assert_array_equal(got[:50], picture)
  line = got[50:].astype(int)
  assert 8 < len(line) < 30 and (line[0] == 255).all() and line.min() < 64  # black on white
  np.testing.assert_array_equal(pictures.captioned(picture[:, :20], 'sampler ddim'),
                                picture[:, :20])


def test_the_text_of_a_png_is_kept_with_pictures_and_figures(tmp_path):
  about = {'sampler': 'ddim', 'steps': 50, 'workdir': 'läufe/日本'}
  for picture in (np.zeros((4, 4, 3), np.uint8), Figure(figsize=(1, 1))):
    pictures.save_png(tmp_path / 'a.png', picture, about)
    with Image.open(tmp_path / 'a.png') as image:
      assert {name: image.text[name] for name in about} == {**about, 'steps': '50'}


def test_large_images_are_not_enlarged():
  assert pictures.samples(np.zeros((1, 500, 500, 3), int), 256).shape == (502, 502, 3)


def test_points_are_drawn_where_they_are():
  """All points in one corner, then in the opposite one: the ink is there, x to the right, y up."""
  def ink(point):
    picture = pictures.samples(np.tile(point, (50, 1)), 256)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    coloured = np.argwhere(np.ptp(picture.astype(int), axis=-1) > 50)
    height, width = picture.shape[:2]
    return coloured.mean(axis=0) / (height, width)
  y, x = ink([230, 200])
  assert x > 0.6 and y < 0.4
  y, x = ink([30, 60])
  assert x < 0.4 and y > 0.6


def test_points_of_one_or_more_coordinates_can_be_drawn():
  for d in (1, 3):
    picture = pictures.samples(np.full((5, d), 7), 16)
    assert np.any(np.ptp(picture.astype(int), axis=-1) > 50)


def test_sequences_are_the_rows_of_one_picture():
  data = np.random.default_rng(0).integers(0, 2, (7, 20))
  np.testing.assert_array_equal(tiles(pictures.samples(data, 2), 1, 7, 20)[0, ..., 0],
                                255 * data)


def test_volumes_are_rows_of_slices_whether_or_not_they_have_channels():
  data = np.arange(2 * 5 * 3 * 4).reshape(2, 5, 3, 4, 1).astype(np.float32)
  sheet = pictures.samples(data, None)
  across, down = 5 * 5 + 1, 2 * 4 + 1  # with lines between them
  scale = sheet.shape[1] // across
  assert sheet.shape == (scale * down, scale * across, 3)
  small = sheet[::scale, ::scale, 0]
  for i in range(2):
    for k in range(5):
      np.testing.assert_allclose(small[4 * i + 1:, 5 * k + 1:][:3, :4],
                                 data[i, k, ..., 0] * 255 / 119, atol=0.51)
  bare = np.moveaxis(data[..., 0], 1, -1)
  np.testing.assert_array_equal(pictures.samples(bare, None), sheet)
  # On the way from noise, the slice in the middle.
  way = pictures.strip(np.stack([data, data]), None)
  np.testing.assert_array_equal(
      way, pictures.strip(np.stack([data[:, 2], data[:, 2]]), None))
  np.testing.assert_array_equal(way, pictures.strip(np.stack([bare, bare]), None))


def test_rows_of_two_real_numbers_are_curves_and_points_in_the_plane():
  turn = np.linspace(0.0, 6.0, 30)
  circle = np.stack([np.cos(turn), np.sin(turn)], -1)[None]
  picture, curves = pictures.samples(circle, None), pictures.samples(circle[..., :1], None)
  assert picture.shape[1] > 1.4 * curves.shape[1]
  ink = np.argwhere(np.ptp(picture[:, picture.shape[1] // 2:].astype(int), axis=-1) > 50)
  assert np.ptp(ink[:, 0]) == pytest.approx(np.ptp(ink[:, 1]), rel=0.05)  # equal axes


def test_a_png_has_the_pixels_it_was_given_and_nothing_is_left_beside_it(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  pictures.save_png(tmp_path / 'new' / 'a.png', picture)
  with Image.open(tmp_path / 'new' / 'a.png') as image:
    assert image.format == 'PNG'
    np.testing.assert_array_equal(np.asarray(image), picture)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.png']


# ----------------------------------------------------------------- curves


def records(**last):
  """Curves that fall from 9 bits/dim to these values."""
  return [{'step': step, 'kind': kind, 'bits_per_dim': end + (9 - end) * 0.5**(step / 10)}
          for step in range(0, 200, 10) for kind, end in last.items()]


def panels(rows, learned=lambda t: 7.9 - 13.1 * t):
  t = np.linspace(0, 1, 11)
  return pictures.curves(rows, t, 8 - 13 * t, learned(t), 3.0, 'test').axes


def test_the_first_panel_has_a_labelled_curve_for_every_split_and_shows_its_end():
  """Also where training is far ahead of the average that the other two measure."""
  left, _ = panels(records(train=2.0, validation=3.1, test=3.0))
  assert [text.get_text() for text in left.get_legend().get_texts()] == [
      'train', 'validation', 'test']
  bottom, top = left.get_ylim()
  for line, end in zip(left.lines, (2.0, 3.1, 3.0), strict=True):
    assert line.get_ydata()[-1] == pytest.approx(end, abs=1e-3)
    assert bottom < min(line.get_ydata()) and line.get_ydata()[-1] < top < 9
  assert '3.000' in left.get_title() and 'test' in left.get_title()


def test_curves_of_a_density_are_in_nats_and_their_ends_are_seen_above_zero_and_below():
  rows = records(train=-1.0, validation=-0.01)
  t = np.linspace(0, 1, 11)
  left, _ = pictures.curves(rows, t, 8 - 13 * t, 8 - 13 * t, -0.02, 'test', NATS_PER_DIM).axes
  bottom, top = left.get_ylim()
  assert bottom < -np.log(2) and 0.2 < top < 1.0 and left.get_ylabel() == 'nats/dim'
  assert left.lines[0].get_ydata()[-1] == pytest.approx(-np.log(2), abs=1e-3)
  assert '-0.014 nats/dim' in left.get_title()


def test_the_second_panel_has_both_schedules_and_their_ends_in_figures():
  _, right = panels(records(train=2.0))
  labels = [text.get_text() for text in right.get_legend().get_texts()]
  assert labels == ['learned: 7.90 to -5.20', 'initial: 8.00 to -5.00']
  _, right = panels(records(train=2.0), learned=lambda t: 8 - 13 * t)
  assert [text.get_text() for text in right.get_legend().get_texts()] == [
      'fixed: 8.00 to -5.00']


def test_a_loss_that_is_not_in_bits_is_drawn_as_what_it_is():
  rows = [{'step': step, 'kind': kind, 'loss': -1.0 - step} for step in (1, 2)
          for kind in ('train', 'validation')]
  left, _ = panels(rows)
  assert left.get_ylabel() == 'loss'
  bottom, top = left.get_ylim()
  assert bottom < -3.0 and top > -2.0


def test_a_bound_that_only_validation_measures_is_drawn_alone():
  rows = [{'step': 1, 'kind': 'train', 'loss': 2.0},
          {'step': 2, 'kind': 'validation', 'loss': 2.0, 'bits_per_dim': 3.5}]
  t = np.linspace(0.0, 1.0, 3)
  left, _ = pictures.curves(rows, t, 8 - 13 * t, 8 - 13 * t, 3.5, 'test').axes
  line, = left.lines
  assert (line.get_label(), list(line.get_ydata())) == ('validation', [3.5])


def test_a_run_without_records_has_its_other_panel(tmp_path):
  t = np.linspace(0, 1, 11)
  pictures.save_png(tmp_path / 'curves.png',
                    pictures.curves([], t, 8 - 13 * t, 8 - 13 * t, 3.0, 'test'))
  with Image.open(tmp_path / 'curves.png') as image:
    assert image.size == (990, 418)


@pytest.mark.long
@pytest.mark.parametrize('values', [[0.0], [2.0, 2.0], [-3.0], [np.nan], [2.0, np.nan, 3.0]])
def test_the_curves_of_one_record_of_equal_ones_and_of_nan_are_drawn(values, tmp_path):
  rows = [{'step': step, 'kind': 'train', 'bits_per_dim': u} for step, u in enumerate(values)]
  t = np.linspace(0, 1, 11)
  for logsnr in (8 - 13 * t, np.full(11, np.nan), np.zeros(11)):
    figure = pictures.curves(rows, t, 8 - 13 * t, logsnr, values[-1], 'test')
    bottom, top = figure.axes[0].get_ylim()
    shown = [u for u in values if np.isfinite(u)]
    assert bottom < top and all(bottom <= u <= top for u in shown)
    pictures.save_png(tmp_path / 'a.png', figure)


@pytest.mark.first(7)
@pytest.mark.parametrize('data', [np.zeros((1, 3, 3, 1), int), np.zeros((1, 2), int),
                                  np.zeros((1, 9), int), np.full((2, 3, 3, 1), np.nan),
                                  np.full((2, 2), np.nan)])
@pytest.mark.parametrize('levels', [1, 5])
def test_samples_that_are_one_or_equal_or_nan_or_of_one_level_are_drawn(data, levels):
  for picture in (pictures.samples(data, levels), pictures.strip(data[None], levels)):
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


# ---------------------------------------------------------- where the bits are

EDGES = np.linspace(-5.0, 8.0, 27)


def by_noise(extremes, bits, crossed=(), gaussian=True, shift=0.0):
  """One bit at every log-SNR between 0 and 1, and a limit that is at 0.8 bits everywhere."""
  mean = ((EDGES[:-1] >= 0.0) & (EDGES[:-1] < 1.0)).astype(float)
  above = np.isin(np.arange(26), crossed)
  running = np.append(np.cumsum((mean * np.diff(EDGES))[::-1])[::-1], 0.0) + 0.25 + shift
  found = Density(EDGES, mean, 0.1 * mean, running, 0.1 * running,
                  np.full(26, 0.8) if gaussian else None, above)
  row = {'parts': {'reconstruction': 0.25, 'latent': 0.001, 'diffusion': 1.0},
         'dataset': {'name': 'digits', 'split': 'test', 'levels': 5,
                     'shape': extremes.shape[1:]}}
  each = np.linspace(1.0, 1.5, 40)
  x = fields.integers('image', extremes.shape[1:], 5)
  return pictures.bits_by_noise(found, each, extremes, bits, x, row)


IMAGES = np.random.default_rng(0).integers(0, 5, (32, 4, 4, 1))


@pytest.mark.parametrize('data,word', [(IMAGES, 'image'), (IMAGES[:, 0, :2, 0], 'example')])
def test_the_histogram_is_of_images_only_if_the_data_are_images(data, word):
  histogram = by_noise(data, np.linspace(1, 1.5, 32)).axes[2]
  assert histogram.get_xlabel() == f'bits/dim of an {word}' and histogram.get_ylabel() == f'{word}s'


def test_the_area_of_the_density_is_the_diffusion_term_from_the_data_to_the_noise():
  density, running, histogram, _ = by_noise(IMAGES, np.linspace(1, 1.5, 32)).axes
  heights, edges, _ = density.patches[0].get_data()
  assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0)
  band = density.patches[1].get_data()  # two standard errors to either side
  np.testing.assert_allclose([band.values - heights, heights - band.baseline],
                             2 * [0.2 * heights])
  for axes in (density, running):
    assert axes.get_xlim() == (8.0, -5.0)  # as t runs
  assert running.lines[0].get_ydata()[[0, -1]] == pytest.approx([1.25, 0.25])
  assert sum(patch.get_height() for patch in histogram.patches) == 40
  assert '1.2500 bits' in running.get_title() or '1.250 bits' in running.get_title()
  assert '0.0010 latent' in running.texts[0].get_text()


def test_a_crossing_of_the_gaussian_limit_is_marked_where_it_is():
  labels = lambda axes: [text.get_text() for text in axes.get_legend().get_texts()]
  density = by_noise(IMAGES, np.linspace(1, 1.5, 32), crossed=[10, 11]).axes[0]
  marks = density.lines[-1]
  np.testing.assert_allclose(marks.get_xdata(), [0.25, 0.75])
  np.testing.assert_allclose(marks.get_ydata(), [1.0, 1.0])
  assert len(labels(density)) == 3 and 'bug' in labels(density)[-1]
  assert len(labels(by_noise(IMAGES, np.linspace(1, 1.5, 32)).axes[0])) == 2
  assert len(labels(by_noise(IMAGES, np.linspace(1, 1.5, 32), gaussian=False).axes[0])) == 1


@pytest.mark.parametrize('n', [1, 2, 5, 32])
def test_extreme_images_are_shown_from_the_most_likely_to_the_least(n):
  bits = np.linspace(1.0, 1.5, n)
  shown = by_noise(IMAGES[:n], bits).axes[3]
  sheet = shown.images[0].get_array()
  scale = sheet.shape[1] // (min(8, -(-n // 2)) * 5 + 1)
  first = np.asarray(sheet)[::scale, ::scale][1:5, 1:5, 0]
  np.testing.assert_array_equal(first, np.round(IMAGES[0, ..., 0] * 63.75))
  assert '1.00 to' in shown.get_title() and f'{bits[-1]:.2f} bits' in shown.get_title()


@pytest.mark.parametrize('n,shown', [(1, 1), (9, 9), (16, 16), (17, 16), (31, 16), (32, 32),
                                     (500, 32)])
def test_the_most_and_the_least_likely_images_are_chosen_and_fill_whole_rows(n, shown):
  bits = np.random.default_rng(0).permutation(np.linspace(1.0, 2.0, n))
  chosen = bits[pictures.extremes(bits)]
  assert len(chosen) == shown and np.all(np.diff(chosen) > 0)
  assert (chosen[0], chosen[-1]) == (bits.min(), bits.max())
  if n > 16:
    assert shown // 2 % 8 == 0  # eight a row
    np.testing.assert_array_equal(chosen, [*np.sort(bits)[:shown // 2],
                                           *np.sort(bits)[-(shown // 2):]])


def test_a_running_sum_that_starts_below_zero_is_shown_whole():
  of = by_noise(IMAGES, np.linspace(1, 1.5, 32), shift=-0.9).axes[1]
  assert of.get_ylim()[0] < -0.65 and of.lines[0].get_ydata()[-1] == pytest.approx(-0.65)


def test_extreme_points_are_drawn_in_the_colour_of_their_bits():
  shown = by_noise(np.array([[0, 1], [4, 3]]), np.array([1.0, 1.5])).axes[3]
  np.testing.assert_allclose(shown.collections[0].get_offsets(), [[0, 1], [4, 3]])
  np.testing.assert_allclose(shown.collections[0].get_array(), [1.0, 1.5])


@pytest.mark.long
@pytest.mark.parametrize('points', [False, True])
@pytest.mark.parametrize('each', [[1.5], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0 + 1e-15], [np.nan] * 3,
                                  [1.0, np.nan, 2.0]])
@pytest.mark.parametrize('mean', [0.0, 1.0, np.nan])
def test_where_the_bits_are_is_drawn_of_one_image_of_equal_ones_and_of_nan(each, mean, points,
                                                                           tmp_path):
  each = np.array(each)
  flat, edges = np.full(26, mean), np.full(27, mean)
  found = Density(EDGES, flat, 0.0 * flat, edges, 0.0 * edges, flat, np.zeros(26, bool))
  chosen = pictures.extremes(each)
  images = np.zeros((len(each), 2) if points else (len(each), 4, 4, 1), int)
  row = {'parts': {'diffusion': mean}, 'dataset': {
      'name': 'digits', 'split': 'test', 'levels': 5, 'shape': images.shape[1:]}}
  figure = pictures.bits_by_noise(found, each, images, each[chosen],
                                  fields.integers('image', images.shape[1:], 5), row)
  pictures.save_png(tmp_path / 'a.png', figure)
  finite = np.isfinite(each).sum()
  histogram = figure.axes[2]
  assert sum(patch.get_height() for patch in histogram.patches) == finite
  assert figure.axes[0].get_xlim() == (8.0, -5.0)


def test_a_density_of_one_draw_is_one_interval_around_it():
  draws = BoundSamples({'diffusion': np.array([[2.0]]), 'latent': np.array([[0.5]])},
                       np.array([[[1.0]]]), np.array([[[2.0]]]), 0)
  found = density.density(draws, (1,))
  assert found.edges[0] < 1.0 < found.edges[-1]
  assert np.sum(found.mean * np.diff(found.edges)) == pytest.approx(2.0 / np.log(2))
  assert found.running[0] == pytest.approx(2.5 / np.log(2))
