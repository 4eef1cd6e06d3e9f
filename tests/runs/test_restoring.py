"""Images restored by a run: what must hold whatever the weights, scores, and input that is refused.
"""
import numpy as np
import pytest
from PIL import Image

from tests.support import images_run
from vdm_jax import inverse
from vdm_jax.errors import InputError
from vdm_jax.runs import restoring, workdir
from vdm_jax.samplers import conditioned

SHORT = {'count': 2, 'steps': 3, 'batch_size': 4}


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  base = rng.normal(size=(60, 4, 4, 1))
  return np.clip(128 + 40 * (base + np.roll(base, 1, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('restoring')
  np.save(folder / 'data.npy', data)
  return images_run.make_run(folder, folder / 'data.npy', False)


def restored(run, tmp_path, method='replacement', task='inpaint', images=('data:test:0-1',),
             **options):
  method = method if method == restoring.EXACT else conditioned.named(method)
  return restoring.restore(run, tmp_path / 'out.png', task, method, images,
                           **{**SHORT, 'overwrite': True, **options})


def test_samples_of_replacement_have_the_measured_pixels_and_are_written(run, tmp_path):
  result = restored(run, tmp_path, samples=tmp_path / 'all.npz')
  known = inverse.inpaint((4, 4, 1)).known
  samples = result.restored.samples
  assert samples.shape == (2, 2, 4, 4, 1) and result.y.shape == (2, 12)
  np.testing.assert_allclose(samples[:, :, known], np.stack([result.y] * 2, 1), atol=1e-6)
  assert np.ptp(samples[:, :, ~known], axis=1).min() > 0.0
  # The noise of y is that which was asked for: 24 numbers.
  noise = (result.y - result.x[:, known]).std()
  assert abs(noise - 0.1) < 4 * 0.1 / np.sqrt(2 * 24)
  with np.load(tmp_path / 'all.npz') as file:
    np.testing.assert_array_equal(file['samples'], samples)
    np.testing.assert_array_equal(file['y'], result.y)
  assert Image.open(tmp_path / 'out.png').text['method'] == 'replacement'
  assert result.cost == (3, 0)
  lines = restoring.report(result)
  assert '2 images, 2 samples of each' in lines[0] and 'PSNR' in lines[1]


def test_a_sample_depends_on_the_seed_its_image_and_its_number_alone(run, tmp_path):
  both = restored(run, tmp_path, method='pigdm', task='downsample:2')
  one = restored(run, tmp_path, method='pigdm', task='downsample:2', images=['data:test:0'],
                 count=1)
  np.testing.assert_allclose(one.restored.samples[0, 0], both.restored.samples[0, 0], rtol=1e-4,
                             atol=1e-5)
  other = restored(run, tmp_path, method='pigdm', task='downsample:2', images=['data:test:0'],
                   count=1, seed=1)
  assert np.abs(other.restored.samples - one.restored.samples).max() > 0.01


def test_exact_samples_have_the_posterior_mean_of_gaussian_data(run, tmp_path):
  """Against the form with precisions: (S^-1 + A^T A / noise^2)^-1."""
  count = 4000
  result = restored(run, tmp_path, method='exact', task='blur:1', count=count, noise=0.3)
  trained = workdir.load_trained(run)
  part = trained.experiment.data.split('train')
  model = trained.experiment.model(trained.params)
  x = np.asarray(model.encode(part.get(np.arange(len(part)))['image']), float).reshape(-1, 16)
  matrix = inverse.blur((4, 4, 1), 1.0).matrix().astype(float)
  precision = np.linalg.inv(np.cov(x.T)) + matrix.T @ matrix / 0.3**2
  mean = x.mean(axis=0)
  for y, samples in zip(result.y, result.restored.samples.reshape(2, count, 16), strict=True):
    want = mean + np.linalg.solve(precision, matrix.T @ (y.ravel() - matrix @ mean)) / 0.3**2
    std = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - want), 5 * std / np.sqrt(count))
    np.testing.assert_array_less(np.abs(samples.std(axis=0) - std), 5 * std / np.sqrt(2 * count))


@pytest.mark.parametrize('spread,ends', [(1.0, 0.2), (0.01, 1.0), (100.0, 0.0)])
def test_the_ranks_are_even_if_truth_and_samples_have_one_law(spread, ends):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 4, 4, 1))
  share = restoring.ranks(spread * rng.normal(size=(500, 9, 4, 4, 1)), x)
  assert share.shape == (10,)
  np.testing.assert_allclose(share.sum(), 1.0)
  if spread == 1.0:
    np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.09 / 8000))
  np.testing.assert_allclose(share[0] + share[-1], ends, atol=0.03)


def test_equal_numbers_have_even_ranks_and_known_ones_do_not_count():
  x = np.zeros((500, 4, 4, 1))
  np.testing.assert_allclose(restoring.ranks(np.zeros((500, 3, 4, 4, 1)), x), 0.25, atol=0.02)
  known = np.zeros((4, 4, 1), bool)
  known[0] = True
  samples = np.where(known, -1.0, 1.0) * np.ones((500, 3, 4, 4, 1))
  np.testing.assert_array_equal(restoring.ranks(samples, x, known), [1.0, 0.0, 0.0, 0.0])


def test_the_scores_of_a_known_error():
  """Errors of 0.2 and of -0.2 in turn: 10 log10(4 / 0.04) = 20 dB; their mean has 1e-4."""
  x = np.zeros((3, 8, 8, 1))
  samples = np.stack([x + 0.2, x - 0.2], axis=1)
  found = restoring.score(samples, x + 1e-4, inverse.blur((8, 8, 1), 1.0))
  np.testing.assert_allclose(found.one.psnr, 20.0, atol=1e-3)
  np.testing.assert_allclose(found.mean.psnr, 10 * np.log10(4e8), atol=1e-3)


def test_the_structural_similarity_of_an_image_with_itself_is_one():
  pytest.importorskip('skimage')
  x = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 8, 8, 1))
  found = restoring.score(x[:, None], x, inverse.blur((8, 8, 1), 1.0))
  np.testing.assert_allclose(found.one.ssim, 1.0)


@pytest.mark.parametrize('options,match', [
    ({'task': 'phase', 'method': 'pigdm'}, 'needs a linear operator, and phase is not linear'),
    ({'task': 'phase', 'method': 'exact'}, 'needs a linear operator, and phase is not linear'),
    ({'method': 'mmps', 'noise': 0.0}, 'noise=0.0: mmps divides by it'),
    ({'method': 'exact', 'noise': 0.0}, 'noise=0.0: the covariance of y needs some'),
    ({'task': 'downsample:3'}, '3 does not divide the sides of 4 x 4'),
    ({'task': 'blur:wide'}, 'sigma is not a number'), ({'task': 'gray'}, 'one channel'),
    ({'task': 'smear'}, 'task=.smear.: there is no such task'),
    ({'task': 'mask:none.png'}, 'there is no such file'),
    ({'task': 'blur:1'}, 'it replaces known numbers, and blur:1 tells none'),
    ({'images': ['data:test:3-1']}, 'the last number is below the first'),
    ({'images': []}, 'images: none is named'), ({'noise': -1.0}, 'noise=-1.0: it must be'),
    ({'count': 0}, 'count=0'), ({'label': 1}, 'not conditioned on classes')])
def test_wrong_input_is_refused(run, tmp_path, options, match):
  with pytest.raises(InputError, match=match):
    restored(run, tmp_path, **options)
  assert not (tmp_path / 'out.png').exists()


def test_a_mask_and_an_operator_of_ones_own_are_read_from_files(tmp_path):
  white = np.zeros((4, 4), np.uint8)
  white[1] = 255
  Image.fromarray(white).save(tmp_path / 'mask.png')
  operator = restoring.operator_of(f'mask:{tmp_path / "mask.png"}', (4, 4, 1))
  np.testing.assert_array_equal(operator.known[..., 0], white == 0)
  (tmp_path / 'my.py').write_text('def rows(x):\n  return x.sum(axis=2)\n')
  operator = restoring.operator_of(f'{tmp_path / "my.py"}:rows', (4, 4, 1))
  assert operator.linear and operator.measured == (4, 1)
  with pytest.raises(InputError, match='has no .row.; perhaps .rows. is meant'):
    restoring.operator_of(f'{tmp_path / "my.py"}:row', (4, 4, 1))
  with pytest.raises(InputError, match='it has 4 x 4 pixels, and the images have 8 x 8'):
    restoring.operator_of(f'mask:{tmp_path / "mask.png"}', (8, 8, 1))
