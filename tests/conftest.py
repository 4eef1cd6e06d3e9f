"""Four simulated devices, one compilation cache for all tests, and float64 where a test asks."""
import collections
import os
import zlib
from pathlib import Path

# Before JAX is imported.  What the user has set comes last, and so wins.
os.environ['XLA_FLAGS'] = ' '.join(
    ['--xla_force_host_platform_device_count=4',
     '--xla_backend_optimization_level=0',  # most tests compile for longer than they run
     os.environ.get('XLA_FLAGS', '')]).strip()
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR',
                      str(Path(__file__).parents[1] / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import jax
import numpy as np
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()


# What `-m quick` runs: the mathematics alone.  Files of other tests are not even imported then.
QUICK = {'processes', 'schedules', 'targets', 'weightings', 'decoders', 'oracles', 'random',
         'layering'}


differences = collections.defaultdict(dict)  # {table: {row: the largest}}, for --measured


def share(text):
  """'2/6' -> (2, 6)."""
  k, _, n = text.partition('/')
  if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
    raise pytest.UsageError(f'--share={text}: give K/N with K = 1 ... N, such as 2/6')
  return int(k), int(n)


def pytest_addoption(parser):
  parser.addoption('--measured', metavar='DIR', help='If all tests pass, write the largest '
                   'differences from public code into the tables in this folder: docs/measured.')
  parser.addoption('--share', metavar='K/N', type=share, help='Of the long tests, run only part K '
                   'of N parts: 1/6 ... 6/6.  All parts together are all long tests.')


@pytest.fixture
def differs(request):
  """differs(table, row, got, want, relative=True): notes the largest difference, for --measured.

  relative: to the largest of the numbers `want`.
  """
  def note(table, row, got, want, relative=True):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    difference = np.abs(got - want).max() / (np.abs(want).max() if relative else 1.0)
    request.node.user_properties.append(('differs', (table, row, float(difference))))
  return note


def pytest_runtest_logreport(report):  # also of the tests of other processes
  for name, value in report.user_properties:
    if name == 'differs':
      table, row, difference = value
      differences[table][row] = max(differences[table].get(row, 0.0), difference)


def pytest_sessionfinish(session, exitstatus):
  folder = session.config.getoption('measured')
  if folder and exitstatus == pytest.ExitCode.OK and not hasattr(session.config, 'workerinput'):
    from vdm_jax import cli  # which the quick tests do without
    for table, rows in differences.items():
      cli.keep_rows(str(Path(folder, f'{table}.json')), {
          row: {'largest difference': f'{value:.1e}'} for row, value in rows.items()})


def pytest_ignore_collect(collection_path, config):
  if config.option.markexpr == 'quick' and collection_path.suffix == '.py':
    return collection_path.stem.removeprefix('test_') not in QUICK or None
  return None


@pytest.hookimpl(tryfirst=True)  # before -m reads the markers
def pytest_collection_modifyitems(config, items):
  cases = collections.Counter()
  for item in items:
    function = item.nodeid.partition('[')[0]
    cases[function] += 1
    if (first := item.get_closest_marker('first')) and cases[function] > first.args[0]:
      item.add_marker('long')
    if item.path.stem.removeprefix('test_') in QUICK and not item.get_closest_marker('long'):
      item.add_marker('quick')
  if part := config.getoption('share'):
    k, n = part
    # All cases of a test are in one part: they share what they compile.
    there = lambda item: zlib.crc32(item.nodeid.partition('[')[0].encode()) % n == k - 1
    left_out = [item for item in items if item.get_closest_marker('long') and not there(item)]
    items[:] = [item for item in items if not item.get_closest_marker('long') or there(item)]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def x64():
  """float64, which the closed forms deserve.  Not the default: users train in float32."""
  with jax.enable_x64(True):
    yield


def pytest_runtest_setup(item):
  if item.get_closest_marker('gpu') and jax.default_backend() == 'cpu':
    pytest.skip('needs an accelerator, and JAX finds none')
