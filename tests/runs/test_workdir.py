"""A run's directory: whose it is, and what a notebook gets out of it."""
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from tests.support import tiny_config
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import provenance, workdir
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


@pytest.mark.long
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
  assert model.sample(jax.random.key(0), 3, steps=4).shape == (3, *model.shape) == (3, 2)


@pytest.mark.long
def test_a_model_says_its_shape_and_what_it_can_and_not_its_weights(made):
  model = vdm_jax.load(made[0])
  has = 'denoise, process, decoder, encode, decode, cond'
  assert repr(model) == f'Model(shape=(2,): {has}, conditions)'
  guided = model._replace(null=lambda cond: cond)
  assert repr(guided) == f'Model(shape=(2,): {has}, null, conditions)'


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


@pytest.mark.long
def test_what_is_not_there_is_named_with_what_is(made, tmp_path):
  directory, _ = made
  with pytest.raises(InputError, match="^average='none': .*fast, slow and raw"):
    workdir.load_trained(directory, average='none')
  for step in ('7', 'first', -1):
    with pytest.raises(InputError, match=f'^step={step!r}: .*1, 2, 3'):
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
  with pytest.raises(InputError, match="^step='best': .*validation loss.*latest"):
    workdir.load_trained(tmp_path, step='best')
  assert workdir.load_trained(tmp_path).step == 4


def test_the_config_comes_back_as_it_was(made):
  directory, _ = made
  assert workdir.read_config(directory).to_dict() == config().to_dict()
  assert (directory / 'config.py').read_text() == CONFIG.read_text()


def test_a_run_that_is_older_than_a_field_of_its_config_says_which_and_what_to_do(made, tmp_path):
  run = shutil.copytree(made[0], tmp_path / 'run')
  record = json.loads((run / 'config.json').read_text())
  record['config']['model']['width'] = record['config']['model'].pop('features')
  (run / 'config.json').write_text(json.dumps(record))
  again = lambda run: runs.train(workdir.read_config(run), run / 'config.py', run)
  for use in (vdm_jax.load, again):
    with pytest.raises(InputError, match="config.py': there is no field 'features', which line .* "
                       'needs; add it .*, or use the version') as no:
      use(run)
    assert '\n' not in str(no.value)


def test_a_run_whose_config_uses_a_name_that_is_gone_says_which(made, tmp_path):
  run = shutil.copytree(made[0], tmp_path / 'run')
  text = (run / 'config.py').read_text()
  assert 'schedules.LearnedLinear' in text
  (run / 'config.py').write_text(text.replace('schedules.LearnedLinear', 'schedules.OldName'))
  with pytest.raises(InputError, match="vdm_jax.schedules has no 'OldName', which line .* of "
                     'config.py uses; use the present name, or the version'):
    vdm_jax.load(run)


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


def test_a_file_whose_weights_the_checkpoints_have_may_move(tmp_path):
  def asked(vgg):
    of = config()
    with of.unlocked():
      of.model.vgg = vgg
    return of
  workdir.prepare(tmp_path, asked('there/vgg.pth'), CONFIG)
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  workdir.prepare(tmp_path, asked('here/vgg.pth'), CONFIG)
  assert workdir.read_config(tmp_path).model.vgg == 'here/vgg.pth'


def test_a_learning_rate_falls_to_0_later_where_that_is_asked_for(tmp_path, capsys):
  """A cosine after 5 steps of warm-up, of 0.01: at 15 of 20 steps, then of 40."""
  asked = lambda end, **fields: config(
      **{'train.steps': 60, 'optimizer.decay_steps': end, **fields})
  workdir.prepare(tmp_path, asked(20), CONFIG)
  (tmp_path / 'checkpoints' / '15').mkdir(parents=True)
  with pytest.raises(InputError, match='decay_steps=40: the run in .* began with 20; ask for `ext'):
    workdir.prepare(tmp_path, asked(40), CONFIG)
  for refused in (asked(10), asked(0), asked(40, **{'optimizer.learning_rate': 0.02}),
                  asked(40, seed=2)):
    with pytest.raises(InputError, match='optimizer.decay_steps: 20 there, '):
      workdir.prepare(tmp_path, refused, CONFIG, extend=True)
  with pytest.raises(InputError, match='train.steps=15: the run has made 15 steps; set more'):
    workdir.prepare(tmp_path, asked(40, **{'train.steps': 15}), CONFIG, extend=True)
  assert not capsys.readouterr().out
  workdir.prepare(tmp_path, asked(40), CONFIG, extend=True)
  said, = capsys.readouterr().out.splitlines()
  assert 'at step 15, where the run goes on, it is 0.00812 instead of 0.0025.' in said
  starts = lambda: json.loads((tmp_path / 'config.json').read_text())['starts']
  found = starts()[-1]['extended']
  assert (found['step'], found['decay_steps']) == (15, [20, 40])
  cosine = lambda share: 0.005 * (1 + np.cos(np.pi * share))
  np.testing.assert_allclose(found['learning_rate'], [cosine(10 / 15), cosine(10 / 35)], rtol=1e-5)
  workdir.prepare(tmp_path, asked(40), CONFIG, extend=True)  # the same command goes on
  assert 'extended' not in starts()[-1] and not capsys.readouterr().out


def test_a_run_s_own_config_json_stands_for_its_config_file(made, two):
  """With the modules that are kept beside it."""
  opened = workdir.open_config(f'{made[0]}/config.json')
  assert opened.to_dict() == config().to_dict()
  with pytest.raises(InputError, match='the config of a run has no variants; leave out :a'):
    workdir.open_config(f'{made[0]}/config.json:a')
  kept = workdir.source(two['b'] / 'config.json')
  assert kept.module().build(config()).model(None)[0] == 'b'
  workdir.prepare(two['b'], config(), kept)
  assert vdm_jax.load(two['b'])[0] == 'b'


def test_a_config_may_be_corrected_while_there_is_no_checkpoint(tmp_path):
  """A first try that failed to start must not reserve its directory for its mistake."""
  workdir.prepare(tmp_path, config(**{'model.features': 7}), CONFIG)
  workdir.prepare(tmp_path, config(), CONFIG)
  assert workdir.read_config(tmp_path).model.features == 8


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='^workdir=.*cannot be written'):
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


# ------------------------------------------------------- neighbours of the config


def checkout(folder, name):
  """A folder with a config file that takes a value from a neighbour, which another one has too."""
  folder.mkdir(parents=True)
  (folder / 'leaf.py').write_text("""
import parts
from tests.support import tiny_config

get_config = tiny_config.get_config


def build(config):
  return tiny_config.build(config)._replace(model=lambda params: (parts.NAME, params))
""")
  (folder / 'parts.py').write_text('from deeper import NAME\n')
  (folder / 'deeper.py').write_text(f'NAME = {name!r}\n')
  return folder / 'leaf.py'


def begun(directory, file):
  """A run of that config file with a checkpoint."""
  workdir.prepare(directory, config(), file)
  checkpoints = Checkpoints(directory)
  checkpoints.save(state_of(tiny_config.build(config()), 1))
  checkpoints.close()
  return directory


@pytest.fixture
def two(tmp_path):
  """Runs of two checkouts, which are gone."""
  runs_of = {name: begun(tmp_path / f'run_{name}', checkout(tmp_path / name, name))
             for name in 'ab'}
  for name in 'ab':
    (tmp_path / name).rename(tmp_path / f'moved_{name}')
  return runs_of


def test_runs_of_two_checkouts_load_side_by_side_from_their_directories_alone(two):
  assert ''.join(vdm_jax.load(two[name])[0] for name in 'abba') == 'abba'
  assert (two['a'] / 'config' / 'deeper.py').read_text() == "NAME = 'a'\n"
  assert sorted(file.name for file in (two['a'] / 'config').iterdir()) == ['deeper.py', 'parts.py']


def test_a_run_that_lost_a_neighbour_names_it(two):
  (two['a'] / 'config' / 'deeper.py').unlink()
  with pytest.raises(InputError, match='config/deeper.py, which is missing.*copy it back.*from'):
    vdm_jax.load(two['a'])


def older(directory):
  """As the version before wrote it: without neighbours."""
  record = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(json.dumps({k: record[k] for k in ('config', 'from')}))
  shutil.rmtree(directory / 'config', ignore_errors=True)


def test_a_run_of_an_older_version_finds_its_neighbours_where_it_began(two, tmp_path):
  older(two['a'])
  with pytest.raises(InputError, match=r"imports 'parts', which is neither installed nor in "
                     r".*run_a/config \(.*/a, where the run began, is gone\); put parts.py into"):
    vdm_jax.load(two['a'])
  (tmp_path / 'moved_a').rename(tmp_path / 'a')
  assert vdm_jax.load(two['a'])[0] == 'a'
  shutil.copytree(tmp_path / 'a', two['a'] / 'config')  # the remedy
  (tmp_path / 'a').rename(tmp_path / 'gone')
  assert vdm_jax.load(two['a'])[0] == 'a'


def test_neighbours_that_changed_are_named_on_resuming_and_kept_from_then_on(two, tmp_path, caplog):
  file = tmp_path / 'moved_a' / 'leaf.py'
  workdir.prepare(two['a'], config(), file)
  assert not caplog.records
  file.with_name('deeper.py').write_text("NAME = 'new'\n")
  workdir.prepare(two['a'], config(), file)
  assert [str(file.with_name('deeper.py')) in record.getMessage() and 'leaf.py' not in
          record.getMessage() for record in caplog.records] == [True]
  assert vdm_jax.load(two['a'])[0] == 'new'
  file.with_name('parts.py').write_text("NAME = 'short'\n")
  workdir.prepare(two['a'], config(), file)
  assert not (two['a'] / 'config' / 'deeper.py').exists()  # nobody imports it any more
  assert vdm_jax.load(two['a'])[0] == 'short'


def test_what_is_kept_is_what_was_imported_and_not_what_the_file_has_become(tmp_path):
  file = checkout(tmp_path / 'a', 'first')
  read = workdir.source(file)
  file.with_name('deeper.py').write_text("NAME = 'edited'\n")
  assert vdm_jax.load(begun(tmp_path / 'run', read))[0] == 'first'


@pytest.mark.first(2)
@pytest.mark.parametrize('text', ['{"config": {"seed"', '[]', '{"from": "."}', '\udcff'])
def test_a_damaged_config_json_is_one_line_with_the_remedy(two, text):
  (two['a'] / 'config.json').write_text(text, errors='surrogateescape')
  with pytest.raises(InputError, match=r'config.json is damaged \(.*\); restore it, or') as error:
    vdm_jax.load(two['a'])
  assert '\n' not in str(error.value)


def test_a_run_of_a_newer_format_is_refused_and_one_of_none_is_read(two):
  path = two['a'] / 'config.json'
  record = json.loads(path.read_text())
  assert record['format'] == provenance.FORMAT
  path.write_text(json.dumps(record | {'format': provenance.FORMAT + 1}))
  with pytest.raises(InputError, match='config.json has format 2, .* up to 1; update vdm_jax'):
    vdm_jax.load(two['a'])
  del record['format']
  path.write_text(json.dumps(record))
  assert vdm_jax.load(two['a'])[0] == 'a'


def test_every_start_of_a_run_says_what_made_it(two, monkeypatch, caplog):
  made = {'vdm_jax': '9', 'commit': 'abc', 'jax': '1', 'date': 'then', 'command': 'train.py'}
  file = two['a'].parent / 'moved_a' / 'leaf.py'
  starts = lambda: json.loads((two['a'] / 'config.json').read_text())['starts']
  assert [start['commit'] for start in starts()] == [provenance.provenance()['commit']]
  monkeypatch.setattr(workdir, 'provenance', lambda: made)
  workdir.prepare(two['a'], config(), file)
  assert 'commit abc now' in caplog.records[-1].getMessage()
  said = len(caplog.records)
  workdir.prepare(two['a'], config(), file)
  assert len(caplog.records) == said  # the same library again
  assert starts()[1:] == [made, made]
  older(two['a'])
  workdir.prepare(two['a'], config(), file)  # which says nothing of what made it
  assert starts() == [made] and len(caplog.records) == said  # nothing to compare with
