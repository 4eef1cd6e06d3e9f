"""Images told texts, through the commands: the digits and their names, as in scikit-learn."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import commands, configs
from vdm_jax import data, runs
from vdm_jax.cli import drawing
from vdm_jax.data import text, tokenisers
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import grids
from vdm_jax.samplers.catalogue import ANCESTRAL

FEW = ANCESTRAL._replace(times=lambda process: grids.uniform(3))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Two steps of the config, with one block of eight features."""
  directory = tmp_path_factory.mktemp('captioned')
  file, (_, config) = configs.file('digits/captioned'), configs.read('digits/captioned')
  config.data.update(data_dir=str(directory), batch_size=8, validation=8)
  config.model.update(features=8, groups=2, blocks=0, text_features=4, weight_gradient='xla',
                      remat='none')
  config.optimizer.decay_steps = 0
  config.ema = {'ema': 0.5}
  config.train.update(steps=2, log_every=1, validate_every=2, checkpoint_every=2,
                      validation_repeats=1, splits=('validation',))
  runs.train(config, file, directory / 'run')
  return directory / 'run'


@pytest.fixture(scope='module')
def trained(run):
  return workdir.load_trained(run)


@pytest.mark.long
def test_every_digit_has_its_name_and_the_rest_is_as_of_the_digits(trained):
  from sklearn.datasets import load_digits
  digits, d = load_digits(), trained.experiment.data
  assert d.spec.names == ('image', 'label', 'caption') and d.spec['caption'][:4] == (
      'caption', (5,), 'int32', 257)
  test = d.split('test').get(np.arange(300))
  np.testing.assert_array_equal(test['image'][..., 0], digits.images[::6])
  np.testing.assert_array_equal(test['label'], digits.target[::6])
  named = dict(zip(text.decode(test['caption']), test['label'].tolist(), strict=True))
  assert named == {'zero': 0, 'one': 1, 'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6,
                   'seven': 7, 'eight': 8, 'nine': 9}
  config = data.default_config()
  config.update(name='captioned_digits', data_dir=trained.config.data.data_dir, batch_size=300,
                fields=('image', 'caption'), text_length=2)
  assert set(text.decode(data.Data(config).batch(0)['caption'])) == {
      'ze', 'on', 'tw', 'th', 'fo', 'fi', 'si', 'se', 'ei', 'ni'}


@pytest.mark.long
def test_the_estimate_of_a_trained_run_s_network_depends_on_the_caption_and_not_on_padding(trained):
  rng = np.random.default_rng(0)  # two steps have not moved the network off its zeros
  params = jax.tree.map(lambda u: u + 0.3 * rng.normal(size=u.shape).astype(np.float32),
                        trained.params)
  model = trained.experiment.model(params)
  z = jnp.asarray(np.tile(rng.normal(size=(1, 8, 8, 1)), (4, 1, 1, 1)), jnp.float32)

  def believed(length):
    tokens = text.encode(['three', 'seven', 'two', 'three'], length)
    return np.asarray(model.denoise(z, model.process(jnp.full(4, 0.5)), tokens).eps)
  eps = believed(5)
  for i in range(3):
    assert all(np.abs(eps[i] - eps[j]).max() > 1e-2 for j in range(i))
  np.testing.assert_allclose(eps[3], eps[0], rtol=0, atol=1e-5)
  np.testing.assert_allclose(believed(9), eps, rtol=0, atol=1e-5)


@pytest.mark.long
def test_a_run_conditioned_on_captions_is_evaluated_and_sampled(run, tmp_path):
  ledger = runs.evaluate(run, examples=8, times=2, repeats=1, batch_size=16)
  assert ledger.dataset['name'] == 'captioned_digits'
  assert all(check['passed'] for check in ledger.checks)
  runs.sample(run, tmp_path / 'a.npz', method=FEW, count=3, batch_size=4,
              prompts=['three', 'seven'])
  with np.load(tmp_path / 'a.npz') as drawn:
    assert drawn['images'].shape == (3, 8, 8, 1) and drawn['images'].dtype == np.uint8
    assert text.decode(drawn['caption']) == ['three', 'seven', 'three']
    first = drawn['images']
  with pytest.raises(InputError, match='it is there already, with another condition'):
    runs.sample(run, tmp_path / 'a.npz', method=FEW, count=5, batch_size=4,
                condition={'caption': ['three', 'two']})
  runs.sample(run, tmp_path / 'a.npz', method=FEW, count=5, batch_size=4,
              condition={'caption': ['three', 'seven']})
  with np.load(tmp_path / 'a.npz') as drawn:
    np.testing.assert_array_equal(drawn['images'][:3], first)
    assert text.decode(drawn['caption']) == ['three', 'seven', 'three', 'seven', 'three']
  for condition, message in ({'caption': 'eleven'}, 'it has 6 bytes, and 5 are read; shorten'), (
      {'label': 3}, "not conditioned on classes; leave it out, or give caption"):
    with pytest.raises(InputError, match=message):
      runs.sample(run, tmp_path / 'b.npz', method=FEW, count=2, condition=condition)
  with pytest.raises(InputError, match="^prompt='eleven': it has 6 bytes, and 5 are read"):
    runs.sample(run, tmp_path / 'b.npz', method=FEW, count=2, prompts=['two', 'eleven'])


@pytest.mark.long
def test_a_text_that_does_not_fit_is_refused_by_the_flag_that_gave_it(run, tmp_path):
  [(code, out, err)] = commands.finish(commands.start(
      'scripts/sample.py', f'--workdir={run}', '--condition=caption=three',
      '--condition=caption=eleven', f'--out={tmp_path}/a.png', count=1))
  assert (code, out, err) == (
      2, '', 'error: --condition=caption=eleven: it has 6 bytes, and 5 are read; '
      'shorten it.\n')


def prompts(prompt=None, file=None):
  return drawing.Prompts(SimpleNamespace(value=prompt), SimpleNamespace(value=file)).texts()


def test_prompts_are_one_text_or_the_lines_of_a_file(tmp_path):
  file, empty = tmp_path / 'texts.txt', tmp_path / 'empty.txt'
  file.write_text('three\n\nseven\n')
  empty.write_text('\n')

  def of(*given):
    with prompts(*given) as texts:
      return texts
  assert (of(), of('two words'), of(None, file)) == ([], ['two words'], ['three', 'seven'])
  for prompt, path, message in (
      ('two', file, "prompt='two': there is --prompts too; leave one of them out"),
      (None, empty, 'it is empty; write one text a line'),
      (None, tmp_path / 'gone', 'it cannot be read: .*No such file')):
    with pytest.raises(InputError, match=message):
      of(prompt, path)


def test_an_error_of_a_text_of_a_file_names_the_line(tmp_path):
  """Words of three captions; empty lines count."""
  file = tmp_path / 'texts.txt'
  file.write_text('three\n\nsevn three\n')
  field = tokenisers.field('caption', tokenisers.Settings('words'), ['two', 'three', 'seven'])
  refused = "the texts of the data have no word 'sevn' (near it: seven); use words of the data."
  for given, message in (((None, file), f"--prompts={file}: line 3, 'sevn three': {refused}"),
                         (('sevn',), f'--prompt=sevn: {refused}')):
    with pytest.raises(InputError) as caught, prompts(*given) as texts:
      tokenisers.tokens(field, texts, 'prompt')
    assert caught.value.as_flag() == message
  with pytest.raises(InputError, match='^prompts=.*: this model is told nothing'), \
      prompts(None, file):
    raise InputError('prompt', None, 'this model is told nothing')
  with pytest.raises(InputError, match='^count=0: it must be at least 1'), prompts(None, file):
    raise InputError('count', 0, 'it must be at least 1')
