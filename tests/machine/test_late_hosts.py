"""Processes that start late, and a shared disk that shows files late: real processes.

`support/lagging.py` delays what process 1 sees.
"""
import jax
import numpy as np
import pytest

from tests.support import commands, sgd_config
from vdm_jax import runs

CONFIG = commands.ROOT / 'tests' / 'support' / 'sgd_config.py'


def train(directory, steps):
  return ('scripts/train.py', f'--config={CONFIG}', f'--workdir={directory}',
          f'--config.train.steps={steps}', '--config.train.checkpoint_every=10',
          '--config.train.validate_every=10', '--config.model.features=16')


def assert_trained(directory, steps):
  """The run in `directory` is the run of one process, within the documented tolerance."""
  config = sgd_config.get_config()
  config.model.features = 16
  config.train.update(steps=steps, checkpoint_every=10, validate_every=10)
  whole = directory.with_name('whole')
  runs.train(config, CONFIG, whole)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=2e-6),
               commands.final_state(directory), commands.final_state(whole))


LOOKS = """
import os, subprocess, sys, time
from pathlib import Path
folder, aside = Path(sys.argv[1]), Path(sys.argv[2])
file, begun = folder / 'a', time.monotonic()
content = lambda path=file: path.read_text() if path.exists() else None
listed = lambda: sorted(path.name for path in folder.iterdir())

def wait(old, new, look=content):
  while (seen := look()) == old:
    time.sleep(0.01)
  assert seen == new, seen
  return time.monotonic() - begun

assert (folder / 'd' / 'b').exists() is file.exists() is False and listed() == []
assert wait(None, 'old') >= 0.5
wait(None, 'below', lambda: content(folder / 'd' / 'b'))
begun = time.monotonic()
subprocess.run(['mv', aside / 'a', file], check=True)  # by another process
assert content() == 'old' and listed() == ['a', 'd']
entry = {entry.name: entry for entry in os.scandir(folder)}['a']
assert [each.st_size for each in (file.stat(), file.lstat(), entry.stat())] == [3, 3, 3]
assert wait('old', 'newer') >= 0.5
subprocess.run(['mv', folder / 'd', aside / 'gone'], check=True)
subprocess.run(['mv', aside / 'd', folder / 'd'], check=True)
assert content(folder / 'd' / 'b') == 'below'  # it was not looked for in between
wait('below', None, lambda: content(folder / 'd' / 'b'))  # the new folder, whose files are late
wait(None, 'new below', lambda: content(folder / 'd' / 'b'))
(aside / 'own').write_text('own')
os.replace(aside / 'own', file)
assert content() == 'own'
"""


@pytest.mark.long
def test_the_disk_of_these_tests_shows_for_a_while_what_a_replaced_file_was(tmp_path):
  folder, aside, script = tmp_path / 'folder', tmp_path / 'aside', tmp_path / 'looks.py'
  for path, text in ((folder / 'a', 'old'), (folder / 'd' / 'b', 'below'), (aside / 'a', 'newer'),
                     (aside / 'd' / 'b', 'new below'), (script, LOOKS)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  commands.succeed('tests/support/lagging.py', folder, 0.5, 4, script, folder, aside,
                   '--process_id=1', count=1)


@pytest.mark.long
def test_a_run_goes_on_and_is_measured_where_one_process_sees_every_file_seconds_late(tmp_path):
  directory, late = tmp_path / 'run', ('tests/support/lagging.py', tmp_path, 3, 120)
  commands.succeed(*late, *train(directory, 10))
  out = commands.succeed(*late, 'scripts/train.py', f'--workdir={directory}',  # whose config it has
                         '--config.train.steps=20')
  assert 'Resuming at step 10 of 20.' in out
  out = commands.succeed(*late, 'scripts/evaluate.py', f'--workdir={directory}', '--examples=20',
                         '--times=4')
  assert out.count('bits/dim') == 1
  # Process 0 writes samples, which both read.
  commands.succeed(*late, 'scripts/score_samples.py', f'--workdir={directory}',
                   '--reference=swirl:test', '--features=pixels', '--count=20', '--steps=2')
  assert (directory / 'scores.json').exists()
  assert_trained(directory, 20)


@pytest.mark.long
def test_processes_that_share_no_disk_end_with_one_line(tmp_path):
  directory = tmp_path / 'run'
  done = commands.finish(commands.start('tests/support/lagging.py', tmp_path, 10_000, 4,
                                        *train(directory, 10)))
  for code, _, err in done:
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith(f'error: --workdir={directory}: process 1 sees other files there than '
                           'process 0, even after 4 seconds (0 and ')
    assert 'Traceback' not in err


@pytest.mark.long
@pytest.mark.parametrize('count,late', [(4, 3), (2, 0)])
def test_a_process_that_starts_late_is_waited_for(tmp_path, count, late):
  """Whether it is the coordinator or another; four processes train what one trains."""
  directory = tmp_path / 'run'
  done = commands.finish(commands.start(*train(directory, 10), count=count, devices=1,
                                        late=late, seconds=8.0))
  assert [code for code, _, _ in done] == [0] * count, done
  assert_trained(directory, 10)
