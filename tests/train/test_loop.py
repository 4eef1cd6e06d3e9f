"""The loop: what it measures, when it stops, what it leaves behind."""
import contextlib
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import tiny_config
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.machine import distributed
from vdm_jax.runs import workdir
from vdm_jax.samplers import grids
from vdm_jax.train import loop, metrics, parallel, validate
from vdm_jax.train.checkpoint import Checkpoints

CONFIG = Path(tiny_config.__file__)
POINTS = np.random.default_rng(0).integers(0, 256, (53, 2))


def config(**fields):
  c = tiny_config.get_config()
  c.update_from_flattened_dict(fields)
  return c


def state_in(directory, step=None):
  """The parameters, averages and optimiser state of a checkpoint, the newest by default."""
  trained = workdir.load_trained(directory, step=step or 'latest', average='raw')
  experiment = trained.experiment
  checkpoints = Checkpoints(directory, read_only=True)
  like = jax.eval_shape(
      lambda key: loop.step_lib.init(experiment.init(key), experiment.tx, experiment.ema),
      jax.random.key(0))
  restored = checkpoints.restore(like)
  checkpoints.close()
  return restored.state


def records(directory, kind):
  return [r for r in metrics.read(directory) if r['kind'] == kind]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('runs') / 'run'
  result = runs.train(config(), CONFIG, directory)
  return directory, result


@pytest.fixture
def copy(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / 'copy')


# ------------------------------------------------------------- a whole run


@pytest.mark.long
def test_a_run_records_every_window_and_returns_its_last_validation(trained):
  directory, result = trained
  assert [r['step'] for r in records(directory, 'train')] == list(range(5, 41, 5))
  assert [r['step'] for r in records(directory, 'validation')] == [10, 20, 30, 40]
  last = records(directory, 'validation')[-1]
  assert result == {k: v for k, v in last.items() if k not in ('step', 'kind')}
  terms = last['reconstruction'] + last['latent'] + last['diffusion']
  assert math.isclose(last['loss'], terms, rel_tol=1e-5)
  assert int(state_in(directory).step) == 40
  assert list((directory / 'tensorboard').iterdir())


@pytest.mark.long
def test_the_best_by_validation_is_among_the_checkpoints(trained):
  directory, _ = trained
  losses = {r['step']: r['loss'] for r in records(directory, 'validation')}
  checkpoints = Checkpoints(directory, read_only=True)
  best = min(losses, key=losses.get)
  assert checkpoints.best_step() == best
  assert set(checkpoints.steps()) == {30, 40, best}
  checkpoints.close()


@pytest.mark.long
def test_the_averages_differ_as_their_rates_do(trained):
  """The slow one is farther from the parameters, and nearer to where they began."""
  state = state_in(trained[0])
  begun = tiny_config.build(config()).init(jax.random.split(jax.random.key(1), 3)[0])
  distance = lambda a, b: math.sqrt(sum(
      float(np.sum((u - v) ** 2)) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b),
                                                  strict=True)))
  fast, slow = state.ema['fast'], state.ema['slow']
  assert 0.0 < distance(fast, state.params) < distance(slow, state.params)
  assert 0.0 < distance(slow, begun) < distance(fast, begun)


# ------------------------------------------------------------ going on with it


@pytest.fixture(scope='module')
def decayed(tmp_path_factory):
  """A run of a config file that is gone; its learning rate has fallen to 0 at its last step."""
  file = shutil.copy(CONFIG, tmp_path_factory.mktemp('configs') / 'mine.py')
  directory = tmp_path_factory.mktemp('decayed') / 'run'
  runs.train(config(**{'train.steps': 10, 'optimizer.decay_steps': 10}), file, directory)
  Path(file).unlink()
  return directory


def go_on(directory, extend=False, **fields):
  """As `train.py --workdir=DIRECTORY` does: by what the directory holds."""
  c = workdir.open_config(f'{directory}/config.json').lock()
  c.update_from_flattened_dict(fields)
  runs.train(c, f'{directory}/config.json', directory, extend=extend)
  return state_in(directory)


@pytest.mark.long
def test_a_run_goes_on_by_its_directory_alone_as_one_that_never_stopped(trained, tmp_path,
                                                                        monkeypatch):
  runs.train(config(**{'train.steps': 10}), CONFIG, tmp_path / 'run')
  monkeypatch.chdir(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, go_on('run', **{'train.steps': 40}),
               state_in(trained[0]))


def test_a_run_of_before_the_fields_of_data_goes_on_by_its_directory_alone(trained, tmp_path):
  copy = shutil.copytree(trained[0], tmp_path / 'run')
  kept = json.loads((copy / 'config.json').read_text())
  for name in ('found', 'fields', 'text_length', 'augmentation'):
    kept['config']['data'].pop(name, None)
  (copy / 'config.json').write_text(json.dumps(kept))
  assert int(go_on(copy, **{'train.steps': 45}).step) == 45


@pytest.mark.long
def test_a_run_whose_learning_rate_is_0_moves_on_when_it_is_extended(decayed, tmp_path, capsys):
  copies = [shutil.copytree(decayed, tmp_path / name) for name in ('still', 'extended')]
  ended = state_in(decayed)
  still = go_on(copies[0], **{'train.steps': 20})
  jax.tree.map(np.testing.assert_array_equal, still.params, ended.params)
  assert 'unless --extend' in capsys.readouterr().out
  longer = {'train.steps': 20, 'optimizer.decay_steps': 20}
  with pytest.raises(InputError, match='ask for `extend`'):
    go_on(copies[1], **longer)
  moved = go_on(copies[1], extend=True, **longer)
  assert int(moved.step) == 20
  for u, v in zip(*map(jax.tree.leaves, (moved.params, ended.params)), strict=True):
    assert np.any(u != v)


@pytest.mark.first(1)
@pytest.mark.parametrize('steps', [40, 20], ids=['as many steps', 'fewer steps'])
def test_a_finished_run_started_again_compiles_and_changes_nothing(copy, trained, steps,
                                                                   monkeypatch, capsys):
  before = (copy / 'metrics.jsonl').read_text()
  monkeypatch.setattr(loop.step_lib, 'make_step',
                      lambda *_, **__: lambda *_: pytest.fail('a step was traced'))
  assert runs.train(config(**{'train.steps': steps}), CONFIG, copy) == trained[1]
  assert (copy / 'metrics.jsonl').read_text() == before
  assert int(state_in(copy).step) == 40
  assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.long
def test_a_finished_run_is_extended_at_another_cadence(copy):
  """Bit for bit the run that was to make so many steps from its beginning."""
  runs.train(config(**{'train.steps': 48, 'train.log_every': 4}), CONFIG, copy)
  assert int(state_in(copy).step) == 48
  assert [r['step'] for r in records(copy, 'train')] == [*range(5, 41, 5), 44, 48]
  runs.train(config(**{'train.steps': 48}), CONFIG, copy.parent / 'straight')
  jax.tree.map(np.testing.assert_array_equal, state_in(copy), state_in(copy.parent / 'straight'))


@pytest.mark.long
@pytest.mark.parametrize('layout', ['pmap', 'fsdp'])
def test_a_run_goes_on_under_another_layout_from_the_middle_of_a_chunk(trained, tmp_path, layout,
                                                                       monkeypatch):
  """To step 7 with jit, one at a time; on to 40 with another, in fives: the same states.

  AdamW turns the rounding between the layouts into small differences of the parameters.
  """
  runs.train(config(**{'train.steps': 7}), CONFIG, tmp_path)
  monkeypatch.setattr(parallel, 'SMALLEST_SHARDED', 1)
  runs.train(config(**{'train.layout': layout, 'train.steps_per_dispatch': 5}), CONFIG, tmp_path)
  steps = [r['step'] for r in records(tmp_path, 'train')]
  assert steps == [5, 7, *range(10, 41, 5)]
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-4),
               state_in(tmp_path).params, state_in(trained[0]).params)
  both = zip(records(tmp_path, 'train')[3:], records(trained[0], 'train')[2:], strict=True)
  for one, other in both:
    np.testing.assert_allclose(one['loss'], other['loss'], rtol=1e-4)


@pytest.mark.parametrize('start', [0, 3, 5, 19])
@pytest.mark.parametrize('given', [True, False])
def test_chunks_cover_the_steps_and_keep_to_their_grid(start, given):
  dispatches = loop._Dispatches(5, given)
  sizes = []
  for number, size in enumerate(dispatches.chunks(start, 20)):
    sizes.append(size)
    if dispatches.timed(number):
      dispatches.took(loop.DISPATCH_SECONDS / 3.2)
  ends = np.cumsum([start, *sizes])
  assert ends[-1] == 20
  assert set(range(5 * -(-start // 5), 21, 5)) <= set(ends)  # where the cadences fall
  if given:
    assert set(sizes[1:]) <= {5}
  elif start == 0:
    assert sizes == [1, 1, 3, *[3, 2] * 3]


@pytest.mark.parametrize('seconds,most', [
    (1e-9, 100), (0.005, 100), (0.025, 20), (0.23, 2), (30.0, 1)])
def test_a_dispatch_takes_about_half_a_second_whatever_a_step_takes(seconds, most):
  dispatches = loop._Dispatches(100, given=False)
  assert [number for number in range(9) if dispatches.timed(number)] == [1, 3]
  chunks = dispatches.chunks(0, 1000)
  assert [next(chunks), next(chunks)] == [1, 1]
  dispatches.took(seconds)
  step = 2
  for size in chunks:
    step += size
    assert size == most or size < most and step % 100 == 0
  assert step == 1000
  assert loop.DISPATCH_SECONDS == 0.5
  assert most == 1 or most * seconds <= 1.1 * loop.DISPATCH_SECONDS
  assert not loop._Dispatches(1, given=False).timed(1)


@pytest.mark.long
@pytest.mark.parametrize('layout', loop.LAYOUTS)
def test_a_state_does_not_depend_on_how_many_steps_are_dispatched_together(
    tmp_path, monkeypatch, layout):
  """Bit for bit: the loop over the steps is one program."""
  monkeypatch.setattr(loop, '_steps_per_dispatch', lambda run: 5)
  monkeypatch.setattr(parallel, 'SMALLEST_SHARDED', 1)
  states = []
  for name, seconds in (('one', 1e-9), ('many', 1e9)):
    monkeypatch.setattr(loop, 'DISPATCH_SECONDS', seconds)
    sizes = []
    add = loop.Window.add
    monkeypatch.setattr(loop.Window, 'add', lambda window, first, out, size, sizes=sizes, add=add: (
        sizes.append(size), add(window, first, out, size)))
    runs.train(config(**{'train.layout': layout, 'train.steps': 20}), CONFIG, tmp_path / name)
    monkeypatch.setattr(loop.Window, 'add', add)
    assert sizes == ([1] * 20 if name == 'one' else [1, 1, 1, 2, 5, 5, 5])
    states.append(state_in(tmp_path / name))
  jax.tree.map(np.testing.assert_array_equal, *states)
  losses = [[r['loss'] for r in records(tmp_path / name, 'train')] for name in ('one', 'many')]
  assert losses[0] == losses[1]


@pytest.mark.long
@pytest.mark.parametrize('several', [False, True])
def test_a_signal_waits_for_a_few_dispatches_and_not_for_100_steps(tmp_path, monkeypatch, several):
  """Of seven steps each.  With several processes, all of them stop two calls after the signal."""
  received, sizes, sent = [], [], 10  # the number of the dispatch under way when the signal comes

  @contextlib.contextmanager
  def stopping():
    number = lambda: signal.SIGTERM if received else 0
    yield distributed._of_any(number) if several else number

  def add(window, first, out, size, before=loop.Window.add):
    if len(sizes) == sent:
      received.append(signal.SIGTERM)
    sizes.append(size)
    before(window, first, out, size)
  monkeypatch.setattr(distributed, 'stopping', stopping)
  monkeypatch.setattr(loop, '_steps_per_dispatch', lambda run: 100)
  monkeypatch.setattr(loop._Dispatches, 'took', lambda self, seconds: setattr(self, '_most', 7))
  monkeypatch.setattr(loop.Window, 'add', add)
  fields = {'log_every': 100, 'validate_every': 1000, 'checkpoint_every': 1000, 'steps': 1000}
  with pytest.raises(SystemExit) as stopped:
    runs.train(config(**{f'train.{name}': value for name, value in fields.items()}), CONFIG,
               tmp_path)
  assert stopped.value.code == 128 + signal.SIGTERM
  assert sizes[-1] == 7 and len(sizes) == sent + 1 + (distributed.AHEAD if several else 0)
  assert int(state_in(tmp_path).step) == sum(sizes) < 100


def test_a_torn_last_line_of_the_metrics_is_dropped_and_nothing_else(copy):
  path = copy / 'metrics.jsonl'
  whole = metrics.read(copy)
  path.write_text(path.read_text()[:-9])
  assert metrics.read(copy) == whole[:-1]
  writer = metrics.Writer(copy, 30)
  writer.write(31, 'train', loss=1.0)
  writer.close()
  kept = [r for r in whole if r['step'] <= 30]
  assert metrics.read(copy) == [*kept, {'step': 31, 'kind': 'train', 'loss': 1.0}]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  for start, value in ((0, 1.0), (3, 2.0)):
    if start:
      time.sleep(1.1)  # the name of the file has the second in it
    writer = metrics.Writer(tmp_path, start)
    for step in range(start + 1, start + 5):
      writer.write(step, 'train', loss=value)
    writer.close()
  board = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  assert [(e.step, e.value) for e in board.Scalars('train/loss')] == [
      (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)]


# ----------------------------------------------------------------- stopping


def spied(tmp_path, pictures, measures=None, **fields):
  """A run of the tiny config with these callbacks for pictures and for what is measured."""
  c = config(**{'data.shape': (2,), 'data.levels': 256, **fields})
  workdir.prepare(tmp_path, c, CONFIG)
  return loop.train(tiny_config.build(c), c, tmp_path, pictures=pictures, measures=measures)


def send(number):
  """A callback for pictures that sends this signal to the process itself."""
  def draw(params, step):
    os.kill(os.getpid(), number)
    return np.zeros((2, 2, 3), np.uint8)
  return draw


STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def heeded():
  """The signals as a terminal's programs have them, however these tests were started."""
  before = {number: signal.getsignal(number) for number in STOPPING}
  for number in STOPPING:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.long
@pytest.mark.parametrize('number', STOPPING, ids=lambda number: number.name)
def test_a_signal_saves_the_step_it_is_at_and_the_run_goes_on_from_there(trained, tmp_path, heeded,
                                                                         number, capsys):
  """It comes after step 3, so step 4 is the last; bits are those of a run that was never stopped.

  That checkpoint was not validated, so it cannot be the best.
  """
  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as stopped:
    spied(tmp_path, send(number), **{'train.pictures_every': 3})
  assert stopped.value.code == 128 + number  # the shell's convention
  assert signal.getsignal(number) == before
  said = capsys.readouterr().err.splitlines()[-1]
  name = 'Ctrl-C' if number == signal.SIGINT else number.name
  assert said == f'{name}: saved step 4 and stopped; the same command goes on from there.'
  checkpoints = Checkpoints(tmp_path, read_only=True)
  assert checkpoints.steps() == [4] and checkpoints.best_step() is None
  checkpoints.close()
  if number != signal.SIGTERM:
    return
  runs.train(config(), CONFIG, tmp_path)
  straight = state_in(trained[0])
  jax.tree.map(np.testing.assert_array_equal, state_in(tmp_path), straight)
  checkpoints = Checkpoints(tmp_path, read_only=True)
  assert checkpoints.best_step() >= 10
  checkpoints.close()


def test_a_signal_before_the_first_step_leaves_nothing_to_clean_up(tmp_path, heeded, capsys):
  c = config(**{'data.shape': (2,), 'data.levels': 256})
  initial = lambda params: (os.kill(os.getpid(), signal.SIGTERM), params)[1]
  with pytest.raises(SystemExit) as stopped:
    loop.train(tiny_config.build(c), c, tmp_path, initial=initial)
  assert stopped.value.code == 143
  assert 'SIGTERM: stopped before the first step' in capsys.readouterr().err
  assert Checkpoints(tmp_path, read_only=True).steps() == []


@pytest.mark.long
@pytest.mark.parametrize('steps', [20, 10], ids=['on the way', 'at the end'])
def test_a_validation_that_a_signal_cuts_off_is_made_when_the_run_goes_on(
    trained, tmp_path, heeded, monkeypatch, capsys, steps):
  """The signal comes in its first batch, at step 10: saved, and measured later as if at once."""
  make = loop.make_validate

  def interrupted(*arguments):
    validate = make(*arguments)
    return lambda *given: (os.kill(os.getpid(), signal.SIGTERM), validate(*given))[1]

  c = config(**{'train.steps': steps})
  monkeypatch.setattr(loop, 'make_validate', interrupted)
  with pytest.raises(SystemExit):
    runs.train(c, CONFIG, tmp_path / 'run')
  monkeypatch.undo()
  assert int(state_in(tmp_path / 'run').step) == 10 and not records(tmp_path / 'run', 'validation')
  result = runs.train(c, CONFIG, tmp_path / 'run')
  assert ('its last validation' in capsys.readouterr().out) == (steps == 10)
  expected = [r for r in records(trained[0], 'validation') if r['step'] <= steps]
  assert records(tmp_path / 'run', 'validation') == expected
  assert result.items() <= expected[-1].items()
  jax.tree.map(np.testing.assert_array_equal, state_in(tmp_path / 'run', steps).params,
               state_in(tmp_path / 'run').params)


@pytest.mark.first(1)
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_checkpoint_under_way_whole(tmp_path, error, monkeypatch):
  """Raised two steps after the save of step 10 began."""
  before = signal.getsignal(signal.SIGTERM)
  write = metrics.Writer.write

  def fail(self, step, kind, **values):
    if step == 12:
      raise error
    write(self, step, kind, **values)

  monkeypatch.setattr(metrics.Writer, 'write', fail)
  with pytest.raises(error):
    spied(tmp_path, None, **{'train.log_every': 4, 'train.keep': 1})
  assert signal.getsignal(signal.SIGTERM) == before
  assert int(state_in(tmp_path).step) == 10
  assert (tmp_path / 'checksums' / '10.json').exists()
  assert not list((tmp_path / 'checkpoints').glob('*tmp*'))


# ----------------------------------------------------------------- pictures


def test_a_checkpoint_is_saved_before_a_picture_is_drawn(tmp_path, monkeypatch):
  """A kill in a long picture, the last one too, loses no step."""
  done, save = [], Checkpoints.save

  def saved(self, state, *rest):
    save(self, state, *rest)
    done.append(('save', int(state.step)))

  monkeypatch.setattr(loop.Checkpoints, 'save', saved)
  spied(tmp_path, lambda *_: done.append('picture'),
        **{'train.steps': 15, 'train.pictures_every': 10})
  assert done == [('save', 10), 'picture', ('save', 15)]  # it drew nothing: no more is asked


@pytest.mark.long
def test_a_picture_or_measurement_that_fails_is_a_warning_and_costs_the_run_nothing(
    trained, tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(loop.logging, 'warning', lambda text, *more: warnings.append(text % more))

  def fail(params, step):
    raise ValueError('no ink\nand more')

  spied(tmp_path, fail, fail, **{'train.pictures_every': 20})
  assert warnings == [f'No {what} of step {step}: ValueError: no ink' for step in (20, 40)
                      for what in ('picture', 'measurement')]
  jax.tree.map(np.testing.assert_array_equal, state_in(tmp_path), state_in(trained[0]))


def test_pictures_are_files_of_the_run_as_well(tmp_path):
  drawn = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  spied(tmp_path, lambda *_: drawn, **{'train.steps': 4, 'train.pictures_every': 2})
  for step in (2, 4):
    with Image.open(tmp_path / 'samples' / f'step_{step}.png') as picture:
      np.testing.assert_array_equal(picture, drawn)


@pytest.mark.long
def test_a_run_records_how_far_its_samples_are_from_the_training_images(tmp_path):
  """The distance is the one of the samples that sample.py draws from the same checkpoint."""
  fields = {'train.steps': 4, 'train.pictures_every': 2, 'train.checkpoint_every': 2}
  runs.train(config(**fields), CONFIG, tmp_path / 'run', frechet='pixels', frechet_samples=50)
  measured = records(tmp_path / 'run', 'samples')
  assert [record['step'] for record in measured] == [2, 4]
  trained = workdir.load_trained(tmp_path / 'run')
  runs.sample(tmp_path / 'run', tmp_path / 'drawn.npz', count=50, seed=trained.config.seed,
              batch_size=50, method=runs.ANCESTRAL._replace(times=lambda _: grids.uniform(64)))
  drawn = np.load(tmp_path / 'drawn.npz')['images'].astype(float)
  part = trained.experiment.data.split('train')
  images = part.get(np.arange(len(part)))[part.spec.x.name].astype(float)
  a, b = np.cov(drawn.T), np.cov(images.T)
  expected = (np.square(drawn.mean(0) - images.mean(0)).sum() + np.trace(a) + np.trace(b)
              - 2.0 * np.sqrt(np.linalg.eigvals(a @ b)).real.sum())
  np.testing.assert_allclose(measured[-1]['frechet'], expected, rtol=1e-5)


@pytest.mark.parametrize('options, fields, message', [
    ({'frechet': 'colours'}, {'train.pictures_every': 2}, '^frechet=.*choose pixels'),
    ({'frechet': 'pixels'}, {}, '^frechet=.*pictures_every is 0; set it'),
    ({'frechet': 'pixels', 'frechet_samples': 1}, {'train.pictures_every': 2},
     '^frechet_samples=1: it must be at least 2')])
def test_a_distance_that_cannot_be_measured_is_refused_before_training(tmp_path, options, fields,
                                                                       message):
  with pytest.raises(InputError, match=message):
    runs.train(config(**fields), CONFIG, tmp_path / 'run', **options)
  assert not (tmp_path / 'run').exists()


@pytest.mark.long
@pytest.mark.parametrize('x64', [False, True], ids=['float32', 'x64'])
def test_previews_are_drawn_in_either_precision(tmp_path, x64):
  with jax.enable_x64(x64):
    runs.train(config(**{'train.steps': 2, 'train.pictures_every': 2}), CONFIG, tmp_path / 'run')
  assert (tmp_path / 'run' / 'samples' / 'step_2.png').exists()


@pytest.mark.long
def test_an_infinite_loss_stops_with_its_step_and_terms_and_spares_the_checkpoint(tmp_path):
  """At the very step before a save, which no look at the log precedes: the good one is of 10."""
  fields = {'model.explode_at': 19, 'train.log_every': 40}
  with pytest.raises(loop.Diverged) as stopped:
    runs.train(config(**fields), CONFIG, tmp_path / 'run')
  text = str(stopped.value)
  for part in ('step 19', 'loss inf', 'reconstruction', 'latent', 'diffusion', 'is of step 10',
               '--debug_nans', '--config.optimizer.learning_rate (it is 0.01)'):
    assert part in text
  state = state_in(tmp_path / 'run')
  assert int(state.step) == 10
  assert all(np.isfinite(u).all() for u in jax.tree.leaves(state))
  assert max(r['step'] for r in metrics.read(tmp_path / 'run')) == 10
  fields['train.checkpoint_every'] = 20
  with pytest.raises(loop.Diverged, match='at step 19.*There is no checkpoint.*--debug_nans'):
    runs.train(config(**fields), CONFIG, tmp_path / 'none')


def test_the_window_reports_the_first_bad_step_also_within_a_dispatch():
  """Steps 0, then 1 to 3 at once; the mean of a good window is that of its steps."""
  window = loop.Window(in_flight=3)
  window.add(0, {'loss': jnp.float32(1.0), 'grad_norm': jnp.float32(2.0)})
  window.add(1, {'loss': jnp.array([2.0, 3.0, 6.0]), 'grad_norm': jnp.array([2.0, 2.0, 6.0])})
  assert window.take() == {'loss': 3.0, 'grad_norm': 3.0}
  for name, what in (('loss', 'loss'), ('grad_norm', 'gradient')):
    rows = {'loss': np.ones(3), 'grad_norm': np.ones(3)}
    rows[name] = np.array([1.0, np.nan, np.inf])
    window.add(4, rows)
    with pytest.raises(loop.Diverged, match=f'{what} is not finite at step 5'):
      window.take()


# --------------------------------------------------------------- bad input


@pytest.mark.parametrize('fields,match', [
    ({'train.layout': 'pjit'}, "^config.train.layout='pjit': .*choose one of jit, fsdp, pmap"),
    ({'data.batch_size': 6}, '^config.data.batch_size=6: it cannot be divided over 4 devices'),
    ({'data.batch_size': 0}, 'config.data.batch_size=0: it must be 1 or more'),
    ({'train.accumulate': 3}, '^config.train.accumulate=3: it does not divide the 2 examples'),
    ({'train.accumulate': 0}, '^config.train.accumulate=0: it does not divide'),
    ({'train.steps': 0}, '^config.train.steps=0: '),
    ({'train.keep': 0}, '^config.train.keep=0: '),
    ({'train.pictures_every': -1}, '^config.train.pictures_every=-1'),
    ({'train.steps_per_dispatch': 3}, '^config.train.steps_per_dispatch=3: it does not divide'),
    ({'train.splits': ('test',)}, "^config.train.splits=.*must contain 'validation'"),
    ({'train.splits': ('validation', 'tset')}, '^config.train.splits=.*tset'),
    ({'train.splits': ('validation', 'train')}, '^config.train.splits=.*train'),
    ({'data.validation': 0}, '^config.data.validation=0: '),
    ({'seed': -1}, 'config.seed=-1: .*from 0 to'),
    ({'data.name': 'cifar10'}, 'scripts/prepare_data.py cifar10'),
    ({'optimizer.decay_steps': 3}, '^config.optimizer.decay_steps=3: ')], ids=str)
def test_what_could_not_run_is_refused_before_the_directory_is_touched(tmp_path, fields, match):
  c = config(**{'data.data_dir': str(tmp_path / 'nothing'), **fields})
  with pytest.raises((InputError, FileNotFoundError), match=match):
    runs.train(c, CONFIG, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_only_process_0_writes_and_prints(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  writer = metrics.Writer(tmp_path, 0)
  writer.write(1, 'train', loss=1.0)
  writer.picture(1, 'samples', np.zeros((2, 2, 3), np.uint8))
  writer.close()
  metrics.show(metrics.parameter_table({'net': {'kernel': np.zeros(3)}}))
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().out == ''


def test_the_parameter_table_counts_by_block(capsys):
  params = {'net': {'a': {'kernel': np.full((3, 4), 2.0), 'bias': np.zeros(4)}},
            'schedule': {'w': np.ones(1)}}
  metrics.show(metrics.parameter_table(params))
  rows = [line.replace('│', ' ').split() for line in capsys.readouterr().out.splitlines()]
  assert ['net/a', '2', '16', '1.73'] in rows  # sqrt(12 * 4 / 16)
  assert ['schedule/w', '1', '1', '1'] in rows and ['total', '17'] in rows


# --------------------------------------------------------------- validation


class Points:
  """A split of known numbers."""

  def __len__(self):
    return len(POINTS)

  def get(self, rows):
    return {'image': POINTS[rows]}


def measure(loss, batch_size, repeats=1, key=0):
  return validate.make_validate(loss, Points(), jax.random.key(key), batch_size, repeats)({})


@pytest.mark.parametrize('batch_size', [1, 8, 53, 64])
def test_validation_is_the_mean_over_every_example_once(batch_size):
  """Of something that depends on the example alone; 53 is prime, so the last batch is ragged."""
  assert len(POINTS) == 53
  loss = lambda params, batch, context: (jnp.sum(batch['image'], -1, dtype=jnp.float32), {
      'first': batch['image'][:, 0].astype(jnp.float32)})
  values = measure(loss, batch_size, repeats=2)
  np.testing.assert_allclose(values['loss'], POINTS.sum() / 53, rtol=1e-6)
  np.testing.assert_allclose(values['first'], POINTS[:, 0].mean(), rtol=1e-6)


@pytest.mark.long
def test_validation_knows_no_batch_size_and_no_dropout():
  experiment = tiny_config.build(config())
  params = experiment.init(jax.random.key(0))
  trains = []

  def loss(params, batch, context):
    trains.append(context.train)
    return experiment.loss(params, batch, context)

  split = experiment.data.split('validation')
  results = [validate.make_validate(loss, split, jax.random.key(5), size, 2)(params)
             for size in (8, 20)]
  assert trains and not any(trains)
  for name in ('loss', 'reconstruction', 'latent', 'diffusion'):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-6)


def test_the_times_of_validation_are_evenly_spread_over_examples_and_repeats():
  """sum_k exp(2 pi i m t_k) = 0 for m < n: all moments of a grid, wherever it begins."""
  def loss(params, batch, context):
    return context.t, {'cos': jnp.cos(2 * jnp.pi * context.t), 'sin3': jnp.sin(
        6 * jnp.pi * context.t)}
  values = measure(loss, 16, repeats=2)
  assert abs(values['cos']) < 1e-6 and abs(values['sin3']) < 1e-6
  assert abs(values['loss'] - 0.5) <= 0.5 / 53
  by_key = {round(measure(loss, 16, key=k)['loss'], 6) for k in range(4)}
  assert len(by_key) == 4


def test_no_two_times_of_validation_are_one_where_repeats_and_examples_share_a_factor():
  """53 examples 53 times are 2,809 times, on whose grid the moment of order 53 is 0."""
  def loss(params, batch, context):
    return context.t, {'cos': jnp.cos(2 * jnp.pi * jnp.mod(53 * context.t, 1.0)),
                       'first': jnp.where(batch['image'][:, 0] == POINTS[0, 0], context.t, 0.0)}
  values = measure(loss, 64, repeats=53)
  assert abs(values['cos']) < 1e-4
  count = np.sum(POINTS[:, 0] == POINTS[0, 0])
  assert abs(53 * values['first'] / count - 0.5) < 1 / 53  # of one example


@pytest.mark.long
def test_the_noise_of_validation_is_new_for_each_repeat_and_the_same_at_each_call():
  """The mean of n R independent standard normals has variance 1 / (n R)."""
  draw = lambda keys: jax.vmap(jax.random.normal)(keys)
  loss = lambda params, batch, context: (draw(context.keys), {'square': draw(context.keys) ** 2})
  values = measure(loss, 16, repeats=40)
  n = 53 * 40
  assert abs(values['loss']) < 4 / math.sqrt(n)
  assert abs(values['square'] - 1.0) < 4 * math.sqrt(2 / n)
  assert measure(loss, 8, repeats=40)['loss'] == pytest.approx(values['loss'], abs=1e-6)


# ---------------------------------------------------------------- several


@pytest.mark.long
def test_a_run_begins_from_the_weights_of_another(trained, tmp_path):
  """The first step of the warm-up has rate 0, so after it the parameters are those given."""
  directory, _ = trained
  runs.train(config(**{'train.steps': 1}), CONFIG, tmp_path / 'new', init_from=str(directory))
  state, given = state_in(tmp_path / 'new'), state_in(directory).ema['slow']
  jax.tree.map(np.testing.assert_array_equal, state.params, given)
  jax.tree.map(np.testing.assert_array_equal, state.ema['slow'], given)
  # The run that goes on no longer needs the one it began from.
  runs.train(config(**{'train.steps': 1}), CONFIG, tmp_path / 'new',
             init_from=str(tmp_path / 'gone'))


@pytest.mark.long
def test_seeds_have_a_directory_each_and_a_table_of_their_spread(tmp_path, capsys):
  runs.train_seeds(config(**{'train.steps': 2}), CONFIG, tmp_path, [3, 5])
  rows = [line.replace('│', ' ').split() for line in capsys.readouterr().out.splitlines()]
  losses = []
  for seed in (3, 5):
    directory = tmp_path / f'seed_{seed}'
    assert workdir.read_config(directory).seed == seed
    losses.append(records(directory, 'validation')[-1]['bits_per_dim'])
    assert any(row[:2] == [str(seed), f'{losses[-1]:.4f}'] for row in rows if row)
  assert losses[0] != losses[1]
  mean = next(float(row[1]) for row in rows if row and row[0] == 'mean')
  std = next(float(row[1]) for row in rows if row and row[0] == 'std')
  assert mean == pytest.approx(sum(losses) / 2, abs=6e-5)
  assert std == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2), abs=6e-5)


@pytest.mark.long
def test_a_split_is_evaluated_on_the_way_if_it_is_named(tmp_path):
  np.save(tmp_path / 'points.npy', np.arange(600).astype(np.uint8).reshape(300, 2))
  fields = {'train.steps': 1, 'train.splits': ('validation', 'test'),
            'data.name': str(tmp_path / 'points.npy')}  # 300 points: 250 and 50
  runs.train(config(**fields), CONFIG, tmp_path / 'run')
  assert [r['kind'] for r in metrics.read(tmp_path / 'run')] == ['train', 'validation', 'test']


@pytest.mark.long
def test_profile_writes_a_trace(tmp_path):
  runs.train(config(**{'train.steps': 8}), CONFIG, tmp_path, profile=3)
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


