"""DiffusionMBIR: its recorded runs, its projector, and reconstructions without a prior."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, processes, random, schedules, volumes
from vdm_jax.errors import InputError
from vdm_jax.inverse import Operator, Problem
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers import ancestral, mbir, sample
from vdm_jax.typing import Estimate, Sampler

pytestmark = pytest.mark.usefixtures('x64')
DATA = Path(__file__).parents[3] / 'shared' / 'applications'
ANGLES = volumes.angles_of(8)
VP = GaussianProcess(schedules.Cosine(8.0, -6.0))
STEPS, SMALLEST, LARGEST = 12, 0.01, 20.0


def ours(x):
  """[Z, 1, H, W] -> [1, Z, H, W, 1]."""
  return jnp.moveaxis(jnp.asarray(x), 1, -1)[None]


def theirs(x):
  return np.moveaxis(np.asarray(x)[0], -1, 1)


@pytest.fixture
def recorded():
  return recordings.shared('diffusion_mbir')


def beams(circle=False, side=10, depth=6, angles=ANGLES):
  return volumes.parallel_beams((depth, side, side, 1), angles, circle)


# ---------------------------------------------------------------- operators


@pytest.mark.parametrize('side,circle,views', [(9, True, 5), (16, True, 8), (10, False, 7),
                                               (90, True, 8)])
def test_the_projector_is_scikit_images_radon(side, circle, views):
  """The last is too large for a matrix."""
  transform = pytest.importorskip('skimage.transform')
  x = np.random.default_rng(0).normal(size=(side, side))
  row, column = np.mgrid[:side, :side] - side // 2
  if circle:
    x = x * (row**2 + column**2 <= (side // 2)**2)
  theta = np.linspace(0.0, 180.0, views, endpoint=False)
  want = transform.radon(x, theta, circle=circle)
  project = jax.jit(beams(circle, side, 1, np.deg2rad(theta)).apply)
  found = project(jnp.asarray(x)[None, None, ..., None])
  np.testing.assert_allclose(found[0, 0, ..., 0], want, atol=1e-12 * np.abs(want).max())
  y = np.random.default_rng(1).normal(size=want.shape)
  want = transform.iradon(y, theta, output_size=side, circle=circle)
  found = volumes.filtered_back_projection(
      jnp.asarray(y)[None, None, ..., None], np.deg2rad(theta), side, circle)
  np.testing.assert_allclose(found[0, 0, ..., 0], want, atol=1e-12 * np.abs(want).max())


def test_the_projector_is_the_recorded_one(recorded):
  found = beams()(ours(recorded['volume']))[0, ..., 0]
  np.testing.assert_allclose(found, recorded['sinogram'][:, 0], atol=1e-13)


def test_a_projection_along_the_axes_is_a_sum_of_rows_or_columns():
  """And a beam is the same whether the projector is a matrix or a list."""
  x = jax.random.normal(jax.random.key(0), (2, 3, 7, 7, 2))
  operator = beams(True, 7, 3, np.array([0.0, np.pi / 2]))
  y = operator._replace(shape=(3, 7, 7, 2)).apply(x[..., :1])
  np.testing.assert_allclose(y[..., 0, 0], x[..., 0].sum(axis=2), atol=1e-12)
  # A quarter of a turn about pixel n // 2, which is the centre of an odd side.
  np.testing.assert_allclose(y[..., 1, 0], x[..., ::-1, :, 0].sum(axis=3), atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('make', [
    lambda: beams(True), lambda: beams(False),
    lambda: volumes.fourier((6, 10, 10, 1), np.arange(10) % 3 == 0)],
    ids=['circle', 'square', 'fourier'])
def test_the_adjoint_is_exact(make):
  operator = make()
  x = jax.random.normal(jax.random.key(0), (1, *operator.shape))
  y = jax.random.normal(jax.random.key(1), (1, *operator.measured))
  left, right = jnp.vdot(operator(x), y), jnp.vdot(x, operator.adjoint(y))
  assert abs(left - right) < 1e-13 * jnp.linalg.norm(operator(x)) * jnp.linalg.norm(y)


def test_differences_are_the_recorded_ones(recorded):
  for name, axis in {'z': 1, 'x': 2, 'y': 3}.items():
    found = volumes.differences(ours(recorded['x']), (axis,))[..., 0]
    np.testing.assert_array_equal(theirs(found), recorded[f'D{name}'])
    found = volumes.transposed_differences(ours(recorded['x'])[..., None], (axis,))
    np.testing.assert_allclose(theirs(found), recorded[f'D{name}T'], atol=1e-14)


# ------------------------------------------------------------------ the sampler


def prior(z, level, cond=None):
  """The score of N(.3, .35^2) at the recorded noise level of a time, which is off by 1e-10."""
  del cond
  i = level.t * STEPS - 1.0
  t = 1.0 - (STEPS - 1.0 - i) * (1.0 - 1e-10) / (STEPS - 1.0)
  score = (0.3 - z) / (0.35**2 + jnp.square(SMALLEST * (LARGEST / SMALLEST)**t))
  level = level.expand(z)
  return Estimate(z + jnp.square(level.sigma) * score, -level.sigma * score)


def ladder(t):
  """The ladder of a geometric sequence: t = k / N has its k-th number, and 0 none."""
  i = t * STEPS - 1.0
  return jnp.where(t > 0.5 / STEPS, SMALLEST * (LARGEST / SMALLEST)**(i / (STEPS - 1.0)), 0.0)


def public_predictor(denoise, process):
  """`reverse_diffusion` without alpha, which draws noise in the last step too."""
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    moved = jnp.square(at_t.sigma) - jnp.square(at_s.sigma)
    noise = random.normal(keys, z)
    return z - moved / at_t.sigma * denoise(z, at_t).eps + jnp.sqrt(moved) * noise
  return Sampler(step)


LADDER = from_alpha_sigma(jnp.ones_like, ladder)
RUNS = {'ct_exact': volumes.TV(0.04, 10.0), 'mri': volumes.TV(0.04, 10.0)}


@pytest.mark.long
@pytest.mark.parametrize('run', RUNS)
def test_a_recorded_run_is_reproduced(recorded, run):
  if run == 'mri':
    operator = volumes.fourier((6, 10, 10, 1), recorded['mri/mask'] > 0)
    k = np.stack([recorded['mri/kspace_re'], recorded['mri/kspace_im']], axis=-1)
    y = jnp.asarray(k[:, 0, :, :, None])[None]
  else:
    operator, y = beams(), jnp.asarray(recorded['sinogram'])[:, 0, :, :, None][None]
  sampler = mbir.mbir(mbir.slicewise(prior), LADDER, Problem(operator, y), RUNS[run],
                      predictor=public_predictor)
  noise = np.stack([ours(u) for u in recorded[f'{run}/noise']]).reshape(STEPS, 2, 1, 6, 10, 10, 1)
  z = LARGEST * ours(recorded[f'{run}/prior_noise'])
  found = recordings.replay(sampler, z, jnp.arange(STEPS, -1, -1) / STEPS, jnp.asarray(noise))
  want = recorded[f'{run}/recon']
  np.testing.assert_allclose(theirs(found), want, atol=1e-12 * np.abs(want).max())


def public_gradients(matrix, b, iterations):
  """The public code updates r in place while p is the same array, so that p_1 = (1 + beta) r_1."""
  x, r, p = jnp.zeros_like(b), b, b
  for i in range(iterations):
    product = matrix(p)
    length = jnp.vdot(r, r) / jnp.vdot(p, product)
    x, after = x + length * p, r - length * product
    p = after + jnp.vdot(after, after) / jnp.vdot(r, r) * (p if i else after)
    r = after
  return x


@pytest.mark.long
def test_isotropic_total_variation_is_the_recorded_one(recorded, monkeypatch):
  monkeypatch.setattr(volumes, 'conjugate_gradients', public_gradients)
  matrix = jnp.asarray(recorded['dense/A'])
  operator = Operator('A', lambda x: jnp.moveaxis(x, -1, 2).reshape(len(x), -1) @ matrix.T,
                      (4, 7, 7, 1))
  found = volumes.total_variation(
      Problem(operator, jnp.asarray(recorded['dense/y'])[None]),
      volumes.TV(0.04, 1.0, axes=(2, 3, 1), isotropic=True), 30, 5)
  want = recorded['dense/iso_30x5']
  np.testing.assert_allclose(theirs(found), want, atol=1e-10 * np.abs(want).max())


# ------------------------------------------------------- decomposed sampling


def of_vectors(denoise, shape):
  """A denoiser of vectors [B, D] as one of volumes [B, *shape]."""
  def of_volumes(z, level, cond=None):
    estimate = denoise(z.reshape(len(z), -1), level)
    return jax.tree.map(lambda u: u.reshape(len(z), *shape), estimate)
  return of_volumes


def test_decomposed_sampling_of_gaussian_data_without_total_variation_is_exact():
  """Its samples are those of the denoiser of the posterior, which is known."""
  shape, std, noise, size = (2, 3, 3, 1), 0.4, 0.3, 18
  operator = volumes.parallel_beams(shape, volumes.angles_of(2), circle=False)
  truth = 0.2 + std * jax.random.normal(jax.random.key(0), (1, *shape))
  y = operator(truth) + noise
  prior = oracles.Correlated.of(jnp.full((1, size), 0.2), std**2 * jnp.eye(size)[None])
  posterior = prior.given(operator.matrix(), np.asarray(y).ravel(), noise)

  def variance(logsnr):  # on the curve vp
    signal = jax.nn.sigmoid(logsnr)
    return std**2 * (1.0 - signal) / (1.0 - signal + std**2 * signal)
  keys, times = jax.random.split(jax.random.key(1), 4), jnp.linspace(1.0, 0.0, 9)
  z = jax.random.normal(jax.random.key(2), (4, *shape))
  problem = Problem(operator, jnp.tile(y, (4, 1, 1, 1, 1)), noise)
  sampler = mbir.dds(mbir.slicewise(oracles.Gaussian(0.2, std)), VP, problem, variance,
                     volumes.TV(0.0, 1e-9), iterations=20)
  want = sample(ancestral(of_vectors(posterior, shape), VP), keys, z, times)
  np.testing.assert_allclose(sample(sampler, keys, z, times), want, atol=1e-6)


def test_the_squared_errors_of_gaussian_data_are_known():
  """s^2 sigma^2 / (sigma^2 + s^2 alpha^2).  A mean of n squares has the error sqrt(2 / n)."""
  x = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (5000, 1))
  times = jnp.linspace(1.0, 0.0, 5)
  found = mbir.squared_errors(oracles.Gaussian(0.3, 0.5), VP, x, times,
                              jax.random.split(jax.random.key(1), len(x)))
  level = VP(times)
  want = 0.25 * level.sigma**2 / (level.sigma**2 + 0.25 * level.alpha**2)
  np.testing.assert_allclose(found(level.logsnr), want, rtol=4 * np.sqrt(2 / 5000))


# ------------------------------------------------------------------- bad input


LINEAR = Problem(beams(True, 8, 2), jnp.zeros((1, 2, 8, 8, 1)))


@pytest.mark.parametrize('make,match', [
    (lambda: volumes.parallel_beams((2, 8, 9, 1), ANGLES), 'the slices are not square'),
    (lambda: volumes.parallel_beams((8, 8, 1), ANGLES), 'it is no volume'),
    (lambda: volumes.parallel_beams((2, 8, 8, 1), np.zeros((0,))), 'angles'),
    (lambda: volumes.angles_of(0), 'views=0'),
    (lambda: volumes.fourier((2, 8, 8, 1), np.ones(7)), 'its shape is'),
    (lambda: volumes.fourier((2, 8, 8, 1), np.zeros(8)), 'nothing is known'),
    (lambda: volumes.filtered_back_projection(jnp.zeros((1, 2, 8, 7, 1)), ANGLES, 8), 'give .B, Z'),
    (lambda: volumes.TV(-1.0).check(), 'weight=-1.0'),
    (lambda: volumes.TV(rho=0.0).check(), 'rho=0.0'),
    (lambda: volumes.TV(axes=(4,)).check(), 'axes='),
    (lambda: volumes.total_variation(LINEAR, volumes.TV(), 0), 'steps=0'),
    (lambda: volumes.least_squares(LINEAR, 0), 'iterations=0'),
    (lambda: mbir.mbir(prior, VP, LINEAR, snr=0.0), 'snr=0.0'),
    (lambda: mbir.mbir(prior, VP, LINEAR, iterations=0), 'iterations=0'),
    (lambda: mbir.dds(prior, VP, LINEAR, jnp.exp, iterations=0), 'iterations=0'),
    (lambda: mbir.dds(prior, VP, LINEAR, jnp.exp, eta=2.0), 'eta=2.0'),
    (lambda: mbir.mbir(prior, VP, LINEAR._replace(y=jnp.zeros((1, 2, 8, 7, 1)))), 'y: it has'),
    (lambda: mbir.mbir(prior, VP, LINEAR._replace(operator=LINEAR.operator._replace(
        linear=False))), 'it needs a linear operator'),
])
def test_wrong_input_is_refused(make, match):
  with pytest.raises(InputError, match=match):
    make()


@pytest.mark.parametrize('make', [
    lambda problem: mbir.mbir(prior, VP, problem),
    lambda problem: mbir.dds(prior, VP, problem, jnp.exp)], ids=['mbir', 'dds'])
@pytest.mark.parametrize('shape,count,match', [
    ((2, 3, 8, 8, 1), 2, r'z: it has the shape \(2, 3, 8, 8, 1\), and views:8 is of x of shape'),
    ((2, 2, 8, 8, 1), 5, 'y: it has 5 measurements, and z has 2 examples')])
def test_a_start_that_does_not_fit_the_measurements_is_refused(make, shape, count, match):
  sampler = make(LINEAR._replace(y=jnp.zeros((count, 2, 8, 8, 1))))
  with pytest.raises(InputError, match=match):
    sample(sampler, jax.random.split(jax.random.key(0), 2), jnp.zeros(shape), jnp.array([1.0, 0.0]))


def test_a_grid_from_noise_alone_is_refused():
  """alpha = 0 there."""
  sampler = mbir.mbir(prior, processes.RectifiedFlow(), LINEAR)
  with pytest.raises(InputError, match='alpha = 0'):
    sample(sampler, jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 2, 8, 8, 1)),
           jnp.linspace(1.0, 0.0, 3))


@pytest.mark.long
def test_samples_are_the_same_on_every_curve():
  """u = z / alpha takes the same steps."""
  data = oracles.Gaussian(0.3, 0.35)
  y = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, 1))
  z = jax.random.normal(jax.random.key(1), (1, 2, 8, 8, 1))
  found = []
  for curve in (processes.vp, processes.ve):
    process = GaussianProcess(schedules.Cosine(8.0, -6.0), curve)
    sampler = mbir.mbir(mbir.slicewise(data), process, LINEAR._replace(y=y))
    found.append(sample(sampler, jax.random.split(jax.random.key(2), 1),
                        jnp.hypot(process(1.0).alpha, process(1.0).sigma) * z,
                        jnp.linspace(1.0, 0.0, 6)) / process(0.0).alpha)
  np.testing.assert_allclose(*found, rtol=1e-9)


# -------------------------------------------------------- the measured baselines


@pytest.mark.long
@pytest.mark.parametrize('views,want', [(4, (20.29, 24.13, 28.41)), (8, (25.67, 26.90, 32.29))])
def test_the_baselines_are_those_measured_elsewhere(views, want):
  """PSNR of three textured phantoms, by other programs, whose noise was another draw.

  Their least squares had other numbers of steps, and TV another rho.
  """
  path = DATA / 'textured_phantoms.npz'
  if not path.exists():
    pytest.skip(f'{path} is not here')
  with np.load(path) as file:
    x = file['volumes'].astype(float)[..., None]
  angles = volumes.angles_of(views)
  operator = volumes.parallel_beams(x.shape[1:], angles)
  clean = np.asarray(operator(jnp.asarray(x)))
  y = jnp.asarray(clean + 0.005 * clean.max() * np.random.default_rng(0).normal(size=clean.shape))
  problem = Problem(operator, y)
  row, column = np.mgrid[:32, :32] - 16
  inside = row**2 + column**2 <= 16**2

  def psnr(found):
    """Of what is not below 0, inside the circle; the peak is the largest number of a volume."""
    errors = np.square(np.maximum(found, 0.0) - x)[:, :, inside].reshape(3, -1).mean(axis=1)
    return np.mean(10.0 * np.log10(x.max(axis=(1, 2, 3, 4))**2 / errors))
  tv = volumes.TV(0.04, 1.0, (1, 2, 3), isotropic=True)
  found = (psnr(volumes.filtered_back_projection(y, angles, 32)),
           psnr(volumes.least_squares(problem, 10)),
           psnr(volumes.total_variation(problem, tv, 100)))
  for one, other, within in zip(found, want, (0.05, 0.3, 0.15), strict=True):
    assert abs(one - other) < within, (found, want)
