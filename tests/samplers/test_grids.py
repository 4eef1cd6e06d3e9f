"""Grids, against published sequences of levels and the recorded ones of public code."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, ve, vp
from vdm_jax.samplers import ddim, grids, sample

# What huggingface/diffusers lists as `timesteps` for 10 of 1000 (its DDPM and DDIM schedulers).
DIFFUSERS = {
    'leading': [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    'trailing': [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    'linspace': [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
}
TABLES = {'ddim_linear': grids.ddim_linear, 'ddim_quadratic': grids.ddim_quadratic,
          'leading': grids.leading, 'trailing': grids.trailing, 'linspace': grids.linspace}


def edm():
  return from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t)


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


PROCESSES = {
    'vdm': GaussianProcess(schedules.Linear(13.3, -5.0)),
    'cosine on the flow curve': GaussianProcess(schedules.Cosine(9.0, -9.0), flow),
    've': GaussianProcess(schedules.GeometricSigma(), ve),
    'rectified flow': rectified_flow(),
    'edm': edm(),
}
OF_PROCESS = {
    'uniform': lambda process, n: grids.uniform(n),
    'quadratic': lambda process, n: grids.quadratic(n),
    'logsnr': grids.logsnr,
    'karras': grids.karras,
}


@pytest.mark.first(4)
@pytest.mark.parametrize('process', PROCESSES)
@pytest.mark.parametrize('grid', OF_PROCESS)
def test_a_grid_goes_in_n_steps_from_noise_to_data_without_standing_still(process, grid):
  for n in (3, 50):
    times = OF_PROCESS[grid](PROCESSES[process], n)
    assert isinstance(times, np.ndarray) and times.dtype == np.float64
    assert times.shape == (n + 1,) and times[0] == 1.0 and times[-1] == 0.0
    assert np.all(np.diff(times) < 0.0)


@pytest.mark.parametrize('grid', OF_PROCESS)
def test_one_step_is_from_one_to_zero(grid):
  np.testing.assert_array_equal(OF_PROCESS[grid](PROCESSES['vdm'], 1), [1.0, 0.0])


def test_uniform_and_quadratic_times_of_four_steps():
  np.testing.assert_array_equal(grids.uniform(4), [1.0, 0.75, 0.5, 0.25, 0.0])
  np.testing.assert_array_equal(grids.quadratic(4), [1.0, 0.5625, 0.25, 0.0625, 0.0])


# --------------------------------------------------------------- in noise


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_a_logsnr_grid_is_uniform_where_the_schedule_is_linear():
  """Then time and log-SNR are the same thing; the curve is no matter."""
  for curve in (vp, ve):
    times = grids.logsnr(GaussianProcess(schedules.Linear(6.0, -4.0), curve), 10)
    np.testing.assert_allclose(times, grids.uniform(10), atol=1e-12)


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_the_logsnr_of_a_logsnr_grid_falls_by_equal_amounts():
  process = GaussianProcess(schedules.Cosine(9.0, -8.0))
  levels = process(jnp.asarray(grids.logsnr(process, 17))).logsnr
  np.testing.assert_allclose(levels, 9.0 - np.arange(17, -1, -1.0), atol=1e-9)


@pytest.mark.usefixtures('x64')
def test_a_logsnr_grid_of_an_infinite_process_takes_one_step_to_each_end():
  """sigma / alpha of rectified flow is t / (1 - t), so the times are known."""
  times = grids.logsnr(rectified_flow(), 8, low=-6.0, high=6.0)
  ratio = np.exp([3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0])
  np.testing.assert_allclose(times, [1.0, *(ratio / (1.0 + ratio)), 0.0], atol=1e-12)
  one_end = grids.logsnr(edm(), 3, high=0.0)  # from sigma = 80 to 1, and on to 0
  np.testing.assert_allclose(80.0 * one_end, [80.0, 80.0**0.5, 1.0, 0.0], rtol=1e-9)


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_karras_sigmas_are_those_that_the_authors_code_evaluated():
  for run in recordings.runs('edm_gaussian', 'edm'):
    recorded = np.unique(run.arrays['sig_eval'])[::-1]  # Heun asks twice at all but the first
    assert len(recorded) == run.count
    times = grids.karras(edm(), run.count, sigma_min=0.002)
    np.testing.assert_allclose(80.0 * times, [*recorded, 0.0], rtol=1e-9)
    np.testing.assert_array_equal(grids.karras(edm(), run.count), times)  # 0.002 by default


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_karras_sigmas_of_a_process_that_stops_short_of_the_data_are_those_of_diffusers():
  recorded = {tuple(run.arrays['sigmas'][:-1])  # their last step is of length zero
              for run in recordings.runs('diffusers_gaussian', 'dpmsolver_multistep')
              if run.options.get('use_karras_sigmas') == 'True' and 'sigmas' in run.arrays
              and run.options.get('final_sigmas_type') == 'sigma_min'}
  assert recorded
  for sigmas in recorded:
    high, low = sigmas[0], sigmas[-1]
    process = from_alpha_sigma(jnp.ones_like, lambda t, a=high, b=low: b + t * (a - b))
    times = grids.karras(process, len(sigmas) - 1)
    np.testing.assert_allclose(low + times * (high - low), sigmas, rtol=1e-9)


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_karras_bounds_inside_of_a_process_leave_one_step_to_each_end():
  times = grids.karras(rectified_flow(), 12, rho=1.0, sigma_min=1.0, sigma_max=11.0)
  sigma = np.arange(11.0, 0.0, -1.0)  # rho = 1 is linear
  np.testing.assert_allclose(times, [1.0, *(sigma / (1.0 + sigma)), 0.0], atol=1e-12)


# ------------------------------------------------------------- in a table


@pytest.mark.parametrize('spacing', DIFFUSERS)
def test_the_spacings_of_diffusers(spacing):
  indices = TABLES[spacing](10, 1000)
  np.testing.assert_array_equal(indices[::-1], DIFFUSERS[spacing])
  recorded = [run for run in recordings.runs('diffusers_gaussian', 'ddim')
              if run.options.get('timestep_spacing') == spacing and 'timesteps' in run.arrays]
  for run in recorded:  # in the full recordings only
    np.testing.assert_array_equal(TABLES[spacing](run.count, 1000)[::-1], run.arrays['timesteps'])


def test_the_sequences_of_the_ddim_paper():
  """floor(c i) and floor(c i^2); the largest of the quadratic is 0.8 of the table."""
  np.testing.assert_array_equal(grids.ddim_linear(10, 1000), np.arange(0, 1000, 100))
  np.testing.assert_array_equal(grids.ddim_linear(3, 1000), [0, 333, 666])
  # c = 800 / 81
  np.testing.assert_array_equal(grids.ddim_quadratic(10, 1000),
                                [0, 9, 39, 88, 158, 246, 355, 483, 632, 800])


@pytest.mark.parametrize('sections,table,expected', [
    ('ddim25', 1000, range(0, 1000, 40)),
    ('ddim50', 4000, range(0, 4000, 80)),
    ('10', 100, range(0, 100, 11)),
    ('2,3', 11, [0, 5, 6, 8, 10]),       # sections of six and of five steps
    ([2, 3], 11, [0, 5, 6, 8, 10]),
    ('1,1,1', 9, [0, 3, 6]),             # of one step, the first
    ('3', 10, [0, 4, 9]),                # 4.5 is rounded to even
    ('1000', 1000, range(1000)),
    # Five sections of 200; the last index would be 999.
    ('fast27', 1000, [0, 22, 44, 66, 88, 111, 133, 155, 177, 199,
                      200, 222, 244, 266, 288, 311, 333, 355, 377, 399,
                      400, 500, 599, 600, 799, 800, 997]),
])
def test_the_respacing_of_iddpm(sections, table, expected):
  np.testing.assert_array_equal(grids.iddpm(sections, table), list(expected))


def test_a_respaced_chain_has_as_many_steps_in_each_section_as_it_was_told():
  """The example of its authors' documentation: 10, 15 and 20 of three hundreds of 300."""
  kept = grids.iddpm('10,15,20', 300)
  np.testing.assert_array_equal(np.bincount(kept // 100), [10, 15, 20])
  assert kept[0] == 0 and kept[-1] == 299 and np.all(np.diff(kept) > 0)


def test_an_index_is_at_the_level_after_one_more_step_of_noise():
  times = grids.on_table(grids.leading(10, 1000), 1000)
  np.testing.assert_allclose(times, [0.901, 0.801, 0.701, 0.601, 0.501, 0.401, 0.301, 0.201, 0.101,
                                     0.001, 0.0], rtol=1e-12)
  np.testing.assert_array_equal(grids.on_table(grids.trailing(4, 4), 4), grids.uniform(4))


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_a_table_grid_meets_the_very_alphas_of_the_table():
  """Of the linear betas, at the levels k + 1, and clean data at the end."""
  alphas = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
  process = GaussianProcess(schedules.TableSchedule.from_alphas(alphas))
  indices = grids.trailing(7, 1000)
  level = process(jnp.asarray(grids.on_table(indices, 1000)))
  np.testing.assert_allclose(level.alpha**2, [*alphas[indices][::-1], 1.0], rtol=1e-12)


@pytest.mark.parametrize('table', [100, 1000])
@pytest.mark.parametrize('name', TABLES)
def test_every_number_of_steps_of_a_table_gives_distinct_levels(name, table):
  for n in (2, 7, 33, 99, 100):
    times = grids.on_table(TABLES[name](n, table), table)
    assert np.all(np.diff(times) < 0.0)
    assert len(times) == n + 1 or name == 'ddim_quadratic'


def test_a_table_grid_is_one_to_sample_along():
  """Through DDIM to a single datum, which any grid reaches that ends where sigma is 0."""
  datum = oracles.Gaussian(0.3, 0.0)
  keys = jax.random.split(jax.random.key(0), 3)
  z = jnp.linspace(-1.0, 1.0, 3)[:, None]
  for name in TABLES:
    times = grids.on_table(TABLES[name](5, 100), 100)
    out = sample(ddim(datum, rectified_flow()), keys, z, times)
    np.testing.assert_allclose(out, 0.3, atol=1e-6)


# -------------------------------------------------------------- bad input


def test_an_array_of_times_is_taken_as_it_is():
  times = grids.array([0.9, 0.5, 0.5])
  assert times.dtype == np.float64
  np.testing.assert_array_equal(times, [0.9, 0.5, 0.5])


@pytest.mark.parametrize('times,message', [
    ([0.0, 0.5, 1.0], 'decrease'),
    ([1.0, np.nan, 0.0], 'not finite'),
    ([1.0], 'at least two'),
    ([2.0, 0.0], r'\[0, 1\]'),
    ([1.0, -0.1], r'\[0, 1\]'),
])
def test_an_array_that_is_no_grid_is_refused_with_the_reason(times, message):
  with pytest.raises(InputError, match=message):
    grids.array(times)


@pytest.mark.parametrize('call,message', [
    (lambda: grids.uniform(0), '^steps=0: '),
    (lambda: grids.logsnr(rectified_flow(), 2), 'at least 3'),
    (lambda: grids.logsnr(PROCESSES['vdm'], 5, low=20.0), 'overlap'),
    (lambda: grids.karras(edm(), 1), 'at least 2'),
    (lambda: grids.karras(edm(), 10, sigma_max=100.0), 'choose values within'),
    (lambda: grids.karras(edm(), 10, sigma_min=81.0), 'choose values within'),
    (lambda: grids.leading(11, 10), '^steps=11: the chain has 10'),
    (lambda: grids.ddim_quadratic(1, 10), 'at least 2'),
    (lambda: grids.iddpm('ten', 100), 'numbers of steps'),
    (lambda: grids.iddpm('ddim600', 1000), 'no stride'),
    (lambda: grids.iddpm('60,10', 100), '60 is not in 1 .. 50'),
    (lambda: grids.iddpm('0', 100), '0 is not in 1 .. 100'),
    (lambda: grids.on_table(np.array([3, 2]), 10), 'increase'),
    (lambda: grids.on_table(np.array([3, 10]), 10), 'within 0 .. 9'),
])
def test_what_no_grid_can_be_made_of_is_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()
