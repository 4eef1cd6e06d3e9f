"""Evaluating and sampling a run: what the commands write, and what they refuse."""
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support.images_run import ONCE, SHAPE, by, make_run
from tests.support.markup import Page
from vdm_jax import measured, runs, samplers, schedules
from vdm_jax.benchmark import speed
from vdm_jax.errors import InputError
from vdm_jax.machine import devices, files
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import evaluating, pictures, reporting, sampling, workdir
from vdm_jax.samplers import analytic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """4 x 4 images of 5 levels and 3 classes: 40 for training, 13 for test."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  np.savez(folder / 'images.npz', x_train=rng.integers(0, 5, (40, *SHAPE)).astype(np.uint8),
           y_train=np.arange(40) % 3, x_test=rng.integers(0, 5, (13, *SHAPE)).astype(np.uint8),
           y_test=np.arange(13) % 3)
  return make_run(folder, folder / 'images.npz', conditional=True)


@pytest.fixture
def run(finished, tmp_path):
  """A copy of the finished run that a test may spoil."""
  return shutil.copytree(finished, tmp_path / 'run')


def images_of(run, split):
  with np.load(workdir.read_config(run).data.name) as file:
    return {'test': file['x_test'], 'train': file['x_train'][:32],
            'validation': file['x_train'][32:]}[split]


# --------------------------------------------------------------- evaluate


@pytest.fixture(scope='module')
def evaluated(finished, tmp_path_factory):
  copy = shutil.copytree(finished, tmp_path_factory.mktemp('evaluated') / 'run')
  return copy, runs.evaluate(copy, repeats=2, times=32, estimates=['vlb@1000', 'vlb'],
                             batch_size=128)


@pytest.mark.long
def test_the_ledger_has_every_field_that_it_promises(evaluated):
  run, _ = evaluated
  def refuse(name):
    raise AssertionError(f'{name} is not JSON')
  ledger = json.loads((run / 'ledger.json').read_text(), parse_constant=refuse)
  assert set(ledger) == {'dataset', 'checkpoint', 'rows', 'config', 'checks', 'provenance',
                         'format'}
  assert {k: ledger['dataset'][k] for k in ('split', 'examples', 'of', 'levels')} == {
      'split': 'test', 'examples': 13, 'of': 13, 'levels': 5}
  assert ledger['dataset']['name'].endswith('images.npz')
  assert ledger['dataset']['sha256'] == hashlib.sha256(images_of(run, 'test').tobytes()).hexdigest()
  assert ledger['checkpoint'] == {'step': 4, 'average': 'ema', 'first_weights': 0.5**4}
  assert ledger['config'] == json.loads(json.dumps(workdir.read_config(run).to_dict()))
  assert [row['estimate'] for row in ledger['rows']] == ['vlb', 'vlb@1000']
  for row in ledger['rows']:
    assert set(row) == {
        'estimate', 'family', 'kind', 'model', 'bits_per_dim', 'standard_error',
        'standard_error_draws', 'parts', 'examples', 'repeats', 'evaluations_per_image',
        'evaluations_max', 'steps', 'paths', 'variance', 'schedule', 'decoder', 'dequantiser',
        'importance', 'start', 'tolerance', 'error_beside', 'probe', 'probes', 'times_per_image',
        'seconds', 'images_per_second', 'logsnr_max', 'logsnr_min', 'dataset', 'checkpoint'}
    assert list(row['parts']) == ['reconstruction', 'latent', 'diffusion']
    assert row['bits_per_dim'] == pytest.approx(sum(row['parts'].values()), rel=1e-6)
    assert (row['examples'], row['repeats'], row['times_per_image']) == (13, 2, 32)
    assert row['evaluations_per_image'] == row['evaluations_max'] == 64
    assert row['seconds'] > 0 and row['images_per_second'] > 26 / row['seconds']
    assert (row['dataset'], row['checkpoint']) == (ledger['dataset'], ledger['checkpoint'])
    # Learned ends, near where they started.
    assert 0 < abs(row['logsnr_max'] - 6) < 0.5 and 0 < abs(row['logsnr_min'] + 4) < 0.5


@pytest.mark.long
def test_what_must_hold_of_a_run_is_in_its_ledger_and_holds(evaluated):
  _, ledger = evaluated
  assert {check['name']: check['passed'] for check in ledger.checks if check['serious']} == {
      '0 <= vlb <= 9.5': True, 'terms of vlb >= 0': True,
      '0 <= vlb@1000 <= 9.5': True, 'terms of vlb@1000 >= 0': True,
      'reconstruction term of vlb = its closed form': True,
      'latent term of vlb = its closed form': True}
  assert {check['name'] for check in ledger.checks if not check['serious']} == {
      'vlb <= vlb@1000', 'density of vlb <= best linear denoiser'}


@pytest.mark.long
def test_the_bits_of_each_image_have_the_means_of_the_ledger(evaluated):
  run, ledger = evaluated
  with np.load(run / 'bits.npz') as bits:
    assert (bits['times_per_image'], bits['split'], bits['step']) == (32, 'test', 4)
    for row in ledger.rows:
      total = bits[f'{row["estimate"]}/total']
      assert total.shape == (2, 13)
      assert total.mean() == pytest.approx(row['bits_per_dim'], rel=1e-6)
      np.testing.assert_allclose(sum(bits[f'{row["estimate"]}/{name}'] for name in (
          'reconstruction', 'latent', 'diffusion')), total, rtol=1e-6)
      assert np.std(total.mean(axis=0), ddof=1) / 13**0.5 == pytest.approx(row['standard_error'])


@pytest.mark.long
def test_a_chain_has_the_same_row_whatever_else_is_evaluated(evaluated, run):
  _, ledger = evaluated
  again = runs.evaluate(run, repeats=2, times=32, estimates=['vlb@10', 'vlb@1000'],
                        batch_size=128)
  assert again.rows[2]['bits_per_dim'] == pytest.approx(ledger.rows[1]['bits_per_dim'], rel=1e-5)


@pytest.mark.long
def test_another_seed_is_another_estimate_of_the_same(run):
  one, other = (runs.evaluate(run, seed=seed, **ONCE).rows[0] for seed in (0, 1))
  one, other = one['parts'], other['parts']
  assert one['diffusion'] != pytest.approx(other['diffusion'], rel=1e-5)
  assert one['latent'] == pytest.approx(other['latent'], rel=1e-6)


@pytest.mark.long
def test_other_schedules_have_rows_of_their_own_that_agree_with_the_bound(run, monkeypatch):
  known = evaluating.replaced_schedules.SCHEDULES
  monkeypatch.setattr(evaluating.replaced_schedules, 'SCHEDULES', {'cosine': known['cosine']})
  ledger = runs.evaluate(run, schedules=True, times=8, batch_size=104)
  assert [row['estimate'] for row in ledger.rows] == ['vlb', 'vlb (cosine)']
  own, cosine = ledger.rows
  assert own['parts']['diffusion'] != cosine['parts']['diffusion']
  assert own['parts']['latent'] == pytest.approx(cosine['parts']['latent'], rel=1e-5)
  assert next(check for check in ledger.checks if check['name'] == 'vlb (cosine) = vlb')['passed']
  with np.load(run / 'bits.npz') as bits:
    assert bits['vlb (cosine)/total'].shape == (1, 13)


@pytest.mark.long
def test_an_estimate_of_ones_own_has_a_row_beside_the_bound(run, tmp_path):
  """Equal odds of the five levels cost log2(5) bits."""
  (tmp_path / 'my.py').write_text(
      'import jax.numpy as jnp\ndef even(model, batch, keys):\n'
      "  return {'nats': jnp.full(len(keys), 16 * jnp.log(5.0))}\n")
  ledger = runs.evaluate(run, estimates=[f'{tmp_path}/my.py:even'], **ONCE)
  assert [row['estimate'] for row in ledger.rows] == ['vlb', 'even']
  assert ledger.rows[1]['bits_per_dim'] == pytest.approx(np.log2(5), rel=1e-6)
  assert {check['name'] for check in ledger.checks if 'even' in check['name']} == {
      '0 <= even <= 9.5'}
  saved, = runs.evaluated([run]).values()
  np.testing.assert_allclose(saved.bits['even'], np.log2(5), rtol=1e-6)
  assert saved.ledger.rows == ledger.rows and 'even' in repr(saved.ledger)


def test_the_pictures_are_whole(evaluated):
  run, _ = evaluated
  for name, size in {'curves': (990, 418), 'bits_by_noise': (1430, 880)}.items():
    with Image.open(run / f'{name}.png') as picture:
      assert picture.size == size


def test_the_page_has_every_row_and_check_of_the_ledger_and_the_config_and_the_pictures(evaluated):
  run, ledger = evaluated
  page = Page((run / 'report.html').read_text())
  assert 'could not be made' not in page.text and 'is not there' not in page.text
  for row in ledger.rows:
    line = next(line for line in page.rows if line[0] == row['estimate'])
    assert line[3:5] == [f'{row["bits_per_dim"]:.4f}', f'{row["standard_error"]:.4f} '
                         f'({row["standard_error_draws"]:.4f})']
  shown = lambda value: value if isinstance(value, str) else json.dumps(value)
  for name in ledger.rows[0].keys() - {'dataset', 'checkpoint'}:
    assert [name, *(shown(row[name]) for row in ledger.rows)] in page.rows
  verdicts = {line[0]: line[1] for line in page.rows if len(line) == 4}
  for check in ledger.checks:
    assert (verdicts[check['name']] == 'holds') == check['passed']
  assert ['optimizer.learning_rate', '0.01'] in page.rows and len(page.paths) > 5
  assert ['sha256', ledger.dataset['sha256']] in page.rows
  assert {'start of training', 'ledger.json', 'this page'} < {line[0] for line in page.rows}
  assert sorted(page.images.values()) == sorted(
      (run / name).read_bytes() for name in ('bits_by_noise.png', 'curves.png'))


def test_training_ends_with_a_page_that_says_that_the_run_is_not_evaluated(finished):
  page = Page((finished / 'report.html').read_text())
  assert 'has not been evaluated yet' in page.text and '4 of 4' in page.text and page.paths


@pytest.mark.long
def test_one_page_has_all_evaluations_of_a_directory_and_says_which_is_of_older_weights(run):
  runs.evaluate(run, **ONCE)
  runs.evaluate(run, average='raw', **ONCE)
  page = Page((run / 'report.html').read_text())
  assert page.headings.count('h3') == 2 and 'test (ledger_raw.json)' in page.text
  assert 'evaluate it again' not in page.text
  saved = json.loads((run / 'ledger.json').read_text())
  saved['checkpoint']['step'] = 2
  (run / 'ledger.json').write_text(json.dumps(saved))
  assert 'has made 4 steps by now, and this evaluation is of step 2' in reporting.page(run)
  runs.evaluate(run, **ONCE, out=run / 'other')
  assert Page((run / 'other' / 'report.html').read_text()).headings.count('h3') == 1


@pytest.mark.long
def test_each_split_is_evaluated_on_its_own_images(run):
  for split, count in ('validation', 8), ('train', 32):
    ledger = runs.evaluate(run, split=split, **ONCE)
    images = images_of(run, split)
    assert ledger.dataset['examples'] == len(images) == count
    assert ledger.dataset['sha256'] == hashlib.sha256(images.tobytes()).hexdigest()
    assert runs.report(run, split).rows == ledger.rows
    # The latent term needs no draw, and tells the splits apart.
    x = (2 * images.astype(float) - 4) / 5
    logsnr = ledger.rows[0]['logsnr_min']
    alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
    latent = 0.5 * np.mean(sigma2 + alpha2 * x**2 - 1 - np.log(sigma2)) / np.log(2)
    assert ledger.rows[0]['parts']['latent'] == pytest.approx(latent, rel=1e-4)


@pytest.mark.long
def test_examples_beyond_the_split_are_all_of_it_and_fewer_are_said_to_be_fewer(run):
  ledger = runs.evaluate(run, examples=1000, **ONCE)
  assert (ledger.dataset['examples'], ledger.dataset['of']) == (13, 13)
  ledger = runs.evaluate(run, examples=5, **ONCE)
  assert (ledger.dataset['examples'], ledger.dataset['of']) == (5, 13)
  assert ledger.rows[0]['examples'] == 5


@pytest.mark.long
def test_averages_and_steps_are_chosen_and_named(run):
  scale = lambda **chosen: float(workdir.load_trained(run, **chosen).params['net']['scale'])
  raw, fast, slow = (scale(average=name) for name in ('raw', 'fast', 'ema'))
  assert raw > fast > slow > 0.2  # training raises it from 0.2, and averages lag behind
  assert scale() == slow
  assert 0.2 < scale(average='raw', step='2') < raw
  ledger = runs.evaluate(run, average='fast', step=2, **ONCE)
  assert ledger.checkpoint == {'step': 2, 'average': 'fast',
                               'first_weights': pytest.approx(0.1**2)}


@pytest.mark.long
def test_a_report_is_of_the_newest_checkpoint_or_refused(run):
  with pytest.raises(InputError, match='evaluate it first'):
    runs.report(run)
  ledger = runs.evaluate(run, **ONCE)
  assert runs.report(run) == ledger._replace(config=json.loads(json.dumps(ledger.config)))
  fields = json.loads((run / 'ledger.json').read_text())
  (run / 'ledger.json').write_text(json.dumps(fields | {'format': fields['format'] + 1}))
  with pytest.raises(InputError, match='ledger.json has format 2, .* update vdm_jax'):
    runs.report(run)
  fields['checkpoint']['step'] = 2
  (run / 'ledger.json').write_text(json.dumps(fields))
  with pytest.raises(InputError, match='step 2, but the newest checkpoint is of step 4'):
    runs.report(run)
  (run / 'ledger.json').write_text(json.dumps({'rows': [], 'dataset': {}, 'checkpoint': {}}))
  with pytest.raises(InputError, match='written by an older version; evaluate it again'):
    runs.report(run)


@pytest.mark.long
@pytest.mark.parametrize('options,message', [
    ({'split': 'tests'}, "split='tests': there is no such choice; choose train, "),
    ({'repeats': 0}, 'repeats=0: '),
    ({'times': 0}, 'times=0: '),
    ({'estimates': ['vlb@10', 'vlb@0']}, "estimates='vlb@0': "),
    ({'estimates': ['vlb@10/learned']}, "estimates='vlb@10/learned': "),
    ({'estimates': ['ode/variational']}, "estimates='ode/variational': "),
    ({'ode_tolerance': 0.0}, 'ode_tolerance=0.0: '),
    ({'importance': 0}, 'importance=0: '),
    ({'ode_start': 1.0}, 'ode_start=1.0: it must be a time between 0 and 1'),
    ({'probe': 'normal'}, "probe='normal': there is no such choice; choose one of rad"),
    ({'examples': 0}, 'examples=0: '),
    ({'batch_size': -1}, 'batch_size=-1: '),
    ({'average': 'slow'}, "average='slow': this run has no such average; choose one of ema, "),
    ({'step': 3}, 'step=3: there is no such checkpoint; choose one of 2, 4'),
    ({'step': 'newest'}, "step='newest': there is no such checkpoint; choose one of 2, 4, l"),
])
def test_what_cannot_be_evaluated_is_refused_by_the_name_of_its_flag(finished, options, message):
  with pytest.raises(InputError) as error:
    runs.evaluate(finished, **options)
  assert message in str(error.value) and '\n' not in str(error.value)
  assert not (finished / 'ledger.json').exists()


def test_wrong_names_are_refused_before_any_data_are_read(run):
  saved = json.loads((run / 'config.json').read_text())
  saved['config']['data']['name'] = str(run / 'gone.npz')
  (run / 'config.json').write_text(json.dumps(saved))
  for options in ({'estimates': ['elbo']}, {'estimates': ['ode/variational']}):
    with pytest.raises(InputError, match='estimates='):
      runs.evaluate(run, **options)


def test_a_split_without_images_is_refused(run):
  saved = json.loads((run / 'config.json').read_text())
  saved['config']['data']['validation'] = 0
  (run / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(InputError, match="split='validation': "):
    runs.evaluate(run, split='validation')


@pytest.mark.long
def test_data_that_have_moved_are_missed_by_name_and_not_by_sampling(run, tmp_path):
  saved = json.loads((run / 'config.json').read_text())
  saved['config']['data']['name'] = str(tmp_path / 'gone.npz')
  (run / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(InputError, match='data_name=.*gone.npz.: the data of this run are not there'):
    runs.evaluate(run)
  with pytest.raises(InputError, match='data_name=.*gone.npz'):  # whose variances are of the data
    runs.sample(run, tmp_path / 'a.npz', method=by(2, 'analytic', variances=True), count=1)
  runs.sample(run, tmp_path / 'a.npz', method=by(2), count=1)
  assert np.load(tmp_path / 'a.npz')['images'].shape == (1, *SHAPE)


@pytest.mark.long
def test_data_are_found_from_another_directory_and_under_another_name(run, tmp_path, monkeypatch,
                                                                      caplog):
  """The same data give the same ledger, wherever they are and the command is given."""
  began, there = tmp_path / 'began', tmp_path / 'there'
  for folder in (began, there):
    folder.mkdir()
  saved = json.loads((run / 'config.json').read_text())
  shutil.copy(saved['config']['data']['name'], began / 'images.npz')
  saved['config']['data']['name'], saved['cwd'] = './images.npz', str(began)
  (run / 'config.json').write_text(json.dumps(saved))
  monkeypatch.chdir(there)
  found = runs.evaluate(run, **ONCE)
  assert found.dataset['sha256'] == hashlib.sha256(images_of(run, 'test').tobytes()).hexdigest()
  moved = (began / 'images.npz').rename(there / 'moved.npz')
  with pytest.raises(InputError, match='data_name=.*images.npz'):
    runs.evaluate(run)
  again = runs.evaluate(run, data_name=str(moved), **ONCE)
  assert again.rows[0]['bits_per_dim'] == found.rows[0]['bits_per_dim']
  assert speed.of_run(run, data_name=str(moved)).config.data.name == str(moved)  # of a benchmark
  assert 'the data have changed' not in caplog.text
  with np.load(moved) as arrays:
    np.savez(moved, **{**arrays, 'x_test': arrays['x_train'], 'y_test': arrays['y_train']})
  runs.evaluate(run, data_name='moved.npz', **ONCE)
  assert 'the data have changed since this run began: 2 changed (x_test, y_test)' in caplog.text


@pytest.mark.long
def test_evaluating_other_data_than_those_of_the_run_says_what_is_new(run, caplog):
  saved = json.loads((run / 'config.json').read_text())
  runs.evaluate(run, **ONCE)
  assert 'the data have changed' not in caplog.text
  saved['fingerprint']['sha256'] = 'of other data'
  saved['fingerprint']['parts']['x_test'] = 'another checksum'
  (run / 'config.json').write_text(json.dumps(saved))
  runs.evaluate(run, **ONCE)
  assert 'the data have changed since this run began: 1 changed (x_test)' in caplog.text


def spoil(run, step):
  """Overwrites the largest file of a checkpoint, in place."""
  files = [path for path in (run / 'checkpoints' / str(step)).rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(b'\0' * largest.stat().st_size)


@pytest.mark.long
def test_a_corrupted_checkpoint_is_refused_with_the_steps_that_are_sound(run):
  spoil(run, 4)
  with pytest.raises(InputError, match='step=4: its checkpoint is corrupted .*; choose 2'):
    runs.evaluate(run)
  assert runs.evaluate(run, step=2, **ONCE).checkpoint['step'] == 2
  spoil(run, 2)
  with pytest.raises(InputError, match='step=4: its checkpoint is corrupted .* no other .* intact'):
    runs.evaluate(run)


def test_a_directory_without_a_run_or_a_checkpoint_is_refused(run, tmp_path):
  with pytest.raises(InputError, match='holds no run'):
    runs.evaluate(tmp_path / 'nowhere')
  shutil.rmtree(run / 'checkpoints')
  with pytest.raises(InputError, match='holds no checkpoint'):
    runs.evaluate(run)


def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(run, monkeypatch):
  whole = workdir.load_trained
  def broken(*args, **options):
    trained = whole(*args, **options)
    return trained._replace(params=jax.tree.map(lambda u: np.full_like(u, np.nan), trained.params))
  monkeypatch.setattr(workdir, 'load_trained', broken)
  monkeypatch.setattr(evaluating.measuring, 'measure', None)  # before anything is computed
  with pytest.raises(InputError, match=r'step=4: these weights \(ema\) are not finite'):
    runs.evaluate(run, **ONCE)
  assert not (run / 'ledger.json').exists() and not (run / 'bits.npz').exists()


@pytest.mark.long
def test_a_row_that_is_not_finite_is_refused_and_the_others_are_kept(run, monkeypatch):
  whole = evaluating.measuring.measure
  def measure(estimate, *args, **options):
    if estimate.name == 'vlb@20':
      raise InputError('estimates', 'vlb@20', 'it is not finite on 1 examples', 'choose another')
    return whole(estimate, *args, **options)
  monkeypatch.setattr(evaluating.measuring, 'measure', measure)
  with pytest.raises(InputError, match='vlb@20.*not finite on 1 .* other rows are in .*ledger.j'):
    runs.evaluate(run, estimates=['vlb@20', 'vlb@10'], **ONCE)
  assert [row['estimate'] for row in runs.report(run).rows] == ['vlb', 'vlb@10']


def names_of(run, *stems):
  return sorted(path.name for path in run.iterdir() if path.stem.startswith(
      stems or ('ledger', 'bits', 'curves')))


MAIN = ['bits.npz', 'bits_by_noise.png', 'curves.png', 'ledger.json']


@pytest.mark.long
@pytest.mark.parametrize('options,ending', [
    ({'examples': 5}, '_5_examples'), ({'average': 'raw'}, '_raw'), ({'step': 2}, '_step2'),
    ({'split': 'validation', 'step': 2, 'average': 'fast', 'examples': 3},
     '_validation_step2_fast_3_examples')])
def test_an_evaluation_of_less_or_other_has_names_of_its_own_and_the_main_one_stays(
    run, options, ending):
  runs.evaluate(run, **ONCE)
  before = {name: (run / name).read_bytes() for name in MAIN}
  assert names_of(run) == MAIN
  ledger = runs.evaluate(run, **ONCE, **options)
  assert {name: (run / name).read_bytes() for name in MAIN} == before
  own = [name.replace('.', f'{ending}.') for name in MAIN]
  assert names_of(run) == sorted([*MAIN, *own])
  saved, = runs.evaluated([run / f'ledger{ending}.json']).values()
  assert saved.ledger.rows == ledger.rows
  assert len(saved.bits['vlb']) == ledger.dataset['examples']
  assert runs.report(run).checkpoint['average'] == 'ema'


@pytest.mark.long
def test_what_is_asked_for_by_its_own_name_is_the_main_evaluation(run):
  runs.evaluate(run, average='ema', step=4, examples=13, **ONCE)
  assert names_of(run) == MAIN


@pytest.mark.long
def test_a_ledger_with_more_rows_or_draws_is_overwritten_only_when_it_is_asked(run, monkeypatch):
  more = ONCE | {'estimates': ['vlb@10'], 'repeats': 2}
  runs.evaluate(run, **more)
  kept = (run / 'ledger.json').read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(evaluating.measuring, 'measure', None)  # refused before anything is computed
    for less in ({'repeats': 1}, {'estimates': []}):
      with pytest.raises(InputError) as error:
        runs.evaluate(run, **more | less)
      message = error.value.as_flag()
      assert message.startswith('--overwrite=False: ') and 'vlb@10' in message
      assert '--out' in message and '\n' not in message
  assert (run / 'ledger.json').read_bytes() == kept
  runs.evaluate(run, **ONCE, out=run / 'other')
  assert names_of(run / 'other') == MAIN and (run / 'ledger.json').read_bytes() == kept
  assert runs.evaluate(run, **ONCE, overwrite=True).rows == runs.report(run).rows


def test_what_cannot_be_written_is_refused_before_anything_is_computed(run, monkeypatch):
  monkeypatch.setattr(evaluating.measuring, 'measure', None)
  (run / 'file').touch()
  with pytest.raises(InputError, match='out=.*file/a.: it cannot be written .*another directory'):
    runs.evaluate(run, **ONCE, out=run / 'file' / 'a')
  def full(path, size):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(files, 'probe', full)
  with pytest.raises(InputError, match='workdir=.*No space left on device'):
    runs.evaluate(run, **ONCE)


@pytest.mark.long
def test_the_ledger_is_shown_whatever_becomes_of_the_files(run, monkeypatch):
  def full(path, text):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(files, 'write_text', full)
  shown = []
  with pytest.raises(OSError, match='No space left'):
    runs.evaluate(run, **ONCE, show=shown.append)
  assert [row['estimate'] for row in shown[0].rows] == ['vlb']
  assert names_of(run) == ['bits.npz']


@pytest.mark.long
def test_a_picture_that_fails_is_a_warning_and_the_rest_is_written(run, monkeypatch):
  warned = []
  monkeypatch.setattr(evaluating.logging, 'warning', lambda text, *of: warned.append(text % of))
  def broken(*_):
    raise ValueError('Axis limits cannot be NaN')
  monkeypatch.setattr(evaluating.pictures, 'bits_by_noise', broken)
  ledger = runs.evaluate(run, **ONCE)
  assert runs.report(run).rows == ledger.rows
  assert names_of(run) == ['bits.npz', 'curves.png', 'ledger.json']
  assert len(warned) == 1 and 'bits_by_noise.png was not drawn' in warned[0]


@pytest.mark.long
def test_one_image_drawn_once_has_a_ledger_and_pictures(run):
  ledger = runs.evaluate(run, examples=1, times=1, batch_size=4)
  assert ledger.rows[0]['standard_error'] is None
  assert names_of(run) == [name.replace('.', '_1_examples.') for name in MAIN]


def test_a_learned_schedule_that_rises_is_refused_when_it_is_evaluated(run, monkeypatch):
  whole = workdir.load_trained
  def rising(*args, **options):
    trained = whole(*args, **options)
    def model(params):
      own = trained.experiment.model(params)
      return own._replace(process=lambda t: own.process(1.0 - t))
    return trained._replace(experiment=trained.experiment._replace(model=model))
  monkeypatch.setattr(workdir, 'load_trained', rising)
  monkeypatch.setattr(evaluating.measuring, 'measure', None)
  with pytest.raises(InputError, match='the noise schedule: .*rises'):
    runs.evaluate(run, **ONCE)


def test_a_seed_that_is_given_twice_is_refused(tmp_path):
  with pytest.raises(InputError, match='seeds=.*: 3 is there twice.*give each seed once'):
    runs.train_seeds(None, tmp_path / 'config.py', tmp_path, [3, 1, 3])


def test_all_seeds_of_a_directory_are_found_by_their_number(tmp_path):
  for name in ('seed_10', 'seed_2', 'seed_x', 'other'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').touch()
  (tmp_path / 'seed_3').mkdir()  # without a run
  assert [path.name for path in runs.seeds(tmp_path)] == ['seed_2', 'seed_10']
  assert runs.seeds(tmp_path / 'seed_2') == []


@pytest.mark.long
def test_a_ledger_vouches_for_the_bits_beside_it(run):
  runs.evaluate(run, **ONCE)
  with np.load(run / 'bits.npz') as file:
    bits = dict(file)
  np.savez(run / 'bits.npz', **bits | {'step': 2})
  with pytest.raises(InputError, match='bits.npz is of step 2, but ledger.json is of step 4; '):
    runs.evaluated([run])


def test_a_log_snr_without_end_is_refused_before_anything_is_measured(run, monkeypatch):
  whole = workdir.load_trained
  def endless(*args, **options):
    trained = whole(*args, **options)
    model = lambda params: trained.experiment.model(params)._replace(
        process=GaussianProcess(schedules.BetaLinear(t_min=0.0)))
    return trained._replace(experiment=trained.experiment._replace(model=model))
  monkeypatch.setattr(workdir, 'load_trained', endless)
  monkeypatch.setattr(evaluating.measuring, 'measure', None)
  with pytest.raises(InputError, match=r'log-SNR .* from inf to -10\S*, .*two finite ends'):
    runs.evaluate(run, **ONCE)


@pytest.mark.long
def test_a_run_can_be_evaluated_while_it_writes_its_metrics(run):
  """The last line may be half there, and a loss need not be in bits/dim."""
  lines = [json.dumps({'step': 1, 'kind': 'train', 'loss': 3.0}), '{"step": 2, "ki']
  (run / 'metrics.jsonl').write_text('\n'.join(lines))
  runs.evaluate(run, **ONCE)
  with Image.open(run / 'curves.png') as picture:
    assert picture.size == (990, 418)


# ----------------------------------------------------------------- sample


def samples_of(path):
  with np.load(path) as file:
    return file['images'], json.loads(str(file['about']))


@pytest.mark.long
def test_image_i_is_the_same_however_many_are_drawn_and_in_whatever_batches(finished, tmp_path):
  for name, options in {'ten': {'count': 10}, 'three': {'count': 3},
                        'other': {'count': 10, 'batch_size': 4}}.items():
    runs.sample(finished, tmp_path / f'{name}.npz', method=by(5), seed=7, **options)
  (ten, about), (three, _), (other, _) = (
      samples_of(tmp_path / f'{name}.npz') for name in ('ten', 'three', 'other'))
  assert ten.shape == (10, *SHAPE) and ten.dtype == np.uint8 and ten.max() < 5
  assert len(np.unique(ten, axis=0)) == 10
  np.testing.assert_array_equal(three, ten[:3])
  np.testing.assert_array_equal(other, ten)
  assert {k: about[k] for k in ('sampler', 'steps', 'seed', 'checkpoint', 'average', 'count')} == {
      'sampler': 'ancestral', 'steps': 5, 'seed': 7, 'checkpoint': 4, 'average': 'ema',
      'count': 10}


class Interrupted(Exception):
  pass


def sample_interrupted(monkeypatch, writes, *args, **options):
  """runs.sample, stopped when so many files are on the disk."""
  save, left = files.save_npz, [writes]
  def failing(path, **arrays):
    if not left[0]:
      raise Interrupted
    left[0] -= 1
    save(path, **arrays)
  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(files, 'save_npz', failing)
    runs.sample(*args, **options)


@pytest.mark.long
def test_an_interrupted_file_is_resumed_to_what_it_would_have_been(finished, tmp_path,
                                                                  monkeypatch):
  options = {'method': by(5), 'count': 22, 'batch_size': 4}
  runs.sample(finished, tmp_path / 'whole.npz', **options)
  sample_interrupted(monkeypatch, 3, finished, tmp_path / 'a.npz', **options)
  parts = list(tmp_path.glob('a.npz.*.parts/part_*.npz'))
  assert len(parts) == 3 and not (tmp_path / 'a.npz').exists()

  drawn = []
  draw = sampling.draw
  monkeypatch.setattr(sampling, 'draw', lambda *args, **kw: drawn.append(kw['start']) or draw(
      *args, **kw))
  runs.sample(finished, tmp_path / 'a.npz', **{**options, 'batch_size': 8})
  assert drawn == [12]
  np.testing.assert_array_equal(*(samples_of(tmp_path / name)[0] for name in ('a.npz',
                                                                             'whole.npz')))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.npz', 'whole.npz']


@pytest.mark.long
def test_a_file_whose_parts_are_all_there_is_put_together_without_a_draw(finished, tmp_path,
                                                                        monkeypatch):
  options = {'method': by(5), 'count': 6, 'batch_size': 4}
  runs.sample(finished, tmp_path / 'whole.npz', **options)
  sample_interrupted(monkeypatch, 2, finished, tmp_path / 'a.npz', **options)
  runs.sample(finished, tmp_path / 'a.npz', **options)
  np.testing.assert_array_equal(*(samples_of(tmp_path / name)[0] for name in ('a.npz',
                                                                             'whole.npz')))


@pytest.mark.long
def test_a_table_of_samples_is_resumed_and_has_their_labels(finished, tmp_path, monkeypatch):
  options = {'method': by(5), 'count': 22, 'batch_size': 4}
  runs.sample(finished, tmp_path / 'whole.npz', **options)
  sample_interrupted(monkeypatch, 3, finished, tmp_path / 'a.csv', **options)
  assert not (tmp_path / 'a.csv').exists()
  runs.sample(finished, tmp_path / 'a.csv', **options)
  with (tmp_path / 'a.csv').open() as file:
    rows = list(csv.DictReader(file))
  with np.load(tmp_path / 'whole.npz') as whole:
    assert [int(row['labels']) for row in rows] == whole['labels'].tolist()
    for (y, x, c), value in np.ndenumerate(whole['images'][21]):
      assert int(rows[21][f'image_{y}_{x}_{c}']) == value
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.csv', 'whole.npz']


@pytest.mark.long
def test_a_part_that_is_missing_is_drawn_again(finished, tmp_path, monkeypatch):
  options = {'method': by(5), 'count': 22, 'batch_size': 4}
  runs.sample(finished, tmp_path / 'whole.npz', **options)
  sample_interrupted(monkeypatch, 4, finished, tmp_path / 'a.npz', **options)
  next(tmp_path.glob('a.npz.*.parts/part_000000004.npz')).unlink()
  runs.sample(finished, tmp_path / 'a.npz', **options)
  np.testing.assert_array_equal(*(samples_of(tmp_path / name)[0] for name in ('a.npz',
                                                                             'whole.npz')))


@pytest.mark.first(1)
@pytest.mark.parametrize('change', [{'seed': 1}, {'method': by(5, 'ddim', samplers.ddim)},
                                    {'average': 'raw'}])
def test_parts_of_other_settings_are_not_mixed_in(finished, tmp_path, monkeypatch, change):
  options = {'method': by(5), 'count': 12, 'batch_size': 4}
  sample_interrupted(monkeypatch, 2, finished, tmp_path / 'a.npz', **options)
  starts, draw = [], sampling.draw
  monkeypatch.setattr(sampling, 'draw', lambda *args, **kw: starts.append(kw['start']) or draw(
      *args, **kw))
  runs.sample(finished, tmp_path / 'a.npz', **{**options, **change})
  assert starts == [0]


@pytest.mark.long
def test_parts_of_other_weights_are_not_mixed_in(finished, run, tmp_path, monkeypatch):
  """The same command on another run of the same length."""
  trained = workdir.load_trained
  def others(*args, **options):
    out = trained(*args, **options)
    return out._replace(params=jax.tree.map(lambda u: u * np.float32(0.9), out.params))
  options = {'method': by(5), 'count': 12, 'batch_size': 4}
  sample_interrupted(monkeypatch, 2, finished, tmp_path / 'a.npz', **options)
  monkeypatch.setattr(workdir, 'load_trained', others)
  runs.sample(run, tmp_path / 'a.npz', **options)
  runs.sample(run, tmp_path / 'b.npz', **options)
  np.testing.assert_array_equal(*(samples_of(tmp_path / f'{name}.npz')[0] for name in 'ab'))


@pytest.mark.long
def test_labels_are_taken_in_turn_or_as_asked_and_kept_with_the_images(finished, tmp_path):
  runs.sample(finished, tmp_path / 'turns.npz', method=by(5), count=7)
  runs.sample(finished, tmp_path / 'ones.npz', method=by(5), count=7, label=1)
  turns, ones = np.load(tmp_path / 'turns.npz'), np.load(tmp_path / 'ones.npz')
  np.testing.assert_array_equal(turns['labels'], [0, 1, 2, 0, 1, 2, 0])
  np.testing.assert_array_equal(ones['labels'], np.ones(7))
  # Noise is that of the number: images 1 and 4 have label 1 in both, and agree.
  same = np.all(turns['images'] == ones['images'], axis=(1, 2, 3))
  assert same[[1, 4]].all() and not same.all()


@pytest.mark.parametrize('options,message', [
    ({'method': by(0)}, 'steps=0: this grid needs at least 1'),
    ({'trace': 'a.jpg'}, "trace='a.jpg': its name must end in .png"),
    ({'count': 10**12}, 'count=1000000000000: samples have numbers below 2^30'),
    ({'count': 0}, 'count=0: '),
    ({'batch_size': 0}, 'batch_size=0: '),
    ({'label': 3}, 'label=3: the classes are 0 .. 2'),
    ({'label': -1}, 'label=-1: the classes are 0 .. 2'),
    ({'step': 9}, 'step=9: '),
])
def test_what_cannot_be_drawn_is_refused_by_the_name_of_its_flag(finished, tmp_path, options,
                                                                 message):
  with pytest.raises(InputError) as error:
    runs.sample(finished, tmp_path / 'a.png', **options)
  assert message in str(error.value) and '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_more_images_than_the_memory_holds_are_refused_before_they_are_drawn(finished, tmp_path,
                                                                            monkeypatch):
  monkeypatch.setattr(devices.os, 'sysconf', lambda name: 1000)  # a million bytes
  with pytest.raises(InputError, match='count=62501: it takes 0 GiB at least, and this mach'):
    runs.sample(finished, tmp_path / 'a.npz', method=by(5), count=62_501)  # of 16 pixels
  monkeypatch.setattr(sampling.check, 'MOST_NUMBERS', 16_000)  # on each of four devices
  with pytest.raises(InputError, match='batch_size=4001: this many examples of 16 numbers'):
    runs.sample(finished, tmp_path / 'a.npz', method=by(5), count=4001, batch_size=10**8)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('out', ['a.jpg', 'a', 'a.PNG'])
def test_a_file_of_another_kind_is_refused(finished, tmp_path, out):
  with pytest.raises(InputError, match='end in .png or .npz'):
    runs.sample(finished, tmp_path / out)


@pytest.mark.long
def test_a_png_shows_the_images_of_the_npz(finished, tmp_path):
  runs.sample(finished, tmp_path / 'new' / 'a.png', method=by(5), count=5)
  runs.sample(finished, tmp_path / 'a.npz', method=by(5), count=5)
  shown = pictures.samples(samples_of(tmp_path / 'a.npz')[0], 5)
  with Image.open(tmp_path / 'new' / 'a.png') as picture:
    np.testing.assert_array_equal(np.asarray(picture)[:len(shown)], shown)  # and a caption


@pytest.mark.long
def test_a_png_says_what_it_shows(finished, tmp_path):
  runs.sample(finished, tmp_path / 'a.png', method=by(5), count=2, seed=3, label=1, average='fast',
              trace=tmp_path / 'way.png')
  for name in ('a', 'way'):
    with Image.open(tmp_path / f'{name}.png') as picture:
      assert {'sampler': 'ancestral', 'steps': '5', 'seed': '3', 'label': '1', 'grid': 'uniform',
              'checkpoint': '4', 'average': 'fast'}.items() <= picture.text.items()


@pytest.mark.long
def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(finished, tmp_path):
  options = {'method': by(5), 'count': 4, 'batch_size': 4}
  for name in ('a.png', 'a.npz', 'way.png'):
    (tmp_path / name).write_text('mine')
  for out, trace in [('a.png', None), ('a.npz', None), ('b.png', 'way.png')]:
    with pytest.raises(InputError, match='it is there already.*ask for `overwrite`'):
      runs.sample(finished, tmp_path / out, trace=trace and tmp_path / trace, **options)
  assert all(file.read_text() == 'mine' for file in tmp_path.iterdir())
  with pytest.raises(InputError, match='it is the file of --out'):
    runs.sample(finished, tmp_path / 'b.png', trace=tmp_path / 'b.png', **options)
  for out in ('a.png', 'a.npz'):
    assert runs.sample(finished, tmp_path / out, overwrite=True, **options) == 5
  assert samples_of(tmp_path / 'a.npz')[0].shape == (4, *SHAPE)


@pytest.mark.long
def test_an_npz_of_the_same_settings_is_complete_or_drawn_on(finished, tmp_path, monkeypatch):
  options = {'method': by(5), 'batch_size': 4}
  runs.sample(finished, tmp_path / 'whole.npz', count=12, **options)
  assert runs.sample(finished, tmp_path / 'a.npz', count=8, **options) == 5
  written = (tmp_path / 'a.npz').read_bytes()
  assert runs.sample(finished, tmp_path / 'a.npz', count=8, **options) == 0
  assert (tmp_path / 'a.npz').read_bytes() == written
  for other in ({'seed': 1}, {'average': 'raw'}, {'method': by(6)}, {'step': 2}):
    with pytest.raises(InputError, match='it is there already, with another '):
      runs.sample(finished, tmp_path / 'a.npz', **{**options, 'count': 8, **other})
  with pytest.raises(InputError, match='it is there already, with 8 samples'):
    runs.sample(finished, tmp_path / 'a.npz', count=3, **options)
  starts, draw = [], sampling.draw
  monkeypatch.setattr(sampling, 'draw', lambda *args, **kw: starts.append(kw['start']) or draw(
      *args, **kw))
  runs.sample(finished, tmp_path / 'a.npz', count=12, **options)
  assert starts == [8]
  np.testing.assert_array_equal(*(samples_of(tmp_path / name)[0] for name in ('a.npz',
                                                                             'whole.npz')))


@pytest.mark.long
def test_points_in_the_plane_are_drawn_as_a_scatter_plot(tmp_path):
  rng = np.random.default_rng(0)
  np.save(tmp_path / 'points.npy', rng.integers(0, 16, (60, 2)).astype(np.uint8))
  run = make_run(tmp_path, tmp_path / 'points.npy', conditional=False)
  runs.sample(run, tmp_path / 'a.png', method=by(5), count=20)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.size[0] == 440 and 440 <= picture.size[1] < 480  # with a caption
  assert runs.evaluate(run, **ONCE).dataset['examples'] == 10
  with pytest.raises(InputError, match='label=1: this model is not conditioned'):
    runs.sample(run, tmp_path / 'b.png', label=1)


@pytest.mark.long
def test_the_way_of_the_first_images_is_drawn_beside_them(finished, tmp_path):
  evaluations = runs.sample(finished, tmp_path / 'a.npz', method=by(5, 'heun', samplers.heun),
                            count=10, trace=tmp_path / 'way.png')
  assert evaluations == 10
  with Image.open(tmp_path / 'way.png') as picture:
    way = np.asarray(picture)
  # Eight images of five steps and the noise, 4 x 4 and a border; the last column is the images.
  scale = way.shape[1] // (6 * 5 + 1)
  last = way[::scale, ::scale][1:, 26:30]
  images = samples_of(tmp_path / 'a.npz')[0][:8]
  for i, image in enumerate(images):
    np.testing.assert_array_equal(last[5 * i:5 * i + 4, :, 0], np.round(image[..., 0] * 63.75))


@pytest.mark.long
def test_a_method_that_needs_the_variances_of_the_model_has_them_estimated(finished, tmp_path):
  given = []

  def make(denoise, process, variances, data_range):
    given.append(variances)
    assert data_range == (-1.0, 1.0)
    return analytic.analytic_dpm(denoise, process, variances, data_range=data_range)

  runs.sample(finished, tmp_path / 'a.npz', method=by(5, 'analytic', make, variances=True), count=4)
  trained = workdir.load_trained(finished)
  process = trained.experiment.model(trained.params).process
  np.testing.assert_allclose(given[0].logsnr, process(np.linspace(0.0, 1.0, 6))[1][::-1], rtol=1e-4)
  assert (given[0].standard_error > 0.0).all()
  plain = runs.sample(finished, tmp_path / 'b.npz', method=by(5), count=4)
  assert plain == 5 and np.any(samples_of(tmp_path / 'a.npz')[0] != samples_of(
      tmp_path / 'b.npz')[0])


# ---------------------------------------------------------------- scripts


def command(script, *flags, devices=4):
  environment = dict(os.environ, JAX_PLATFORMS='cpu',
                     XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}')
  return [sys.executable, str(ROOT / 'scripts' / script), *flags], environment


def called(script, *flags, devices=4):
  line, environment = command(script, *flags, devices=devices)
  return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.long
def test_the_evaluate_command_on_one_device_prints_the_ledger_of_four(evaluated, run):
  _, ledger = evaluated
  done = called('evaluate.py', f'--workdir={run}', '--repeats=2', '--estimates=vlb@1000',
                '--batch_size=64',
                devices=1)
  assert done.returncode == 0, done.stderr
  rows = json.loads((run / 'ledger.json').read_text())['rows']
  for row, expected in zip(rows, ledger.rows, strict=True):
    for name in ('bits_per_dim', 'standard_error', 'standard_error_draws'):
      assert row[name] == pytest.approx(expected[name], rel=1e-4)
    assert row['estimate'] in done.stdout and f'{row["bits_per_dim"]:.4f}' in done.stdout
  assert '…' not in done.stdout


@pytest.mark.long
def test_a_report_of_other_weights_than_those_of_the_main_evaluation_is_refused(run):
  done = called('evaluate.py', f'--workdir={run}', '--report', '--average=raw')
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert done.stderr.startswith('error: --report=True: it shows the main evaluation of a split')
  assert 'leave out --average' in done.stderr


@pytest.mark.long
def test_the_ledgers_of_several_runs_are_one_table_of_markdown(evaluated, run):
  other, ledger = evaluated
  runs.evaluate(run, average='raw', estimates=['vlb@1000'], times=32, batch_size=128)
  run = run / 'ledger_raw.json'
  done = called('compare_ledgers.py', str(other), str(run), '--markdown', devices=1)
  assert done.returncode == 0, done.stderr
  header, rule, first, second = (line.strip('| ').split(' | ')
                                 for line in done.stdout.splitlines())
  assert header == ['run', 'vlb', 'vlb@1000'] and (first[0], second[0]) == (str(other), str(run))
  assert f'{ledger.rows[0]["bits_per_dim"]:.4f} ± ' in first[1]
  with pytest.raises(InputError, match='has no ledger.json; evaluate it first'):
    runs.evaluated([other, run.parent.parent])
  file = run.parent / 'table.json'
  measured.write(file, measured.Measurement('', '', '', '', {}, ['run', 'what', '`vlb`'], [
      [f'`{other.name}`', 'a run', ''], [run.name, 'the same, raw', '']]))
  done = called('compare_ledgers.py', str(other), str(run), '--rows', f'--measured={file}',
                devices=1)
  assert done.returncode == 0, done.stderr
  (_, what, vlb), (_, same, raw) = measured.read(file).rows
  assert (what, same) == ('a run', 'the same, raw')
  assert vlb.startswith(f'{ledger.rows[0]["bits_per_dim"]:.3f} +- ') and '+-' in raw
  done = called('evaluate.py', f'--workdir={other}', '--report', f'--measured={file}',
                f'--row={run.name}', devices=1)
  assert done.returncode == 0, done.stderr
  assert measured.read(file).rows[1][2].startswith(f'{ledger.rows[0]["bits_per_dim"]:.3f} +- ')


@pytest.mark.long
def test_a_flag_that_is_wrong_is_one_line_and_exit_code_2(finished, tmp_path):
  done = called('sample.py', f'--workdir={finished}', '--sampler=eule', f'--out={tmp_path}/a.png')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: --sampler=eule: did you mean euler')
  assert done.stderr.count('\n') == 1


@pytest.mark.long
def test_the_schedules_of_gaussian_data_are_learned_by_command(tmp_path):
  """Two steps leave them where they start; the published variances of one draw are exact."""
  done = called('learn_schedule.py', '--train_steps=2', '--batch_size=2', f'--out={tmp_path}/a.png',
                devices=1)
  assert done.returncode == 0, done.stderr
  with Image.open(tmp_path / 'a.png') as image:
    assert image.size[0] > 500
  for row in ('log-SNR-linear 8.59271 30.15', 'alpha-cosine 8.59271 2307.'):
    assert row in ' '.join(done.stdout.replace('│', ' ').split())


@pytest.mark.long
def test_ways_to_draw_times_are_compared_on_a_run_by_command(finished, tmp_path):
  done = called('time_sampling.py', f'--workdir={finished}', '--batch_size=4', '--batches=20',
                '--bins=2', f'--out={tmp_path}/a.json', devices=1)
  assert done.returncode == 0, done.stderr
  rows = json.loads((tmp_path / 'a.json').read_text())
  assert [row['schedule'] for row in rows] == 5 * ['of the run'] and 'history' in rows[-1]['times']
  means, errors = np.array([[row['mean'], row['standard_errors']['mean']] for row in rows]).T
  middle = means @ errors**-2 / np.sum(errors**-2)  # an integral that no proposal changes
  assert (np.abs(means - middle) < 4 * errors).all()


@pytest.mark.long
def test_a_split_that_does_not_exist_is_one_line(finished):
  done = called('time_sampling.py', f'--workdir={finished}', '--split=tset', devices=1)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == ('error: --split=tset: there is no such choice; choose train, '
                         'validation or test.\n')


@pytest.mark.long
def test_a_killed_sample_command_resumes_on_another_number_of_devices(finished, tmp_path):
  """Killed when its second part is there; four devices began, one ends."""
  flags = [f'--workdir={finished}', '--steps=60', '--count=4000', '--seed=3']
  line, environment = command('sample.py', *flags, '--batch_size=40', f'--out={tmp_path}/a.npz')
  process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 100
  while len(parts := list(tmp_path.glob('a.npz.*.parts/part_*.npz'))) < 2:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert 2 <= len(parts) and not (tmp_path / 'a.npz').exists()

  done = called('sample.py', *flags, '--batch_size=500', f'--out={tmp_path}/a.npz', devices=1)
  assert done.returncode == 0, done.stderr
  runs.sample(finished, tmp_path / 'b.npz', method=by(60), count=4000, seed=3, batch_size=4000)
  got, expected = (samples_of(tmp_path / name)[0] for name in ('a.npz', 'b.npz'))
  # Devices and batches round differently: a rare pixel at a boundary between levels may differ.
  assert got.shape == expected.shape and np.mean(got != expected) < 1e-4
