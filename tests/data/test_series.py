"""Windows of time series, and files that hold none."""
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import series
from vdm_jax.errors import InputError


def _config(path, **windows):
  config = data.default_config()
  config.update(name=str(path), batch_size=3)
  config.series.update({'history': 4, 'horizon': 2, 'test': 6} | windows)
  return config


def _saved(tmp_path, name='x.npz', rows=30, **more):
  """Row i of column j holds 100 j + i, so a value says where it stood."""
  values = np.arange(rows)[:, None] + 100.0 * np.arange(2)
  np.savez(tmp_path / name, values=values, names=['a', 'b'], **more)
  return tmp_path / name


def test_windows_are_consecutive_rows_and_training_never_sees_a_row_for_testing(tmp_path):
  split = data.Data(_config(_saved(tmp_path))).split
  train, test = split('train'), split('test')
  everything = train.get(np.arange(len(train)))['series']
  assert everything.shape == (19, 6, 2)  # 24 rows before the last 6
  np.testing.assert_array_equal(everything[:, :, 0], np.arange(19)[:, None] + np.arange(6))
  np.testing.assert_array_equal(everything[..., 1], everything[..., 0] + 100.0)
  forecast = test.get(np.arange(len(test)))['series'][:, 4:, 0]
  np.testing.assert_array_equal(forecast.ravel(), np.arange(24, 30))  # no gap, no overlap


def test_a_batch_is_a_function_of_seed_and_step_alone(tmp_path):
  config = _config(_saved(tmp_path))
  batches = [data.Data(config).batch(step)['series'] for step in (0, 5, 9)]
  again = data.Data(config)
  for step, batch in ((9, batches[2]), (0, batches[0]), (5, batches[1])):
    np.testing.assert_array_equal(again.batch(step)['series'], batch)
  assert (batches[0] != batches[1]).any()


def test_features_are_phases_of_the_row_and_known_columns(tmp_path):
  path = _saved(tmp_path)
  split = data.Data(_config(path, periods=(4.0,), known=('b',))).split('train')
  batch = split.get(np.array([3]))
  assert batch['series'].shape == (1, 6, 1) and batch['features'].shape == (1, 6, 3)
  rows = np.arange(3, 9)
  # Quarter turns: sine and cosine are 0, 1 or -1.
  np.testing.assert_allclose(batch['features'][0, :, 0], [-1, 0, 1, 0, -1, 0], atol=1e-6)
  np.testing.assert_allclose(batch['features'][0, :, 1], [0, 1, 0, -1, 0, 1], atol=1e-6)
  np.testing.assert_array_equal(batch['features'][0, :, 2], 100.0 + rows)


def test_the_batch_of_a_forecast_ends_with_the_last_row_and_goes_on_in_its_features(tmp_path):
  windows = series.Windows(history=4, horizon=2, periods=(4.0,))
  read = series.read(str(_saved(tmp_path)))
  batch = series.ahead(read, windows, 3)
  np.testing.assert_array_equal(batch['series'][0, :, 0], [26, 27, 28, 29])
  whole = series.features(windows, np.zeros((40, 0)), np.arange(26, 33))
  np.testing.assert_allclose(batch['features'][0], whole, atol=1e-6)
  # A file that begins later in the day has the phases of its own rows.
  later = series.ahead(series.Series(read.values[5:], read.names, read.known[5:]), windows, 3, 5)
  np.testing.assert_allclose(later['features'], batch['features'], atol=1e-6)


def test_a_csv_has_the_columns_of_its_arrays(tmp_path):
  (tmp_path / 'x.csv').write_text('when,a,b\n2020-01-01,1,2.5\n2020-01-02,3,-4e1\n')
  read = series.read(str(tmp_path / 'x.csv'))
  assert read.names == ('a', 'b')
  np.testing.assert_array_equal(read.values, [[1.0, 2.5], [3.0, -40.0]])
  one = series.read(str(tmp_path / 'x.csv'), columns=('b',))
  np.testing.assert_array_equal(one.values, [[2.5], [-40.0]])


def test_known_columns_may_go_on_where_the_series_end(tmp_path):
  (tmp_path / 'x.csv').write_text('a,wind\n1,5\n2,6\n,7\n,8\n')
  read = series.read(str(tmp_path / 'x.csv'), known=('wind',))
  np.testing.assert_array_equal(read.values, [[1.0], [2.0]])
  windows = series.Windows(history=2, horizon=1, known=('wind',))
  np.testing.assert_array_equal(series.ahead(read, windows, 2)['features'][0, :, 0], [5, 6, 7, 8])
  with pytest.raises(InputError, match='go on for 2 rows'):
    series.ahead(read, windows, 3)


@pytest.mark.parametrize('arrays,options,problem', [
    ({'a': np.arange(5.0), 'b': np.arange(6.0)}, {}, 'unequal lengths: a has 5 rows and b has 6'),
    ({'values': np.array([[1.0], [np.nan], [2.0]])}, {}, 'no finite number in row 1'),
    ({'values': np.ones((4, 2)), 'names': ['temp', 'wind']}, {'columns': ('tmp',)},
     'it has no column tmp; .* temp, wind'),
    ({'values': np.ones((4, 2)), 'names': ['temp', 'wind']}, {'known': ('rain',)},
     'it has no column rain'),
    ({'values': np.ones((4, 2)), 'names': ['temp']}, {}, '1 names for 2 columns'),
    ({'a': np.array(['x', 'y'])}, {}, 'a column is numbers'),
])
def test_series_that_cannot_be_read_are_refused_in_one_line(tmp_path, arrays, options, problem):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(InputError, match=problem) as error:
    series.read(str(tmp_path / 'x.npz'), **options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text,problem', [
    ('1,2\n3,4\n', 'numbers in the place of names'),
    ('a,b\n1,2\n3\n', 'line 3 has 1 cells'),
    ('a,b\n1,two\n', "b has 'two' in line 2"),
    ('a,b\n1,\n', 'b has no finite number in row 0'),
])
def test_tables_that_cannot_be_read_are_refused(tmp_path, text, problem):
  (tmp_path / 'x.csv').write_text(text)
  with pytest.raises(InputError, match=problem):
    series.read(str(tmp_path / 'x.csv'))


def test_a_series_that_is_too_short_is_refused_with_the_rows_that_are_needed(tmp_path):
  path = _saved(tmp_path, rows=11)
  with pytest.raises(InputError, match='it has 11 rows, and needed are 12'):
    data.resolve(_config(path))
  with pytest.raises(InputError, match='reads 12 before the first forecast'):
    series.ahead(series.read(str(path)), series.Windows(history=12), 1)
  with pytest.raises(InputError, match='shorter than one forecast'):
    data.resolve(_config(path, test=1))


def test_a_csv_without_windows_names_the_setting(tmp_path):
  config = data.default_config()
  config.name = str(tmp_path / 'x.csv')
  with pytest.raises(InputError, match='config.data.series.history'):
    data.resolve(config)
