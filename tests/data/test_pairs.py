"""Pairs of noise and sample: made by a run, resumed, refused, and read as named float fields."""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from tests.support import configs
from vdm_jax import data, guidance, oracles, runs, schedules
from vdm_jax.data import conditions, fields, pairs, writers
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import pairing, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems import networks, paired
from vdm_jax.systems.distilled import knowledge
from vdm_jax.systems.flows import flow_matching
from vdm_jax.train import lock

HEUN = catalogue.method('heun', 3)
ROOT = Path(__file__).parents[2]


def tiny(system='ot', **model):
  module, config = configs.read(f'plane/flows:{system}')
  config.model.update(features=8, blocks=1, **model)
  config.data.update(batch_size=8, validation=8)
  config.train.update(steps=2, checkpoint_every=2, validate_every=2, pictures_every=0, log_every=1,
                      validation_repeats=1)
  config.optimizer.decay_steps = 0
  config.ema = {'ema': 0.5}
  return module, config


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp('runs') / 'teacher'
  runs.train(tiny()[1], configs.file('plane/flows'), place)
  return place


@pytest.fixture(scope='module')
def made(teacher):
  place = teacher.parent / 'pairs'
  return runs.make_pairs(teacher, place, method=HEUN, count=60, batch_size=16)


def arrays(place):
  return {path.name: np.load(path) for path in sorted(Path(place).glob('*.npy'))}


@pytest.mark.long
def test_pairs_are_the_noise_and_what_the_sampler_makes_of_it_as_floats(teacher, made):
  trained = workdir.load_trained(teacher)
  model = trained.experiment.model(trained.params)
  got = arrays(made)
  assert got.keys() == {'image.npy', 'x.npy', 'z_1.npy'}
  assert got['x.npy'].dtype == got['z_1.npy'].dtype == np.float32
  from vdm_jax.samplers import sample
  z = got['z_1.npy'][:16]
  keys = jax.random.split(jax.random.key(0), 16)
  out = sample(HEUN.make(model.denoise, model.process), keys, z, HEUN.times(model.process))
  x = out / model.process(0.0).alpha
  np.testing.assert_allclose(got['x.npy'][:16], x, atol=1e-5)
  np.testing.assert_array_equal(got['image.npy'], model.decode(got['x.npy']))
  drawn = model.sample(jax.random.key(0, impl='threefry2x32'), 16, sampler='heun', steps=3)
  assert (np.abs(np.asarray(drawn, int) - got['image.npy'][:16]) <= 1).all()
  assert abs(got['z_1.npy'].std() - 1.0) < 4 / (2 * 120)**0.5


@pytest.mark.long
def test_pairs_are_read_as_named_float_fields_and_their_hash_is_kept(teacher, made):
  _, config = tiny()
  config.data.update(name=str(made), validation=5)
  split = data.Data(config.data).split('train')
  assert [str(field) for field in split.spec.fields] == [
      'image 2, 256 levels', 'x 2, real numbers', 'z_1 2, real numbers']
  rows = np.array([0, 3, 7])
  kept = np.flatnonzero(np.arange(60) % 6)[rows]
  for name, values in split.get(rows).items():
    np.testing.assert_array_equal(values, np.load(made / f'{name}.npy')[kept])
  about = pairs.record(made)['about']
  from vdm_jax.evaluation.features import checksum
  assert about['weights'] == checksum(workdir.load_trained(teacher).params)
  assert about['sampler'] == 'heun'
  np.testing.assert_allclose(about['prior_std'], 1.0, atol=1e-4)


@pytest.mark.long
def test_samples_of_a_student_are_compared_with_the_data_of_the_teacher_and_not_the_pairs(made):
  _, config = tiny()
  own = data.Data(config.data)
  truth = pairing.truth(own)
  assert truth is own
  config.data.update(name=str(made), validation=5)
  student = pairing.truth(data.Data(config.data))
  rows = np.arange(100)
  np.testing.assert_array_equal(student.split('test').get(rows)['image'],
                                own.split('test').get(rows)['image'])


@pytest.mark.long
def test_a_command_that_ended_goes_on_bit_for_bit_and_holds_a_batch_at_a_time(teacher, made,
                                                                              monkeypatch):
  place, batches = teacher.parent / 'resumed', []
  write = writers.Writer.write

  def once(self, first, batch):
    if len(batches) == 2:
      raise KeyboardInterrupt
    batches.append(len(batch['x']))
    write(self, first, batch)
  with monkeypatch.context() as patched:
    patched.setattr(writers.Writer, 'write', once)
    with pytest.raises(KeyboardInterrupt):
      runs.make_pairs(teacher, place, method=HEUN, count=60, batch_size=16)
  assert batches == [16, 16] and not place.exists()  # nothing that looks finished
  with pytest.raises(InputError, match='32 of its 60 pairs are made; let scripts/make_pairs.py'):
    data.resolve(ml_collections.ConfigDict({**data.default_config(), 'name': str(place)}))
  runs.make_pairs(teacher, place, method=HEUN, count=60, batch_size=16)
  ours, theirs = arrays(place), arrays(made)
  assert ours.keys() == theirs.keys()
  for name, values in theirs.items():
    assert ours[name].tobytes() == values.tobytes()


TOLD = re.compile(r'(?P<count>[\d,]+) pairs(, (?P<rate>[\d.e+]+) a second)?(, (?P<evaluations>\d+) '
                  r'evaluations of the network for each)?, E\|x - z_1\|\^2 = (?P<cost>[\d.e-]+) '
                  r'\+- (?P<error>[\d.e-]+)\n')


def test_pairs_that_are_there_are_not_made_again(teacher, made, monkeypatch, capsys):
  monkeypatch.setattr(writers.Writer, 'write', None)
  assert runs.make_pairs(teacher, made, method=HEUN, count=60, batch_size=16) == made
  told = TOLD.search(capsys.readouterr().out)
  assert told['count'] == '60' and told['rate'] is told['evaluations'] is None


def test_the_cost_of_pairs_is_the_mean_square_of_their_distance(tmp_path, monkeypatch):
  """Pair i has the distance (3 i, 4 i), in more blocks than one."""
  place, n = tmp_path / 'pairs', 1000
  writer = pairs.writer(place, {}, n, pairs.fields_of(fields.reals('x_0', (2,))))
  writer.begin()
  i = np.arange(n, dtype=np.float32)[:, None]
  writer.write(0, {'x': 3.0 + i * [3.0, 0.0], 'z_1': 3.0 - i * [0.0, 4.0]})
  writer.close()
  for most in (n, 300):
    costs = 25.0 * np.arange(most)**2
    np.testing.assert_allclose(pairs.cost(place, most),
                               (costs.mean(), costs.std() / most**0.5), rtol=1e-6)


@pytest.mark.parametrize('options,says', [
    ({'seed': 1}, 'pairs of another seed are there already'),
    ({'count': 61}, 'pairs of another count are there already'),
    ({'method': catalogue.method('ddim', 3)}, 'pairs of another sampler'),
    ({'method': catalogue.method('ancestral', 3)}, 'it draws noise on the way, so that x is no'),
    ({'method': catalogue.method('ddim', 3, eta=0.5)}, 'it draws noise on the way'),
    ({'count': 0}, 'count=0'), ({'batch_size': 0}, 'batch_size=0')])
def test_what_would_not_be_these_pairs_is_refused(teacher, made, options, says):
  with pytest.raises(InputError, match=says):
    runs.make_pairs(teacher, made, **{'method': HEUN, 'count': 60, 'batch_size': 16} | options)


@pytest.mark.parametrize('name', ['adaptive_ode', 'dpm_solver_12', 'dpm_solver_23'])
def test_adaptive_methods_draw_no_noise_and_make_pairs(teacher, made, name):
  with pytest.raises(InputError, match='pairs of another .*sampler.* are there already'):
    runs.make_pairs(teacher, made, method=catalogue.method(name), count=60, batch_size=16)


COMMAND = """
import sys
sys.path.insert(0, {scripts!r})
from absl import flags
from vdm_jax import runs
from vdm_jax.cli.commands import make_pairs
runs.make_pairs = lambda workdir, out, *, method, condition, guided, **options: print(
    method.name, condition, guided) or out
for out in sys.argv[1:]:
  flags.FLAGS(['scripts/make_pairs.py', '--workdir=runs/a', '--out=' + out, '--label=3',
               '--guidance=1.5'] + ['--condition=w=2'] * ('data' in out))
  make_pairs.main()
"""


@pytest.mark.long
def test_the_command_s_own_sampler_makes_pairs_and_its_next_line_names_them():
  shown = {'./runs/pairs': './runs/pairs', 'pairs': './pairs', '/data/pairs': '/data/pairs'}
  done = subprocess.run(
      [sys.executable, '-c', COMMAND.format(scripts=str(ROOT / 'scripts')), *shown], cwd=ROOT,
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert not catalogue.method(done.stdout.split()[0]).stochastic
  told = repr(guidance.Guidance(1.5))
  assert f"adaptive_ode {{'label': 3}} {told}\n" in done.stdout
  assert f"adaptive_ode {{'w': ['2'], 'label': 3}} {told}\n" in done.stdout
  for place in shown.values():
    assert f' --config.data.name={place} ' in done.stdout and data.is_path(place)


@pytest.fixture
def of_labels(monkeypatch):
  """A run whose data are N(0.2 label, 0.3^2), and N(0, 0.3^2) where no label is told."""
  _, config = tiny()
  config.data.update(name='made', shape=(2,), levels=256, classes=3)
  spec = data.resolve(config.data)

  def denoise(z, level, which):
    return oracles.Gaussian(0.2 * jnp.maximum(which, 0).astype(z.dtype)[:, None], 0.3)(z, level)

  def model(params):
    coding = Pixels(256)
    return Model(denoise=denoise, process=GaussianProcess(schedules.Linear(12.0, -12.0)),
                 decoder=coding.log_prob, encode=coding.encode, decode=coding.decode,
                 cond=lambda batch: batch['label'], shape=(2,),
                 conditions=conditions.of(spec, ['label']),
                 null=lambda which: jnp.full_like(which, -1))

  trained = workdir.Trained(types.SimpleNamespace(model=model), config, {}, 1, 'ema')
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **options: trained)


def test_pairs_of_a_guided_teacher_keep_their_labels_and_have_its_means(of_labels, tmp_path,
                                                                       capsys):
  """Of equal widths the guided flow ends at the mean (1 + w) 0.2 label: both scores are linear.

  The flow is x = mean + 0.3 z_1, so the printed cost of the two dimensions is 2 (mean^2 + 0.7^2).
  """
  w, n = 1.5, 600
  place = runs.make_pairs(tmp_path / 'run', tmp_path / 'pairs', method=catalogue.method('heun', 20),
                          count=n, batch_size=200, guided=guidance.Guidance(w))
  told = TOLD.search(capsys.readouterr().out)
  assert (told['count'], told['evaluations']) == ('600', '80') and float(told['rate']) > 0.0
  cost = 2.0 * (np.mean(((1.0 + w) * 0.2 * np.arange(3))**2) + 0.7**2)
  assert abs(float(told['cost']) - cost) < 4.0 * float(told['error']) + 0.02
  assert 0.01 < float(told['error']) < 0.1
  got = arrays(place)
  np.testing.assert_array_equal(got['label.npy'], np.arange(n) % 3)
  for k in range(3):
    x = got['x.npy'][got['label.npy'] == k]
    assert (np.abs(x.mean(0) - (1.0 + w) * 0.2 * k) < 4 * 0.3 / len(x)**0.5 + 0.01).all()
  again = {'method': catalogue.method('heun', 20), 'count': n, 'batch_size': 200}
  with pytest.raises(InputError, match='pairs of another guidance are there already'):
    runs.make_pairs(tmp_path / 'run', place, guided=guidance.Guidance(1.0), **again)
  with pytest.raises(InputError, match='pairs of another condition are there already'):
    runs.make_pairs(tmp_path / 'run', place, guided=guidance.Guidance(w), condition={'label': 1},
                    **again)


def test_a_teacher_without_labels_is_neither_conditioned_nor_guided(teacher, tmp_path):
  for options, says in (({'condition': {'label': 1}}, 'label=1: this model is not conditioned on'),
                        ({'guided': guidance.Guidance(1.0)}, 'guidance=1.0: this model')):
    with pytest.raises(InputError, match=says):
      runs.make_pairs(teacher, tmp_path / 'pairs', method=HEUN, count=4, batch_size=4, **options)
  assert not list(tmp_path.iterdir())


def test_pairs_that_another_process_is_making_are_left_to_it(teacher, made, tmp_path):
  with lock.exclusive(tmp_path / 'pairs.part'):
    with pytest.raises(InputError, match=f'out=.*: process {os.getpid()} makes pairs in') as error:
      runs.make_pairs(teacher, tmp_path / 'pairs', method=HEUN, count=4, batch_size=4)
  assert '\n' not in str(error.value)
  assert [path.name for path in (tmp_path / 'pairs.part').iterdir()] == ['lock']


def test_a_finished_folder_holds_the_record_and_the_arrays_alone(made):
  assert {path.name for path in made.iterdir()} == {'pairs.json', 'image.npy', 'x.npy', 'z_1.npy'}
  assert not made.with_name('pairs.part').exists()


@pytest.mark.parametrize('left', [None, [], ['photo.png']], ids=['nothing', 'lock', 'a photo'])
def test_pairs_that_another_process_finishes_meanwhile_are_taken_and_nothing_else_is_removed(
    teacher, made, tmp_path, monkeypatch, left):
  """It renames the folder while this process waits for the lock, or before it makes the folder."""
  out, part, exclusive = tmp_path / 'pairs', tmp_path / 'pairs.part', lock.exclusive

  @contextlib.contextmanager
  def late(place, *args):
    with exclusive(place, *args):
      if left is None:
        shutil.rmtree(part)
      for name in left or ():
        (part / name).write_text('')
      shutil.copytree(made, out)
      yield

  monkeypatch.setattr(lock, 'exclusive', late)
  assert runs.make_pairs(teacher, out, method=HEUN, count=60, batch_size=16) == out
  assert pairs.is_pairs(out)
  assert part.exists() == bool(left) and all((part / name).exists() for name in left or ())


def test_a_grid_whose_noise_is_not_that_of_t_1_is_refused_and_nothing_is_written(teacher, tmp_path):
  late = catalogue.method('heun', None, '0.8,0.4,0')
  with pytest.raises(InputError, match='grid=0.8: .* standard deviation 0.82.*, but .* at t = 1; '
                     'choose a grid from 1 to 0'):
    runs.make_pairs(teacher, tmp_path / 'pairs', method=late, count=4, batch_size=4)
  assert not list(tmp_path.iterdir())


def test_a_field_that_is_called_as_the_sample_is_refused():
  with pytest.raises(InputError, match="the data have a field 'x', and pairs add another"):
    pairs.fields_of(fields.integers('x', (2,), 4))
  with pytest.raises(InputError, match="the data have a field 'z_1'"):
    pairs.fields_of(fields.integers('image', (2,), 4), [fields.reals('z_1', (3,))])
  assert pairs.fields_of(fields.reals('x', (2,)))[0].name == 'x'


def test_pairs_keep_conditions_that_the_data_lack_as_real_numbers():
  label = fields.label(3)
  spec = data.Spec('own', (fields.integers('image', (2,), 4), label))
  batch = {'label': np.zeros(1, np.int32), 'w': np.zeros((1, 5)), 'augmented': np.zeros(1)}
  assert pairs.conditions_of(spec, batch) == [label, fields.reals('w', (5,))]


def test_a_folder_of_anything_else_is_left_alone(teacher, tmp_path):
  (tmp_path / 'photos').mkdir()
  with pytest.raises(InputError, match='it is there already, and holds no pairs'):
    runs.make_pairs(teacher, tmp_path / 'photos', method=HEUN)


def students(made, system, tmp_path, start='', **changes):
  module, config = tiny(system)
  config.data.update({'name': str(made), 'validation': 5} | changes)
  return runs.train(config, configs.file('plane/flows'), tmp_path / 'student',
                    init_from=str(start))


@pytest.mark.long
def test_a_reflow_starts_from_its_teacher_trains_on_floats_and_samples(teacher, made, tmp_path):
  means = students(made, 'reflow', tmp_path, teacher)
  assert 0 < means['loss'] < 100
  runs.make_pairs(tmp_path / 'student', tmp_path / 'again', method=HEUN, count=4, batch_size=4)
  assert pairs.record(tmp_path / 'again')['about']['data'] == tiny()[1].data.name  # and not `made`
  count = runs.sample(tmp_path / 'student', tmp_path / 'a.npz', method=HEUN, count=4)
  with pytest.raises(InputError, match='sampler=.ancestral.: it adds noise by the score, and this'):
    runs.sample(tmp_path / 'student', tmp_path / 'b.npz', method=runs.ANCESTRAL, count=4)
  with np.load(tmp_path / 'a.npz') as file:
    assert file['images'].shape == (4, 2) and count == 6


@pytest.mark.long
def test_the_ledger_of_a_reflow_has_the_likelihood_of_its_flow_in_the_place_of_the_bound(
    teacher, made, tmp_path):
  students(made, 'reflow', tmp_path, teacher)
  ledger = runs.evaluate(tmp_path / 'student', examples=4, ode_tolerance=1e-2)
  assert [row['estimate'] for row in ledger.rows] == ['ode']
  assert (tmp_path / 'student' / 'report.html').is_file()
  with pytest.raises(InputError, match="estimates='vlb@4': it is of the reverse SDE, and this"):
    runs.evaluate(tmp_path / 'student', examples=4, estimates=['vlb@4'])


@pytest.mark.long
def test_one_step_samples_and_is_refused_a_likelihood_in_one_line(teacher, made, tmp_path):
  students(made, 'distilled', tmp_path, teacher)
  runs.sample(tmp_path / 'student', tmp_path / 'a.npz', count=4)
  with np.load(tmp_path / 'a.npz') as file:
    assert file['images'].shape == (4, 2)
  with pytest.raises(InputError, match='this run made a OneStep, which samples; a model that '
                     'denoises is needed to evaluate it'):
    runs.evaluate(tmp_path / 'student')


@pytest.mark.long
def test_pairs_of_another_teacher_are_refused_before_anything_is_written(teacher, made, tmp_path):
  other = teacher.parent / 'other'
  module, config = tiny()
  config.seed = 7
  runs.train(config, configs.file('plane/flows'), other)
  with pytest.raises(InputError, match='the pairs in .* were made by other weights'):
    students(made, 'reflow', tmp_path, other)
  assert not list(tmp_path.iterdir())
  with pytest.raises(InputError, match='pairs of another teacher are there already'):
    runs.make_pairs(other, made, method=HEUN, count=60, batch_size=16)


@pytest.mark.parametrize('changes,says', [
    ({'batch_size': 64}, 'config.data.batch_size=64: .* has 45 pairs to train on; make more'),
    ({'name': 'swirl', 'found': ()}, "it has no field 'z_1' of floats, .*; make pairs"),
    ({'augment': True}, "augment=True: it would change only 'image', not the pair x and z_1"),
    ({'name': './nowhere'}, 'nowhere')])
def test_data_that_are_no_pairs_or_too_few_are_refused(made, tmp_path, changes, says):
  with pytest.raises((InputError, FileNotFoundError), match=says):
    students(made, 'reflow', tmp_path, **changes)
  assert not (tmp_path / 'student' / 'checkpoints').exists()


@pytest.mark.parametrize('change,says', [
    (lambda said: said['about'].update(prior_std=80.0), 'standard deviation 80, but'),
    (lambda said: said['fields'][1].__setitem__(1, [3]), r'its x.npy has shape \(60, 2\), but'),
    (lambda said: said.pop('done'), "it has no 'done'")])
def test_pairs_of_another_process_or_shape_are_refused(made, tmp_path, change, says):
  place = shutil.copytree(made, tmp_path / 'pairs')
  said = json.loads((place / 'pairs.json').read_text())
  change(said)
  (place / 'pairs.json').write_text(json.dumps(said))
  with pytest.raises(InputError, match=says):
    students(place, 'reflow', tmp_path)


def test_pairs_keep_the_process_of_their_model(made):
  """alpha + sigma = 1 on straight lines, and log-SNR goes from 10 to -20."""
  alpha, sigma = np.array(pairs.record(made)['process'])
  np.testing.assert_allclose(alpha + sigma, 1.0, rtol=1e-6)
  np.testing.assert_allclose(2.0 * np.log(alpha / sigma)[[0, -1]], [10.0, -20.0], rtol=1e-4)


def of_path(path):
  """The experiment of a flow on that path, and its parameters."""
  module, config = tiny(path)
  experiment = module.build(config)
  return experiment, experiment.init(jax.random.key(0))


@pytest.mark.long
def test_pairs_of_a_model_on_another_path_are_refused_and_older_pairs_are_not_compared(
    made, tmp_path):
  """The noise at t = 1 is N(0, 1) on both paths."""
  other, params = of_path('vp')
  level = other.model(params).process(jnp.linspace(0.0, 1.0, 5))
  place = shutil.copytree(made, tmp_path / 'pairs')
  said = json.loads((place / 'pairs.json').read_text())
  write = lambda: (place / 'pairs.json').write_text(json.dumps(said))
  said['process'] = [np.asarray(level.alpha).tolist(), np.asarray(level.sigma).tolist()]
  write()
  says = 'config.data.name=.*: a model of another process made its pairs: at t = 0.*, where this'
  for system in ('reflow', 'distilled'):
    with pytest.raises(InputError, match=says) as error:
      students(place, system, tmp_path)
    assert '\n' not in str(error.value) and not (tmp_path / 'student').exists()
  with pytest.raises(InputError, match=says):
    learner(place)
  _, config = tiny()
  config.data.update(name=str(place), validation=5)
  paired.require_pairs(config, flow_matching.experiment(config, net=networks.mlp(config)),
                       carried=True)
  del said['process']
  write()
  learner(place)


@pytest.mark.long
@pytest.mark.parametrize('student', ['distilled', 'knowledge'])
def test_a_student_of_pairs_checks_the_process_and_the_estimate_of_the_run_it_starts_from(
    made, student):
  if student == 'knowledge':
    experiment = learner(made)
  else:
    module, config = tiny('distilled')
    config.data.update(name=str(made), validation=5)
    experiment = module.build(config)
  own, params = of_path('ot')
  experiment.teacher(own.model(params), params)
  other, _ = of_path('vp')
  with pytest.raises(InputError, match='init_from: the teacher has another process: at t = 0'):
    experiment.teacher(other.model(params), params)
  model = own.model(params)
  with pytest.raises(InputError, match=r'the teacher makes data of \(3,\), and the student of'):
    experiment.teacher(model._replace(shape=(3,)), params)
  double = lambda z, level, cond=None: model.denoise(2.0 * z, level, cond)
  with pytest.raises(InputError, match="init_from: the teacher's network means something else"):
    experiment.teacher(model._replace(denoise=double), params)


def learner(made, **changes):
  """A student by knowledge distillation of the flow's network, and what it is made of."""
  _, config = tiny()
  config.data.update({'name': str(made), 'validation': 5} | changes)
  config.model = ml_collections.ConfigDict(config.model.to_dict() | knowledge.fields())
  net = networks.mlp(config)
  return knowledge.experiment(config, flow_matching.experiment(config, net=net))


@pytest.mark.parametrize('changes,says', [
    ({'batch_size': 64}, 'config.data.batch_size=64: .* has 45 pairs to train on; make more'),
    ({'augment': True}, "augment=True: it would change only 'image', not the pair x and z_1")])
def test_a_student_by_knowledge_refuses_what_a_reflow_does(made, changes, says):
  with pytest.raises(InputError, match=says):
    learner(made, **changes)


def test_a_student_by_knowledge_refuses_the_noise_of_another_process(made, tmp_path):
  assert learner(made).model({'net': {}}).distilled == ('ddim_to_x', 1)
  place = shutil.copytree(made, tmp_path / 'pairs')
  said = json.loads((place / 'pairs.json').read_text())
  said['about']['prior_std'] = 80.0
  (place / 'pairs.json').write_text(json.dumps(said))
  with pytest.raises(InputError, match='standard deviation 80, but the noise of this process has'):
    learner(place)


@pytest.mark.long
def test_pairs_of_images_of_another_size_are_refused_by_the_config_of_others(made, tmp_path):
  """Pairs of an older version, which kept no process: another process is found before the size."""
  module, config = configs.read('digits/flows:reflow')
  older = shutil.copytree(made, tmp_path / 'older')
  said = json.loads((older / 'pairs.json').read_text())
  del said['process']
  (older / 'pairs.json').write_text(json.dumps(said))
  config.data.update(name=str(older), validation=5, batch_size=8)
  with pytest.raises(InputError, match=r'has examples of \(2,\); correct it'):
    runs.train(config, configs.file('digits/flows'), tmp_path / 'student')


@pytest.mark.long
def test_a_command_that_is_killed_goes_on_bit_for_bit(teacher):
  """200 batches, so that the command is still writing when it is killed after the first."""
  out, count = teacher.parent / 'killed', 3200
  command = [sys.executable, str(ROOT / 'scripts' / 'make_pairs.py'), f'--workdir={teacher}',
             f'--out={out}', '--sampler=heun', '--steps=3', f'--count={count}', '--batch_size=16']
  env = os.environ | {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')}
  first, part = subprocess.Popen(command, env=env), out.with_name('killed.part')
  while not (pairs.is_pairs(part) and pairs.record(part)['done']):
    assert first.poll() is None
    time.sleep(0.001)
  first.send_signal(signal.SIGKILL)
  first.wait()
  done = pairs.record(part)['done']
  assert 0 < done < count and not out.exists()
  again = subprocess.run(command, env=env, capture_output=True, text=True)
  assert again.returncode == 0, again.stderr
  assert TOLD.search(again.stdout)['count'] == '3,200'
  assert f'{done}/{count} [' in again.stderr and f' 0/{count} [' not in again.stderr
  whole = runs.make_pairs(teacher, teacher.parent / 'whole', method=HEUN, count=count,
                          batch_size=16)
  for name, values in arrays(whole).items():
    assert arrays(out)[name].tobytes() == values.tobytes()
