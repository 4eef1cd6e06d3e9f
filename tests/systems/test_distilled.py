"""Students: where they start, when their steps are halved, what they refuse, how they sample."""
import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import vdm_jax
from tests.support import commands, students_config
from vdm_jax import guidance, inputs, random, runs, schedules, targets, weightings
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks.layers import Dropout
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.objectives.guided import draw_weights
from vdm_jax.processes import diffuse, sample_prior, vp
from vdm_jax.runs import training, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems import compose
from vdm_jax.systems.distilled import consistency, guided, knowledge, progressive, teachers
from vdm_jax.systems.flows import rectified_flow
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.scores import score_sde
from vdm_jax.systems.variational import vdm
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context

CONFIG = students_config.__file__


def config(system='teacher', **changes):
  made = students_config.get_config(system)
  for name, value in changes.items():
    made.update_from_flattened_dict({name.replace('__', '.'): value})
  return made


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  directory = tmp_path_factory.mktemp('made') / 'teacher'
  runs.train(config(train__steps=5), CONFIG, directory)
  return directory


@pytest.fixture(scope='module')
def student(teacher):
  directory = teacher.parent / 'student'
  runs.train(config('progressive'), CONFIG, directory, init_from=teacher)
  return directory


def leaves_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# ---------------------------------------------------------------- progressive


def updates(experiment, params, count):
  """The states after 0, 1, ... `count` updates on one batch, and their metrics."""
  batch = experiment.data.split('train').get(np.arange(8))
  state = step_lib.init(params, experiment.tx, experiment.ema, experiment.aux)
  step = jax.jit(lambda state: experiment.update(state, batch, random.key(0), parallel.Axis()))
  states, metrics = [state], []
  for _ in range(count):
    state, out = step(state)
    states.append(state)
    metrics.append(out)
  return states, metrics


@pytest.mark.long
def test_the_student_becomes_the_teacher_and_the_optimiser_begins_afresh_where_a_phase_begins():
  made = config('progressive', model__halving_updates=2)
  experiment = students_config.build(made)
  states, metrics = updates(experiment, experiment.init(random.key(1)), 7)
  np.testing.assert_array_equal([float(m['student_steps']) for m in metrics], [4, 4, 2, 2, 1, 1, 1])
  for k, at in zip(range(1, 8), [0, 0, 2, 2, 4, 4, 4], strict=True):  # the last phase goes on
    leaves_equal(states[k].aux, states[at].params)
  counts = [int(leaf) for state in states[1:] for leaf in jax.tree.leaves(state.opt)
            if leaf.ndim == 0][::len([u for u in jax.tree.leaves(states[0].opt) if u.ndim == 0])]
  np.testing.assert_array_equal(counts, [1, 2, 1, 2, 1, 2, 3])
  # The rate falls to 0 in a line: the second update of a phase of two is half as large at most.
  moved = lambda k: math.sqrt(sum(float(jnp.sum((a - b)**2)) for a, b in zip(
      *map(jax.tree.leaves, (states[k].params, states[k - 1].params)), strict=True)))
  assert moved(7) == 0.0 and 0.2 < moved(2) / moved(1) < 0.8


@pytest.mark.long
def test_a_student_is_clipped_where_it_is_used_and_neither_it_nor_its_teacher_in_training():
  """The codes of 256 levels reach from -255/256 to 255/256."""
  plain, clipped = (students_config.build(config('progressive', model__clip=clip))
                    for clip in (False, True))
  params = jax.tree.map(lambda leaf: 10.0 * leaf, shaken(plain.init(random.key(1))))
  free, kept = (experiment.model(params) for experiment in (plain, clipped))
  assert (free.clips, kept.clips, clipped.at(5).model(params).clips) == (False, True, True)
  z, end = 3.0 * jnp.array([[1.0, -1.0], [0.5, 0.2]]), 255 / 256
  level = free.process(jnp.array([0.6, 0.9]))
  x = free.denoise(z, level).x
  assert float(jnp.abs(x).max()) > 2.0
  np.testing.assert_allclose(kept.denoise(z, level).x, jnp.clip(x, -end, end), rtol=1e-6)
  batch = plain.data.split('train').get(np.arange(8))
  context = Context(jnp.linspace(0.1, 1.0, 8), random.per_example(random.key(0), jnp.arange(8)),
                    jnp.int32(0), aux=params)
  for ours, theirs in zip(*(experiment.loss(params, batch, context)
                            for experiment in (plain, clipped)), strict=True):
    leaves_equal(ours, theirs)
  # A clipped student may be the teacher of a further halving, also of a run that does not clip.
  four = clipped.at(5).model(params)
  assert four.distilled == ('ddim_to_x', 4)
  for clip in (False, True):
    made = config('progressive', model__clip=clip, model__teacher_steps=4, model__student_steps=2)
    students_config.build(made).teacher(four, params)


def calls(experiment, params):
  """How many products of matrices an update makes."""
  batch = experiment.data.split('train').get(np.arange(8))
  update = experiment.update or step_lib.make_step(experiment.loss, experiment.tx, experiment.ema)
  state = step_lib.init(params, experiment.tx, experiment.ema, experiment.aux)
  trace = jax.make_jaxpr(lambda s: update(s, batch, random.key(0), parallel.Axis()))(state)
  return str(trace).count('dot_general')


@pytest.mark.long
def test_a_progressive_update_costs_two_evaluations_more_than_the_teacher_s_own():
  experiment = students_config.build(config('progressive'))
  params = experiment.init(random.key(1))
  plain = students_config.build(config())
  model = plain.model(params)
  level = model.process(jnp.full(8, 0.5))
  one = str(jax.make_jaxpr(lambda z: model.denoise(z, level).x)(jnp.zeros((8, 2)))).count(
      'dot_general')
  assert one == 2
  assert calls(experiment, params) <= calls(plain, params) + 2 * one


@pytest.mark.long
def test_a_progressive_run_goes_on_bit_for_bit_from_the_middle_of_a_phase(teacher, student):
  """The second start is told no teacher: it is a part of the state."""
  directory = teacher.parent / 'broken_off'
  runs.train(config('progressive', train__steps=15), CONFIG, directory, init_from=teacher)
  runs.train(config('progressive'), CONFIG, directory)
  leaves_equal(commands.final_state(directory), commands.final_state(student))


@pytest.mark.long
def test_a_student_is_loaded_and_sampled_without_its_teacher(teacher, student, tmp_path):
  moved = shutil.copytree(student, tmp_path / 'run')
  evaluations = runs.sample(moved, tmp_path / 'one.npz', count=4)
  assert evaluations == 1
  four = runs.sample(moved, tmp_path / 'four.npz', count=4,
                     method=catalogue.method('ddim_to_x', 4))
  assert four == 4
  one = np.load(tmp_path / 'one.npz')['images']
  model = vdm_jax.load(moved)
  own = model.sample(random.per_example(random.key(0), jnp.arange(4)))
  np.testing.assert_allclose(own, one, atol=1)  # a level, where rounding decides
  # One step is the estimate of x at t = 1, and no other evaluation.
  assert not np.array_equal(one, np.load(tmp_path / 'four.npz')['images'])


@pytest.mark.long
@pytest.mark.parametrize('steps,asked', [(1, []), (4, ['--step=10'])], ids=['one', 'four'])
def test_the_command_samples_a_student_in_its_own_steps_of_ddim_that_end_in_x(
    student, tmp_path, steps, asked):
  """The command names no sampler.  Update 10 made the last checkpoint of the four-step student.

  The images are those of the steps as the paper writes them: z_s = alpha_s x_hat + sigma_s eps_hat.
  """
  said = commands.succeed('scripts/sample.py', f'--workdir={student}', '--count=6', '--seed=3',
                          *asked, f'--out={tmp_path}/drawn.npz', count=1, devices=1)
  assert f'{steps} evaluations of the network for each sample' in said
  trained = workdir.load_trained(student, step=10 if asked else 'latest')
  model = trained.experiment.model(trained.params)
  z = sample_prior(model.process, random.per_example(random.key(3), jnp.arange(6)),
                   jnp.zeros((6, 2)))
  x = z
  for t in np.arange(steps, 0, -1) / steps:
    x, eps, _ = model.denoise(z, model.process(jnp.full(6, t)))
    down = model.process(jnp.float32(t - 1 / steps))
    z = down.alpha * x + down.sigma * eps
  by_hand, drawn = np.asarray(model.decode(x)), np.load(tmp_path / 'drawn.npz')['images']
  np.testing.assert_allclose(drawn, by_hand, atol=1)  # a level, where rounding decides
  assert len(np.unique(drawn, axis=0)) == 6  # and not all at an end


@pytest.mark.long
@pytest.mark.parametrize('ask', ['evaluate', 'nats', 'codec'])
def test_a_student_has_no_likelihood(student, ask):
  model = vdm_jax.load(student)
  images = {model.field: np.zeros((1, *model.shape), int)}
  with pytest.raises(InputError) as error:
    {'evaluate': lambda: runs.evaluate(student), 'codec': lambda: model.codec(256, 4),
     'nats': lambda: model.nats(images, key=random.key(0))}[ask]()
  assert 'distilled' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.long
def test_a_sampler_of_consistency_models_is_refused_to_others(teacher, tmp_path):
  with pytest.raises(InputError, match="sampler='consistency': the estimate of this model"):
    runs.sample(teacher, tmp_path / 'no.npz',
                method=catalogue.method('consistency', 2))
  assert not (tmp_path / 'no.npz').exists()


@pytest.mark.first(1)
@pytest.mark.parametrize('changes,message', [
    ({}, 'init_from: its teacher is what it starts from'),
    ({'model__features': 16}, 'it has no net/dense_in/bias of this shape, nor 2 others'),
    ({'model__logsnr_max': 6.0}, 'init_from: the teacher has another process: at t = 0 alpha'),
    ({'data__name': 'moons'}, 'that run learned swirl, but the data here are moons'),
    ({'model__teacher_steps': 12}, 'config.model.teacher_steps=12: the steps of a student'),
    ({'model__student_steps': 3}, 'config.model.student_steps=3: the steps of a student'),
    ({'model__student_steps': 8}, 'config.model.student_steps=8: a student makes fewer steps'),
    ({'model__student_steps': 16}, 'config.model.student_steps=16: a student makes fewer'),
    ({'model__halving_updates': 0}, 'config.model.halving_updates=0: '),
    ({'model__weight': 'snrs'}, "config.model.weight='snrs': did you mean snr"),
    ({'optimizer__decay_steps': 50}, 'config.optimizer.decay_steps=50: in each phase'),
    ({'ema__student': 0.9}, 'config.ema.student=0.9: an average would mix students')])
def test_what_cannot_be_distilled_is_refused_before_anything_is_written(
    teacher, tmp_path, changes, message):
  start = {'init_from': teacher} if changes else {}
  with pytest.raises(InputError) as error:
    runs.train(config('progressive', **changes), CONFIG, tmp_path / 'run', **start)
  assert message in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_a_student_is_no_longer_than_its_teacher(student, tmp_path):
  """Of a run that was distilled for one step there is nothing to halve."""
  with pytest.raises(InputError, match='config.model.teacher_steps=8: the teacher was distilled '
                                       'down to 1, and a student cannot begin'):
    runs.train(config('progressive'), CONFIG, tmp_path / 'run', init_from=student)


@pytest.mark.long
@pytest.mark.parametrize('step,steps', [(5, 4), (10, 4), (15, 2), (20, 2), (25, 1), (30, 1)])
def test_a_checkpoint_on_the_way_samples_with_the_steps_of_its_own_phase(student, step, steps):
  trained = workdir.load_trained(student, step=step)
  assert trained.experiment.model(trained.params).distilled == ('ddim_to_x', steps)


@pytest.mark.long
def test_pictures_and_distances_on_the_way_are_of_the_phase_and_no_phase_but_the_last_has_a_best(
    teacher, student, tmp_path, monkeypatch):
  """The loss of a student depends on its N, so losses of two phases are not comparable."""
  seen = []

  def spy(experiment, params, count, *_):
    seen.append(experiment.model(params).distilled[1])
    return np.random.default_rng(len(seen)).integers(0, 256, (count, 2))

  monkeypatch.setattr(training, '_samples', spy)
  runs.train(config('progressive', train__steps=15, train__pictures_every=5), CONFIG,
             tmp_path / 'run', init_from=teacher, frechet='pixels', frechet_samples=8)
  assert seen == [4, 4, 4, 4, 2, 2]  # a picture and a distance each
  with pytest.raises(InputError, match="step='best': no checkpoint has a validation loss to be"):
    workdir.load_trained(tmp_path / 'run', step='best')
  assert workdir.load_trained(student, step='best').step in (25, 30)


def lose_the_checkpoint(directory, how):
  """As a kill inside the first save leaves it, or a fault of the disk."""
  saved, = (directory / 'checkpoints').iterdir()
  if how == 'half-written':
    saved.rename(saved.with_name(f'{saved.name}.orbax-checkpoint-tmp'))
  else:
    (saved / 'params' / 'manifest.ocdbt').write_bytes(b'')


@pytest.mark.long
@pytest.mark.parametrize('how', ['half-written', 'damaged'])
def test_a_run_that_lost_its_only_checkpoint_starts_from_its_teacher_again(
    teacher, tmp_path, how):
  """Not from random weights, with a random teacher."""
  directory, asked = tmp_path / 'run', config('progressive', train__steps=5)
  runs.train(asked, CONFIG, directory, init_from=teacher)
  first = commands.final_state(directory)
  leaves_equal(first.aux, workdir.load_trained(teacher).params)
  lose_the_checkpoint(directory, how)
  copy = shutil.copytree(directory, tmp_path / 'copy')
  if how == 'half-written':  # it has not begun, and this is another command
    with pytest.raises(InputError, match='init_from: its teacher is what it starts from'):
      runs.train(asked, CONFIG, copy)
  else:  # whose first command is kept
    runs.train(asked, CONFIG, copy)
    leaves_equal(commands.final_state(copy), first)
  runs.train(asked, CONFIG, directory, init_from=teacher)
  leaves_equal(commands.final_state(directory), first)


@pytest.mark.long
@pytest.mark.parametrize('how', ['half-written', 'damaged'])
def test_a_run_that_needs_no_start_goes_back_to_the_one_it_had_and_not_to_random_weights(
    teacher, tmp_path, how):
  """Where the command to resume names the directory alone, say."""
  start, directory = shutil.copytree(teacher, tmp_path / 'start'), tmp_path / 'run'
  asked = config(train__steps=5)
  runs.train(asked, CONFIG, directory, init_from=start)
  first = commands.final_state(directory)
  lose_the_checkpoint(directory, how)
  copy = shutil.copytree(directory, tmp_path / 'copy')
  runs.train(asked, directory / 'config.json', directory)
  leaves_equal(commands.final_state(directory), first)
  shutil.rmtree(start)
  with pytest.raises(InputError, match='^init_from=.*start.*: it holds no run') as error:
    runs.train(asked, copy / 'config.json', copy)
  assert '\n' not in str(error.value) and not workdir.begun(copy)


@pytest.mark.long
def test_a_run_that_has_begun_keeps_its_start_and_warns_of_another(teacher, tmp_path, caplog):
  """Also where its checkpoints are lost later: it begins again as it began."""
  directory, other, asked = tmp_path / 'run', tmp_path / 'other', config(train__steps=5)
  shutil.copytree(teacher, other)
  runs.train(asked, CONFIG, directory, init_from=teacher)
  assert '--init_from' not in caplog.text
  runs.train(asked, CONFIG, directory, init_from=other)
  assert f'--init_from={other} is not read' in caplog.text and str(teacher) in caplog.text
  assert workdir.start_of(directory) == str(teacher)
  starts = workdir.record(directory)['starts']
  assert [start['init_from'] for start in starts] == [str(teacher)] * 2
  # An older version wrote down what it was told.
  (directory / 'config.json').write_text(json.dumps(workdir.record(directory) | {
      'starts': [starts[0], starts[1] | {'init_from': str(other)}]}))
  assert workdir.start_of(directory) == str(teacher)


@pytest.mark.first(1)
@pytest.mark.parametrize('changes', [
    {'target': targets.eps}, {'inputs': lambda z, level: (2.0 * z, level.logsnr)}],
    ids=['target', 'inputs'])
def test_a_teacher_whose_network_means_something_else_is_refused(changes):
  made = config()
  base = students_config.base(made)
  arguments = {'net': students_config.tiny_config.Net(8, 0.0), 'curve': vp,
               'schedule': schedules.Cosine(8.0, -8.0), 'target': targets.v,
               'weight': weightings.truncated_snr}
  params = shaken(base.init(random.key(1)))
  teachers.require_same(base, score_sde.experiment(made, **arguments).model(params), params)
  other = score_sde.experiment(made, **arguments | changes).model(params)
  with pytest.raises(InputError, match="init_from: the teacher's network means something else"):
    teachers.require_same(base, other, params)


def test_a_teacher_of_another_shape_or_none_at_all_is_refused():
  base = students_config.base(config())
  params = base.init(random.key(1))
  own = base.model(params)
  for teacher, says in (
      (own._replace(shape=(8, 8, 1)), r'the teacher makes data of \(8, 8, 1\), and the student of '
       r'\(2,\); name a run of the same data'),
      (rectified_flow.OneStep(own.sample, (2,)), 'that run made a OneStep, which does not denoise; '
       'name a run of a diffusion model')):
    with pytest.raises(InputError, match=f'init_from: {says}') as error:
      teachers.require_same(base, teacher, params)
    assert '\n' not in str(error.value)


@pytest.mark.long
def test_a_progressive_run_that_is_killed_goes_on_bit_for_bit(teacher, tmp_path):
  """A real process, ended without notice once it has left its first phase."""
  command = ['scripts/train.py', f'--config={CONFIG}:progressive', f'--init_from={teacher}',
             '--config.train.steps=60']  # the last phase goes on, so that the kill is no end
  run, whole = ([*command, f'--workdir={tmp_path / name}'] for name in ('run', 'whole'))
  process, = commands.start(*run, count=1, devices=1)
  commands.wait_for(lambda: workdir.steps_made(tmp_path / 'run') >= 15, [process])
  process.process.kill()
  process.output.result()
  assert 15 <= workdir.steps_made(tmp_path / 'run') < 60
  assert 'Resuming at step' in commands.succeed(*run, count=1, devices=1)
  commands.succeed(*whole, count=1, devices=1)
  states = [commands.final_state(tmp_path / name) for name in ('run', 'whole')]
  assert int(states[0].step) == 60
  leaves_equal(*states)


# ---------------------------------------------------------------- consistency


@pytest.mark.long
def test_the_target_s_average_goes_by_mu_of_the_update():
  made = config('consistency', model__target_rate=0.75)
  experiment = students_config.build(made)
  states, metrics = updates(experiment, experiment.init(random.key(1)), 3)
  for before, after in zip(states[:-1], states[1:], strict=True):
    jax.tree.map(lambda target, old, new: np.testing.assert_allclose(
        target, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7),
        after.ema['target'], before.ema['target'], after.params)
    leaves_equal(after.aux, states[0].params)  # the teacher stays
  assert [float(m['levels']) for m in metrics] == [5.0] * 3
  assert experiment.ema['slow'] == 0.9 and step_lib.default_average(experiment.ema) == 'slow'


@pytest.mark.long
def test_the_discretisation_grows_with_the_update():
  made = config('consistency', model__discretisation='public', model__levels=2,
                model__last_levels=6, model__growing_updates=4, model__target_rate=0.9)
  experiment = students_config.build(made)
  states, metrics = updates(experiment, experiment.init(random.key(1)), 5)
  exact = [math.ceil(math.sqrt(k / 4 * (7**2 - 2**2) + 2**2) - 1) + 1 for k in range(5)]
  assert [float(m['levels']) for m in metrics] == exact
  first = states[1]
  jax.tree.map(lambda target, old, new: np.testing.assert_allclose(
      target, 0.81 * old + 0.19 * new, rtol=1e-5, atol=1e-7),
      first.ema['target'], states[0].ema['target'], first.params)


@pytest.mark.parametrize('field,value', [
    ('levels', 1), ('target_rate', 1.0), ('discretisation', 'papers'), ('solver', 'rk4'),
    ('metric', 'lpips')])
def test_what_no_consistency_model_can_have_is_refused_by_its_field(field, value):
  with pytest.raises(InputError, match=f'config.model.{field}={value!r}: '):
    students_config.build(config('consistency', **{f'model__{field}': value}))


@pytest.mark.long
def test_a_perceptual_metric_reads_images_between_their_ends_and_is_a_mean_over_the_image():
  """|u - v|_1 of u in [-1, 1] instead of LPIPS: D |u - v|_1 is D to_ends times the metric l1."""
  made, seen = config('consistency', model__metric='lpips'), []
  net = students_config.tiny_config.Net(8, 0.2)

  def perceptual(u, v):
    seen.append((u, v))
    return jnp.sum(jnp.abs(u - v), axis=-1)

  def loss(**given):
    experiment = consistency.training(made, students_config.base(made), net=net, **given)
    params = shaken(experiment.init(random.key(1)))
    batch = experiment.data.split('train').get(np.arange(8))
    return experiment.loss(params, batch, Context(
        jnp.linspace(0.1, 1.0, 8), random.per_example(random.key(0), jnp.arange(8)), jnp.int32(0),
        {'target': params}))

  with pytest.raises(InputError, match="config.model.metric='lpips': the weights of LPIPS are not"):
    loss()
  losses, terms = loss(perceptual=perceptual)
  (u, v), = seen
  np.testing.assert_allclose(jnp.sum((u - v)**2, axis=-1) / 2, (256 / 255)**2 * terms['x_error'],
                             rtol=1e-5)
  np.testing.assert_allclose(losses, jnp.sum(jnp.abs(u - v), axis=-1) / math.log(2), rtol=1e-5)
  made.model.metric = 'l1'
  np.testing.assert_allclose(losses, 2 * 256 / 255 * loss()[0], rtol=1e-5)


@pytest.mark.long
def test_a_consistency_model_samples_in_one_step_and_in_two(tmp_path):
  runs.train(config('of_consistency', train__steps=5), CONFIG, tmp_path / 'teacher')
  runs.train(config('consistency', train__steps=5), CONFIG, tmp_path / 'run',
             init_from=tmp_path / 'teacher')
  assert runs.sample(tmp_path / 'run', tmp_path / 'one.npz', count=4) == 1
  assert runs.sample(tmp_path / 'run', tmp_path / 'two.npz', count=4,
                     method=catalogue.method('consistency', 2)) == 2


@pytest.mark.long
@pytest.mark.parametrize('train', [True, False])
def test_student_and_target_drop_the_same_features_and_other_keys_drop_others(train):
  """With equal parameters and mu = 0, of a network that returns what is kept of ones."""
  kept = []

  class Told(nn.Module):

    @nn.compact
    def __call__(self, z, time, cond=None, keys=None):
      out = Dropout(0.5, name='dropout')(jnp.ones((len(z), 64)), keys)
      kept.append(np.asarray(out))
      return self.param('scale', nn.initializers.ones, ()) * out[:, :2]

  made = config('consistency')
  base = students_config.base(made)
  experiment = consistency.distillation(made, base, net=Told())
  params, batch = {'net': {'scale': jnp.ones(())}}, experiment.data.batch(0)
  teacher = base.init(random.key(1))  # a network of its own, with no dropout

  def asked(seed):
    kept.clear()
    keys = random.per_example(random.key(seed), jnp.arange(8))
    experiment.loss(params, batch, Context(
        jnp.linspace(0.1, 0.9, 8), keys, jnp.int32(0), ema={'target': params}, aux=teacher,
        train=train))
    return kept
  target, student = asked(0)
  np.testing.assert_array_equal(target, student)
  assert len({row.tobytes() for row in student}) == (8 if train else 1)  # its own of each example
  assert set(np.unique(student)) == ({0.0, 2.0} if train else {1.0})
  assert (asked(1)[1] != student).any() == train


def test_a_consistency_update_costs_three_evaluations_more_than_its_teacher_s():
  """Two of Heun's step and one of the target."""
  made = config('consistency')
  experiment, plain = students_config.build(made), students_config.build(config('of_consistency'))
  params = experiment.init(random.key(1))
  assert calls(experiment, params) == calls(plain, params) + 3 * 2


@pytest.mark.long
def test_a_student_of_a_v_teacher_begins_with_its_estimates_on_levels_of_its_own():
  """With sigma_data = 1, v is -F on `vp`: the two differ by the least noise level alone."""
  made = config('consistency', model__sigma_data=1.0)
  v = config()
  teacher, net = students_config.base(v), students_config.tiny_config.Net(8, 0.0)
  arguments = {'net': net, 'curve': vp, 'target': targets.v, 'weight': weightings.truncated_snr}
  levels = score_sde.experiment(made, schedule=schedules.KarrasSigma(0.02, 50.0), **arguments)
  params = shaken(teacher.init(random.key(1)))

  def student(sign):
    return consistency.distillation(made, levels, net=net, inputs=inputs.logsnr, teacher=teacher,
                                    sign=sign)

  student(-1.0).teacher(teacher.model(params), params)
  with pytest.raises(InputError, match='the teacher has another process'):
    consistency.distillation(made, levels, net=net).teacher(teacher.model(params), params)
  model, its = student(-1.0).model(params), teacher.model(params)
  level = model.process(jnp.array([0.4, 0.6, 0.8]))
  z = random.normal(random.per_example(random.key(2), jnp.arange(3)), jnp.zeros((3, 2)))
  own = its.denoise(z, level).x
  np.testing.assert_allclose(model.denoise(z, level).x, own, atol=0.1)  # r - 0.02 for r, r > 0.4
  far = jnp.abs(student(1.0).model(params).denoise(z, level).x - own)
  assert float(jnp.max(far)) > 0.5  # or the line above would say nothing


# ------------------------------------------------------------------ rectified


def of_lines():
  made = config()
  with made.unlocked():
    made.model.logsnr_min = -8.0
  return made


@pytest.mark.long
def test_a_model_on_straight_lines_is_the_same_network_at_equal_log_snr():
  made = of_lines()
  base = students_config.base(made)
  lines = rectified_flow.on_lines(made, base, vp)
  params = shaken(base.init(random.key(1)))
  model, own = lines.model(params), base.model(params)
  level = model.process(jnp.array([0.0, 0.3, 0.7, 1.0]))
  np.testing.assert_allclose(level.alpha + level.sigma, 1.0, rtol=1e-6)
  z = random.normal(random.per_example(random.key(2), jnp.arange(4)), jnp.zeros((4, 2)))
  alpha, sigma = vp(level.logsnr)
  scale = (alpha / level.alpha)[:, None]
  there = own.denoise(scale * z, level._replace(alpha=alpha, sigma=sigma))
  np.testing.assert_allclose(model.denoise(z, level).x, there.x, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(model.denoise(z, level).eps, there.eps, rtol=1e-5, atol=1e-5)
  assert model.coupled and catalogue.usual(model).name == 'heun'


def test_nothing_but_pairs_is_straightened():
  made = of_lines()
  with pytest.raises(InputError, match="config.data.name='swirl': it has no field 'z_1' of floats"):
    rectified_flow.straightened(made, rectified_flow.on_lines(made, students_config.base(made), vp))


# --------------------------------------------------------------------- guided


CLASSES = 3


class Flat(nn.Module):
  """A perceptron of images, told labels, and the weight of a guidance if it is to be."""
  guided: bool = False

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    net = MLP(8, 1, classes=CLASSES, guided=self.guided, name='net')
    return net(z.reshape(len(z), -1), logsnr, cond).reshape(z.shape)


def of_labels(told):
  made = vdm.default_config(**guided.fields())
  made.data.update(name='made', shape=(2, 2, 1), levels=5, classes=CLASSES)
  made.model.class_conditional = True
  return made, label_dropping.experiment(
      vdm.experiment(made, net=Flat(told), schedule=schedules.Linear(6.0, -4.0)), 0.1)


def shaken(params):
  """All parameters at random: those that are zero at first would hide what they multiply."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(random.key(3), len(leaves))
  return jax.tree.unflatten(tree, [0.3 * jax.random.normal(key, leaf.shape)
                                   for key, leaf in zip(keys, leaves, strict=True)])


def without_guidance(params):
  """The parameters without the map of w, as a teacher has them, and with one that is zero."""
  embedding = dict(params['net']['net']['embedding'])
  zero = jax.tree.map(jnp.zeros_like, embedding.pop('guidance'))
  wrap = lambda e: {'net': {'net': {**params['net']['net'], 'embedding': e}}}
  return wrap(embedding), wrap({**embedding, 'guidance': zero})


@pytest.mark.long
def test_a_guided_student_starts_as_its_teacher_and_its_loss_is_the_guidance_it_lacks():
  made, base = of_labels(True)
  experiment = guided.first(made, base)
  lacking, params = without_guidance(shaken(experiment.init(random.key(1))))
  _, plain = of_labels(False)
  rng = np.random.default_rng(0)
  n = 16
  batch = {'image': jnp.asarray(rng.integers(0, 5, (n, 2, 2, 1)), jnp.uint8),
           'label': jnp.asarray(rng.integers(0, CLASSES, n), jnp.int32)}
  z, w = jnp.asarray(rng.normal(size=(n, 2, 2, 1)), jnp.float32), jnp.linspace(0.0, 4.0, n)
  student, teacher = experiment.model(params), plain.model(lacking)
  level = student.process(jnp.full(n, 0.6))
  at_first = student.denoise(z, level, student.cond(batch | {'w': w}))
  own = teacher.denoise(z, level, teacher.cond(batch))
  np.testing.assert_array_equal(at_first.x, own.x)

  # The loss at the start is of w (x_hat_c - x_hat_u), at the w and noise that the keys give.
  keys = random.per_example(random.key(2), jnp.arange(n))
  t = jnp.linspace(0.1, 0.9, n)
  context = Context(t, keys, jnp.int32(0), aux=params)
  losses, terms = experiment.loss(params, batch, context)
  drawn = draw_weights(keys, made.model.w_min, made.model.w_max)
  level = student.process(t)
  x = student.encode(batch['image'])
  z = diffuse(x, random.normal(random.stream(keys, 'eps'), x), level)
  told = teacher.denoise(z, level, batch['label']).x
  untold = teacher.denoise(z, level, jnp.full(n, -1)).x
  error = jnp.sum((drawn[:, None, None, None] * (told - untold))**2, axis=(1, 2, 3))
  np.testing.assert_allclose(terms['x_error'], error / 4, rtol=1e-4, atol=1e-7)
  wanted = jnp.maximum(jnp.exp(level.logsnr), 1.0) * error / (4 * math.log(2))
  np.testing.assert_allclose(losses, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_teacher_that_has_not_learned_to_do_without_labels_guides_no_student():
  made, base = of_labels(True)
  experiment = guided.first(made, base)
  lacking, _ = without_guidance(shaken(experiment.init(random.key(1))))
  _, dropping = of_labels(False)
  experiment.teacher(dropping.model(lacking), lacking)
  plain = vdm.experiment(made, net=Flat(), schedule=schedules.Linear(6.0, -4.0))
  with pytest.raises(InputError, match='init_from: the teacher has not learned to do without'):
    experiment.teacher(plain.model(lacking), lacking)


@pytest.mark.long
def test_a_guided_student_is_told_w_by_a_condition_and_lacks_no_other_parameter():
  made, base = of_labels(True)
  experiment = guided.first(made, base)
  model = experiment.model(experiment.init(random.key(1)))
  told = model.conditions(np.arange(4), w='1.5')
  np.testing.assert_array_equal(told['w'], 1.5)
  np.testing.assert_array_equal(told['label'], [0, 1, 2, 0])
  np.testing.assert_array_equal(model.conditions(np.arange(2))['w'], 0.0)
  assert experiment.adds == ('guidance',)
  with pytest.raises(InputError, match='this model has not learned to do without a label'):
    guidance.Guidance(2.0).of(model)


def test_a_network_that_is_told_no_weight_refuses_one():
  net = MLP(8, 1, classes=CLASSES)
  z, label = jnp.zeros((2, 4)), jnp.zeros(2, int)
  with pytest.raises(InputError, match='it is a pair, but this network reads no weight'):
    net.init(random.key(0), z, jnp.zeros(2), (label, jnp.ones(2)))


@pytest.mark.long
def test_w_is_drawn_anew_in_the_second_stage():
  made, base = of_labels(True)
  made = vdm.default_config(**progressive.fields() | guided.fields())
  made.data.update(name='made', shape=(2, 2, 1), levels=5, classes=CLASSES)
  made.model.class_conditional = True
  experiment = guided.second(made, base._replace(ema={'student': 0.0}))
  n = 8
  batch = {'image': jnp.zeros((n, 2, 2, 1), jnp.uint8), 'label': jnp.zeros(n, jnp.int32)}
  params = shaken(experiment.init(random.key(1)))
  losses = lambda seed: experiment.loss(params, batch, Context(
      jnp.linspace(0.1, 1.0, n), random.per_example(random.key(seed), jnp.arange(n)), jnp.int32(0),
      aux=params))[0]
  assert not np.array_equal(losses(0), losses(1))
  assert experiment.model(params).distilled == ('ddim_to_x', 1)


@pytest.mark.parametrize('low,high', [(0.0, 9.0), (2.0, 1.0), (-1.0, 1.0)])
def test_a_range_of_weights_that_the_network_cannot_tell_apart_is_refused(low, high):
  made, base = of_labels(True)
  made.model.update(w_min=low, w_max=high)
  with pytest.raises(InputError, match=f'config.model.w_max={high}: '):
    guided.first(made, base)


# ------------------------------------------------------------------ knowledge


def test_a_student_of_knowledge_is_refused_data_without_noise():
  made = config()
  with pytest.raises(InputError, match="config.data.name='swirl': it has no field 'z_1' of floats"):
    knowledge.experiment(made, students_config.build(made))


def test_aux_may_be_a_function_of_the_first_parameters_and_owns_its_arrays():
  params = {'w': jnp.ones(3)}
  state = step_lib.init(params, optax.sgd(1.0), {},
                        teachers.first_parameters)
  np.testing.assert_array_equal(state.aux['w'], params['w'])
  assert state.aux['w'].unsafe_buffer_pointer() != state.params['w'].unsafe_buffer_pointer()


@pytest.mark.long
def test_a_learned_schedule_is_not_trained_by_distillation():
  """The student's process is the teacher's: no gradient reaches params['schedule']."""
  made = config('progressive')
  base = compose.experiment(
      config(), net=students_config.tiny_config.Net(8, 0.0), objective=None,
      schedule=schedules.LearnedLinear(8.0, -5.0))
  experiment = progressive.experiment(made, base._replace(ema={'student': 0.0}))
  states, _ = updates(experiment, experiment.init(random.key(1)), 3)
  leaves_equal(states[-1].params['schedule'], states[0].params['schedule'])
  assert dataclasses.is_dataclass(states[0])
