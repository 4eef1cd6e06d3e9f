"""Labels that are dropped: how often, for whom, and what becomes of an experiment by it."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import guidance, runs, samplers, schedules
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import grids
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Context

CLASSES = 3


class Net(nn.Module):
  """y = w z + the vector of a label, zero for none: the least that a label reaches."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    w = self.param('w', nn.initializers.constant(0.4), ())
    vectors = self.param('vectors', nn.initializers.normal(1.0), (CLASSES,))
    shift = jnp.where(cond >= 0, vectors[jnp.maximum(cond, 0)], 0.0)
    return w * z + shift.reshape(-1, *(1,) * (z.ndim - 1))


def base() -> tuple:
  config = vdm.default_config()
  config.data.update(name='made', shape=(2, 2, 1), levels=5, classes=CLASSES)
  config.model.class_conditional = True
  return config, vdm.experiment(config, net=Net(), schedule=schedules.Linear(6.0, -4.0))


@pytest.mark.long
def test_a_label_is_dropped_as_often_as_asked_whichever_it_is():
  n = 60_000
  label = jnp.arange(n) % CLASSES
  keys = jax.random.split(jax.random.key(0), n)
  for p in (0.1, 0.35):
    got = np.asarray(label_dropping.drop(label, keys, p))
    dropped = got == -1
    np.testing.assert_array_equal(got[~dropped], np.asarray(label)[~dropped])
    for which in range(CLASSES):
      each = dropped[np.asarray(label) == which]
      assert abs(each.mean() - p) < 4 * (p * (1 - p) / len(each))**0.5


@pytest.mark.long
def test_whether_a_label_is_dropped_depends_on_its_own_key_alone():
  keys = jax.random.split(jax.random.key(0), 200)
  label = jnp.arange(200)
  drop = lambda label, keys: np.asarray(label_dropping.drop(label, keys, 0.3))
  whole = drop(label, keys)
  np.testing.assert_array_equal(whole[50:90], drop(label[50:90], keys[50:90]))
  assert (whole != drop(label, jax.random.split(jax.random.key(1), 200))).any()
  np.testing.assert_array_equal(drop(label, keys) == -1, drop(label + 7, keys) == -1)


@pytest.mark.long
def test_in_training_the_loss_is_that_of_the_labels_left_and_in_validation_of_all():
  _, plain = base()
  dropping = label_dropping.experiment(plain, 0.4)
  n = 64
  rng = np.random.default_rng(0)
  batch = {'image': jnp.asarray(rng.integers(0, 5, (n, 2, 2, 1)), jnp.uint8),
           'label': jnp.asarray(rng.integers(0, CLASSES, n), jnp.int32)}
  keys = jax.random.split(jax.random.key(0), n)

  @jax.jit
  def losses():
    params = plain.init(jax.random.key(1))
    at = lambda train: Context((jnp.arange(n) + 0.5) / n, keys, jnp.int32(0), train=train)
    told, untold = batch, batch | {'label': jnp.full(n, -1)}
    return [f(params, b, at(train))[0] for f, b, train in (
        (dropping.loss, batch, True), (dropping.loss, batch, False), (plain.loss, told, True),
        (plain.loss, untold, True), (plain.loss, told, False))]

  trained, validated, told, untold, all_told = losses()
  dropped = np.asarray(label_dropping.drop(batch['label'], keys, 0.4)) == -1
  assert 10 < dropped.sum() < 50 and np.abs(told - untold).min() > 0.0
  np.testing.assert_allclose(trained, np.where(dropped, untold, told), rtol=1e-6)
  np.testing.assert_allclose(validated, all_told, rtol=1e-6)


@pytest.mark.long
def test_a_model_so_trained_says_what_it_believes_without_a_label():
  """The guided estimate of this network: its vector counts 1 + w times, and its rest once."""
  _, plain = base()
  params = jax.jit(plain.init)(jax.random.key(1))
  assert plain.model(params).null is None
  model = label_dropping.experiment(plain, 0.1).model(params)
  z, label = jax.random.normal(jax.random.key(2), (4, 2, 2, 1)), jnp.array([0, 1, 2, -1])
  level = model.process(jnp.array([0.2, 0.4, 0.6, 0.8]))
  without = guidance.conditioned_on(model.denoise, model.null)(z, level, label)
  np.testing.assert_allclose(without.eps, 0.4 * z, rtol=1e-5)
  vector = jnp.concatenate([params['net']['vectors'], jnp.zeros(1)])[:, None, None, None]
  for w in (0.0, 1.5):
    guided = guidance.Guidance(w).of(model)
    got = guided.denoise(z, level, guided.cond({'label': label}))
    np.testing.assert_allclose(got.eps, 0.4 * z + (1.0 + w) * vector, rtol=1e-5, atol=1e-6)
  # log-SNR is 4, 2, 0, -2: only the middle two are guided.
  guided = guidance.Guidance(1.5, -1.0, 3.0).of(model)
  got = guided.denoise(z, level, guided.cond({'label': label}))
  factor = jnp.array([1.0, 2.5, 2.5, 1.0])[:, None, None, None]
  np.testing.assert_allclose(got.eps, 0.4 * z + factor * vector, rtol=1e-5, atol=1e-6)
  with pytest.raises(InputError, match='guidance=.channels=2.: z has 1 channels'):
    guidance.Guidance(1.5, channels=2).of(model)


def test_without_labels_there_are_none_to_drop():
  _, plain = base()
  untold = plain._replace(
      model=lambda params, keys=None: plain.model(params, keys)._replace(cond=lambda batch: None))
  dropping = label_dropping.experiment(untold, 0.1)
  batch = {'image': jnp.zeros((2, 2, 2, 1), jnp.uint8), 'label': jnp.zeros(2, jnp.int32)}
  context = Context(jnp.full(2, 0.5), jax.random.split(jax.random.key(0), 2), jnp.int32(0),
                    train=True)
  with pytest.raises(InputError, match='^config.model.class_conditional=False: '):
    jax.eval_shape(lambda: dropping.loss(plain.init(jax.random.key(1)), batch, context))


CONFIG = '''
import sys
sys.path.append({folder!r})
from test_label_dropping import Net
from vdm_jax import schedules
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.variational import vdm

def get_config():
  config = vdm.default_config()
  config.data.update(name={data!r}, validation=8, batch_size=8)
  config.model.class_conditional = True
  config.ema = {{'ema': 0.5}}
  config.train.update(steps=2, log_every=2, validate_every=2, checkpoint_every=2,
                      pictures_every=0)
  return config

def build(config):
  plain = vdm.experiment(config, net=Net(), schedule=schedules.Linear(6.0, -4.0))
  return label_dropping.experiment(plain, 0.2) if {dropping} else plain
'''


def make_run(folder, dropping):
  rng = np.random.default_rng(0)
  np.savez(folder / 'made.npz', images=rng.integers(0, 5, (60, 4, 4, 1)).astype(np.uint8),
           labels=np.arange(60) % CLASSES)
  file = folder / 'config_.py'
  file.write_text(CONFIG.format(folder=str(Path(__file__).parent), data=str(folder / 'made.npz'),
                                dropping=dropping))
  runs.train(workdir.import_config(file).get_config(), file, folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('dropping'), True)


def by(steps, **options):
  return runs.Method('ddim', samplers.ddim, 'uniform', lambda process: grids.uniform(steps),
                     **options)


@pytest.mark.long
def test_a_run_is_sampled_with_guidance_and_weight_zero_is_none(finished, tmp_path):
  draw = lambda name, guided: (
      runs.sample(finished, tmp_path / f'{name}.npz', method=by(4), count=6, guided=guided),
      np.load(tmp_path / f'{name}.npz')['images'])
  plain, zero, strong = draw('plain', None), draw('zero', guidance.Guidance(0.0)), draw(
      'strong', guidance.Guidance(6.0))
  assert (plain[0], zero[0], strong[0]) == (4, 8, 8)
  np.testing.assert_array_equal(plain[1], zero[1])
  assert (plain[1] != strong[1]).any()


@pytest.mark.long
def test_guidance_is_refused_where_it_means_nothing(finished, tmp_path):
  with pytest.raises(InputError, match='guidance=2.0: the sampler ddim has the variances of'):
    runs.sample(finished, tmp_path / 'a.npz', method=by(4, variances=True),
                guided=guidance.Guidance(2.0))
  run = make_run(tmp_path, False)
  with pytest.raises(InputError, match=r'guidance=2.0: .* without a label; .*networks.py:cfg'):
    runs.sample(run, tmp_path / 'a.npz', method=by(4), guided=guidance.Guidance(2.0))


@pytest.mark.parametrize('given,expected', [
    ([], None), (['1.5'], (1.5, -np.inf, np.inf, 0)), (['2', '-3', '5'], (2.0, -3.0, 5.0, 0)),
    (['1.5', 'channels=3'], (1.5, -np.inf, np.inf, 3)),
    (['2', '-3', '5', 'channels=1'], (2.0, -3.0, 5.0, 1))])
def test_the_flag_is_a_weight_and_perhaps_an_interval_and_channels(given, expected):
  assert guidance.parse(given) == expected


@pytest.mark.parametrize('given', [
    ['much'], ['1', '2'], ['1', '5', '-3'], ['channels=3'], ['1', 'channels=0'],
    ['1', 'channels=most'], ['channels=3', '1']])
def test_a_flag_that_says_something_else_is_refused(given):
  with pytest.raises(InputError, match='^guidance=.*: it must be W, or W,LOW,HIGH'):
    guidance.parse(given)
