"""The toys: each of them is a config of the checkout, with a sampler of the catalogue."""
import json
from pathlib import Path

import pytest

from vdm_jax import data, measured
from vdm_jax.errors import InputError
from vdm_jax.runs import gallery, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.studies import toys

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('name', toys.SYSTEMS)
def test_a_toy_has_a_config_of_points_in_the_plane_and_a_sampler(name):
  toy = toys.SYSTEMS[name]
  config = workdir.import_config(CONFIGS / f'{toy.config}.py').get_config(*toy.variant)
  assert data.resolve(config.data).shape == (2,)
  assert catalogue.method(toy.sampler, toy.steps).name == toy.sampler


@pytest.mark.parametrize('name', toys.SYSTEMS)
def test_a_toy_has_a_row_in_the_table_of_its_configs(name):
  table = measured.read(CONFIGS.parent / 'docs' / 'measured' / 'plane.json')
  assert measured.shared(table, toys.SYSTEMS[name].row, toys.COLUMNS) == list(toys.COLUMNS)


DISTANCE = 'sliced Wasserstein 0.022 in 1 step (training data 0.019)'


@pytest.mark.parametrize('last,coupled,result', [
    ({'bits_per_dim': 5.5}, False, '5.500 (validation)'), ({}, False, DISTANCE),
    ({'bits_per_dim': 7.1}, True, DISTANCE)])
def test_the_result_of_a_toy_is_its_bound_or_else_the_distance_of_its_samples(
    last, coupled, result, tmp_path):
  (tmp_path / 'knowledge').mkdir()
  records = ({'step': 120, 'kind': 'train', 'loss': 1.0, 'steps_per_second': 2.0},
             {'step': 120, 'kind': 'validation', 'loss': 1.0, **last})
  (tmp_path / 'knowledge' / 'metrics.jsonl').write_text(
      ''.join(json.dumps(record) + '\n' for record in records))
  row = gallery.GalleryRow(*[None] * 6, distance=0.0221, floor=0.0189, energy=(0.0, 0.0),
                           coupled=coupled)
  assert toys.figures('knowledge', tmp_path, row) == {'minutes': '1.0', 'reached here': result}


def test_a_toy_that_starts_from_another_comes_after_it():
  names = list(toys.SYSTEMS)
  starts = {name: toy.start for name, toy in toys.SYSTEMS.items() if toy.start}
  assert len(starts) > 4
  assert all(names.index(start) < names.index(name) for name, start in starts.items())
  assert all(toy.start for toy in toys.SYSTEMS.values() if toy.pairs)


def test_a_shorter_training_has_shorter_phases_and_the_decay_that_its_config_has():
  at = lambda name: toys.SYSTEMS[name]
  read = lambda toy: workdir.import_config(CONFIGS / f'{toy.config}.py').get_config(*toy.variant)
  student, flow = read(at('progressive')), read(at('ot'))
  phases = student.train.steps / student.model.halving_updates
  for config in (student, flow):
    toys.shorten(config, 30)
    assert config.train.steps == 30 and config.optimizer.warmup_steps <= 15
  assert 30 / student.model.halving_updates == phases
  assert (student.optimizer.decay_steps, flow.optimizer.decay_steps) == (0, 30)


@pytest.mark.long
def test_a_teacher_and_its_students_are_trained_and_drawn(tmp_path):
  names = ['teacher', 'progressive', 'knowledge']
  rows = toys.study(tmp_path / 'runs', tmp_path / 'a.png', CONFIGS, systems=names, train_steps=3)
  assert list(rows) == names
  assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_a_toy_that_there_is_not_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(InputError, match='there is no such choice; choose one of dpm, vdm'):
    toys.study(tmp_path / 'runs', tmp_path / 'a.png', CONFIGS, systems=['ddpm'])
  assert not list(tmp_path.iterdir())
