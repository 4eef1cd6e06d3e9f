"""Volumes reconstructed by a run: what must hold whatever the weights, scores, and bad input."""
import collections
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import images_run, stopping
from vdm_jax import volumes as operators
from vdm_jax.errors import InputError
from vdm_jax.runs import volumes, workdir
from vdm_jax.samplers import mbir

ROOT = Path(__file__).parents[2]

SHORT = {'views': 3, 'count': 2, 'steps': 12, 'batch_size': 3, 'seed': 0}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of slices of 4 x 4 pixels, and two volumes of three such slices."""
  folder = tmp_path_factory.mktemp('volumes')
  rng = np.random.default_rng(0)
  base = rng.normal(size=(60, 4, 4, 1))
  np.save(folder / 'data.npy', np.clip(128 + 40 * base, 0, 255).astype(np.uint8))
  images_run.make_run(folder, folder / 'data.npy', False)
  x = np.clip(0.5 + 0.2 * rng.normal(size=(2, 3, 4, 4)), 0.0, 1.0)
  row, column = np.mgrid[:4, :4] - 2
  np.savez(folder / 'volumes.npz', volumes=x * (row**2 + column**2 <= 4))
  return folder


def made(folder, tmp_path, volume='volumes.npz', **options):
  return volumes.reconstruct(folder / 'run', folder / volume, tmp_path / 'out.png',
                             **{**SHORT, 'overwrite': True, **options})


def test_reconstructions_are_written_with_scores_and_costs(folder, tmp_path):
  result = made(folder, tmp_path, samples=tmp_path / 'all.npz')
  assert result.samples.shape == (2, 2, 3, 4, 4, 1) and result.measured.y.shape == (2, 3, 4, 3, 1)
  assert list(result.found) == list(volumes.NAMES)
  for u in result.found.values():
    assert u.shape == (2, 3, 4, 4, 1) and 0.0 <= u.min() <= u.max() <= 1.0
  np.testing.assert_allclose(result.found['ours'], result.samples.mean(axis=1), rtol=1e-6)
  assert (result.evaluations, result.products['ours']) == (24, 504)
  written = json.loads((tmp_path / 'out.json').read_text())
  assert written['evaluations_of_each_slice'] == 24 and written['volumes'] == 2
  assert written['scores']['TV']['psnr'] == result.quality['TV'].psnr.tolist()
  assert Image.open(tmp_path / 'out.png').text['method'] == 'dds'
  lines = list(volumes.report(result))
  assert '2 volumes of 3 slices, by dds, 2 samples of each' in lines[0]
  with np.load(tmp_path / 'all.npz') as file:
    np.testing.assert_array_equal(file['samples'], result.samples[..., 0])
    np.testing.assert_array_equal(file['TV'], result.found['TV'][..., 0])
  assert not (tmp_path / 'out.png.parts').exists()


@pytest.mark.first(1)
@pytest.mark.parametrize('method,ends', [
    (volumes.MBIR(iterations=2), True), (volumes.DDS(iterations=3), False)])
def test_the_cost_counts_evaluations_and_products(folder, tmp_path, monkeypatch, method, ends):
  """By a network and an operator that count when they are run, of one batch of 12 steps.

  So few conjugate gradients do not stop early.
  """
  calls = collections.Counter()
  count = lambda kind: jax.debug.callback(lambda: calls.update([kind]))
  trained = workdir.load_trained(folder / 'run')

  def at(params, keys=None):
    model = trained.experiment.model(params, keys)

    def denoise(z, level, cond=None):
      count('network')
      return model.denoise(z, level, cond)
    return model._replace(denoise=denoise, ends_denoised=ends)

  def counted(operator):
    back = lambda y: jax.linear_transpose(
        operator.apply, jax.ShapeDtypeStruct((len(y), *operator.shape), y.dtype))(y)[0]

    def forwards(_, x):
      count('A')
      return operator.apply(x)

    def backwards(_, y):
      count('A^T')
      return back(y)
    return operator._replace(
        apply=lambda x: jax.custom_derivatives.linear_call(forwards, backwards, (), x))
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: trained._replace(
      experiment=trained.experiment._replace(model=at)))
  in_x, one = volumes._in_x, jnp.array([1.0, 0.1])
  monkeypatch.setattr(volumes, '_in_x', lambda *args: (counted(in_x(*args)[0]), in_x(*args)[1]))
  # What is not counted: the error of the network, and the reconstructions without a prior.
  monkeypatch.setattr(volumes, '_errors', lambda *_: mbir.SquaredErrors(jnp.array([-9., 9.]), one))
  monkeypatch.setattr(volumes, '_plain', lambda m, *_: {
      name: np.zeros_like(m.truth) for name in volumes.NAMES[:-1]})
  monkeypatch.setattr(volumes.devices, 'shardings', lambda devices=None, make=(
      volumes.devices.shardings): make(jax.devices()[:1]))
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  with np.load(folder / 'volumes.npz') as file:
    np.savez(tmp_path / 'first.npz', volume=file['volumes'][0])
  result = made(folder, tmp_path, tmp_path / 'first.npz', method=method, count=1, batch_size=1)
  jax.effects_barrier()
  assert result.evaluations == calls['network']
  assert result.products['ours'] == calls['A'] == calls['A^T'] == 12 * (1 + method.iterations)
  assert (f'took {calls["network"]} evaluations of the network for each slice, and at most '
          f'{calls["A"]} products with A and with A^T') in '\n'.join(volumes.report(result))


def test_a_stopped_reconstruction_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
  """Stopped when the first of two parts of the steps is kept, in the second of two batches."""
  options = {'samples': tmp_path / 'all.npz', 'count': 4, 'batch_size': 4}
  made(folder, tmp_path, **options)
  bits = [(tmp_path / name).read_bytes() for name in ('out.png', 'all.npz')]
  (tmp_path / 'out.png').unlink()
  written = stopping.stop_at(monkeypatch, 3)
  with pytest.raises(KeyboardInterrupt):
    made(folder, tmp_path, **options)
  done = lambda written: [arrays.get('done') for _, arrays in written]
  assert done(written) == [10, 12, 10] and not (tmp_path / 'out.png').exists()
  written = stopping.stop_at(monkeypatch, None)
  made(folder, tmp_path, **options)
  assert done(written) == [12, None]  # the rest of the second batch, and --samples
  assert [(tmp_path / name).read_bytes() for name in ('out.png', 'all.npz')] == bits


def test_a_sample_depends_on_the_seed_its_volume_and_its_number_alone(folder, tmp_path):
  both = made(folder, tmp_path)
  with np.load(folder / 'volumes.npz') as file:
    np.savez(tmp_path / 'first.npz', volume=file['volumes'][0])
  # The noise is a share of the largest number of all y.
  one = made(folder, tmp_path, tmp_path / 'first.npz', count=1, batch_size=1,
             noise=0.005 * float(np.abs(both.measured.y).max()
                                 / np.abs(both.measured.y[0]).max()))
  np.testing.assert_allclose(one.samples[0, 0], both.samples[0, 0], atol=0.01)
  other = made(folder, tmp_path, seed=1)
  assert np.abs(other.samples - both.samples).max() > 0.05


@pytest.mark.parametrize('method', [volumes.DDS(eta=0.5),
                                    pytest.param(volumes.MBIR(), marks=pytest.mark.long)])
def test_measurements_in_a_file_give_what_measuring_gives(folder, tmp_path, method):
  """Sinograms and their angles in degrees; without a truth, there are no scores."""
  found = made(folder, tmp_path, method=method)
  np.savez(tmp_path / 'given.npz', sinograms=found.measured.y[..., 0],
           angles=np.rad2deg(operators.angles_of(3)))
  again = made(folder, tmp_path, tmp_path / 'given.npz', method=method, views=None)
  np.testing.assert_allclose(again.samples, found.samples, atol=1e-4)
  assert not again.quality and 'PSNR' not in ''.join(volumes.report(again))
  with pytest.raises(InputError, match='the volumes are not known'):
    volumes.figures(again)


def test_frequencies_are_measured_or_given(folder, tmp_path):
  white = np.zeros((4, 4), np.uint8)
  white[1:] = 255
  Image.fromarray(white).save(tmp_path / 'mask.png')
  found = made(folder, tmp_path, views=None, mri=f'{tmp_path}/mask.png')
  y = found.measured.y[..., 0, :]
  assert not y[:, :, 0].any() and y[:, :, 1:].all()
  np.savez(tmp_path / 'given.npz', kspace=y[..., 0] + 1j * y[..., 1], known=white > 127)
  again = made(folder, tmp_path, tmp_path / 'given.npz', views=None)
  np.testing.assert_allclose(again.samples, found.samples, atol=1e-4)


def test_every_second_column_and_the_centre_are_measured():
  """15 % of 20 columns are three."""
  known = volumes.mask_of('every:2', 20, 20)
  assert set(np.flatnonzero(known)) == {*range(0, 20, 2), 9, 10, 11}


def test_volumes_of_other_units_have_the_same_reconstructions_in_their_units(folder, tmp_path):
  """The weight is in the units of the volumes, and rho of their inverse square."""
  found = made(folder, tmp_path)
  with np.load(folder / 'volumes.npz') as file:
    np.savez(tmp_path / 'larger.npz', volumes=5.0 * file['volumes'])
  plain = volumes.DDS()
  larger = made(folder, tmp_path, tmp_path / 'larger.npz', peak=5.0, tv_weight=5.0 * 0.04,
                method=plain._replace(weight=5.0 * plain.weight))
  np.testing.assert_allclose(larger.samples, 5.0 * found.samples, atol=0.02)
  np.testing.assert_allclose(larger.found['TV'], 5.0 * found.found['TV'], atol=0.02)
  np.testing.assert_allclose(larger.quality['ours'].psnr, found.quality['ours'].psnr, atol=0.1)


def test_the_scores_of_a_known_error():
  """0.1 of a peak of 0.5, inside alone: 20 log10 5 dB.  Of constants, as Wang et al. (2004)."""
  truth = np.full((2, 1, 8, 8, 1), 0.5, np.float32)
  inside = np.zeros((8, 8), bool)
  inside[2:6] = True
  m = volumes.Measured(None, None, 0.0, truth, 1.0, None, inside)
  found = truth - 0.1 * inside[..., None]
  np.testing.assert_allclose(volumes.score(found, m).psnr, 20 * np.log10(5.0), rtol=1e-6)
  pytest.importorskip('skimage')
  c = (0.01 * 0.5)**2
  np.testing.assert_allclose(volumes.score(np.full_like(truth, 0.4), m).ssim,
                             (2 * 0.5 * 0.4 + c) / (0.5**2 + 0.4**2 + c), rtol=1e-5)


@pytest.mark.parametrize('known', [True, False])
def test_the_picture_has_the_psnr_of_each_reconstruction_under_its_column(monkeypatch, known):
  """Errors of 0.1, 0.2, 0.3 and 0.4 of a peak of 1: 20, 13.98, 10.46 and 7.96 dB."""
  lines = []
  monkeypatch.setattr(volumes.pictures, 'labelled', lambda picture, labels: (
      lines.append(labels), picture)[1])
  truth = np.ones((2, 3, 4, 4, 1))
  m = volumes.Measured(None, None, 0.0, truth if known else None, 1.0, np.zeros(2),
                       np.ones((4, 4), bool))
  found = {name: truth - 0.1 * (i + 1) for i, name in enumerate(volumes.NAMES)}
  quality = {name: volumes.score(u, m) for name, u in found.items()} if known else {}
  volumes.picture(volumes.Result(m, found, truth[:, None], quality, 'dds', 0, {}, 0.0, {}))
  names = ['FBP', 'least squares', 'TV', 'ours']
  assert lines == [['truth', *names], ['PSNR', '20.00 dB', '13.98 dB', '10.46 dB', '7.96 dB']
                   ] if known else [names]


@pytest.mark.parametrize('options,match', [
    ({'views': 0}, 'views=0'), ({'views': None}, 'a volume is measured in one way'),
    ({'mri': 'every:2'}, 'a volume is measured in one way'),
    ({'views': None, 'mri': 'every:two'}, "'two' is no number of columns"),
    ({'views': None, 'mri': 'none.png'}, 'there is no such file'),
    ({'noise': -1.0}, 'noise=-1.0'), ({'peak': 0.0}, 'peak=0.0'),
    ({'peak': 0.5}, 'peak=0.5: the volumes are from 0 to'),
    ({'steps': 0}, 'steps=0'), ({'count': 0}, 'count=0'), ({'tv_weight': -1.0}, 'weight=-1.0'),
    ({'method': volumes.DDS(iterations=0)}, 'iterations=0'),
    ({'method': volumes.DDS(eta=2.0)}, 'eta=2.0'), ({'method': volumes.DDS(scale=0.0)}, 'scale=0'),
    ({'method': volumes.MBIR(snr=0.0)}, 'snr=0.0'), ({'method': volumes.MBIR(rho=0.0)}, 'rho=0.0'),
    ({'volume': 'none.npz'}, 'there is no such file'),
    ({'volume': 'data.npy'}, 'it cannot be read .*give an .npz of arrays')])
def test_wrong_input_is_refused(folder, tmp_path, options, match):
  with pytest.raises(InputError, match=match):
    made(folder, tmp_path, **options)
  assert not (tmp_path / 'out.png').exists()


X = np.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize('arrays,match', [
    ({'volumes': X[0, 0]}, r'its volumes have the shape \(4, 4\)'),
    ({'volumes': X[..., :3]}, 'its slices have 4 x 3 pixels, and those of the prior 4 x 4'),
    ({'volume': np.full((3, 4, 4), np.nan)}, "'volume' has no real numbers, or some that are not"),
    ({'volumes': X + 0j}, "'volumes' has no real numbers"),
    ({'volumes': X * [[[[0]]], [[[1]]]]}, 'a volume is 0 everywhere'),
    ({'volumes': np.ones((2, 3, 4, 4), np.int32)}, 'peak: the volumes are int32'),
    ({'volumes': X[:1], 'sinograms': X, 'angles': np.zeros(4), 'views': None}, 'are not as many'),
    ({'volume': -X[0]}, 'the volumes are from -0.5 to -0.5'),
    ({'other': X}, 'it has other; give volumes, sinograms or kspace'),
    ({'sinograms': X, 'angles': np.zeros(4)}, 'its measurements are there already'),
    ({'sinograms': X[:, :, :3], 'angles': np.zeros(4), 'views': None}, 'its sinograms have the sh'),
    ({'sinograms': X, 'views': None}, "come without 'angles'"),
    ({'sinograms': X, 'angles': np.zeros(3), 'views': None}, 'it has 4 views'),
    ({'kspace': X, 'known': np.ones(3), 'views': None}, 'its shape is'),
    ({'kspace': X[:, 0], 'known': np.ones(4), 'views': None}, 'its kspace have the shape')])
def test_wrong_arrays_are_refused(folder, tmp_path, arrays, match):
  views = {'views': arrays.pop('views')} if 'views' in arrays else {}
  np.savez(tmp_path / 'wrong.npz', **arrays)
  with pytest.raises(InputError, match=match):
    made(folder, tmp_path, tmp_path / 'wrong.npz', **views)


ANGLES = np.array([0.0, 90.0])
FREQUENCIES = {'kspace': np.pad([[[[4.0]]]], ((0, 0), (0, 1), (2, 1), (2, 1))),
               'known': np.ones(4)}


@pytest.mark.parametrize('arrays,wrong,match', [
    ({'sinograms': np.full((1, 2, 4, 2), 4.0), 'angles': ANGLES}, -0.05, 'its sinograms are from'),
    ({'sinograms': np.full((1, 2, 4, 2), 4.0), 'angles': ANGLES}, 1.1, 'its sinograms are from'),
    ({'sinograms': np.full((1, 2, 6, 2), 4.0), 'angles': ANGLES}, 255.0, 'its sinograms are from'),
    (FREQUENCIES, 1.1j, 'the moduli of its kspace are from'),
    (FREQUENCIES, 255.0, 'the moduli of its kspace are from')])
def test_measurements_that_no_volume_in_range_has_are_refused(tmp_path, arrays, wrong, match):
  """A volume of ones: a beam through 4 pixels has 4, and so has the mean, which is 16 / sqrt 16."""
  name = next(iter(arrays))
  read = lambda factor, **options: (
      np.savez(tmp_path / 'y.npz', **{**arrays, name: factor * arrays[name]}),
      volumes.measured(tmp_path / 'y.npz', 4, **options))[1]
  assert read(1.0).y.max() == 4.0
  assert read(7.0, peak=7.0).y.max() == 28.0
  with pytest.raises(InputError, match=match) as error:
    read(wrong)
  assert 'by --peak' in str(error.value)


def test_no_run_or_a_run_that_is_no_prior_is_refused(folder, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='workdir=.*it holds no run'):
    volumes.reconstruct(tmp_path / 'none', folder / 'volumes.npz', tmp_path / 'out.png', **SHORT)
  trained = workdir.load_trained(folder / 'run')
  model = trained.experiment.model(trained.params)

  def of(other):
    monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: trained._replace(
        experiment=trained.experiment._replace(model=lambda params, keys=None: other)))
  of(object())
  with pytest.raises(InputError, match='a model that denoises is needed to reconstruct volumes'):
    made(folder, tmp_path)
  of(model._replace(coupled=True))
  with pytest.raises(InputError, match='cannot be a prior: its noise was coupled'):
    made(folder, tmp_path)
  of(model._replace(conditions=lambda rows, **_: {'label': rows}))
  with pytest.raises(InputError, match='told what an image shows'):
    made(folder, tmp_path)


def test_batches_over_devices_have_the_numbers_of_one_device(folder, tmp_path, monkeypatch):
  """Four samples on four devices, and one after another on one.

  Of few conjugate gradients: many of them are past convergence here, where they amplify rounding.
  """
  assert jax.device_count() == 4
  few = {'batch_size': 4, 'method': volumes.DDS(iterations=5)}
  over = made(folder, tmp_path, **few)
  monkeypatch.setattr(volumes.devices, 'shardings', lambda devices=None, make=(
      volumes.devices.shardings): make(jax.devices()[:1]))
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  alone = made(folder, tmp_path, **few)
  np.testing.assert_allclose(over.samples, alone.samples, atol=1e-5)
  np.testing.assert_allclose(over.found['TV'], alone.found['TV'], atol=1e-5)


@pytest.mark.long
def test_a_killed_command_goes_on_to_the_same_bits(folder, tmp_path):
  def line(name):
    return [sys.executable, 'scripts/reconstruct.py', f'--workdir={folder}/run',
            f'--volume={folder}/volumes.npz', '--views=3', '--steps=400', '--count=3',
            f'--out={tmp_path}/{name}.png', f'--samples={tmp_path}/{name}.npz']
  process = subprocess.Popen(line('a'), cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 240
  while not list((tmp_path / 'a.png.parts').glob('[!.]*.npz')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / 'a.png').exists()
  for name in 'ab':
    done = subprocess.run(line(name), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  for ending in ('png', 'npz'):
    assert (tmp_path / f'a.{ending}').read_bytes() == (tmp_path / f'b.{ending}').read_bytes()
