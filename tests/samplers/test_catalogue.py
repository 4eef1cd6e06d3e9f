"""The catalogue of samplers, and the command that certifies them."""
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from vdm_jax import certification, measured, oracles, random, samplers, schedules
from vdm_jax.certification import catalogue as certified
from vdm_jax.certification import report
from vdm_jax.errors import InputError
from vdm_jax.objectives import rectified_flow
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import catalogue, interpolants
from vdm_jax.typing import Sampler

ROOT = Path(__file__).parents[2]

PROCESS = GaussianProcess(schedules.Linear(6.0, -4.0))


def test_every_sampler_says_what_it_is_and_what_it_claims():
  for name, entry in catalogue.SAMPLERS.items():
    assert entry.family and entry.paper and entry.use, name
    assert (entry.evaluations is None) == (entry.at_tolerance is not None), name
  text = catalogue.describe()
  assert all(f'- {name}: ' in text or f'- {name} [from Python]: ' in text
             for name in catalogue.SAMPLERS)


SEEN = ('ancestral', 'ddim', 'adaptive_ode', 'consistency')


@pytest.mark.first(1)
@pytest.mark.parametrize('name', [
    name if name in SEEN else pytest.param(name, marks=pytest.mark.long)
    for name, entry in catalogue.SAMPLERS.items() if entry.needs in ('', 'ends')])
def test_a_sampler_says_that_it_is_stochastic_where_other_keys_give_other_samples(name):
  """Not where it has no order: an adaptive method has none, and draws no noise."""
  entry = catalogue.SAMPLERS[name]
  make, times = entry.make(oracles.Gaussian(0.3, 0.5), PROCESS), entry.times(PROCESS, 6)
  run = jax.jit(lambda key: samplers.sample(make, jax.random.split(key, 2), jnp.ones((2, 1)),
                                            times))
  differ = bool((run(jax.random.key(0)) != run(jax.random.key(1))).any())
  assert differ == entry.stochastic == catalogue.method(name).stochastic


def test_the_noise_of_ddim_makes_it_stochastic():
  assert catalogue.method('ddim', eta=0.5).stochastic
  assert not catalogue.method('ddim', eta=0.0).stochastic


@pytest.mark.first(4)
@pytest.mark.parametrize('grid', ['', *catalogue.GRIDS, '1,0.7,0.2,0.05,0', 'iddpm:4'])
def test_every_grid_runs_from_noise_to_data(grid):
  own = ',' in grid or ':' in grid
  times = catalogue.method('ddim', None if own else 4, grid).times(PROCESS)
  # Stable Diffusion's last step ends at the first level of its chain.
  assert times.shape == (5,) and times[-1] == (1e-3 if 'stable_diffusion' in grid else 0.0)
  # Published grids of a chain may begin below its last level.
  assert times[0] == 1.0 or grid in (
      'leading', 'ddim_linear', 'ddim_quadratic', 'stable_diffusion')
  assert (np.diff(times) < 0.0).all()


def test_a_grid_may_be_a_file(tmp_path):
  np.save(tmp_path / 'own.npy', [1.0, 0.4, 0.0])
  got = catalogue.method('ddim', None, str(tmp_path / 'own.npy')).times(PROCESS)
  np.testing.assert_array_equal(got, [1.0, 0.4, 0.0])


@pytest.mark.parametrize('arguments,message', [
    (('eule', 5), "sampler='eule': did you mean euler"),
    (('ddim', 0), 'steps=0: it must be at least 1'),
    (('ddim', 5, 'cosine'), "grid='cosine': there is no such choice; choose uniform, quadratic, "),
    (('ddim', None, '0,0.5,1'), "grid='0,0.5,1': times: "),
    (('ddim', None, 'missing.npy'), "grid='missing.npy': there is no such choice; choose uniform"),
    (('ddim', None, 'iddpm:10,x'), "grid='iddpm:10,x': "),
    (('pc_mala', 5), "sampler='pc_mala': it needs the log-density"),
    (('npr_ddpm', 5), "sampler='npr_ddpm': it needs a network with heads"),
    (('adaptive_ode', None, 'uniform'), "grid='uniform': the sampler adaptive_ode chooses its own"),
    (('adaptive_ode', 5), 'steps=5: the sampler adaptive_ode chooses its own steps'),
    (('pndm', 5), "sampler='pndm': did you mean plms"),
    (('ddim', 5, '', 1.5), 'eta=1.5: it must be from 0 (no noise) to 1'),
    (('heun', 5, '', 0.5), 'eta=0.5: the sampler heun has no eta'),
    (('ddim', 5, '1,0.5,0'), 'steps=5: grid=1,0.5,0 has its own number of steps'),
])
def test_what_cannot_be_made_is_refused_by_its_flag(arguments, message):
  with pytest.raises(InputError) as error:
    catalogue.method(*arguments)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_grid_of_text_is_not_called_damaged(tmp_path):
  np.savetxt(tmp_path / 'own.npy', [1.0, 0.4, 0.0])
  with pytest.raises(InputError, match='it is not a NumPy file; write it by numpy.save'):
    catalogue.method('ddim', None, str(tmp_path / 'own.npy'))


@pytest.mark.parametrize('name,here', [
    ('ddpm', 'ancestral'), ('Euler_a', 'ancestral'), ('dpm++2m', 'dpmpp_2m'),
    ('DPM++ 2M SDE', 'dpmpp_2m_sde'), ('dpm-solver++', 'dpmpp_2m'), ('dpmpp2m', 'dpmpp_2m'),
    ('deis-tab3', 'deis_t3'), ('UniPC', 'unipc_2'), ('k-heun', 'edm'), ('ddim', 'ddim')])
def test_a_sampler_goes_by_the_names_it_has_elsewhere_which_is_said(name, here, capsys):
  assert catalogue.method(name, 5).name == here
  said = f'The sampler {name} is called {here} here' if name != here else ''
  assert capsys.readouterr().err.startswith(said) and bool(said) == (here != name)


def test_every_name_from_elsewhere_is_one_sampler_here():
  own = {catalogue._letters(name) for name in catalogue.SAMPLERS}
  assert len(own) == len(catalogue.SAMPLERS)  # which spelling does not confuse
  assert not own & catalogue.ALIASES.keys()
  assert set(catalogue.ALIASES.values()) <= catalogue.SAMPLERS.keys()


@pytest.mark.long
@pytest.mark.parametrize('name,share', [('euler_a', 1.0), ('k_euler', 0.0)])
def test_the_steps_of_k_diffusion_are_those_of_their_namesakes(name, share):
  """In y = z / alpha: y + (y - x) / sigma (sigma_down - sigma), and noise of sigma_up."""
  oracle, t, s = oracles.Gaussian(0.3, 0.5), jnp.float32(0.7), jnp.float32(0.4)
  keys = jax.random.split(jax.random.key(0), 100)
  z = jax.random.normal(jax.random.key(1), (100, 3))
  sampler = catalogue.method(name, 1).make(oracle, PROCESS)
  got = sampler.value(sampler.step(keys, sampler.init(z), t, s, None))
  at_t, at_s = PROCESS(t), PROCESS(s)
  x, y = oracle(z, at_t).x, z / at_t.alpha
  sigma, to = at_t.sigma / at_t.alpha, at_s.sigma / at_s.alpha
  up = share * to * jnp.sqrt(1 - to**2 / sigma**2)
  noise = random.normal(random.stream(keys, 'noise'), z)
  expected = y + (y - x) / sigma * (jnp.sqrt(to**2 - up**2) - sigma) + up * noise
  np.testing.assert_allclose(got, at_s.alpha * expected, atol=1e-5)


@pytest.mark.long
def test_ddim_with_eta_one_is_the_ancestral_sampler_and_says_so_in_its_name():
  oracle, keys = oracles.Gaussian(0.3, 0.5), jax.random.split(jax.random.key(0), 8)
  z, times = jnp.ones((8, 3)), jnp.linspace(1.0, 0.0, 6)
  of = lambda method: samplers.sample(method.make(oracle, PROCESS), keys, z, times)
  whole = catalogue.method('ddim', 5, '', 1.0)
  np.testing.assert_allclose(of(whole), of(catalogue.method('ancestral', 5)), atol=1e-5)
  assert whole.name == 'ddim_eta_1'  # whose samples are not taken for those of ddim
  np.testing.assert_array_equal(of(catalogue.method('ddim', 5, '', 0.0)),
                                of(catalogue.method('ddim', 5)))


OWN = '''
import numpy as np
from vdm_jax.samplers import ancestral, ddim, heun
from vdm_jax.typing import Sampler

SIZE = 3
def number(denoise, process):
  return SIZE
def alone(denoise):
  return ddim(denoise, None)
def finds_its_steps(denoise, process):
  return Sampler(None, evaluations=None)
'''


def own(folder, name):
  file = folder / 'my.py'
  file.write_text(OWN)
  return f'{file}:{name}'


def test_a_sampler_of_ones_own_is_a_function_in_a_file(tmp_path):
  method = catalogue.method(own(tmp_path, 'heun'), 6)
  oracle, keys = oracles.Gaussian(0.3, 0.5), jax.random.split(jax.random.key(0), 8)
  of = lambda make: samplers.sample(make(oracle, PROCESS), keys, jnp.ones((8, 3)),
                                    method.times(PROCESS))
  np.testing.assert_array_equal(of(method.make), of(samplers.heun))
  np.testing.assert_array_equal(method.times(PROCESS), np.linspace(1.0, 0.0, 7))
  # Samples of the file as it was are not taken for those of the file as it is.
  (tmp_path / 'my.py').write_text(OWN + 'more = 1')
  assert catalogue.method(f'{tmp_path}/my.py:heun', 6).name != method.name


@pytest.mark.long
def test_a_sampler_of_ones_own_is_tried_where_noise_would_do_harm(tmp_path):
  """A flow of coupled noise refuses one that draws noise, and takes one that does not."""
  flow = types.SimpleNamespace(coupled=True, distilled=None, shape=(2,))
  steady, noisy = (catalogue.method(own(tmp_path, name), 3) for name in ('heun', 'ancestral'))
  assert steady.stochastic is noisy.stochastic is None
  assert not catalogue.draws_noise(steady, (2,)) and catalogue.draws_noise(noisy, (2,))
  catalogue.require_suited(steady, flow)
  with pytest.raises(InputError, match='sampler=.*my.py:ancestral.*: it adds noise by the score'):
    catalogue.require_suited(noisy, flow)


@pytest.mark.parametrize('name,message', [
    ('heum', "my.py has no 'heum'; perhaps 'heun' is meant."),
    ('', "my.py has no ''; name what it defines, as FILE.py:NAME."),
    ('SIZE', 'it does not take a denoiser and a process; give a function (denoise, process) ->'),
    ('alone', 'it does not take a denoiser and a process; give a function (denoise, process) ->'),
    ('number', 'it returns a int, not a Sampler; give a function'),
])
def test_what_is_no_sampler_in_a_file_of_ones_own_is_one_line(tmp_path, name, message):
  with pytest.raises(InputError) as error:
    catalogue.method(own(tmp_path, name), 6)
  assert message in str(error.value) and '\n' not in str(error.value)
  assert error.value.field == 'sampler' and error.value.as_flag().startswith('--sampler=')


def test_a_file_of_ones_own_that_is_missing_or_no_python_is_one_line(tmp_path):
  with pytest.raises(InputError, match='samplers=.*: there is no file nowhere.py; give one of'):
    catalogue.find('nowhere.py:mine', 'samplers')
  (tmp_path / 'my.py').write_text('def mine(:')
  with pytest.raises(InputError, match='sampler=.*: line 1 is not Python'):
    catalogue.find(f'{tmp_path}/my.py:mine')


@pytest.mark.long
def test_a_sampler_of_ones_own_is_certified_by_the_order_it_claims(tmp_path):
  for order, passes in ((2, True), (3, False)):
    [job] = certified.jobs([own(tmp_path, 'heun')], order)
    rows = certified.certify_job(job)
    assert {row.claimed_order for row in rows if row.curve != 'ends'} == {order}
    assert {row.passed for row in rows if row.curve == 'vp'} == {passes}
  with pytest.raises(InputError, match='it is adaptive, and its tolerance is unknown here'):
    certified.jobs([own(tmp_path, 'finds_its_steps')])


def equations(jaxpr):
  """The size of a program, with all that is inside of it."""
  inner = [getattr(u, 'jaxpr', u) for e in jaxpr.eqns for value in e.params.values()
           for u in (value if isinstance(value, (tuple, list)) else (value,))]
  return len(jaxpr.eqns) + sum(equations(u) for u in inner if hasattr(u, 'eqns'))


@pytest.mark.long
def test_the_program_of_a_sampler_does_not_grow_with_its_steps():
  oracle = oracles.Gaussian(0.3, 0.5)

  def size(make, steps):
    def run(z, times):
      keys = jax.random.split(jax.random.key(0), len(z))
      return samplers.sample(make(oracle, PROCESS), keys, z, times)
    return equations(jax.make_jaxpr(run)(jnp.ones((2, 3)), jnp.zeros(steps + 1)).jaxpr)

  for name, entry in catalogue.SAMPLERS.items():
    if not entry.needs and entry.evaluations is not None:
      assert size(entry.make, 12) == size(entry.make, 200), name


BY_DRIFT = ['samplers.interpolants.euler (e = 0)', 'samplers.interpolants.euler (e = sigma^2 / 2)']
EXACT = ['objectives.mean_flow.step', 'objectives.rectified_flow.one_step']


def test_samplers_from_python_alone_are_among_those_certified_and_can_be_chosen():
  jobs = certified.jobs()
  assert {job.name for job in jobs} > set(certified.FROM_PYTHON)
  assert {job.kind for job in jobs} == {'sampler', 'one step', 'encoding', 'equality'}
  chosen = certified.jobs(['objectives.mean_flow.step', 'samplers.interpolants.euler'])
  assert [job.name for job in chosen] == ['objectives.mean_flow.step', *BY_DRIFT]
  assert certified.jobs(['mean_flow.step', 'interpolants.euler']) == chosen
  assert [certified.FROM_PYTHON[name].order for name in BY_DRIFT] == [1, None]


@pytest.mark.long
@pytest.mark.parametrize('name', BY_DRIFT)
@pytest.mark.parametrize('curve', certification.CURVES)
def test_samplers_by_a_drift_and_a_score_keep_their_claims(curve, name):
  entry = certified.FROM_PYTHON[name]
  assert all(row.passed for row in certification.certify(entry.make, entry.order, curves=[curve]))


@pytest.mark.long
@pytest.mark.parametrize('name', EXACT)
def test_one_step_of_an_exact_network_is_certified_and_of_another_it_is_not(name):
  """Another: an average velocity of another process, and a denoiser of a flow of curved lines."""
  [row] = certified.certify_job(certified.Job('sampler', name))
  assert (row.kind, row.curve, row.evaluations_per_step, row.passed) == ('exact', 'ends', 1, True)

  def wrong(denoise, process):
    if 'mean_flow' in name:
      return certified.by_average_velocity(denoise, lambda t: process(0.5 * t))
    return Sampler(lambda keys, z, t, s, _: rectified_flow.one_step(denoise, process, z))
  assert not any(row.passed for row in certification.certify_exact(wrong))


@pytest.mark.long
def test_noise_without_its_score_is_not_certified_nor_half_of_the_score():
  make = certified.FROM_PYTHON[BY_DRIFT[1]].make
  of_process = interpolants.of_process

  def short_of(share):
    def made(denoise, process):
      def drifts(*at):
        drift = of_process(denoise, process)(*at)
        return drift._replace(score=share * drift.score)
      return drifts
    return made
  for share in (0.0, 0.5):
    with mock.patch.object(interpolants, 'of_process', short_of(share)):
      rows = certification.certify(make, curves=['flow'])
    assert not any(row.passed for row in rows)


def certify(*flags):
  return subprocess.run([sys.executable, ROOT / 'scripts' / 'certify.py', *flags], text=True,
                        capture_output=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})


@pytest.mark.long
def test_the_certificate_is_a_table_and_as_json_its_rows():
  done = certify('--samplers=ddim,heun', '--json')
  assert done.returncode == 0, done.stderr
  rows = json.loads(done.stdout)['rows']
  assert {row['sampler'] for row in rows} == {'ddim', 'heun', 'ddim, encoding',
                                              'heun, encoding'}
  assert {row['curve'] for row in rows} == {'vp', 've', 'flow', 'sub_vp', 'ends'}
  for row in rows:
    assert row['passed'] and row['kind'] == 'order'
    if row['curve'] != 'ends':
      expected = {'ddim': 1, 'heun': 2}[row['sampler'].removesuffix(', encoding')]
      assert row['claimed_order'] == row['evaluations_per_step'] == expected
      assert abs(row['measured_order'] - expected) < 0.1


@pytest.mark.long
def test_an_unknown_sampler_is_one_line_and_exit_code_2():
  done = certify('--samplers=ddim,nothing')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: --samplers=nothing: ')
  assert done.stderr.count('\n') == 1


def test_the_table_shows_every_kind_of_row():
  row = certification.CertificateRow('ddim', 'vp', 'mixture', 'order', 1, 0.99, 1, True, {})
  moments = {'mean': {'deviation': 0.01}, 'std': {'deviation': -0.02}}
  rows = [row, row._replace(model='gaussian', measured_order=None),
          row._replace(sampler='a', kind='moments', claimed_order=None, detail=moments),
          row._replace(sampler='b', kind='tolerance', claimed_order=None, passed=False,
                       detail={'errors': [1e-2, 3e-4]}, evaluations_per_step=None),
          row._replace(sampler='c', kind='equality', claimed_order=None,
                       detail={'difference': 0.0}),
          row._replace(sampler='ddim', curve='ends', measured_order=1.5),
          row._replace(sampler='ddim_to_x', curve='ends'),
          row._replace(sampler=EXACT[0], curve='ends', kind='exact', claimed_order=None,
                       detail={'error': 2e-16})]
  assert report.cells(rows)[1:] == [
      ['**first order**', '', '', '', '', ''],
      ['`ddim`', 'Song, Meng and Ermon (2021)', '1', '1', '0.99 to 0.99',
       'the plain deterministic sampler; also encodes'],
      ['**distilled models**', '', '', '', '', ''],
      ['`ddim_to_x`', 'Salimans and Ho (2022)', '1', '1', '0.99 to 0.99',
       catalogue.SAMPLERS['ddim_to_x'].use],
      ['**from Python alone**', '', '', '', '', ''],
      ['`objectives.mean_flow.step` \\*', 'Geng et al. (2025), algorithm 2', 'exact', '1',
       'one step to 2e-16', 'MeanFlow, in one step']]
  console = rich.console.Console(width=150, record=True, file=io.StringIO())
  console.print(report.table(rows))
  text = console.export_text()
  for shown in ('0.99', 'exact', '0.027', '3e-04 FAILS', '0e+00', 'adaptive', '2e-16'):
    assert shown in text, text


@pytest.mark.long
def test_all_samplers_are_certified_and_the_docs_show_what_was_measured():
  done = certify('--json')
  rows = json.loads(done.stdout)['rows']
  assert {row['sampler'] for row in rows} >= set(certified.ENTRIES)
  assert [row for row in rows if not row['passed']] == []
  assert done.returncode == 0
  rows = [certification.CertificateRow(**row) for row in rows]
  kept = measured.read(ROOT / 'docs' / 'measured' / 'samplers.json')
  header, *now = report.cells(rows)
  assert header == kept.columns
  for there, here in zip(kept.rows, now, strict=True):
    assert (there[:4], there[5]) == (here[:4], here[5])
    # Draws differ between versions, and rounding between machines.
    if 'moments' not in here[4] and here[2] != 'exact':
      numbers = [re.findall(r'\d+\.\d+', cell) for cell in (here[4], there[4])]
      np.testing.assert_allclose(*(np.array(of, float) for of in numbers), atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize('x64', [False, True], ids=['float32', 'float64'])
def test_every_sampler_takes_a_z_in_any_precision_at_times_in_any_and_keeps_float32(x64):
  """No network mends what rounding z to bfloat16 loses."""
  with jax.enable_x64(x64):
    keys = jax.random.split(jax.random.key(0), 2)
    for name, entry in catalogue.SAMPLERS.items():
      if not entry.needs:
        make = entry.make(oracles.Gaussian(0.3, 0.5), PROCESS)
        times = entry.times(PROCESS, 6)
        for dtype in (jnp.bfloat16, jnp.float32):
          run = lambda z, make=make, times=times: samplers.sample(make, keys, z, times)
          z = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 3), dtype))
          assert z.dtype == jnp.float32, name


@pytest.mark.long
@pytest.mark.parametrize('times', [np.array([1, 0]), [1, 0]])
def test_integer_times_are_a_grid(times):
  oracle, keys = oracles.Gaussian(0.3, 0.5), jax.random.split(jax.random.key(0), 2)
  for make in (samplers.ddim, samplers.ancestral):
    run = lambda times, z, make=make: samplers.sample(make(oracle, PROCESS), keys, z, times)
    z = run(np.array(times), jnp.ones((2, 3), jnp.int32))
    np.testing.assert_array_equal(z, run(np.array([1.0, 0.0]), jnp.ones((2, 3))))
    assert np.abs(z - 1.0).min() > 0.1
