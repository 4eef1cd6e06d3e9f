"""The toys: each of them is a config of the checkout, with a sampler of the catalogue."""
from pathlib import Path

import pytest

from vdm_jax import data
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue
from vdm_jax.studies import toys

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('name', toys.SYSTEMS)
def test_a_toy_has_a_config_of_points_in_the_plane_and_a_sampler(name):
  toy = toys.SYSTEMS[name]
  config = workdir.import_config(CONFIGS / f'{toy.config}.py').get_config(*toy.variant)
  assert data.resolve(config.data).shape == (2,)
  assert catalogue.method(toy.sampler, toy.steps).name == toy.sampler


def test_a_toy_that_there_is_not_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(InputError, match='there is no such choice; choose one of dpm, vdm'):
    toys.study(tmp_path / 'runs', tmp_path / 'a.png', CONFIGS, systems=['ddpm'])
  assert not list(tmp_path.iterdir())
