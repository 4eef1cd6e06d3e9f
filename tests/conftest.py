"""Four simulated devices, one compilation cache for all tests, and float64 where a test asks."""
import collections
import os
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
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()


# What `-m quick` runs: the mathematics alone.  Files of other tests are not even imported then.
QUICK = {'processes', 'schedules', 'targets', 'weightings', 'decoders', 'oracles', 'random',
         'layering'}


def pytest_ignore_collect(collection_path, config):
  if config.option.markexpr == 'quick' and collection_path.suffix == '.py':
    return collection_path.stem.removeprefix('test_') not in QUICK or None
  return None


@pytest.hookimpl(tryfirst=True)  # before -m reads the markers
def pytest_collection_modifyitems(items):
  cases = collections.Counter()
  for item in items:
    function = item.nodeid.partition('[')[0]
    cases[function] += 1
    if (first := item.get_closest_marker('first')) and cases[function] > first.args[0]:
      item.add_marker('long')
    if item.path.stem.removeprefix('test_') in QUICK and not item.get_closest_marker('long'):
      item.add_marker('quick')


@pytest.fixture
def x64():
  """float64, which the closed forms deserve.  Not the default: users train in float32."""
  with jax.enable_x64(True):
    yield


def pytest_runtest_setup(item):
  if item.get_closest_marker('gpu') and jax.default_backend() == 'cpu':
    pytest.skip('needs an accelerator, and JAX finds none')
