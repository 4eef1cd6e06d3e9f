"""Checkpoints: what comes back is what was written, or is set aside and the one before it comes."""
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints, Corrupted

# Of a failed read, tensorstore completes the other arrays when Orbax has closed its event loop.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def state_of(step, shape=(3, 2)):
  """A state whose numbers are known, of several dtypes, none equal to another's."""
  params = {'net': {'kernel': jnp.arange(6.0).reshape(shape) / 3 + step,
                    'half': jnp.arange(4, dtype=jnp.bfloat16) / 3},
            'schedule': {'w': jnp.float32(-0.0), 'tiny': jnp.float32(1e-42)}}
  state = step_lib.init(params, optax.adam(1e-3), {'fast': 0.9, 'slow': 0.99})
  ema = {name: jax.tree.map(lambda u, k=k: u + k, params) for k, name in enumerate(state.ema, 1)}
  return jax.device_get(state.replace(step=jnp.int32(step), ema=ema,
                                      aux={'history': jnp.arange(3) + step}))


def shapes(state):
  return jax.eval_shape(lambda: state)


def assert_same_bits(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for u, v in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    u, v = np.asarray(u), np.asarray(v)
    assert u.dtype == v.dtype and u.shape == v.shape and u.tobytes() == v.tobytes()


@pytest.fixture
def run():
  """Opens and closes; every test sees what another process would."""
  opened = []

  def open_(*args, **kwargs):
    opened.append(Checkpoints(*args, **kwargs))
    return opened[-1]

  yield open_
  for checkpoints in opened:
    checkpoints.close()


def saved(directory, losses, keep=3):
  """Checkpoints of these steps, with these validation losses, written and closed."""
  checkpoints = Checkpoints(directory, keep)
  for step, loss in losses.items():
    checkpoints.save(state_of(step), loss)
  checkpoints.close()


def test_a_state_comes_back_bit_for_bit(tmp_path, run):
  saved(tmp_path, {7: 1.0})
  restored = run(tmp_path).restore(shapes(state_of(0)))
  assert restored.step == 7
  assert_same_bits(restored.state, state_of(7))


def test_the_newest_and_the_best_by_validation_are_kept_also_by_later_processes(tmp_path, run):
  saved(tmp_path, {10: 5.0, 20: 3.0, 30: 4.0, 40: 6.0}, keep=2)
  checkpoints = run(tmp_path, 2)
  assert checkpoints.steps() == [20, 30, 40] and checkpoints.best_step() == 20
  checkpoints.close()
  saved(tmp_path, {50: 3.5, 60: math.inf, 70: math.nan}, keep=2)  # unmeasured, and not a number
  checkpoints = run(tmp_path, 2)
  assert checkpoints.steps() == [20, 60, 70] and checkpoints.best_step() == 20
  checkpoints.close()
  saved(tmp_path, {80: 1.0}, keep=2)
  checkpoints = run(tmp_path, 2)
  assert checkpoints.steps() == [70, 80] and checkpoints.best_step() == 80


def test_nothing_is_the_best_where_nothing_was_measured(tmp_path, run):
  assert run(tmp_path).best_step() is None
  saved(tmp_path, {10: math.inf})
  assert run(tmp_path).best_step() is None


def test_a_loss_of_an_early_phase_is_never_the_best_also_where_it_was_kept_as_such(tmp_path, run):
  """Losses after step 20 are of another quantity; a run from before that was known saved 10."""
  saved(tmp_path, {10: 1.0, 20: 2.0, 30: 6.0}, keep=2)
  assert run(tmp_path, 2, read_only=True).best_step() == 10
  checkpoints = run(tmp_path, 2, settled=20)
  assert checkpoints.best_step() == 30
  for step, loss in {40: 5.0, 50: 7.0, 60: 8.0, 70: 9.0}.items():
    checkpoints.save(state_of(step), loss)
  checkpoints.seal()
  assert checkpoints.steps() == [40, 60, 70] and checkpoints.best_step() == 40


def test_an_empty_directory_restores_nothing(tmp_path, run):
  assert run(tmp_path).restore(shapes(state_of(0))) is None
  assert run(tmp_path / 'absent', read_only=True).steps() == []
  assert not (tmp_path / 'absent').exists()


def test_weights_are_read_by_the_name_of_the_average(tmp_path, run):
  saved(tmp_path, {10: 1.0, 20: 2.0})
  checkpoints = run(tmp_path, read_only=True)
  for step in (10, 20):
    assert_same_bits(checkpoints.restore_weights(step, None), state_of(step).params)
    assert_same_bits(checkpoints.restore_weights(step, 'slow'), state_of(step).ema['slow'])
  with pytest.raises(KeyError, match="'other'.*fast.*slow"):
    checkpoints.restore_weights(20, 'other')


def files_of(directory, step):
  """One file of each kind (name with its digits and hashes left out) of a checkpoint."""
  root = directory / 'checkpoints' / str(step)
  kinds = {}
  for path in sorted(p for p in root.rglob('*') if p.is_file()):
    kind = '/d/'.join(str(path.relative_to(root)).split('/d/')[:1]) if '/d/' in str(path) else (
        str(path.relative_to(root)))
    kinds[kind] = path
  return kinds


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  directory = tmp_path_factory.mktemp('three')
  saved(directory, {10: 3.0, 20: 2.0, 30: 1.0})
  return directory


@pytest.mark.long
@pytest.mark.parametrize('damage', [flip, truncate, lambda path: path.unlink()],
                         ids=['a bit flipped', 'a byte short', 'missing'])
def test_a_damaged_checkpoint_is_reported_and_set_aside_whichever_file_it_is(
    three, tmp_path, damage, caplog):
  kinds = [kind for kind, path in files_of(three, 30).items() if path.stat().st_size]
  some = ['metrics/metrics', '_CHECKPOINT_METADATA', 'params/manifest.ocdbt', 'rest/_METADATA']
  assert set(some) <= set(kinds)
  for number, kind in enumerate(kinds if damage is flip else some):
    directory = tmp_path / str(number)
    shutil.copytree(three, directory)
    damage(files_of(directory, 30)[kind])
    caplog.clear()
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(shapes(state_of(0)))
    assert restored.step == 20, kind
    assert_same_bits(restored.state, state_of(20))
    assert 'Checkpoint 30 is corrupted' in caplog.text
    assert checkpoints.steps() == [10, 20] and checkpoints.best_step() == 20
    assert (directory / 'corrupted' / '30').is_dir()
    checkpoints.close()


def test_what_is_damaged_twice_is_set_aside_twice(three, tmp_path):
  directory = tmp_path / 'run'
  shutil.copytree(three, directory)
  for _ in range(2):
    flip(files_of(directory, 30)['params/manifest.ocdbt'])
    checkpoints = Checkpoints(directory)
    assert checkpoints.restore(shapes(state_of(0))).step == 20
    checkpoints.save(state_of(30))  # training comes there again
    checkpoints.close()
    checkpoints = Checkpoints(directory)
    assert checkpoints.restore(shapes(state_of(0))).step == 30
    checkpoints.close()
  assert len(list((directory / 'corrupted').iterdir())) == 2


def test_one_that_was_killed_before_its_checksums_is_read_if_whole_and_set_aside_if_not(
    three, tmp_path):
  for damage, step in ((None, 30), (lambda path: path.unlink(), 20)):
    directory = tmp_path / str(step)
    shutil.copytree(three, directory)
    (directory / 'checksums' / '30.json').unlink()
    if damage:
      damage(files_of(directory, 30)['params/manifest.ocdbt'])
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(shapes(state_of(0)))
    checkpoints.close()
    assert restored.step == step
    assert_same_bits(restored.state, state_of(step))


def test_corrupted_weights_are_not_handed_out(three, tmp_path, run):
  directory = tmp_path / 'run'
  shutil.copytree(three, directory)
  flip(files_of(directory, 30)['params/manifest.ocdbt'])
  with pytest.raises(Corrupted, match='checksums'):
    run(directory, read_only=True).restore_weights(30, 'fast')
  assert (directory / 'checkpoints' / '30').exists()  # a reader moves nothing


def test_a_reader_names_the_checkpoint_whose_loss_is_unreadable(three, tmp_path):
  directory = tmp_path / 'run'
  shutil.copytree(three, directory)
  truncate(files_of(directory, 20)['metrics/metrics'])
  with pytest.raises(InputError, match='checkpoints/20 is corrupted'):
    Checkpoints(directory, read_only=True)


def test_a_sound_checkpoint_of_another_model_is_refused_and_stays_where_it_is(three, run):
  """Set aside as if the disk had failed, a change of code would restart a long run from nothing."""
  other = state_of(0, shape=(2, 3))
  more = state_of(0)
  more = more.replace(params={**more.params, 'new': np.zeros(2, np.float32)})
  for state in (other, more):
    with pytest.raises(InputError, match='another model or optimiser'):
      run(three).restore(shapes(state))
  assert run(three).steps() == [10, 20, 30]


def test_what_a_killed_save_leaves_is_ignored_and_cleaned_up(three, tmp_path, run):
  directory = tmp_path / 'run'
  shutil.copytree(three, directory)
  torn = directory / 'checkpoints' / '40.orbax-checkpoint-tmp'
  shutil.copytree(directory / 'checkpoints' / '30', torn)
  checkpoints = run(directory)
  assert checkpoints.restore(shapes(state_of(0))).step == 30
  checkpoints.save(state_of(40))
  checkpoints.close()
  assert not torn.exists()
  assert run(directory).restore(shapes(state_of(0))).step == 40


def test_the_checksums_are_those_of_the_checkpoints_that_are_kept(three):
  names = {path.stem for path in (three / 'checksums').iterdir()}
  assert names == {'10', '20', '30'}
  recorded = json.loads((three / 'checksums' / '30.json').read_text())
  root = three / 'checkpoints' / '30'
  assert recorded.keys() == {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}
