"""A run's directory: whose it is, and what a notebook gets out of it."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

import vdm_jax
from vdm_jax import runs, workdir
from vdm_jax.errors import InputError
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints

CONFIG = Path(tiny_config.__file__)


def config(**fields):
  c = tiny_config.get_config()
  c.data.update(shape=(2,), levels=256)
  c.update_from_flattened_dict(fields)
  return c


def state_of(experiment, step):
  """Parameters and averages that are nobody's initial values, each another's."""
  params = experiment.init(jax.random.key(0))
  shift = lambda by: jax.tree.map(lambda u: u + by * jnp.cos(jnp.arange(u.size)).reshape(u.shape),
                                  params)
  state = step_lib.init(shift(0.01 * step), experiment.tx, experiment.ema)
  return jax.device_get(state.replace(step=jnp.int32(step), ema={
      'fast': shift(0.01 * step + 0.1), 'slow': shift(0.01 * step + 0.2)}))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A directory with checkpoints 1 (the best), 2 and 3, and their states."""
  directory = tmp_path_factory.mktemp('made')
  workdir.prepare(directory, config(), CONFIG)
  experiment = tiny_config.build(config())
  states = {step: state_of(experiment, step) for step in (1, 2, 3)}
  checkpoints = Checkpoints(directory)
  for step, loss in ((1, 4.0), (2, 5.0), (3, 6.0)):
    checkpoints.save(states[step], loss)
  checkpoints.close()
  return directory, states


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_load_gives_the_model_of_the_averaged_weights(made):
  """denoise is the network of the config: eps = net(z, logsnr), x = (z - sigma eps) / alpha."""
  directory, states = made
  model = vdm_jax.load(directory)
  ema = states[3].ema['slow']  # the longest
  z, t = jax.random.normal(jax.random.key(1), (5, 2)), jnp.linspace(0.1, 0.9, 5)
  gamma = ema['schedule']['b'][0] + abs(ema['schedule']['w'][0]) * t
  net = tiny_config.Net(features=8, dropout=0.2)
  eps = net.apply({'params': ema['net']}, z, -gamma)
  sigma, alpha = jnp.sqrt(jax.nn.sigmoid(gamma)), jnp.sqrt(jax.nn.sigmoid(-gamma))
  estimate = model.denoise(z, model.process(t))
  np.testing.assert_allclose(estimate.eps, eps, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(estimate.x, (z - sigma[:, None] * eps) / alpha[:, None], rtol=1e-3,
                             atol=1e-4)
  images = jnp.array([[0, 255], [17, 100]])
  np.testing.assert_array_equal(model.decode(model.encode(images)), images)
  assert model.shape == (2,)


@pytest.mark.parametrize('options,step,average', [
    ({}, 3, 'slow'), ({'average': 'fast'}, 3, 'fast'), ({'average': 'raw'}, 3, 'raw'),
    ({'step': 'best'}, 1, 'slow'), ({'step': '2', 'average': 'fast'}, 2, 'fast'),
    ({'step': 1}, 1, 'slow')], ids=str)
def test_weights_are_chosen_by_average_and_step(made, options, step, average):
  directory, states = made
  trained = workdir.load_trained(directory, **options)
  assert (trained.step, trained.average) == (step, average)
  state = states[step]
  assert_equal(trained.params, state.params if average == 'raw' else state.ema[average])


def test_what_is_not_there_is_named_with_what_is(made, tmp_path):
  directory, _ = made
  with pytest.raises(InputError, match='--average=none.*fast, slow and raw'):
    workdir.load_trained(directory, average='none')
  for step in ('7', 'first', -1):
    with pytest.raises(InputError, match=f'--step={step}.*1, 2, 3'):
      workdir.load_trained(directory, step=step)
  with pytest.raises(InputError, match='holds no run'):
    workdir.load_trained(tmp_path)
  workdir.prepare(tmp_path, config(), CONFIG)
  with pytest.raises(InputError, match='no checkpoint yet'):
    workdir.load_trained(tmp_path)


def test_the_best_of_none_that_was_validated_is_refused(tmp_path):
  workdir.prepare(tmp_path, config(), CONFIG)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state_of(tiny_config.build(config()), 4))
  checkpoints.close()
  with pytest.raises(InputError, match='--step=best.*validated.*latest'):
    workdir.load_trained(tmp_path, step='best')
  assert workdir.load_trained(tmp_path).step == 4


def test_the_config_comes_back_as_it_was(made):
  directory, _ = made
  assert workdir.read_config(directory).to_dict() == config().to_dict()
  assert (directory / 'config.py').read_text() == CONFIG.read_text()


@pytest.mark.parametrize('fields,shown', [
    ({'model.features': 16}, ['model.features: 8 there, 16 asked for']),
    ({'data.batch_size': 4}, ['data.batch_size: 8 there, 4 asked for']),
    ({'seed': 2}, ['seed: 1 there, 2 asked for']),
    ({'optimizer.learning_rate': 0.5, 'model.dropout': 0.0},
     ['optimizer.learning_rate: 0.01 there, 0.5', 'model.dropout: 0.2 there, 0.0'])], ids=str)
def test_a_run_of_another_configuration_is_refused_with_the_difference(made, fields, shown):
  directory, _ = made
  with pytest.raises(InputError, match='another configuration') as error:
    workdir.prepare(directory, config(**fields), CONFIG)
  for line in shown:
    assert line in str(error.value)
  assert str(error.value).count(' there, ') == len(shown)
  assert workdir.read_config(directory).model.features == 8  # nothing was written


def test_another_average_is_a_difference_too(made):
  other = config()
  other.ema = {'fast': 0.9, 'slow': 0.999}
  with pytest.raises(InputError, match='ema.slow: 0.99 there, 0.999'):
    workdir.prepare(made[0], other, CONFIG)


def test_how_a_run_goes_may_change(made):
  directory, _ = made
  fields = {'train.layout': 'pmap', 'train.steps': 77, 'train.log_every': 7, 'train.keep': 9,
            'train.splits': ('validation', 'test'), 'data.data_dir': '/elsewhere',
            'data.workers': 1, 'data.memory_gb': 2.0}
  workdir.prepare(directory, config(**fields), CONFIG)
  assert workdir.read_config(directory).train.steps == 77
  workdir.prepare(directory, config(), CONFIG)


def test_a_config_may_be_corrected_while_there_is_no_checkpoint(tmp_path):
  """A first try that failed to start must not reserve its directory for its mistake."""
  workdir.prepare(tmp_path, config(**{'model.features': 7}), CONFIG)
  workdir.prepare(tmp_path, config(), CONFIG)
  assert workdir.read_config(tmp_path).model.features == 8


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='--workdir=.*cannot be written'):
    workdir.prepare(tmp_path / 'file' / 'run', config(), CONFIG)


@pytest.mark.parametrize('text,match', [(None, 'no such config file'),
                                        ('def get_config():\n  pass\n', 'has no `build`')])
def test_a_file_that_is_no_config_is_refused(tmp_path, text, match):
  path = tmp_path / 'mine.py'
  if text is not None:
    path.write_text(text)
  with pytest.raises(InputError, match=match):
    workdir.import_config(path)


def test_transfer_takes_what_fits_and_names_the_rest(caplog):
  """--init_from: the same name and shape is taken, whatever else there is is reported."""
  ones = lambda *shape: jnp.ones(shape)
  params = {'net': {'same': ones(2), 'larger': ones(3), 'new': ones(1)}}
  other = {'net': {'same': 5 * np.ones(2), 'larger': np.ones(2), 'old': np.ones(1)}}
  out = runs.transfer(params, other)
  np.testing.assert_array_equal(out['net']['same'], 5.0)
  np.testing.assert_array_equal(out['net']['larger'], np.ones(3))
  assert out['net']['same'].dtype == jnp.float32
  missing, left = (record.getMessage() for record in caplog.records)
  assert 'net/larger' in missing and 'net/new' in missing and 'net/same' not in missing
  assert 'left over' in left and 'net/old' in left
  with pytest.raises(InputError, match='none of its parameters'):
    runs.transfer({'net': {'new': ones(1)}}, other)


def test_config_json_says_where_the_config_came_from(made):
  assert json.loads((made[0] / 'config.json').read_text())['from'] == str(CONFIG.parent)
