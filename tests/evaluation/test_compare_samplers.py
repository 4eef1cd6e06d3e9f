"""Samplers compared, on a model that is exact: many evaluations lead to the floor, not below."""
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import tiny_config
from vdm_jax import oracles, runs, samplers, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.evaluation import comparison
from vdm_jax.evaluation.comparison import Entrant, Estimated, Quality
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import grids
from vdm_jax.typing import Model, Sampler

ROOT = Path(__file__).parents[2]
LEVELS = 65
STD = 0.3  # of x in [-1, 1]; its grey levels are fine enough not to matter


def model(params):
  pixels = Pixels(LEVELS)
  return Model(denoise=oracles.Gaussian(0.1, STD),
               process=GaussianProcess(schedules.Linear(10.0, -8.0)), decoder=pixels.log_prob,
               encode=pixels.encode, decode=pixels.decode, cond=lambda batch: None, shape=(3,))


def images(n, seed):
  x = 0.1 + STD * np.random.default_rng(seed).normal(size=(n, 3))
  return np.asarray(model({}).decode(jnp.asarray(x)))


def compare(entrants, evaluations, **options):
  return comparison.compare(model, {}, entrants, evaluations=evaluations, count=400,
                            test=images(400, 1), train=images(900, 2), cond=lambda numbers: {},
                            batch_size=200, **options)


@pytest.fixture(scope='module')
def found():
  return compare({'ddim': Entrant(samplers.ddim), 'heun': Entrant(samplers.heun, grids.karras)},
                 [1, 41])


@pytest.mark.long
def test_a_sampler_takes_the_steps_that_fit_into_the_evaluations(found):
  assert list(found.results['ddim']) == [1, 41]
  assert list(found.results['heun']) == [40]
  assert list(found.refused['heun']) == [1] and '2 evaluations' in found.refused['heun'][1]
  assert found.evaluations == (1, 41) and found.count == 400


@pytest.mark.long
def test_one_step_of_ddim_is_as_far_as_is_known_and_many_are_at_the_floor(found):
  """After one step all samples are at the mean: |x - m| in 3 dimensions is 2 STD sqrt(2 / pi)."""
  one, many = found.results['ddim'].values()
  # 2 E|x - m| - E|x - x'|, the latter larger by sqrt(2); grey levels and sampling blur it.
  known = (2 - 2**0.5) * 2 * STD * (2 / np.pi)**0.5
  assert one.kernel.value == pytest.approx(known, abs=4 * one.kernel.error)
  assert one.sliced == pytest.approx(STD, rel=0.1)  # of each projection
  assert many.kernel.value == pytest.approx(0.0, abs=4 * many.kernel.error)
  assert found.floor.kernel.value == pytest.approx(0.0, abs=4 * found.floor.kernel.error)
  assert many.sliced < 3 * found.floor.sliced < 0.5 * one.sliced


@pytest.mark.long
def test_a_grid_of_its_own_is_what_a_sampler_is_judged_on():
  """Two steps of which one is of length zero are as one."""
  asked = []

  def lame(process, steps):
    asked.append(steps)
    return np.array([1.0] + [0.0] * steps)

  got = compare({'one': Entrant(samplers.ddim), 'lame': Entrant(samplers.ddim, lame)}, [1, 2])
  assert asked == [1, 2]
  assert got.results['lame'][2] == got.results['one'][1]


@pytest.mark.long
def test_what_a_sampler_refuses_is_a_gap_with_its_reason():
  def picky(denoise, process):
    def plan(times):
      if len(times) < 4:
        raise InputError(problem='three steps at least')
    return samplers.ddim(denoise, process)._replace(plan=plan)

  def broken(denoise, process):
    return samplers.ddim(lambda z, level: denoise(z * jnp.nan, level), process)

  got = compare({'picky': Entrant(picky)}, [2, 3])
  assert list(got.results['picky']) == [3] and got.refused['picky'] == {2: 'three steps at least'}
  got = compare({'broken': Entrant(broken)}, [2])
  assert not got.results['broken'] and 'not finite' in got.refused['broken'][2]
  assert not any(line.get_label() == 'broken' for line in comparison.picture(got).axes[0].lines)


def test_a_sampler_without_a_number_of_evaluations_cannot_be_placed():
  adaptive = lambda denoise, process: Sampler(None, evaluations=None)
  with pytest.raises(InputError, match="^samplers='adaptive': it chooses its evaluations itself"):
    compare({'adaptive': Entrant(adaptive)}, [4])


# ------------------------------------------------------- table and picture


def made_up():
  quality = lambda a, b, e: Quality(a, Estimated(b, e))
  return comparison.Comparison(
      results={'ddim': {20: quality(0.1, 0.02, 0.01), 5: quality(0.4, 0.3, 0.02)},
               'heun': {4: quality(0.6, 0.9, 0.05), 20: quality(0.08, -0.003, 0.01)}},
      refused={'ddim': {}, 'heun': {1: 'one step takes 2 evaluations'}},
      floor=quality(0.05, -0.001, 0.008), evaluations=(1, 5, 20), count=300)


def test_the_table_has_a_row_for_each_and_the_floor_in_the_end():
  table = comparison.table(made_up())
  columns = [list(column.cells) for column in table.columns]
  assert columns[0] == ['ddim'] * 2 + ['heun'] * 3 + ['training data']
  assert columns[1] == ['5', '20', '1', '4', '20', '']
  assert columns[2] == ['0.4000', '0.1000', '-', '0.6000', '0.0800', '0.0500']
  assert columns[3][-2:] == ['-0.00300 ± 0.01000', '-0.00100 ± 0.00800']
  assert table.caption == 'heun, 1: one step takes 2 evaluations'


def test_the_picture_has_a_line_for_each_sampler_on_logarithmic_axes_and_the_floor_dashed():
  left, right = comparison.picture(made_up()).axes
  for axes in (left, right):
    assert axes.get_xscale() == axes.get_yscale() == 'log'
    assert [text.get_text() for text in axes.get_xticklabels()] == ['1', '5', '20']
  lines = {line.get_label(): line for line in left.lines}
  np.testing.assert_array_equal(lines['ddim'].get_xydata(), [[5, 0.4], [20, 0.1]])
  np.testing.assert_array_equal(lines['heun'].get_xydata(), [[4, 0.6], [20, 0.08]])
  floors = [line for axes in (left, right) for line in axes.lines if line.get_linestyle() == '--']
  assert [float(line.get_ydata()[0]) for line in floors] == [0.05, 0.008]
  assert '0.05' in floors[0].get_label() and '-0.001 ± 0.008' in floors[1].get_label()
  assert right.get_ylim()[0] < 0.008


# ----------------------------------------------------------------- command


def command(*flags):
  return subprocess.run([sys.executable, 'scripts/compare_samplers.py', *flags], cwd=ROOT,
                        capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize('flag,message', [
    ('--samplers=ddim,nonsense', '--samplers=nonsense: '),
    ('--samplers=my.py:mine', '--samplers=my.py:mine: there is no file my.py'),
    ('--samplers=ddim,pc_mala', '--samplers=pc_mala: there is no such choice; choose one of'),
    ('--count=1', '--count=1: it must be at least 2'),
    ('--seed=0', 'holds no run'),
])
def test_the_command_refuses_bad_input_in_one_line(tmp_path, flag, message):
  done = command(f'--workdir={tmp_path}', flag)
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_the_command_draws_a_picture_and_prints_a_table_of_a_run(tmp_path):
  config = tiny_config.get_config()
  config.train.update(steps=2, validate_every=2, checkpoint_every=2)
  runs.train(config, tiny_config.__file__, tmp_path)
  done = command(f'--workdir={tmp_path}', '--samplers=ddim,heun', '--evaluations=1,2', '--count=20')
  assert done.returncode == 0, done.stderr
  assert '20 samples of each' in done.stdout and 'training data' in done.stdout
  with Image.open(tmp_path / 'samplers.png') as picture:
    assert picture.size == (1320, 550)
