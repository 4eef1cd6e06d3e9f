"""Data that are a formula: points in the plane and sequences, drawn exactly.

Every set is a pure function of (n, index), where `index` numbers independent sets: 0 is for
training and 1 for testing.  Points have 8 bits a coordinate.  The coordinates plus noise are scaled
to fill 0 .. 255 and rounded down.  No draw lies outside, so none is clipped.

  name                points, before they are scaled                               shape  levels
  `swirl`             a spiral that widens, of VDM                                    2    256
  `swiss_roll`        (theta cos theta, theta sin theta)                              2    256
  `moons`             two half circles, one in the other's opening                    2    256
  `checkerboard`      uniform on 8 of 16 squares: 7.5 bits a coordinate               2    256
  `rings`             circles of radius 1, 2, 3, 4, equally probable                  2    256
  `eight_gaussians`   normals of std 1/2 around 8 points of a circle of radius 4      2    256
  `heartbeat`         a one in every fifth place, at one of five phases               20     2
  `oscillations`      damped sinusoids, real numbers                                  32    none
  `orbits`            damped rotations in the plane, real numbers                  32, 2    none
"""
import functools

import numpy as np

from vdm_jax.data import random
from vdm_jax.errors import InputError


def _uniform(n: int, index: int, k: int) -> np.ndarray:
  return random.uniform(0, index, random.POINTS, k * n).reshape(k, n)


def _circle(angle: np.ndarray) -> np.ndarray:
  return np.stack([np.cos(angle), np.sin(angle)], -1)


def _normal(u: np.ndarray) -> np.ndarray:
  """Standard normal points [n, 2] from uniform u [2, n]; their length is 8.6 at most."""
  # Box-Muller, so that nothing but raw bits is asked of NumPy; 1 - u is never 0.
  radius, angle = np.sqrt(-2 * np.log1p(-u[0])), 2 * np.pi * u[1]
  return radius[:, None] * _circle(angle)


def _levels(points: np.ndarray) -> np.ndarray:
  return np.floor(points).astype(np.uint8)


def swirl(n: int, index: int) -> np.ndarray:
  """The 2-D swirl in 8 bits, uint8 [n, 2].

  theta = 3 pi sqrt(u),  x = floor(4 ((2 theta + pi) (cos theta, sin theta) + eps / 4 + 30)).
  Source: the 2-D example of the official VDM repository (google-research/vdm).
  """
  u = _uniform(n, index, 3)
  theta = 3 * np.pi * np.sqrt(u[0])
  points = (2 * theta + np.pi)[:, None] * _circle(theta) + _normal(u[1:]) / 4
  return _levels(4 * (points + 30))


def swiss_roll(n: int, index: int) -> np.ndarray:
  """The roll of Sohl-Dickstein et al. (2015), section 3.1, in 8 bits: uint8 [n, 2].

  theta = 3 pi / 2 (1 + 2 u),  x = floor(8 (theta (cos theta, sin theta) + eps / 5 + 16)).
  The angle is that in scikit-learn's `make_swiss_roll`.  The noise is chosen here.
  """
  u = _uniform(n, index, 3)
  theta = 1.5 * np.pi * (1 + 2 * u[0])
  return _levels(8 * (theta[:, None] * _circle(theta) + _normal(u[1:]) / 5 + 16))


def moons(n: int, index: int) -> np.ndarray:
  """Two half circles of radius 1: uint8 [n, 2].

  y = (cos phi, sin phi) or (1 - cos phi, 1/2 - sin phi) with phi = pi u, as in scikit-learn's
  `make_moons`, and x = floor(60 (y - (1/2, 1/4) + eps / 16) + 128).
  """
  u = _uniform(n, index, 4)
  arc = _circle(np.pi * u[0])
  points = np.where(u[1, :, None] < 0.5, arc, np.array([1, 0.5]) - arc)
  return _levels(60 * (points - np.array([0.5, 0.25]) + _normal(u[2:]) / 16) + 128)


def checkerboard(n: int, index: int) -> np.ndarray:
  """Uniform on the 8 squares, of 64 levels a side, whose column and row have an even sum.

  uint8 [n, 2]; the entropy is 15 bits.
  """
  u = _uniform(n, index, 3)
  square = np.floor(8 * u[0])
  column = square // 2
  row = 2 * (square % 2) + column % 2
  return _levels(64 * (np.stack([column, row], -1) + u[1:].T))


def rings(n: int, index: int) -> np.ndarray:
  """x = floor(26 (r (cos phi, sin phi) + eps / 12) + 128), r = 1, 2, 3 or 4: uint8 [n, 2]."""
  u = _uniform(n, index, 4)
  radius = 1 + np.floor(4 * u[0])
  points = radius[:, None] * _circle(2 * np.pi * u[1])
  return _levels(26 * (points + _normal(u[2:]) / 12) + 128)


def eight_gaussians(n: int, index: int) -> np.ndarray:
  """x = floor(14 (4 (cos phi, sin phi) + eps / 2) + 128), phi = k pi / 4: uint8 [n, 2]."""
  u = _uniform(n, index, 3)
  return _levels(14 * (4 * _circle(np.pi / 4 * np.floor(8 * u[0])) + _normal(u[1:]) / 2) + 128)


def heartbeat(n: int, index: int) -> np.ndarray:
  """Binary sequences with a one in every fifth place, uint8 [n, 20]: log2 5 bits of entropy.

  Sohl-Dickstein et al. (2015), section 3.1.
  """
  phase = np.floor(5 * _uniform(n, index, 1)[0])
  return (np.arange(20) % 5 == phase[:, None]).astype(np.uint8)


def oscillations(n: int, index: int) -> np.ndarray:
  """exp(-d k / 32) cos(2 pi f k / 32 + phi), k < 32: float32 [n, 32].

  d is uniform on [0, 3), the frequency f on [1, 4), the phase phi on [0, 2 pi).
  """
  u = _uniform(n, index, 3)[:, :, None]
  k = np.arange(32) / 32
  wave = np.exp(-3 * u[0] * k) * np.cos(2 * np.pi * ((1 + 3 * u[1]) * k + u[2]))
  return wave.astype(np.float32)


def orbits(n: int, index: int) -> np.ndarray:
  """The point exp(-d k / 32) (cos, sin)(2 pi f k / 32 + phi), k < 32: float32 [n, 32, 2].

  d, f and phi have the distributions that `oscillations` gives them.
  """
  u = _uniform(n, index, 3)[:, :, None]
  k = np.arange(32) / 32
  circle = _circle(2 * np.pi * ((1 + 3 * u[1]) * k + u[2]))
  return (np.exp(-3 * u[0] * k)[..., None] * circle).astype(np.float32)


FORMULAS = {f.__name__: f for f in (swirl, swiss_roll, moons, checkerboard, rings,
                                    eight_gaussians, heartbeat, oscillations, orbits)}


def components(name: str, n: int = 512) -> tuple[np.ndarray, np.ndarray, float]:
  """The law of a set of points, as a mixture of normals: weights [K], means [K, 2], one std.

  Means and std are in levels, and a point of level k counts as k.  Curves become n normals.  The
  rounding to levels counts as a variance of 1/12.  So this is the law of noisy points, where the
  noise is wider than the distances of the means and than a level.

  Raises InputError for a set that is no curve or mixture with normal noise.
  """
  half = (np.arange(n) + 0.5) / n
  if name == 'swirl':
    theta = 3 * np.pi * np.sqrt(half)
    means, std = 4 * ((2 * theta + np.pi)[:, None] * _circle(theta) + 30), 1.0
  elif name == 'swiss_roll':
    theta = 1.5 * np.pi * (1 + 2 * half)
    means, std = 8 * (theta[:, None] * _circle(theta) + 16), 8 / 5
  elif name == 'moons':
    arc = _circle(np.pi * (np.arange(n // 2) + 0.5) / (n // 2))
    both = np.concatenate([arc, np.array([1, 0.5]) - arc])
    means, std = 60 * (both - np.array([0.5, 0.25])) + 128, 60 / 16
  elif name == 'rings':
    angle = 2 * np.pi * np.arange(n // 4) / (n // 4)
    means = np.concatenate([26 * r * _circle(angle) + 128 for r in (1, 2, 3, 4)])
    std = 26 / 12
  elif name == 'eight_gaussians':
    means, std = 56 * _circle(np.pi / 4 * np.arange(8)) + 128, 7.0
  else:
    raise InputError('data', name, 'its law is no mixture of normals',
                     'choose swirl, swiss_roll, moons, rings or eight_gaussians')
  weights = np.full(len(means), 1 / len(means))
  return weights, means - 0.5, float(np.hypot(std, np.sqrt(1 / 12)))


@functools.lru_cache(maxsize=4)
def draw(name: str, n: int, index: int) -> np.ndarray:
  """The set with this name, read-only: uint8 [n, ...], or float32 for real numbers."""
  points = FORMULAS[name](n, index)
  points.flags.writeable = False
  return points
