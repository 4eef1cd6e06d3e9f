"""Students of one teacher: which runs and samplers there are, what a point takes, what is drawn."""
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import commands, images_run, stopping
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue
from vdm_jax.studies import distilling
from vdm_jax.train import metrics

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(scope='module')
def get_config():
  return workdir.import_config(CONFIGS / 'digits' / 'distilled.py').get_config


@pytest.mark.long
def test_every_student_is_a_system_of_the_config_and_makes_as_many_updates(get_config):
  updates = {name: get_config(name).train.steps for name in distilling.RUNS}
  assert len({updates[name] for name in list(distilling.RUNS)[1:]}) == 1
  for name, run in distilling.RUNS.items():
    assert not run.start or run.start in distilling.RUNS
    assert bool(run.pairs) == (get_config(name).data.name == './runs/digits_pairs')


@pytest.mark.first(14)
@pytest.mark.parametrize('point', distilling.POINTS, ids=lambda p: f'{p.run}-{p.steps}-{p.w}')
def test_a_point_is_a_sampler_of_a_run_at_a_checkpoint_that_is_kept(point, get_config):
  assert catalogue.method(point.sampler, point.steps).name == point.sampler
  train = get_config(point.run).train
  at = point.phase * train.steps
  assert at == pytest.approx(round(at))
  assert round(at) in (train.steps, *range(0, train.steps, train.checkpoint_every))
  assert train.steps - (train.keep - 1) * train.checkpoint_every <= round(at)


def test_a_student_that_there_is_not_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(InputError, match='there is no such choice; choose one of teacher, progre'):
    distilling.study(tmp_path / 'runs', tmp_path / 'a.png', CONFIGS, students=['progressiv'])
  assert not list(tmp_path.iterdir())


def test_the_cost_of_a_student_includes_the_students_it_starts_from(tmp_path):
  """Each run makes 600 updates of 50 images in 2 minutes; the unequal rates test the median."""
  for name in distilling.RUNS:
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(
        {'config': {'train': {'steps': 600}, 'data': {'batch_size': 50, 'name': 'digits'}},
         'from': ''}))
    (tmp_path / name / 'metrics.jsonl').write_text(''.join(
        json.dumps({'step': step, 'kind': 'train', 'steps_per_second': rate}) + '\n'
        for step, rate in ((200, 1.0), (400, 5.0), (600, 6.0))))
  cost = lambda name: distilling.cost(name, tmp_path, 10_000)
  # 3 evaluations of 30,000 images, 5 of a progressive or guided student; 12 or 6 of 10,000 pairs.
  for name, updates, evaluations, minutes in (
      ('teacher', 600, 0.09, 2), ('progressive', 600, 0.15, 2), ('reflow', 600, 0.21, 2),
      ('one_step', 1200, 0.21 + 0.15, 4), ('few_guided', 1200, 0.15 + 0.15, 4)):
    assert cost(name) == pytest.approx((updates, evaluations, minutes)), name


def test_a_line_has_its_points_in_the_order_of_their_evaluations():
  points = [distilling.Point('a', 'teacher', 'ddim_to_x', n) for n in (4, 1, 2)]
  images = np.zeros((2, 8, 8, 1))
  figure = distilling.picture([
      distilling.Result(point, point.steps, 100, 10.0 / point.steps, 0.1, images)
      for point in points])
  left, right = figure.axes
  assert [float(x) for x in left.containers[0][0].get_xdata()] == [1.0, 2.0, 4.0]
  assert [float(y) for y in left.containers[0][0].get_ydata()] == [10.0, 5.0, 2.5]
  assert [label.get_text() for label in right.get_yticklabels()] == ['a: 4', 'a: 1', 'a: 2']


@pytest.mark.long
def test_a_point_is_measured_again_with_any_number_of_samples(tmp_path):
  rng = np.random.default_rng(0)
  np.save(tmp_path / 'data.npy', rng.integers(0, 256, (24, 4, 4, 1), np.uint8))
  images_run.make_run(tmp_path, tmp_path / 'data.npy', False)
  point = distilling.Point('a', 'run', 'ddim_to_x', 1)
  measure = lambda count, overwrite=False: distilling._measure(
      point, tmp_path, lambda images: (float(len(images)), 0.0), count, 60, overwrite)
  assert [measure(count).distance for count in (90, 25)] == [60.0, 25.0]
  file = tmp_path / 'run' / 'ddim_to_x_1_25.npz'
  drawn = np.load(file)['images']
  np.savez(file, images=drawn[:5])
  with pytest.raises(InputError, match='it is there already.*; .*ask for `overwrite`'):
    measure(25)
  assert measure(25, overwrite=True).distance == 25.0
  np.testing.assert_array_equal(np.load(file)['images'], drawn)


@pytest.mark.long
def test_the_study_trains_all_students_and_goes_on_with_what_is_there(tmp_path):
  asked = {'train_steps': 3, 'count': 40, 'most': 100, 'pairs': 300}
  results, table = distilling.study(tmp_path / 'runs', tmp_path / 'a.png', CONFIGS, **asked)
  assert len(results) == len(distilling.POINTS) == table.row_count
  assert [r.evaluations for r in results if r.point.w and r.point.run == 'teacher'] == [16]
  again, _ = distilling.study(tmp_path / 'runs', tmp_path / 'b.png', CONFIGS, **asked)
  assert [(r.distance, r.error) for r in again] == [(r.distance, r.error) for r in results]


@pytest.fixture
def small(tmp_path):
  """The configs of the study with small networks, batches of 8 and a record of each update."""
  short = """config.data.update(batch_size=8, validation=8)
  config.train.update(log_every=1, splits=('validation',), validation_repeats=1)
  """
  folder = tmp_path / 'configs' / 'digits'
  folder.mkdir(parents=True)
  for name, changes in {
      'distilled.py': {'features=16, blocks=2': 'features=8, blocks=1',
                       'if system in PAIRS:\n': f'{short}if system in PAIRS:\n'},
      'classifier.py': {'default_config()': 'default_config(channels=(8, 8), features=8)',
                        'return config\n': f'{short}return config\n'}}.items():
    text = (CONFIGS / 'digits' / name).read_text()
    for old, new in changes.items():
      assert text.count(old) == 1
      text = text.replace(old, new)
    (folder / name).write_text(text)
  return tmp_path / 'configs'


@pytest.mark.long
def test_a_study_that_is_stopped_in_the_training_of_a_teacher_and_of_its_student_ends_as_one_not(
    small, tmp_path, monkeypatch):
  """The students of 4 and of 2 steps are checkpoints from before the second stop."""
  monkeypatch.setattr(distilling, 'POINTS', [p for p in distilling.POINTS
                                             if p.run == 'progressive'])
  study = lambda name: distilling.study(
      tmp_path / name, tmp_path / f'{name}.png', small, students=['progressive'], train_steps=6,
      count=20)[0]
  place = tmp_path / 'stopped'
  for run in ('teacher', 'progressive'):  # checkpoints are of updates 2, 4 and 6
    with monkeypatch.context() as patched:
      patched.setattr(metrics.Writer, 'write', stopping.stopped(
          metrics.Writer, 'write',
          lambda writer, step, *_, run=run: step == 5 and (place / run).exists()))
      with pytest.raises(KeyboardInterrupt):
        study('stopped')
    assert workdir.steps_made(place / run) == 4
  assert workdir.steps_made(place / 'teacher') == 6
  assert not (tmp_path / 'stopped.png').exists()
  ours, whole = study('stopped'), study('whole')
  assert [result.point.steps for result in ours] == [4, 2, 1]
  for one, other in zip(ours, whole, strict=True):
    assert (one.distance, one.error) == (other.distance, other.error)
    np.testing.assert_array_equal(one.images, other.images)
  for run in ('teacher', 'progressive'):
    states = [commands.final_state(tmp_path / name / run) for name in ('stopped', 'whole')]
    assert [int(state.step) for state in states] == [6, 6]
    jax.tree.map(np.testing.assert_array_equal, *states)
