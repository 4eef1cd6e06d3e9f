"""Which autoencoder a run of latents takes, and which it keeps."""
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import latent_config, threads
from vdm_jax import data
from vdm_jax.errors import InputError
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import sharing
from vdm_jax.runs import stages, training, workdir
from vdm_jax.systems.latent import latent
from vdm_jax.typing import Experiment

WEIGHTS = {'net': {'kernel': np.ones(2, np.float32)}, 'log_std': np.float32(0.0)}


def trained(params):
  return workdir.Trained(None, None, params, 2, 'raw')


@pytest.fixture
def begun(tmp_path, monkeypatch):
  """A run of latents that has begun with the autoencoder in `first`, of WEIGHTS: settle it."""
  kept = latent_config.get_config('latent')
  kept.model.autoencoder, kept.autoencoder.sha256 = str(tmp_path / 'first'), checksum(WEIGHTS)
  there = {}  # runs of autoencoders, by the names of their directories

  def load(directory):
    if (name := str(directory).rpartition('/')[2]) not in there:
      raise InputError('workdir', str(directory), 'it holds no run')
    return trained(there[name])
  monkeypatch.setattr(workdir, 'begun', lambda directory: True)
  monkeypatch.setattr(workdir, 'read_config', lambda directory: kept)
  monkeypatch.setattr(workdir, 'load_trained', load)
  for name in ('first', 'moved'):
    (tmp_path / name).mkdir()

  def settle(asked, **runs):
    there.clear()
    there.update(runs)
    config = latent_config.get_config('latent')
    config.model.autoencoder = asked and str(tmp_path / asked)
    read = stages.settle(config, data.resolve(config.data), tmp_path / 'run')
    assert config.autoencoder.sha256 == checksum(WEIGHTS)
    return config.model.autoencoder.rpartition('/')[2], read
  return settle


OTHER = WEIGHTS | {'log_std': np.float32(1.0)}


@pytest.mark.first(2)
@pytest.mark.parametrize('asked', ['', 'first'])  # config.json of the run itself names the latter
@pytest.mark.parametrize('there', [{}, {'first': OTHER}], ids=['gone', 'trained further'])
def test_a_run_goes_on_whatever_became_of_the_run_of_its_autoencoder(begun, asked, there):
  name, read = begun(asked, **there)
  assert name == 'first'
  with pytest.raises(InputError, match='no run|lost its own copy'):
    read()  # for a run that has lost all checkpoints


@pytest.mark.long
def test_a_run_that_goes_on_may_be_told_where_its_autoencoder_is_now(begun):
  name, read = begun('moved', moved=WEIGHTS)
  assert name == 'moved' and read().params is WEIGHTS
  with pytest.raises(InputError, match='not those that this run began with; leave it out'):
    begun('moved', first=WEIGHTS, moved=OTHER)
  with pytest.raises(InputError, match='there is no such directory; leave it out'):
    begun('nowhere', first=WEIGHTS)


def test_processes_wait_until_all_see_the_run_of_an_autoencoder(begun, tmp_path, monkeypatch):
  """The run has moved, and process 1 sees its new place late."""
  views = [tmp_path / name / 'moved' for name in ('here', 'there')]
  for view in views:
    view.parent.mkdir()
  summary, looks = sharing._summary, itertools.count(1)

  def look(where, *arguments):
    if where == views[1] and next(looks) == 3:  # once when nobody sees it, once in vain
      appear(views[1])
    return summary(where, *arguments)

  def appear(view):
    view.mkdir()
    (view / 'config.json').write_text('{}')
  monkeypatch.setattr(sharing, '_PAUSE', 0.001)
  monkeypatch.setattr(sharing, '_summary', look)
  kept = workdir.read_config('run')
  keep = lambda view: lambda: stages._keep(latent_config.get_config('latent'), kept, str(view))
  begun('moved', moved=WEIGHTS)
  for here in (False, True):  # first, nobody sees it
    if here:
      appear(views[0])
    got = threads.run(monkeypatch, *map(keep, views))
    assert [callable(each) for each in got] == [here] * 2, got
    if not here:
      assert len({str(each) for each in got}) == 1
      assert 'there is no such directory; leave it out' in str(got[0])


def stage(**parts):
  return Experiment(init=lambda key: {'autoencoder': WEIGHTS, 'scale': jnp.ones(())}, loss=None,
                    model=None, data=None, tx=None, ema={}, first_stage=parts.get('put'))


def test_a_run_that_has_lost_its_imported_autoencoder_does_not_begin_with_a_random_one():
  begin = training._beginning(stage(put=lambda *args: None), None, None)
  with pytest.raises(InputError, match='lost its own copy.*name that run.*import them again'):
    begin({})
  assert training._beginning(stage(), None, None) is None


def test_a_scale_that_a_run_would_not_have_is_refused():
  start = lambda: trained({'autoencoder': WEIGHTS, 'scale': np.float32(0.18215)})
  for scale in (0.0, 0.18215):
    stages.check(stage(), scale, None, start)
  with pytest.raises(InputError, match='config.model.scale=0.5: .* its scale, 0.18215; leave it'):
    stages.check(stage(), 0.5, None, start)
  config = latent_config.get_config('latent')
  for scale in (-1.0, float('nan'), float('inf')):
    config.model.scale = scale
    with pytest.raises(InputError, match='config.model.scale=.*: it is no factor'):
      latent.of(config, None)


def test_a_run_that_starts_from_an_import_has_the_fingerprint_of_its_autoencoder(
    tmp_path, monkeypatch):
  """Old imports did not keep it; without it no latents could be read in their place."""
  kept = latent_config.get_config('latent')
  assert kept.autoencoder.sha256 == ''
  monkeypatch.setattr(workdir, 'read_config', lambda directory: kept)
  monkeypatch.setattr(workdir, 'load_trained', lambda directory: trained({'autoencoder': WEIGHTS}))
  config = latent_config.get_config('latent')
  read = stages.settle(config, data.resolve(config.data), tmp_path / 'run', str(tmp_path / 'old'))
  assert read is None and config.autoencoder.sha256 == checksum(WEIGHTS)
