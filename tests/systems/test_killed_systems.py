"""Long procedures that are killed and started again by the same command, on one device: a round of
reflow on its pairs, and a generator as a prior with its judge.  The halvings of a student are in
test_distilled.py, the making of pairs in test_pairs.py, and a training of one loss in
test_resume.py.
"""
import jax
import numpy as np
import pytest

from tests.support import commands, configs
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue

STEPS, EVERY = 40, 5
TINY = {'model.features': 8, 'model.blocks': 1, 'data.batch_size': 8, 'data.validation': 5,
        'train.steps': STEPS, 'train.checkpoint_every': EVERY, 'train.validate_every': STEPS,
        'train.log_every': EVERY, 'train.pictures_every': 0, 'train.keep': 50}


def flags(fields):
  return [f'--config.{name}={value}' for name, value in fields.items()]


def reflow(place):
  """The first flow, of no use, and pairs of it."""
  _, config = configs.read('plane/flows:ot')
  config.update_from_flattened_dict(TINY | {'train.steps': EVERY, 'optimizer.decay_steps': 0})
  runs.train(config, configs.file('plane/flows'), place / 'flow')
  runs.make_pairs(place / 'flow', place / 'pairs', method=catalogue.method('heun', 2), count=60,
                  batch_size=20)
  return [f'--config={configs.file("plane/flows")}:reflow', f'--init_from={place / "flow"}',
          *flags(TINY | {'data.name': place / 'pairs'})]


def generator(place):
  return [f'--config={configs.file("plane/truncated")}:adversarial',
          *flags(TINY | {'model.discriminator_features': 8})]


@pytest.mark.long
@pytest.mark.parametrize('procedure', [reflow, generator])
def test_a_procedure_that_is_killed_ends_bit_for_bit_as_one_that_was_not(procedure, tmp_path):
  """All parameters, averages, and the state of each player's optimiser."""
  command = ['scripts/train.py', *procedure(tmp_path)]
  run, whole = ([*command, f'--workdir={tmp_path / name}'] for name in ('run', 'whole'))
  process, = commands.start(*run, count=1, devices=1)
  commands.wait_for(lambda: workdir.steps_made(tmp_path / 'run') >= 3 * EVERY, [process])
  process.process.kill()
  process.output.result()
  assert 3 * EVERY <= workdir.steps_made(tmp_path / 'run') < STEPS
  assert 'Resuming at step' in commands.succeed(*run, count=1, devices=1)
  commands.succeed(*whole, count=1, devices=1)
  states = [commands.final_state(tmp_path / name) for name in ('run', 'whole')]
  assert int(states[0].step) == STEPS
  jax.tree.map(np.testing.assert_array_equal, *states)
  if procedure is generator:
    with pytest.raises(InputError, match='workdir=.*draws z_1 by a network.*has no likelihood'):
      runs.evaluate(tmp_path / 'whole')
