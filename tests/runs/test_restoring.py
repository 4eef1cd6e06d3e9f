"""Images restored by a run: what must hold whatever the weights, scores, and input that is refused.
"""
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import images_run, stopping
from vdm_jax import inverse
from vdm_jax.errors import InputError
from vdm_jax.runs import restoring, workdir
from vdm_jax.samplers import conditioned

ROOT = Path(__file__).parents[2]

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


@pytest.mark.long
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
  assert not (tmp_path / 'out.png.parts').exists()


@pytest.mark.first(1)
@pytest.mark.parametrize('ends,want', [(True, 4), (False, 3)])
def test_the_cost_counts_the_evaluations_of_a_sample(run, tmp_path, monkeypatch, ends, want):
  """By a network that counts when it is run, of one batch.  The last estimate of x is one more."""
  calls = []
  trained = workdir.load_trained(run)

  def at(params, keys=None):
    model = trained.experiment.model(params, keys)

    def denoise(z, level, cond=None):
      jax.debug.callback(lambda: calls.append(1))
      return model.denoise(z, level, cond)
    return model._replace(denoise=denoise, ends_denoised=ends)
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: trained._replace(
      experiment=trained.experiment._replace(model=at)))
  monkeypatch.setattr(restoring.devices, 'shardings', lambda devices=None, make=(
      restoring.devices.shardings): make(jax.devices()[:1]))
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  result = restored(run, tmp_path)
  jax.effects_barrier()
  assert result.cost == (len(calls), 0) == (want, 0)
  assert f'{want} evaluations and 0 products' in restoring.report(result)[0]


@pytest.mark.long
@pytest.mark.parametrize('method', ['pigdm', 'mcg'])
def test_a_stopped_restoration_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, method):
  """Stopped when one batch of two is kept; afterwards the second alone is drawn."""
  options = {'method': method, 'samples': tmp_path / 'all.npz', 'count': 3, 'batch_size': 4,
             'images': ['data:test:0-1']}
  whole = restored(run, tmp_path, **options)
  bits = [(tmp_path / name).read_bytes() for name in ('out.png', 'all.npz')]
  (tmp_path / 'out.png').unlink()
  written = stopping.stop_at(monkeypatch, 1)
  with pytest.raises(KeyboardInterrupt):
    restored(run, tmp_path, **options)
  assert [path.parent.name for path, _ in written] == ['out.png.parts']
  assert not (tmp_path / 'out.png').exists()
  written = stopping.stop_at(monkeypatch, None)
  again = restored(run, tmp_path, **options)
  assert len(written) == 2  # the second batch, and --samples
  np.testing.assert_array_equal(again.restored.samples, whole.restored.samples)
  assert [(tmp_path / name).read_bytes() for name in ('out.png', 'all.npz')] == bits


@pytest.mark.long
@pytest.mark.parametrize('other', [{'seed': 1}, {'noise': 0.2}, {'steps': 4}, {'average': 'fast'}])
def test_batches_of_other_settings_are_not_taken(run, tmp_path, monkeypatch, other):
  monkeypatch.setattr(restoring.shutil, 'rmtree', lambda path: None)  # as if it were stopped
  first = restored(run, tmp_path, images=['data:test:0'])
  got = restored(run, tmp_path, images=['data:test:0'], **other).restored.samples
  want = restored(run, tmp_path / 'apart', images=['data:test:0'], **other).restored.samples
  np.testing.assert_array_equal(got, want)
  assert (got != first.restored.samples).any()


@pytest.mark.long
def test_a_killed_command_goes_on_to_the_same_bits(run, tmp_path):
  def line(name):
    return [sys.executable, 'scripts/restore.py', f'--workdir={run}', '--task=downsample:2',
            '--method=mmps', '--images=data:test:0-1', '--count=400', '--steps=60',
            '--batch_size=20', f'--out={tmp_path}/{name}.png', f'--samples={tmp_path}/{name}.npz']
  process = subprocess.Popen(line('a'), cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 240
  while len(parts := list((tmp_path / 'a.png.parts').glob('[!.]*.npz'))) < 2:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert 2 <= len(parts) < 40 and not (tmp_path / 'a.png').exists()
  for name in 'ab':
    done = subprocess.run(line(name), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  for ending in ('png', 'npz'):
    assert (tmp_path / f'a.{ending}').read_bytes() == (tmp_path / f'b.{ending}').read_bytes()


def given(run, file, task='inpaint', method='replacement', **options):
  """The restoration of measurements in a file."""
  return restored(run, file.parent, method, task, (), measurements=file, **options)


@pytest.mark.parametrize('task', [
    'inpaint', pytest.param('downsample:2', marks=pytest.mark.long),
    pytest.param('phase', marks=pytest.mark.long)])
def test_given_measurements_have_the_samples_of_those_that_are_made_here(run, tmp_path, task):
  """Bit for bit, and without the truth."""
  method = 'replacement' if task == 'inpaint' else 'dps'
  made = restored(run, tmp_path, method, task)
  np.savez(tmp_path / 'y.npz', y=made.y.astype(float))
  found = given(run, tmp_path / 'y.npz', task, method, samples=tmp_path / 'found.npz')
  np.testing.assert_array_equal(found.restored.samples, made.restored.samples)
  assert found.x is found.restored.quality is None
  lines = restoring.report(found)
  assert len(lines) == 2 and 'PSNR' not in ''.join(lines) and 'truth' not in ''.join(lines)
  spread = np.sqrt(made.restored.samples.var(axis=1).mean())
  assert lines[1].endswith(f'the standard deviation of the samples of a pixel is {spread:.3f}')
  with np.load(tmp_path / 'found.npz') as file:
    assert sorted(file.files) == ['samples', 'y']
  with Image.open(tmp_path / 'out.png') as picture:
    assert picture.text['task'] == task


@pytest.mark.long
def test_given_images_of_known_pixels_and_the_samples_of_this_command_are_read(run, tmp_path):
  """Pixels that are not known may be NaN; the truth of the second file gives the scores."""
  made = restored(run, tmp_path, samples=tmp_path / 'all.npz')
  operator = inverse.inpaint((4, 4, 1))
  np.savez(tmp_path / 'images.npz', y=np.asarray(operator.spread(made.y, np.nan)),
           known=operator.known[..., 0])
  found = given(run, tmp_path / 'images.npz', '')
  assert found.task == 'known'
  np.testing.assert_array_equal(found.restored.samples, made.restored.samples)
  scored = given(run, tmp_path / 'all.npz')
  assert restoring.report(scored) == restoring.report(made)


def test_the_picture_of_measurements_has_no_image_and_more_samples(monkeypatch):
  monkeypatch.setattr(restoring.pictures, 'labelled', lambda picture, names: names)
  samples = np.zeros((2, 4, 8, 8, 1))
  names = lambda x, count: restoring.picture(restoring.Result(
      'blur:1', 'pigdm', x, samples[:, 0], samples[:, 0],
      restoring.Restored(samples[:, :count], samples[:, 0], None), None, (1, 1)))
  assert names(samples[:, 0], 4) == ['image', 'measured', 'sample', 'mean', 'std']
  assert names(None, 4) == ['measured', 'sample 1', 'sample 2', 'sample 3', 'mean', 'std']
  assert names(None, 1) == ['measured', 'sample', 'mean', 'std']


KNOWN = np.arange(16).reshape(4, 4) < 8


@pytest.mark.parametrize('arrays,task,match', [
    ({'x': np.zeros((2, 4, 4, 1))}, 'inpaint', "measurements='.*y.npz': it has x, and no 'y'"),
    ({'y': np.zeros((2, 11))}, 'inpaint', r"its 'y' has the shape \(2, 11\); give \(n, 12,\) for "
     'inpaint'),
    ({'y': np.zeros(12)}, 'inpaint', r"its 'y' has the shape \(12,\)"),
    ({'y': np.zeros((0, 12))}, 'inpaint', r"its 'y' has the shape \(0, 12\)"),
    ({'y': np.full((2, 12), np.nan)}, 'inpaint', "'y' has no real numbers, or some that are not"),
    ({'y': np.zeros((2, 12), complex)}, 'inpaint', "'y' has no real numbers"),
    ({'y': np.full((2, 12), 200)}, 'inpaint', 'measurements: it is from 200 to 200.*in the units'),
    ({'y': np.zeros((2, 12))}, '', 'task: it is missing'),
    ({'y': np.zeros((2, 8)), 'known': KNOWN}, 'inpaint', "task='inpaint': .* has 'known', which"),
    ({'y': np.zeros((2, 8)), 'known': KNOWN[:3]}, '', r"its 'known' is bool of shape \(3, 4\)"),
    ({'y': np.zeros((2, 8)), 'known': 1 * KNOWN}, '', "its 'known' is int64 of shape"),
    ({'y': np.zeros((2, 8)), 'known': KNOWN | True}, '', "its 'known' is the same everywhere"),
    ({'y': np.zeros((2, 12)), 'x': np.zeros((3, 4, 4, 1))}, 'inpaint',
     r"its 'x' has the shape \(3, 4, 4, 1\); give the 2 images"),
    ({'y': np.full((2, 8, 8, 1), 200)}, 'phase', 'measurements: it is from 200 to 200, and phase'),
    ({'y': np.full((2, 8, 8, 1), -2)}, 'phase', 'measurements: it is from -2 to -2, and phase'),
    ({}, 'inpaint', "it has no arrays, and no 'y'")])
def test_measurements_that_do_not_fit_are_refused_in_one_line(arrays, task, match, tmp_path):
  np.savez(tmp_path / 'y.npz', **arrays)
  with pytest.raises(InputError, match=match) as error:
    restoring.measured(tmp_path / 'y.npz', task, (4, 4, 1))
  assert '\n' not in str(error.value)


def test_the_range_of_measurements_is_not_checked_where_images_have_none(tmp_path):
  np.savez(tmp_path / 'y.npz', y=np.full((2, 12), 200))
  found = restoring.measured(tmp_path / 'y.npz', 'inpaint', (4, 4, 1), bounded=False)
  np.testing.assert_array_equal(found.y, 200.0)
  inverse.Problem(found.operator, found.y, 0.1).check()  # as sampling does again


@pytest.mark.long
def test_images_to_measure_and_measurements_are_not_taken_together(run, tmp_path):
  np.savez(tmp_path / 'y.npz', y=np.zeros((1, 12)))
  with pytest.raises(InputError, match="images='data:test:0': images are named to be measured"):
    restored(run, tmp_path, images=['data:test:0'], measurements=tmp_path / 'y.npz')
  with pytest.raises(InputError, match='none.npz.*there is no such file'):
    given(run, tmp_path / 'none.npz')


@pytest.mark.long
def test_a_sample_depends_on_the_seed_its_image_and_its_number_alone(run, tmp_path):
  both = restored(run, tmp_path, method='pigdm', task='downsample:2')
  one = restored(run, tmp_path, method='pigdm', task='downsample:2', images=['data:test:0'],
                 count=1)
  np.testing.assert_allclose(one.restored.samples[0, 0], both.restored.samples[0, 0], rtol=1e-4,
                             atol=1e-5)
  other = restored(run, tmp_path, method='pigdm', task='downsample:2', images=['data:test:0'],
                   count=1, seed=1)
  assert np.abs(other.restored.samples - one.restored.samples).max() > 0.01


@pytest.mark.long
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
  for y, estimate, samples in zip(result.y, result.restored.estimate,
                                  result.restored.samples.reshape(2, count, 16), strict=True):
    want = mean + np.linalg.solve(precision, matrix.T @ (y.ravel() - matrix @ mean)) / 0.3**2
    std = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(estimate.ravel(), want, atol=1e-5)
    np.testing.assert_array_less(np.abs(samples.mean(axis=0) - want), 5 * std / np.sqrt(count))
    np.testing.assert_array_less(np.abs(samples.std(axis=0) - std), 5 * std / np.sqrt(2 * count))


@pytest.mark.parametrize('spread,ends', [(1.0, 0.2), (0.01, 1.0), (100.0, 0.0)])
def test_the_ranks_are_even_if_truth_and_samples_have_one_law(spread, ends):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 4, 4, 1))
  share = restoring.ranks(spread * rng.normal(size=(500, 9, 4, 4, 1)), x).mean(axis=0)
  assert share.shape == (10,)
  np.testing.assert_allclose(share.sum(), 1.0)
  if spread == 1.0:
    np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.09 / 8000))
  np.testing.assert_allclose(share[0] + share[-1], ends, atol=0.03)


def test_equal_numbers_have_even_ranks_and_known_ones_do_not_count():
  x = np.zeros((500, 4, 4, 1))
  even = restoring.ranks(np.zeros((500, 3, 4, 4, 1)), x)
  np.testing.assert_allclose(even.mean(axis=0), 0.25, atol=4 * np.sqrt(3 / 16 / 8000))
  known = np.zeros((4, 4, 1), bool)
  known[0] = True
  samples = np.where(known, -1.0, 1.0) * np.ones((500, 3, 4, 4, 1))
  np.testing.assert_array_equal(restoring.ranks(samples, x, known), 500 * [[1.0, 0.0, 0.0, 0.0]])


def test_ranks_are_of_data_so_that_a_black_pixel_is_not_below_every_sample():
  x = -np.ones((400, 2, 2, 1))
  samples = x[:, None] + 1e-3 * np.random.default_rng(0).exponential(size=(400, 4, 2, 2, 1))
  operator = inverse.blur((2, 2, 1), 1.0)
  assert restoring.score(samples, x, operator).outside == (1.0, 0.0)
  found = restoring.score(samples, x, operator, decode=lambda u: np.round(8 * u).astype(int))
  assert abs(found.outside.value - 0.4) < 4 * found.outside.error
  np.testing.assert_allclose(found.outside.error, np.sqrt(0.24 / 1600), rtol=0.2)


def test_the_scores_of_a_known_error():
  """Errors of 0.2 and of -0.2 in turn: 10 log10(4 / 0.04) = 20 dB; their mean has 1e-4."""
  x = np.zeros((3, 8, 8, 1))
  samples = np.stack([x + 0.2, x - 0.2], axis=1)
  found = restoring.score(samples, x + 1e-4, inverse.blur((8, 8, 1), 1.0))
  np.testing.assert_allclose(found.one.psnr, 20.0, atol=1e-3)
  np.testing.assert_allclose(found.mean.psnr, 10 * np.log10(4e8), atol=1e-3)


def test_the_structural_similarity_of_two_constants_is_the_ratio_of_their_means():
  """(2 a b + c) / (a^2 + b^2 + c), c = (0.01 x 2)^2: Wang et al. (2004), eq. 13."""
  pytest.importorskip('skimage')
  a, b, c = 0.5, 0.2, 0.02**2
  found = restoring.score(np.full((2, 1, 8, 8, 1), a), np.full((2, 8, 8, 1), b),
                          inverse.blur((8, 8, 1), 1.0))
  np.testing.assert_allclose(found.one.ssim, (2 * a * b + c) / (a**2 + b**2 + c), rtol=1e-6)
  np.testing.assert_allclose(found.mean.ssim, found.one.ssim)


@pytest.mark.long
def test_without_scikit_image_the_report_says_how_to_have_the_similarity(
    run, tmp_path, monkeypatch):
  monkeypatch.setattr(restoring.importlib.util, 'find_spec', lambda name: None)
  result = restored(run, tmp_path)
  assert result.restored.quality.one.ssim is None
  assert restoring.report(result)[-1].endswith("pip install 'vdm_jax[ssim]')")


def test_a_gain_is_in_decibels_and_its_error_is_of_paired_differences():
  """Errors of 0.1 s and 0.2 s in images of any difficulty s: 20 log10 2 dB, without error."""
  rng = np.random.default_rng(0)
  s = rng.exponential(size=(20, 1, 1, 1))
  x = rng.normal(size=(20, 4, 4, 1))
  sure = restoring.gain(x + 0.1 * s, x - 0.2 * s, x)
  np.testing.assert_allclose(sure, (20 * np.log10(2.0), 0.0), atol=1e-12)
  noisy = lambda std: x + std * rng.normal(size=x.shape)
  x = rng.normal(size=(200, 4, 4, 1))
  found = [restoring.gain(noisy(0.1), noisy(0.2), x) for _ in range(200)]
  values, errors = np.array(found).T
  assert abs(values.mean() - 20 * np.log10(2.0)) < 4 * errors.mean() / np.sqrt(200)
  assert abs(values.std() / errors.mean() - 1.0) < 4 / np.sqrt(2 * 200)


@pytest.mark.long
def test_the_gaussian_prior_restores_the_digits_as_well_as_was_found_elsewhere(tmp_path):
  """All 300 test images; there, the noise and the number of training images were others."""
  directory = images_run.make_run(tmp_path, 'digits', False)
  for task, mean, sample in (('inpaint', 17.64, 14.71), ('downsample:2', 16.04, 13.08)):
    result = restored(directory, tmp_path, 'exact', task, ['data:test:0-299'], count=8)
    found = result.restored.quality
    assert abs(found.mean.psnr - mean) < 0.15
    assert abs(found.one.psnr - sample) < 0.15


@pytest.mark.long
@pytest.mark.parametrize('options,match', [
    ({'task': 'phase', 'method': 'pigdm'}, 'needs a linear operator, and phase is not linear'),
    ({'task': 'phase', 'method': 'exact'}, 'needs a linear operator, and phase is not linear'),
    ({'method': 'mmps', 'noise': 0.0}, 'noise=0.0: mmps divides by it'),
    ({'method': 'exact', 'noise': 0.0}, 'noise=0.0: the covariance of y needs some'),
    ({'task': 'downsample:3'}, '3 does not divide the sides of 4 x 4'),
    ({'task': 'blur:wide'}, "task='blur:wide': 'wide' is not a number"),
    ({'task': 'keep:all'}, "'all' is not a number; write keep:0.3"),
    ({'task': 'keep:1.5'}, 'the share must be between 0 and 1'), ({'task': 'gray'}, 'one channel'),
    ({'task': 'smear'}, 'task=.smear.: there is no such task'),
    ({'task': 'mask:none.png'}, 'there is no such file'),
    ({'task': 'blur:1'}, 'it replaces known numbers, and blur:1 tells none'),
    ({'images': ['data:test:3-1']}, 'the last number is below the first'),
    ({'images': []}, 'images: none is named'), ({'noise': -1.0}, 'noise=-1.0: it must be'),
    ({'method': 'repaint'}, 'jump=10: the grid has 3 steps'),
    ({'task': ''}, 'task: it is missing; choose one of inpaint'),
    ({'count': 0}, 'count=0'), ({'label': 1}, 'not conditioned on classes')])
def test_wrong_input_is_refused(run, tmp_path, options, match):
  with pytest.raises(InputError, match=match):
    restored(run, tmp_path, **options)
  assert not (tmp_path / 'out.png').exists()


def test_no_run_or_a_run_without_a_prior_is_refused(run, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='workdir=.*it holds no run'):
    restored(tmp_path / 'none', tmp_path)
  made = workdir.load_trained(run)
  model = made.experiment.model(made.params)

  def of(other):
    monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: made._replace(
        experiment=made.experiment._replace(model=lambda params, keys=None: other)))
  of(object())
  with pytest.raises(InputError, match='a model that denoises is needed to restore images by it'):
    restored(run, tmp_path)
  of(model._replace(coupled=True))
  with pytest.raises(InputError, match='cannot be a prior: its noise was coupled'):
    restored(run, tmp_path)


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
