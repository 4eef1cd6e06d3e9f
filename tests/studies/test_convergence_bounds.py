"""The error of samplers beside its bounds: laws of points, held-out errors, and the command."""
import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import cli, convergence, measured, processes, random, runs, schedules
from vdm_jax.data import formulas
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood import bounds
from vdm_jax.runs import workdir
from vdm_jax.samplers import ancestral
from vdm_jax.studies import convergence_bounds, toys
from vdm_jax.typing import Model

ROOT = Path(__file__).parents[2]
KNOWN = ('swirl', 'swiss_roll', 'moons', 'rings', 'eight_gaussians')


@pytest.mark.parametrize('name', KNOWN)
def test_the_law_of_points_has_the_characteristic_function_of_their_draws(name):
  """At frequencies that noise of log-SNR 6 leaves, and within four standard errors."""
  law = convergence_bounds.law_of_points(name)
  x = np.asarray(Pixels().encode(jnp.asarray(formulas.draw(name, 20_000, 1))), np.float64)
  noise = 0.05
  for k in np.array([[2.0, 1.0], [-7.0, 12.0], [25.0, 5.0], [4.0, -40.0]]):
    kept = math.exp(-0.5 * k @ k * noise**2)
    want = kept * math.exp(-0.5 * k @ k * law.stds[0]**2) * np.mean(np.exp(1j * law.means @ k))
    wave = kept * np.exp(1j * x @ k)
    error = math.hypot(wave.real.std(), wave.imag.std()) / math.sqrt(len(x))
    assert abs(wave.mean() - want) < 4.0 * error


def test_points_whose_law_is_no_mixture_are_refused():
  for name in ('checkerboard', 'heartbeat'):
    with pytest.raises(InputError, match='choose swirl'):
      convergence_bounds.law_of_points(name)


class Points:
  """Held-out points of eight normals."""
  data = formulas.draw('eight_gaussians', 600, 1)

  def __len__(self):
    return len(self.data)

  def get(self, rows):
    return {'image': self.data[rows]}


@pytest.mark.long
def test_the_error_on_held_out_points_is_the_known_error_of_a_score_within_its_standard_error():
  """A score with a known error stands for a network; the law of the points is known as well."""
  truth, pixels = convergence_bounds.law_of_points('eight_gaussians'), Pixels()
  process = processes.GaussianProcess(schedules.Linear(7.0, -5.0))
  size = 0.6
  denoise = convergence.with_score_error(truth, lambda z, level: size * jnp.sin(3.0 * z))
  model = Model(denoise, process, pixels.log_prob, pixels.encode, pixels.decode,
                lambda batch: None, (2,))
  samples, best = (bounds.evaluate_bound(lambda _, one=one: one, {}, Points(), random.key(0),
                                         times=32, batch_size=4096, progress=False)
                   for one in (model, model._replace(denoise=truth)))
  edges = np.linspace(-5.001, 7.001, 25)
  found = convergence.score_error(samples, best, edges)
  # E sigma^2 |size sin(3 z)|^2 of a mixture: 1/2 sum (1 - cos(6 m) e^(-18 v)) an axis.
  logsnr = 0.5 * (edges[1:] + edges[:-1])
  alpha, sigma = (np.sqrt(1.0 / (1.0 + np.exp(sign * logsnr))) for sign in (-1.0, 1.0))
  variance = (alpha * truth.stds[0])**2 + sigma**2
  cosine = np.cos(6.0 * alpha[:, None, None] * truth.means).mean(axis=1).sum(axis=1)
  known = 0.5 * (size * sigma)**2 * (2.0 - cosine * np.exp(-18.0 * variance))
  assert (np.abs(found.mean - known) < 4.0 * found.error + 0.02 * known).all()
  assert abs((found.mean - known).sum()) < 4.0 * found.each.sum(axis=1).std() / 600**0.5
  # The score term of held-out points is that of quadrature.
  times = np.linspace(1.0, 0.0, 25)
  [result] = convergence.compare(truth, ancestral, process, [times], denoise=denoise, points=120)
  exact = convergence.by_steps(result.walk)
  held_out, error = convergence.held_out(exact, result.walk, found, result.walk.weight)
  assert 0.0 < error < 0.1 * exact.score
  assert abs(held_out.score - exact.score) < 4.0 * error
  assert held_out.cross == 0.0 and held_out.initial == exact.initial
  assert result.kl < exact.bound
  with pytest.raises(InputError, match='other log-SNRs'):
    convergence.score_error(samples, best._replace(logsnr=best.logsnr + 1.0), edges)
  with pytest.raises(InputError, match='not measured'):
    convergence.held_out(exact, result.walk, found._replace(edges=edges / 2.0),
                         result.walk.weight)


@pytest.mark.long
def test_a_study_of_an_oracle_writes_its_table_as_json_and_a_picture(tmp_path, capsys):
  paths, table = convergence_bounds.study(tmp_path / 'a.png', data='mixture', steps=[40, 20],
                                          horizon=3.0, score_error=0.2)
  assert paths == [tmp_path / 'a.png', tmp_path / 'a.json'] and table.row_count == 2
  assert paths[0].stat().st_size > 10_000
  rows = json.loads(paths[1].read_text())['rows']
  assert [row['steps'] for row in rows] == [20, 40]
  for row in rows:
    terms = sum(row[name] for name in ('initial', 'discretisation', 'score', 'cross'))
    assert row['kl'] < row['bound_by_steps'] < row['bound'] == pytest.approx(terms)
    assert row['score'] == pytest.approx(0.2**2 * 3.0) and row['tv'] < row['tv_bound']
    assert sum(row['shares']) == pytest.approx(1.0, abs=1e-4)
  out = capsys.readouterr().out
  assert 'exponential_sde on mixture' in out and f"{rows[0]['bound']:.3g}" in out
  with pytest.raises(InputError, match='there already'):
    convergence_bounds.study(tmp_path / 'a.png')


def test_a_table_of_several_studies_keeps_the_columns_that_it_has(tmp_path):
  path, empty = tmp_path / 'bounds.json', [[f'{name}, {n} steps', '', '']
                                           for name in ('a', 'b') for n in (5, 10)]
  measured.write(path, measured.Measurement(
      'Bounds', 'python scripts/convergence.py', '2026-12-03', 'an abacus', {'jax': '0'},
      ['data and steps', 'bound', 'KL (exact)'], empty))
  rows = [{'steps': n, 'initial': 0.0, 'discretisation': 1.0 / n, 'score': 0.1,
           'cross': 0.0, 'bound': 0.1 + 1.0 / n, 'bound_by_steps': 0.1 + 1.0 / n, 'kl': 0.05,
           'tv': 0.1, 'tv_bound': 0.2} for n in (5, 10)]
  shown = convergence_bounds.table('a', 'ancestral', rows)
  cli.keep_rows(str(path), convergence_bounds.figures('b', shown))
  assert measured.read(path).rows[:2] == empty[:2]
  assert [[u.split()[0] for u in row[1:]] for row in measured.read(path).rows[2:]] == [
      ['0.300', '0.0500'], ['0.200', '0.0500']]
  with pytest.raises(InputError, match='no such row'):
    cli.keep_rows(str(path), convergence_bounds.figures('c', shown))


@pytest.mark.parametrize('arguments,words', [
    ({'data': 'gausian'}, 'did you mean gaussian'),
    ({'data': 'checkerboard'}, 'no mixture of normals'),
    ({'data': 'nowhere.py:x'}, 'no file'),
    ({'steps': []}, 'there is none'), ({'steps': [0]}, 'at least 1'),
    ({'horizon': -1.0}, 'positive'), ({'stop': -30.0}, 'choose one between'),
    ({'sampler': 'analytic_dpm'}, 'more than the estimate'),
    pytest.param({'sampler': 'ancestral', 'data': 'mixture', 'steps': [2]}, 'draws no noise',
                 marks=pytest.mark.long),
    ({'workdir': 'runs/a', 'data': 'mixture'}, 'has its own data'),
    ({'workdir': 'runs/a', 'horizon': 3.0}, 'has its own data')])
def test_bad_settings_of_the_study_are_one_error(arguments, words, tmp_path):
  with pytest.raises(InputError, match=words):
    convergence_bounds.study(tmp_path / 'a.png', **arguments)
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_bound_of_a_trained_network_is_above_its_divergence_by_quadrature_and_held_out(
    tmp_path):
  """A short training of points in the plane, and the command for its run."""
  file = ROOT / 'configs' / 'plane' / 'spiral.py'
  config = workdir.import_config(file).get_config('vp')
  config.data.update(name='eight_gaussians', batch_size=64)
  config.model.update(features=32, blocks=1)
  toys.shorten(config, 300)
  config.train.update(validate_every=300, pictures_every=0, log_every=100)
  runs.train(config, file, tmp_path / 'run')
  line = [ROOT / 'scripts' / 'convergence.py', f'--workdir={tmp_path}/run', '--sampler=ancestral',
          '--stop=4', '--grid=logsnr', '--steps=40', '--points=120', f'--out={tmp_path}/a.png']
  done = subprocess.run([sys.executable, *map(str, line)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  [row] = json.loads((tmp_path / 'a.json').read_text())['rows']
  assert 0.0 < row['kl'] < row['bound'] and row['score'] > 4.0 * row['score_held_out_error'] > 0.0
  assert abs(row['score_held_out'] - row['score']) < (
      4.0 * row['score_held_out_error'] + 0.05 * row['score'])
  assert 'score, held out' in done.stdout
