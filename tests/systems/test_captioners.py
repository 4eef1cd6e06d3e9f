"""A captioner as an experiment: greedy captions, what is trained, its files, and a resumed run."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import commands, configs
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import describing
from vdm_jax.systems import captioners
from vdm_jax.typing import Captions, Context

TINY = {'model.channels': (8,), 'model.features': 8, 'model.depth': 1, 'model.attention_heads': 1,
        'data.batch_size': 4, 'data.validation': 16, 'train.steps': 6, 'train.log_every': 2,
        'train.validate_every': 3, 'train.checkpoint_every': 3}
KEYS = jax.random.split(jax.random.key(1), 4)


def read(training, **fields):
  module, config = configs.read(f'text/captioner:{training}')
  config.update_from_flattened_dict(TINY | {name.replace('__', '.'): u for name, u in
                                            fields.items()})
  return module, config


def test_a_greedy_text_follows_the_most_probable_transitions_of_a_markov_chain():
  """From the start to 2, then to 3, to 1 and to the end; in the second row from 1 on."""
  chain = jnp.full((4, 4), -1.0).at[2, 3].set(0.5).at[3, 1].set(0.5).at[1, 0].set(0.5)

  def decode(tokens):
    start = jnp.eye(4)[jnp.array([2, 1])]
    return jnp.concatenate([start[:, None], chain[tokens[:, :-1]]], axis=1)
  said = captioners.greedy(decode, 2, 6, 0)
  assert said.tolist() == [[2, 3, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
  # A chain without an end fills the whole length.
  assert captioners.greedy(lambda tokens: decode(tokens).at[..., 0].set(-9.0).at[:, 1:, 3].set(1.0),
                           2, 4, 0).tolist() == [[2, 3, 3, 3], [1, 3, 3, 3]]


@pytest.mark.long
def test_all_trainings_begin_alike_and_validation_is_teacher_forcing():
  """The scheduled one begins without own tokens, and validation has none."""
  found = {}
  for training in captioners.TRAININGS:
    module, config = read(training)
    experiment = module.build(config)
    params = jax.jit(experiment.init)(jax.random.key(0))
    batch = experiment.data.batch(0)

    @jax.jit
    def losses(params, batch, experiment=experiment):
      of = lambda step, train: experiment.loss(params, batch, Context(
          jnp.zeros(4), KEYS, jnp.int32(step), train=train))
      return of(0, True), of(10**6, False)
    found[training] = losses(params, batch)
  forced, _ = plain = found['teacher_forcing'][0]
  for _, validated in found.values():
    jax.tree.map(np.testing.assert_array_equal, validated, plain)
  np.testing.assert_array_equal(found['scheduled'][0][0], forced)
  assert found['imitation'][0][1].keys() == {'nats', 'accuracy', 'divergence'}


@pytest.mark.parametrize('field,value', [
    ('training', 'teacher'), ('probability', 1.5), ('rise_steps', 0), ('imitation', -1.0),
    ('channels', (12,))])
def test_a_value_that_it_cannot_use_is_refused(field, value):
  module, config = configs.read('text/captioner')
  config.model[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}='):
    module.build(config)


def test_data_without_texts_are_refused():
  module, config = configs.read('text/captioner')
  config.data.name = 'digits'
  with pytest.raises(InputError, match="no field 'caption'"):
    module.build(config)


@pytest.mark.long
def test_a_run_that_is_resumed_ends_bit_for_bit_and_its_captions_are_measured(tmp_path):
  path = configs.file('text/captioner')
  _, config = read('imitation', data__name='shapes')
  runs.train(config, path, tmp_path / 'whole')
  config.train.steps = 3
  runs.train(config, path, tmp_path / 'run')
  config.train.steps = 6
  runs.train(config, path, tmp_path / 'run')
  states = [commands.final_state(tmp_path / name) for name in ('whole', 'run')]
  assert int(states[0].step) == 6
  jax.tree.map(np.testing.assert_array_equal, *states)

  assert isinstance(runs.made(tmp_path / 'run'), Captions)
  result = describing.evaluate(tmp_path / 'run', examples=40, batch_size=16)
  record = json.loads((tmp_path / 'run' / 'captions_40_examples.json').read_text())
  assert record['captions'] == result.captions and len(result.captions) == 40
  rows = {row['name']: row['mean'] for row in result.rows}
  assert rows.keys() == describing.MEANINGS.keys() == describing.figures(result).keys() - {
      'reached here'}
  right = [said == text for said, text in result.captions]
  assert rows['exact'] == pytest.approx(100 * np.mean(right))
  assert all(text.split()[0] == 'a' and len(text.split()) == 6 for _, text in result.captions)
  # The nats are those of the trained model, computed once more from its parameters.
  trained = runs.workdir.load_trained(tmp_path / 'run')
  batch = trained.experiment.data.split('test').get(np.arange(40))
  model = trained.experiment.model(trained.params)
  assert rows['nats'] == pytest.approx(float(jnp.mean(
      model.text_nats(batch['image'], batch['caption']))), rel=1e-5)
  describing.evaluate(tmp_path / 'run', examples=40)  # its own file may be replaced
  (tmp_path / 'captions_validation.json').write_text('{}')
  with pytest.raises(InputError, match='out='):
    describing.evaluate(tmp_path / 'run', split='validation', out=tmp_path)
