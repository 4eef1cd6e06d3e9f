"""Systems that are told texts: what the network reads, what is trained, and what is dropped."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.support.published import shapes_of
from vdm_jax import data, guidance, random, samplers, schedules
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import Sequence
from vdm_jax.samplers import drawing
from vdm_jax.systems import compose, texts
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Context

SMALL = GLIDEText(features=8, depth=1, attention_heads=2, levels=257, length=6, padding=0,
                  outputs=3)


class Net(nn.Module):
  """y = 0.4 z + the sum of a linear map of the vectors of tokens: the least that reads a text."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    w = self.param('w', nn.initializers.constant(0.4), ())
    return w * z + jnp.sum(nn.Dense(1, name='read')(cond), axis=1)[:, None, None]


def config(trained=True, encoder=SMALL, **data_fields):
  made = vdm.default_config()
  made.data.update(**{'name': 'made', 'shape': (2, 2, 1), 'levels': 5, 'text_length': 6,
                      'fields': ('image', 'caption'), **data_fields})
  return texts.add(made, encoder, trained=trained)


def experiment(made, net=None, **more):
  return texts.experiment(made, lambda **told: compose.experiment(
      made, net=net or Net(), schedule=schedules.Linear(6.0, -4.0), **{**told, **more}))


@pytest.fixture(scope='module')
def system():
  """The experiment, parameters that read texts, and the tokens of two texts."""
  made = config()
  one = experiment(made)
  params = jax.jit(one.init)(jax.random.key(0))
  params = jax.tree.map(lambda u: u + 0.3 * np.random.default_rng(u.size).standard_normal(
      u.shape).astype(np.float32), params)
  return made, one, params, tokenisers.of(data.resolve(made.data)['caption']).encode(['ab', 'c'])


@pytest.mark.long
def test_the_network_reads_the_vectors_of_the_tokens_and_untold_those_of_the_empty_text(system):
  """The guided estimate of this network: w z, and (1 + w) times the told term less w the untold."""
  _, one, params, tokens = system
  model = one.model(params)

  @jax.jit
  def run():
    encode = lambda tokens: SMALL.apply({'params': params['encoder']}, tokens).sequence
    read = lambda tokens: jnp.sum(encode(tokens) @ params['net']['read']['kernel']
                                  + params['net']['read']['bias'], axis=1)[:, None, None]
    z = jax.random.normal(jax.random.key(2), (2, 2, 2, 1))
    cond = model.cond({'caption': tokens})
    guided = guidance.Guidance(1.5).of(model)
    level = model.process(jnp.array([0.3, 0.6]))
    told, untold = read(tokens), read(jnp.zeros((2, 6), jnp.int32))
    rest = params['net']['w'] * z
    return ((cond, encode(tokens)), (model.denoise(z, level, cond).eps, rest + told),
            (guided.denoise(z, level, guided.cond({'caption': tokens})).eps,
             rest + 2.5 * told - 1.5 * untold), (told, untold))
  *pairs, (told, untold) = run()
  for got, want in pairs:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert np.abs(told - untold).min() > 1e-2  # so the text matters


@pytest.mark.long
@pytest.mark.parametrize('trained', [True, False])
def test_the_encoder_is_trained_or_frozen(system, trained):
  """A frozen one has no gradient, no decay of its weights and no moments."""
  _, _, params, tokens = system
  one = experiment(config(trained))
  batch = {'image': np.ones((2, 2, 2, 1), np.uint8), 'caption': tokens}
  context = Context(jnp.array([0.3, 0.6]), jax.random.split(jax.random.key(0), 2), jnp.int32(0))

  @jax.jit
  def move():
    state = one.tx.init(params)
    gradient = jax.grad(lambda params: one.loss(params, batch, context)[0].sum())(params)
    moved, state = one.tx.update(gradient, state, params)
    return one.tx.update(gradient, state, params)[0], state  # the rate of the first step is 0
  moved, state = move()
  largest = {name: max(float(np.abs(u).max()) for u in jax.tree.leaves(part))
             for name, part in moved.items()}
  assert largest['net'] > 0.0 and (largest['encoder'] > 0.0) == trained
  vectors = params['encoder']['tokens']['embedding'].shape
  assert any(u.shape == vectors for u in jax.tree.leaves(state)) == trained
  assert bool(one.needs_start) != trained and one.adds == (() if trained else ('net', 'schedule'))


@pytest.mark.long
def test_a_text_is_dropped_as_a_whole():
  tokens = jnp.arange(1, 61).reshape(20, 3)
  keys = jax.random.split(jax.random.key(0), 20)
  got = np.asarray(label_dropping.drop(tokens, keys, 0.4, jnp.array([7, 8, 8])))
  labels = np.asarray(label_dropping.drop(jnp.arange(20), keys, 0.4))
  assert 0 < (labels == -1).sum() < 20
  np.testing.assert_array_equal(got, np.where((labels == -1)[:, None], [7, 8, 8], tokens))


@pytest.mark.long
def test_samplers_encode_the_text_and_the_empty_text_once():
  calls = []

  class Counting(nn.Module):

    @nn.compact
    def __call__(self, tokens):
      jax.debug.callback(lambda tokens: calls.append(len(tokens)), tokens)
      return nn.Embed(257, 4)(tokens)

  made = config()
  one = experiment(made, encoder=Counting())
  params = jax.jit(one.init)(jax.random.key(0))
  calls.clear()
  model = guidance.Guidance(2.0).of(one.model(params))
  keys = random.per_example(random.key(0), jnp.arange(3))
  conditions = model.conditions(np.arange(3), caption='ab')
  drawn = jax.jit(lambda: drawing.from_keys(
      model, samplers.ddim, keys, jnp.linspace(1.0, 0.0, 6), conditions)[0])()
  jax.block_until_ready(drawn)
  jax.effects_barrier()
  assert sorted(calls) == [1, 3]


@pytest.mark.parametrize('encoder', [
    SMALL, TextTower(features=8, depth=1, attention_heads=2, levels=9, length=4, outputs=3),
    LatentBERT(features=8, depth=2, attention_heads=1, levels=9, length=4, head_features=4)])
def test_the_fields_of_a_config_describe_an_encoder(encoder):
  own = texts.settings(encoder)
  made = config(encoder=encoder)
  assert texts.network(made.text) == encoder and own.items() <= made.text.to_dict().items()
  tokens = jnp.zeros((1, encoder.length), jnp.int32)
  assert shapes_of(Sequence(encoder), tokens) == shapes_of(encoder, tokens)


@pytest.mark.parametrize('fields, change, message', [
    ({'text_length': 5}, {}, 'config.text.length=6: the tokens of the data have length=5; set it'),
    ({}, {'levels': 9}, 'config.text.levels=9: the tokens of the data have levels=257'),
    ({}, {'dropped': 1.0}, 'config.text.dropped=1.0: it is no share'),
    ({}, {'kind': 'clop'}, 'config.text.kind=.clop.: did you mean clip'),
    ({'fields': ()}, {}, 'it has no field .caption.')])
def test_an_encoder_that_does_not_fit_the_texts_is_refused(fields, change, message):
  made = config(**fields)
  made.text.update(change)
  with pytest.raises(InputError, match=message):
    experiment(made)
  with pytest.raises(InputError, match='encoder: this system is told nothing'):
    compose.experiment(config(), net=Net(), schedule=schedules.Linear(), encoder=SMALL)
