"""The study of straight trajectories: one command, which goes on after a stop at any place."""
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import commands, stopping
from vdm_jax.data import pairs, writers
from vdm_jax.runs import workdir
from vdm_jax.studies import straightening
from vdm_jax.train import metrics

CONFIGS = Path(__file__).parents[2] / 'configs'
STEPS = 6


@pytest.fixture
def configs(tmp_path, monkeypatch):
  """The configs of the plane with a small network and frequent checkpoints; one round of reflow."""
  text = (CONFIGS / 'plane' / 'flows.py').read_text()
  for old, new in (('features=96, blocks=3', 'features=8, blocks=1'),
                   ('  config.data.batch_size = 256\n',
                    '  config.data.update(batch_size=16, validation=16)\n'
                    '  config.train.update(checkpoint_every=2, log_every=1, validate_every=6,\n'
                    '                      pictures_every=0, validation_repeats=1, keep=9)\n')):
    assert old in text
    text = text.replace(old, new)
  (tmp_path / 'configs' / 'plane').mkdir(parents=True)
  (tmp_path / 'configs' / 'plane' / 'flows.py').write_text(text)
  flows = {name: straightening.FLOWS[name] for name in ('ot', 'reflow')}
  for name, value in {'FLOWS': flows, 'STEPS': 5, 'POINTS': 100}.items():
    monkeypatch.setattr(straightening, name, value)
  return tmp_path / 'configs'


@pytest.mark.long
def test_a_study_that_is_stopped_in_its_pairs_and_in_a_training_ends_as_one_that_was_not(
    configs, tmp_path, monkeypatch, capsys):
  study = lambda name: straightening.study(tmp_path / name, tmp_path / f'{name}.png', configs,
                                           train_steps=STEPS, pairs=6000)
  place = tmp_path / 'stopped'
  with monkeypatch.context() as patched:  # at the second batch of 5,000
    patched.setattr(writers.Writer, 'write', stopping.stopped(
        writers.Writer, 'write', lambda *given: given[1]))
    with pytest.raises(KeyboardInterrupt):
      study('stopped')
  assert pairs.record(place / 'ot_pairs.part')['done'] == 5000
  assert workdir.steps_made(place / 'ot') == STEPS and not (place / 'reflow').exists()
  with monkeypatch.context() as patched:
    patched.setattr(metrics.Writer, 'write', stopping.stopped(
        metrics.Writer, 'write', lambda writer, step, *_: step == 5))
    with pytest.raises(KeyboardInterrupt):
      study('stopped')
  assert pairs.is_pairs(place / 'ot_pairs')
  assert 0 < workdir.steps_made(place / 'reflow') < STEPS
  assert not (tmp_path / 'stopped.png').exists()
  capsys.readouterr()
  flows, whole = study('stopped'), study('whole')
  out = capsys.readouterr().out
  assert [flow.title for flow in flows] == ['independent', 'reflow']
  assert out.count('6,000 pairs') == 2 and out.count('E|x - z_1|^2 = ') == 2
  for ours, theirs in zip(flows, whole, strict=True):
    np.testing.assert_array_equal(ours.path, theirs.path)
    np.testing.assert_array_equal(ours.one, theirs.one)
    assert (ours.straightness, ours.error) == (theirs.straightness, theirs.error)
    assert f'{ours.title}: straightness {ours.straightness:.4f} +- {ours.error:.4f}\n' in out
  for name in ('ot', 'reflow'):
    jax.tree.map(np.testing.assert_array_equal,
                 *(commands.final_state(tmp_path / run / name) for run in ('stopped', 'whole')))
  for run in ('stopped', 'whole'):
    assert (tmp_path / f'{run}.png').stat().st_size > 10_000
