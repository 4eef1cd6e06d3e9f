"""Scenes: what rays show, turns and derivatives, against closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import scenes
from vdm_jax.errors import InputError

N, RNG = 6, np.random.default_rng(0)
RAW = lambda density: float(np.log(np.expm1(density)))  # whose softplus is the density


def plain(density, colour=0.0, background=0.0):
  """Voxels of one density and one colour."""
  fill = lambda shape, value: np.full(shape, value, np.float32)
  return {'density': fill((N, N, N), RAW(density)),
          'colour': fill((N, N, N, 3), np.arctanh(colour)),
          'background': fill(3, np.arctanh(background))}


RENDER, TURNED = jax.jit(scenes.voxels((N, N, 3)).render), jax.jit(scenes.turned)


def picture(theta, *degrees):
  """From at most four sides, by one program."""
  return RENDER(theta, np.float32([*degrees, *[0.0] * (4 - len(degrees))]))[:len(degrees)]


@pytest.mark.parametrize('density', [0.5, 3.0, 20.0])
def test_a_constant_density_lets_its_exponential_through(density):
  """The cube has the side 1, so a share exp(-density) of the background is seen."""
  behind = np.exp(-density)
  np.testing.assert_allclose(picture(plain(density, 0.4, -0.6), 0.0, 90.0),
                             0.4 * (1.0 - behind) - 0.6 * behind, rtol=1e-5)


def test_layers_hide_what_is_behind_them():
  """Two layers on a ray: c1 (1 - T1) + T1 c2 (1 - T2) + T1 T2 background."""
  first, second = np.exp(-0.5 * 1.2), np.exp(-0.5 * 0.7)
  got = scenes.composite(jnp.array([1.2, 0.7]), jnp.array([[0.3], [-0.9]]), jnp.array([0.5]), 0.5)
  want = 0.3 * (1 - first) - 0.9 * first * (1 - second) + 0.5 * first * second
  np.testing.assert_allclose(got, [want], rtol=1e-6)


@pytest.mark.parametrize('k', [-3, -1, 1, 2, 4])
def test_quarters_of_a_turn_move_whole_cells(k):
  cells = np.float32(RNG.normal(size=(N, N, N, 2)))
  np.testing.assert_array_equal(TURNED(cells, np.float32(90 * k)),
                                np.rot90(cells, -k, axes=(1, 2)))
  theta = {'density': np.float32(RNG.normal(size=(N, N, N))),
           'colour': np.float32(RNG.normal(size=(N, N, N, 3))), 'background': np.zeros(3)}
  beforehand = {name: np.rot90(u, -k, axes=(1, 2)) if u.ndim > 1 else u
                for name, u in theta.items()}
  np.testing.assert_array_equal(picture(theta, 90.0 * k), picture(beforehand, 0.0))


def test_the_camera_goes_round_to_the_right():
  """Opaque faces of four colours are seen in turn: the front, the right, the back, the left."""
  theta = plain(1e-4)
  for value, face in ((0.1, np.s_[:, :, 0]), (0.2, np.s_[:, -1, :]), (0.3, np.s_[:, :, -1]),
                      (0.4, np.s_[:, 0, :])):
    theta['density'][face], theta['colour'][face] = RAW(60.0), np.arctanh(value)
  seen = np.asarray(picture(theta, 0.0, 90.0, 180.0, 270.0))[:, 1:-1, 1:-1]
  np.testing.assert_allclose(seen, np.broadcast_to(
      np.array([0.1, 0.2, 0.3, 0.4])[:, None, None, None], seen.shape), atol=1e-3)
  # From the front a mark on the right of a row is on the right, and from behind on the left.
  theta = plain(1e-4)
  theta['density'][2, 4, 3] = RAW(60.0)
  theta['colour'][2, 4, 3] = np.arctanh(0.9)
  front, right, back = np.asarray(picture(theta, 0.0, 90.0, 180.0))[..., 0]
  assert [np.unravel_index(u.argmax(), u.shape) for u in (front, right, back)] == [
      (2, 4), (2, 3), (2, N - 1 - 4)]


@pytest.mark.parametrize('degrees', [0.0, 30.0, 45.0, 200.0])
def test_a_round_cloud_looks_the_same_from_every_side(degrees):
  """The depth of exp(-r^2 / 2 s^2) along a ray is s sqrt(2 pi) exp(-(column^2 + row^2) / 2 s^2)."""
  n, s = 24, 3.0
  at = np.arange(n) - (n - 1) / 2
  cloud = np.exp(-(at[:, None, None]**2 + at[:, None]**2 + at**2) / (2 * s**2))
  got = np.asarray(TURNED(np.float32(cloud), np.float32(degrees))).sum(axis=2)
  want = s * np.sqrt(2 * np.pi) * np.exp(-(at[:, None]**2 + at**2) / (2 * s**2))
  # Linear interpolation adds at most 1/4 to the variance of each axis.
  assert np.abs(got - want).max() < 0.03 * want.max()
  np.testing.assert_allclose(got.sum(), want.sum(), rtol=1e-3)


def test_the_energy_of_the_gradient_by_density_is_known():
  """c + (b - c) exp(-h sum d): each of the N cells of a ray has the slope -h (b - c) exp(-d)."""
  density, h = 2.0, 1.0 / N
  theta = plain(density, 0.4, -0.6)
  one = lambda raw: picture({**theta, 'density': raw}, 0.0)[0, 2, 3, 0]
  slopes = np.asarray(jax.jit(jax.grad(one))(theta['density']))
  by_density = slopes / (1.0 - np.exp(-density))  # the slope of softplus is 1 - exp(-softplus)
  np.testing.assert_allclose((by_density**2).sum(), N * (h * 1.0 * np.exp(-density))**2, rtol=1e-4)
  assert np.count_nonzero(slopes) == N and np.all(by_density[2, 3] != 0.0)


def test_colours_have_their_shares_of_a_ray_as_slopes():
  """Cell i of a constant density has exp(-i h d) (1 - exp(-h d)), and the background the rest."""
  theta, h = plain(2.0), 1.0 / N
  one = lambda colour, background: picture(
      {**theta, 'colour': colour, 'background': background}, 0.0)[0, 2, 3, 0]
  by_colour, by_background = jax.jit(jax.grad(one, (0, 1)))(theta['colour'], theta['background'])
  want = np.exp(-np.arange(N) * h * 2.0) * -np.expm1(-2.0 * h)
  np.testing.assert_allclose(by_colour[2, 3, :, 0], want, rtol=1e-4)
  np.testing.assert_allclose(by_background, [np.exp(-2.0), 0.0, 0.0], rtol=1e-4)


@pytest.mark.long
def test_scenes_are_in_the_range_of_the_data_and_begin_at_grey():
  for name in scenes.SCENES:
    scene = scenes.named(name, (N, N, 3))
    x = jax.jit(lambda key, scene=scene: scene.render(scene.init(key), jnp.array([0.0, 30.0])))(
        jax.random.key(0))
    np.testing.assert_array_equal(x, np.zeros((2, N, N, 3)))


@pytest.mark.parametrize('name,shape,problem', [
    ('voxel', (4, 4, 3), "scene='voxel'"), ('voxels', (4, 6, 3), '4 x 6 pixels')])
def test_scenes_that_cannot_be_are_refused(name, shape, problem):
  with pytest.raises(InputError, match=problem):
    scenes.named(name, shape)
