"""Windows of episodes, and files that hold none."""
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import episodes
from vdm_jax.data.episodes import ACTIONS, OBSERVATIONS, RETURNS
from vdm_jax.errors import InputError

COUNT, LENGTH = 13, 9


def _arrays():
  """Number k of row t of episode e is 1000 e + 10 t + k, so a value says where it stood."""
  e, t = np.meshgrid(np.arange(COUNT), np.arange(LENGTH), indexing='ij')
  place = 1000.0 * e + 10.0 * t
  return {'observations': place[..., None] + np.arange(3), 'actions': place, 'rewards': -1.0 - t,
          'level': np.arange(COUNT) % 4 * 0.5, 'skill': np.eye(COUNT)[:, :2]}


def _config(path, **windows):
  config = data.default_config()
  config.update(name=str(path), batch_size=3)
  config.episodes.update({'horizon': 4, 'discount': 0.5} | windows)
  return config


@pytest.fixture
def path(tmp_path):
  np.savez(tmp_path / 'x.npz', **_arrays())
  return tmp_path / 'x.npz'


def test_windows_are_rows_of_one_episode_and_no_episode_is_in_two_splits(path):
  data_of = data.Data(_config(path, told=('level', 'skill')))
  assert data_of.spec.names == ('observations', 'actions', 'returns', 'level', 'skill')
  seen = []
  for name, count in (('train', 10), ('test', 3)):
    split = data_of.split(name)
    batch = split.get(np.arange(len(split)))
    assert len(split) == 6 * count
    first = batch[OBSERVATIONS][:, 0, 0]
    np.testing.assert_array_equal(
        batch[OBSERVATIONS], first[:, None, None] + 10.0 * np.arange(4)[:, None] + np.arange(3))
    np.testing.assert_array_equal(batch[ACTIONS][..., 0], batch[OBSERVATIONS][..., 0])
    number = first.astype(int) // 1000
    np.testing.assert_array_equal(batch['level'][:, 0], number % 4 * 0.5)
    seen.append(set(number))
  assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == COUNT


@pytest.mark.parametrize('span', [0, 5])
def test_returns_are_discounted_sums_of_what_is_left_or_of_so_many_rewards(path, span):
  split = data.Data(_config(path, span=span)).split('train')
  batch = split.get(np.arange(len(split)))
  starts = 9 - max(span, 4) + 1
  assert len(split) == 10 * starts
  for first, got in zip(batch[OBSERVATIONS][:, 0, 0], batch[RETURNS][:, 0], strict=True):
    t = int(first) % 1000 // 10
    rewards = [-1.0 - u for u in range(t, min(t + (span or LENGTH), LENGTH))]
    np.testing.assert_allclose(got, np.polyval(rewards[::-1], 0.5), rtol=1e-6)


def test_a_condition_chooses_episodes_and_what_is_found_is_kept(path):
  found = episodes.found(str(path), episodes.Windows(horizon=4, where='level>=1', discount=1.0,
                                                     told=('skill',)), 0)
  read = episodes.read(str(path), 'level>=1')
  assert sorted(read.actions[:, 0, 0] // 1000) == [2, 3, 6, 7, 10, 11]
  assert found['widths'] == (2,) and found['returns'] == (-45.0, -30.0)
  (knots, levels), = found['actions']
  assert levels == (-1.0, 1.0) and knots[0] in read.actions and knots[1] in read.actions
  config = _config(path, where='level>=1', discount=1.0, told=('skill',))
  config.episodes.update(found)
  gone = config.copy_and_resolve_references()
  gone.name = 'gone.npz'  # the fields are known without the file
  assert data.resolve(gone).fields == data.resolve(config).fields


def test_a_distribution_function_of_many_values_keeps_few_knots():
  values = np.random.default_rng(0).standard_normal((5000, 1))
  few, = episodes.fit(values, 'cdf', 101)
  assert len(few.knots) <= 103 and few.knots[0] == values.min() and few.knots[-1] == values.max()
  at = np.array([-1.0, 0.0, 1.5])
  exact = 2.0 * (values <= at).mean(axis=0) - 1.0
  np.testing.assert_allclose(np.interp(at, few.knots, few.levels), exact, atol=0.02)
  constant, = episodes.fit(np.full((9, 1), 7.0), 'cdf')
  assert np.interp(7.0, *constant) == 0.0


@pytest.mark.parametrize('change,message', [
    ({'rewards': None}, 'it has no rewards'), ({'rewards': np.zeros((13, 8))}, 'one row for each'),
    ({'observations': np.zeros((13, 9))}, r'observations are float64 \(13, 9\)'),
    ({'actions': np.full((13, 9), np.nan)}, 'actions has no finite number in episode 0')])
def test_a_file_that_holds_no_episodes_is_refused_in_one_line(tmp_path, change, message):
  held = {name: one for name, one in (_arrays() | change).items() if one is not None}
  np.savez(tmp_path / 'x.npz', **held)
  with pytest.raises(InputError, match=message) as error:
    data.resolve(_config(tmp_path / 'x.npz'))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('windows,field,message', [
    ({'horizon': 10}, 'horizon', 'have 9 steps'), ({'span': 10}, 'span', 'have 9 steps'),
    ({'where': 'level>7'}, 'where', 'no episode meets it'),
    ({'where': 'speed>7'}, 'where', 'choose one of level'),
    ({'where': 'level'}, 'where', 'epsilon'),
    ({'told': ('speed',)}, 'told', 'choose one of level, skill'), ({'horizon': 1}, 'horizon', '2'),
    ({'discount': 0.0}, 'discount', 'above 0'), ({'normaliser': 'rank'}, 'normaliser', 'limits'),
    ({'where': 'level=0', 'told': ('level',), 'widths': (1, 2)}, 'widths', 'one number for each')])
def test_windows_that_no_episode_has_are_refused(path, windows, field, message):
  with pytest.raises(InputError, match=message) as error:
    data.resolve(_config(path, **windows))
  assert error.value.field == f'config.data.episodes.{field}'
  with pytest.raises(FileNotFoundError, match='config.data.name'):
    data.resolve(_config(path.with_name('gone.npz')))
