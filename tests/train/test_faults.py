"""What a run survives: each fault ends in a correct resumption or one clear error, and nothing that
was reported as saved is lost.  Real processes; the moments are drawn from FAULT_SEED, which is
printed, and can be set to repeat them.  Interruptions at any moment are in test_resume.py, damaged
checkpoints in test_checkpoint.py.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import commands, tiny_config
from vdm_jax import data, runs
from vdm_jax.data import builders
from vdm_jax.errors import InputError
from vdm_jax.train import metrics
from vdm_jax.train.checkpoint import Checkpoints

CONFIG = commands.ROOT / 'tests' / 'support' / 'tiny_config.py'
EVERY = 10


@pytest.fixture
def rng():
  seed = int(os.environ.get('FAULT_SEED', time.time_ns() % 10**6))
  print(f'FAULT_SEED={seed}')
  return random.Random(seed)


def command(directory, steps, *more):
  return ('scripts/train.py', f'--config={CONFIG}', f'--workdir={directory}',
          f'--config.train.steps={steps}', f'--config.train.checkpoint_every={EVERY}',
          '--config.train.validate_every=1000', *more)


def last_line(text):
  return text.strip().splitlines()[-1]


# ------------------------------------------------------------ killed inside a save

LARGE = '--config.model.features=300000'  # 9 million numbers in a checkpoint: a save takes a while
STEPS = 80


def inside_a_save(directory):
  return any((directory / 'checkpoints').glob('*.orbax-checkpoint-tmp'))


def saved_by(running, directory, rng):
  """Kills all of them while they write a checkpoint: the newest that was whole before that."""
  begin = commands.newest(directory)
  commands.wait_for(lambda: commands.newest(directory) > begin, running)
  commands.wait_for(lambda: inside_a_save(directory), running)
  time.sleep(rng.uniform(0.0, 0.2))
  newest = commands.newest(directory)
  for each in running:
    each.process.kill()
  commands.finish(running)
  return newest


@pytest.mark.long
@pytest.mark.parametrize('times', [1, 5])
def test_a_run_that_is_killed_inside_a_save_ends_bit_for_bit_as_one_that_was_not(
    tmp_path, rng, times):
  """And goes on from the newest checkpoint that was whole."""
  directory, whole = tmp_path / 'run', tmp_path / 'whole'
  unharmed = commands.start(*command(whole, STEPS, LARGE), count=1, devices=1)
  kills, torn = 0, 0
  while kills < times and commands.newest(directory) + 3 * EVERY < STEPS:
    newest = saved_by(commands.start(*command(directory, STEPS, LARGE), count=1, devices=1),
                      directory, rng)
    kills += 1
    torn += inside_a_save(directory)
    assert commands.newest(directory) >= newest > 0
  print(f'{torn} of {kills} kills left half a checkpoint')
  expected = commands.newest(directory)
  out = commands.succeed(*command(directory, STEPS, LARGE), count=1, devices=1)
  assert f'Resuming at step {expected} of {STEPS}.' in out
  assert not inside_a_save(directory) and not (directory / 'corrupted').exists()
  assert commands.finish(unharmed)[0][0] == 0
  jax.tree.map(np.testing.assert_array_equal, commands.final_state(directory),
               commands.final_state(whole))


# -------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
  """A directory on a disk of 6 MB, and what makes it larger."""
  place = tmp_path / 'disk'
  place.mkdir()
  mount = lambda *arguments: subprocess.run(['mount', *arguments, str(place)], capture_output=True)
  if not shutil.which('mount') or mount('-t', 'tmpfs', '-o', 'size=6m', 'tmpfs').returncode:
    pytest.skip('needs the right to mount a small tmpfs')
  yield place, lambda: mount('-o', 'remount,size=60m')
  subprocess.run(['umount', str(place)], check=True)


@pytest.mark.long
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(small_disk, capfd):
  place, enlarge = small_disk
  directory, steps = place / 'run', 200
  more = ['--config.model.features=8192', '--config.train.keep=50']
  (code, _, err), = commands.finish(commands.start(*command(directory, steps, *more), count=1,
                                                     devices=1))
  assert code == 2
  saved = sorted(int(p.name) for p in (directory / 'checkpoints').glob('*') if p.name.isdigit())
  assert saved and saved[-1] < steps
  assert last_line(err) == (
      f'error: {directory}: no space is left on this disk (or on the disk of the compilation '
      'cache or of temporary files).  The checkpoints of steps '
      f'{", ".join(map(str, saved))} are whole; make room and start the same command again')
  assert 'orbax/' not in err  # its threads' tracebacks, of the same error
  checkpoints = Checkpoints(directory, read_only=True)
  for step in saved:
    checkpoints.restore_weights(step, 'slow')
  checkpoints.close()

  enlarge()
  config = tiny_config.get_config()
  config.model.features = 8192
  config.train.update(steps=saved[-1] + EVERY, checkpoint_every=EVERY, validate_every=1000, keep=50)
  runs.train(config, CONFIG, directory)
  assert f'Resuming at step {saved[-1]} of' in capfd.readouterr().out
  assert commands.newest(directory) == saved[-1] + EVERY
  assert [r['step'] for r in metrics.read(directory) if r['kind'] == 'train'] == [
      *range(5, saved[-1] + EVERY + 1, 5)]


# ------------------------------------------------------------- nobody reads any more


@pytest.mark.long
def test_a_training_whose_output_nobody_reads_makes_its_steps(tmp_path):
  reading, writing = os.pipe()
  os.close(reading)
  process = subprocess.Popen([sys.executable, *command(tmp_path / 'run', 2 * EVERY)],
                             cwd=commands.ROOT, stdout=writing, stderr=writing)
  os.close(writing)
  assert process.wait(240) == 0
  assert commands.newest(tmp_path / 'run') == 2 * EVERY


# ------------------------------------------------------------- one of two is lost


@pytest.mark.long
@pytest.mark.parametrize('which', [0, 1])
def test_one_of_two_processes_that_is_lost_inside_a_save_ends_the_other_with_one_line(
    tmp_path, rng, which):
  directory = tmp_path / 'run'
  running = commands.start(*command(directory, STEPS * 100, LARGE, '--config.train.layout=fsdp'))
  commands.wait_for(lambda: commands.newest(directory) > 0, running)
  commands.wait_for(lambda: inside_a_save(directory), running)
  time.sleep(rng.uniform(0.0, 0.2))
  newest = commands.newest(directory)
  commands.interrupt(running, which, signal.SIGKILL)
  begin = time.monotonic()
  done = commands.finish(running)
  assert time.monotonic() - begin < 60
  code, _, err = done[1 - which]
  assert code != 0 and 'Traceback' not in err and 'stack trace' not in err
  assert last_line(err).startswith('error: '), done
  assert 'of this run was lost' in last_line(err) and 'same command' in last_line(err)
  reached = commands.newest(directory)
  assert reached >= newest
  more = ['--config.train.layout=fsdp', LARGE]
  out = commands.succeed(*command(directory, reached + EVERY, *more))
  assert f'Resuming at step {reached} of' in out and not (directory / 'corrupted').exists()


# ------------------------------------------------------------------ damaged data


def stream(name, memory, **more):
  config = data.default_config()
  config.update(name=str(name), batch_size=8, validation=2, memory_gb=memory, levels=256, workers=1,
                **more)
  batches = data.Data(config).stream()
  try:
    for _ in range(200):  # every image of a small set
      next(batches)
  finally:
    batches.close()


def pictures(directory):
  directory.mkdir()
  for i in range(60):
    pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(directory / f'{i:02d}.png')
  return directory


def cut(content):
  return content[:len(content) // 2]


def spoil(content):
  middle = len(content) // 2
  return content[:middle] + bytes(b ^ 0x5a for b in content[middle:middle + 16]) + (
      content[middle + 16:])


@pytest.mark.parametrize('memory', [
    1.0, pytest.param(0.0, marks=pytest.mark.long)], ids=['in memory', 'by workers'])
@pytest.mark.parametrize('damage', [cut, spoil, lambda content: b''],
                         ids=['cut', 'spoilt', 'empty'])
def test_a_damaged_picture_of_a_folder_is_named(tmp_path, damage, memory):
  folder = pictures(tmp_path / 'pictures')
  bad = folder / '31.png'
  bad.write_bytes(damage(bad.read_bytes()))
  with pytest.raises(InputError, match=r'pictures/31\.png cannot be read') as error:
    stream(folder, memory, shape=(8, 8, 3))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('damage', [cut, spoil], ids=['cut', 'spoilt'])
def test_a_damaged_array_file_is_named(tmp_path, damage):
  path = tmp_path / 'images.npz'
  images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
  np.savez_compressed(path, images=images)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(InputError, match=r'images\.npz cannot be read'):
    stream(path, 1.0)


@pytest.mark.parametrize('memory', [
    1.0, pytest.param(0.0, marks=pytest.mark.long)], ids=['in memory', 'by workers'])
@pytest.mark.parametrize('damage', [cut, spoil], ids=['cut', 'spoilt'])
def test_a_damaged_shard_is_named(tmp_path, damage, memory):
  builder = builders.Digits(data_dir=tmp_path, file_format='array_record')
  builders.generate(builder)
  shard, = tmp_path.rglob('digits-train.array_record*')
  shard.write_bytes(damage(shard.read_bytes()))
  with pytest.raises(InputError, match=f'{shard.name} cannot be read'):
    stream('digits', memory, data_dir=str(tmp_path), shape=(8, 8, 1))


@pytest.mark.long
def test_a_training_on_damaged_data_ends_with_one_line(tmp_path):
  folder = pictures(tmp_path / 'pictures')
  bad = folder / '31.png'
  bad.write_bytes(cut(bad.read_bytes()))
  (code, _, err), = commands.finish(commands.start(
      *command(tmp_path / 'run', 20, f'--config.data.name={folder}', '--config.data.memory_gb=0.0'),
      count=1))
  assert code == 2 and err.count('\n') == 1
  assert err.startswith(f'error: {bad} cannot be read')
