"""Pictures, read back: the right pixels in the right places, and curves that can be read."""
import numpy as np
import pytest
from PIL import Image

from vdm_jax import pictures
from vdm_jax.likelihood.bounds import BoundSamples

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


@pytest.mark.parametrize('channels,shown', [(2, [0, 0, 0]), (4, [0, 1, 2])])
def test_of_other_numbers_of_channels_some_are_shown(channels, shown):
  data = np.random.default_rng(0).integers(0, 256, (1, 4, 4, channels))
  np.testing.assert_array_equal(tiles(pictures.samples(data, 256), 1, 4, 4), data[..., shown])


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


def test_a_png_has_the_pixels_it_was_given_and_nothing_is_left_beside_it(tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  pictures.save_png(tmp_path / 'new' / 'a.png', picture)
  with Image.open(tmp_path / 'new' / 'a.png') as image:
    assert image.format == 'PNG'
    np.testing.assert_array_equal(np.asarray(image), picture)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.png']


# ----------------------------------------------------------------- curves


def bound(total=3.0, low=-5.0, high=8.0, shape=(8, 8, 1)):
  """Samples of that total in bits/dim, all of it spread evenly over the log-SNR."""
  nats = total * np.log(2) * np.prod(shape)
  logsnr = np.linspace(low, high, 6000).reshape(1, 60, 100)
  terms = {'reconstruction': np.zeros((1, 60)), 'latent': np.zeros((1, 60)),
           'diffusion': np.full((1, 60), nats)}
  return BoundSamples(terms, logsnr, np.full_like(logsnr, nats), 0)


def records(**last):
  """Curves that fall from 9 bits/dim to these values."""
  return [{'step': step, 'kind': kind, 'bits_per_dim': end + (9 - end) * 0.5**(step / 10)}
          for step in range(0, 200, 10) for kind, end in last.items()]


def panels(rows, learned=lambda t: 7.9 - 13.1 * t):
  t = np.linspace(0, 1, 11)
  return pictures.curves(rows, t, 8 - 13 * t, learned(t), bound(), (8, 8, 1), 'test').axes


def test_the_first_panel_has_a_labelled_curve_for_every_split_and_shows_its_end():
  """Also where training is far ahead of the average that the other two measure."""
  left, _, _ = panels(records(train=2.0, validation=3.1, test=3.0))
  assert [text.get_text() for text in left.get_legend().get_texts()] == [
      'train', 'validation', 'test']
  bottom, top = left.get_ylim()
  for line, end in zip(left.lines, (2.0, 3.1, 3.0), strict=True):
    assert line.get_ydata()[-1] == pytest.approx(end, abs=1e-3)
    assert bottom < min(line.get_ydata()) and line.get_ydata()[-1] < top < 9
  assert '3.000' in left.get_title() and 'test' in left.get_title()


def test_the_second_panel_has_both_schedules_and_their_ends_in_figures():
  _, middle, _ = panels(records(train=2.0))
  labels = [text.get_text() for text in middle.get_legend().get_texts()]
  assert labels == ['learned: 7.90 to -5.20', 'initial: 8.00 to -5.00']
  _, middle, _ = panels(records(train=2.0), learned=lambda t: 8 - 13 * t)
  assert [text.get_text() for text in middle.get_legend().get_texts()] == [
      'fixed: 8.00 to -5.00']


def test_the_area_of_the_third_panel_is_the_diffusion_term():
  _, _, right = panels(records(train=2.0))
  heights, edges, _ = right.patches[0].get_data()
  assert np.sum(heights * np.diff(edges)) == pytest.approx(3.0, rel=1e-3)
  np.testing.assert_allclose(heights, 3.0 / 13.0, rtol=0.02)
  assert right.get_xlim()[0] > right.get_xlim()[1]  # from data to noise, as t runs


def test_a_loss_that_is_not_in_bits_is_drawn_as_what_it_is():
  rows = [{'step': step, 'kind': kind, 'loss': -1.0 - step} for step in (1, 2)
          for kind in ('train', 'validation')]
  left, _, _ = panels(rows)
  assert left.get_ylabel() == 'loss'
  bottom, top = left.get_ylim()
  assert bottom < -3.0 and top > -2.0


def test_a_run_without_records_has_its_other_panels(tmp_path):
  t = np.linspace(0, 1, 11)
  figure = pictures.curves([], t, 8 - 13 * t, 8 - 13 * t, bound(), (8, 8, 1), 'test')
  pictures.save_png(tmp_path / 'curves.png', figure)
  with Image.open(tmp_path / 'curves.png') as image:
    assert image.size == (1430, 418)
