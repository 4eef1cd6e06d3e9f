"""Forecasts of a run: from a file to quantiles, and the scores of its test rows."""
import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import forecasts_config, stopping, tiny_config, var1_config
from tests.support.markup import Page
from vdm_jax import random, runs
from vdm_jax.errors import InputError
from vdm_jax.evaluation import forecasts
from vdm_jax.runs import forecasting, workdir
from vdm_jax.samplers import catalogue

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(the run, its file of 100 rows of `sea` and `air`)."""
  folder = tmp_path_factory.mktemp('forecasts')
  rng, rows = np.random.default_rng(0), np.arange(100)
  waves = np.stack([10.0 + np.sin(np.pi * rows / 2), 500.0 * np.cos(np.pi * rows / 2)], axis=1)
  np.savez(folder / 'waves.npz', values=waves + 0.1 * rng.standard_normal(waves.shape),
           names=['sea', 'air'])
  config = forecasts_config.get_config(str(folder / 'waves.npz'))
  runs.train(config, forecasts_config.__file__, folder / 'run')
  return folder / 'run', folder / 'waves.npz'


@pytest.mark.long
def test_the_page_of_a_trained_run_has_a_forecast_of_a_held_out_window(trained):
  run, _ = trained
  page = Page((run / 'report.html').read_text())
  picture = page.images['A forecast of rows that were held out after 20 steps']
  assert picture == (run / 'samples' / 'step_20.png').read_bytes()


@pytest.mark.long
def test_a_forecast_is_written_as_quantiles_a_table_and_a_fan_chart(trained, tmp_path):
  run, data = trained
  found, wrote = forecasting.forecast(run, str(data), tmp_path / 'out.npz', horizon=5, paths=20,
                                      levels=(0.1, 0.5, 0.9))
  assert [path.name for path in wrote] == ['out.npz', 'out.csv', 'out.png']
  with np.load(wrote[0]) as file:
    assert file['quantiles'].shape == (3, 5, 2) and list(file['names']) == ['sea', 'air']
    assert (np.diff(file['quantiles'], axis=0) >= 0.0).all()
    quantiles = file['quantiles']
  with open(wrote[1], newline='') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 10 and lines[3]['step'] == '2' and lines[3]['series'] == 'air'
  np.testing.assert_allclose([float(lines[3][name]) for name in ('q0.1', 'q0.5', 'q0.9')],
                             quantiles[:, 1, 1], rtol=1e-5)
  # An untrained model already knows the units: its paths are scaled by the history.
  assert 100.0 < np.abs(quantiles[..., 1]).max() < 1e4 and abs(found.mean[:, 0] - 10.0).max() < 9.0
  with pytest.raises(InputError, match='out.npz'):
    forecasting.forecast(run, str(data), tmp_path / 'out.npz')


@pytest.mark.long
def test_the_same_history_in_another_file_has_the_same_forecast(trained, tmp_path):
  """A .csv of the last rows, with their number on the clock of training, and a column more."""
  run, data = trained
  with np.load(data) as file:
    values = file['values'][60:]
  lines = ['air,land,sea', *(f'{b!r},7,{a!r}' for a, b in values.tolist())]
  (tmp_path / 'late.csv').write_text('\n'.join(lines))
  whole, _ = forecasting.forecast(run, str(data), tmp_path / 'a.npz', paths=8)
  late, _ = forecasting.forecast(run, str(tmp_path / 'late.csv'), tmp_path / 'b.npz', paths=8,
                                 first_row=60)
  np.testing.assert_allclose(late.quantiles, whole.quantiles, rtol=1e-4, atol=1e-3)


@pytest.mark.long
def test_the_test_rows_are_forecast_in_turn_and_scored(trained):
  run, data = trained
  rolling, (out, picture) = forecasting.evaluate(run, paths=10, batch_size=2)
  assert rolling.windows == 3 and picture.exists()
  saved = json.loads(out.read_text())
  assert saved['scores']['CRPS']['value'] == rolling.scores.crps.value
  assert set(saved['series']) == {'sea', 'air'} and rolling.nats is not None
  page = (run / 'report.html').read_text()
  assert f'{rolling.scores.crps_sum.value:.4f}' in page and '3 forecasts of the test rows' in page
  assert 'id="forecasts"' in page and 'id="likelihood"' not in page and 'data:image/png' in page
  # A model that says the mean of the history is the floor of what is sensible.
  with np.load(data) as file:
    values = file['values']
  target = values[91:].reshape(3, 3, 2)
  history = np.stack([values[i - 12:i] for i in (91, 94, 97)])
  samples = np.repeat(history.mean(axis=1)[:, None, None], 3, axis=2)
  constant = forecasts.scores(target, samples, weights=1.0 / np.abs(values[:91]).mean(axis=0))
  assert rolling.scores.crps.value < 3.0 * constant.crps.value


@pytest.mark.long
def test_stopped_scores_go_on_to_the_same_bits(trained, tmp_path, monkeypatch):
  """Stopped when two batches of three are kept; afterwards the third alone is drawn."""
  run, _ = trained
  options = {'paths': 4, 'batch_size': 1}
  whole, _ = forecasting.evaluate(run, tmp_path / 'a.json', **options)
  written = stopping.stop_at(monkeypatch, 2)
  with pytest.raises(KeyboardInterrupt):
    forecasting.evaluate(run, tmp_path / 'b.json', **options)
  assert [path.parent.name for path, _ in written] == 2 * ['b.json.parts']
  assert not (tmp_path / 'b.json').exists()
  written = stopping.stop_at(monkeypatch, None)
  again, _ = forecasting.evaluate(run, tmp_path / 'b.json', **options)
  assert len(written) == 1 and again == whole
  assert not (tmp_path / 'b.json.parts').exists()
  assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


@pytest.mark.long
@pytest.mark.parametrize('change,message', [
    ('short', 'reads 12 before the first forecast'), ('nan', 'air has no finite number in row 30'),
    ('columns', 'it has no column air; .* sea, land'), ('gone', 'no such file'),
    ('unequal', 'unequal lengths: air has 99 rows and sea has 100')])
def test_a_history_that_cannot_be_forecast_is_refused_in_one_line(trained, change, message,
                                                                  tmp_path):
  run, data = trained
  with np.load(data) as file:
    columns = dict(zip(('sea', 'air'), file['values'].T.copy(), strict=True))
  if change == 'short':
    columns = {name: one[:11] for name, one in columns.items()}
  elif change == 'nan':
    columns['air'][30] = np.nan
  elif change == 'columns':
    columns['land'] = columns.pop('air')
  elif change == 'unequal':
    columns['air'] = columns['air'][1:]
  if change != 'gone':
    np.savez(tmp_path / 'x.npz', **columns)
  with pytest.raises(InputError, match=message) as error:
    forecasting.forecast(run, str(tmp_path / 'x.npz'), tmp_path / 'out.npz')
  assert error.value.field == 'data' and '\n' not in str(error.value)
  assert not (tmp_path / 'out.npz').exists()


@pytest.mark.long
@pytest.mark.parametrize('options,message', [
    ({'horizon': 0}, 'horizon=0'), ({'paths': 1}, 'paths=1'), ({'levels': ()}, 'levels=0'),
    ({'levels': (0.5, 1.5)}, 'from 0 to 1'), ({'first_row': -1}, 'first_row=-1'),
    ({'method': catalogue.method('analytic_dpm', 5)}, 'another sampler')])
def test_options_that_no_forecast_can_have_are_refused(trained, options, message, tmp_path):
  run, data = trained
  with pytest.raises(InputError, match=message):
    forecasting.forecast(run, str(data), tmp_path / 'out.npz', **options)


@pytest.mark.long
def test_a_run_that_does_not_forecast_is_named(tmp_path):
  config = tiny_config.get_config()
  config.train.update(steps=2, validate_every=2, checkpoint_every=2)
  runs.train(config, tiny_config.__file__, tmp_path)
  with pytest.raises(InputError, match='a model that forecasts time series is needed'):
    forecasting.evaluate(tmp_path)


@pytest.mark.long
def test_the_command_prints_the_scores_and_refuses_flags_that_do_not_belong(trained):
  run, data = trained
  command = [sys.executable, 'scripts/forecast.py', f'--workdir={run}', '--overwrite']
  start = lambda *flags: subprocess.run([*command, *flags], cwd=ROOT, capture_output=True,
                                        text=True)
  done = start('--paths=5')
  assert done.returncode == 0 and 'CRPS_sum' in done.stdout, done.stderr
  done = start('--horizon=3')
  assert done.returncode == 2 and '--horizon=3: the test rows' in done.stderr
  done = start(f'--data={data}', '--horizon=4', '--paths=5')
  assert done.returncode == 0 and 'forecast.csv' in done.stdout, done.stderr


@pytest.mark.long
def test_a_trained_forecaster_has_the_predictive_mean_and_covariance_of_a_var1(tmp_path):
  """Of 200 histories: what is left is the error of learning, a small share of the deviation."""
  a, noise = np.array([[0.6, 0.2], [-0.3, 0.7]]), np.array([[1.0, 0.5], [0.5, 2.0]])
  rng, rows = np.random.default_rng(0), [np.zeros(2)]
  shocks = rng.standard_normal((12_000, 2)) @ np.linalg.cholesky(noise).T
  for shock in shocks:
    rows.append(a @ rows[-1] + shock)
  np.savez(tmp_path / 'var1.npz', values=np.array(rows[1:]))
  config = var1_config.get_config(str(tmp_path / 'var1.npz'))
  runs.train(config, var1_config.__file__, tmp_path / 'run')
  trained = workdir.load_trained(tmp_path / 'run')
  batch = trained.experiment.data.split('test').get(np.arange(200))
  made = trained.experiment.model(trained.params)
  paths = np.asarray(jax.jit(lambda batch: made.forecast(
      batch, random.each(random.key(0), 200), paths=200))(batch), np.float64)
  mean, covariance = batch['series'][:, 7].astype(np.float64), np.zeros((2, 2))
  for h in range(3):
    mean, covariance = mean @ a.T, a @ covariance @ a.T + noise
    std = np.sqrt(np.diag(covariance))
    deviation = paths[:, :, h] - mean[:, None]
    # The mean of 200 paths has an error of 0.07 std of its own.
    assert np.sqrt(np.mean((deviation.mean(axis=1) / std)**2)) < 0.2, h
    found = np.einsum('nsi,nsj->ij', deviation, deviation) / deviation[..., 0].size
    assert np.abs((found - covariance) / np.outer(std, std)).max() < 0.1, h
  # The entropy of a row, given the row before it: no model has a lower mean, but for its error.
  entropy = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * noise)[1]
  nats = np.asarray(jax.jit(made.row_nats)(batch, random.each(random.key(1), 200)))
  error = nats.mean(axis=1).std(ddof=1) / np.sqrt(200)
  assert entropy - 4.0 * error < nats.mean() < entropy + 4.0 * error + 0.05
