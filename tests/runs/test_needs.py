"""A command states what it needs of a run, and says in one line what this one is instead."""
import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import pytest

from tests.support import configs
from vdm_jax import data, oracles, random, runs
from vdm_jax.benchmark import speed
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import (
    compressing,
    describing,
    forecasting,
    gallery,
    needs,
    planning,
    reconstructing,
    scoring,
    workdir,
)
from vdm_jax.samplers import catalogue
from vdm_jax.schedules import Linear
from vdm_jax.systems.applications.decisions import Dynamics, Normaliser, Planner
from vdm_jax.systems.applications.timegrad import Forecaster, Recurrence
from vdm_jax.systems.captioners import Captioner
from vdm_jax.systems.chains.dpm2015 import Binomial
from vdm_jax.systems.flows.interpolants import Between
from vdm_jax.systems.flows.rectified_flow import OneStep
from vdm_jax.systems.guided.classifier import Classifier
from vdm_jax.systems.guided.noisy_classifier import NoisyClassifier
from vdm_jax.systems.latent.autoencoder import Autoencoder
from vdm_jax.systems.variational.autoencoders import VAE
from vdm_jax.train import step
from vdm_jax.train.checkpoint import Checkpoints

PIXELS, PROCESS = Pixels(17), GaussianProcess(Linear())
NOTHING = lambda *args, **options: None
MADE = {
    'model': Model(oracles.Gaussian(0.0, 1.0), PROCESS, PIXELS.log_prob, PIXELS.encode,
                   PIXELS.decode, NOTHING, (8, 8, 1)),
    'vae': VAE(NOTHING, NOTHING, NOTHING, NOTHING, (8, 8, 1), 17),
    'bits': Binomial(NOTHING, None, NOTHING, (20,)),
    'classifier': Classifier(NOTHING, NOTHING, (8, 8, 1), 17),
    'noisy': NoisyClassifier(NOTHING, PROCESS, NOTHING, (8, 8, 1)),
    'autoencoder': Autoencoder(*[NOTHING] * 5, (8, 8, 1), (2, 2, 4), 17),
    'captioner': Captioner(NOTHING, NOTHING, (8, 8, 1), 17),
    'between': Between(NOTHING, NOTHING, (2,)),
    'one step': OneStep(NOTHING, (2,)),
    'forecaster': Forecaster(Recurrence(*[NOTHING] * 5), NOTHING, catalogue.method('ancestral', 9),
                             series=3, history=24, horizon=6),
    'planner': Planner(Dynamics(*[NOTHING] * 3), *[Normaliser(())] * 2, {}, 1.0, (), steps=10,
                       horizon=4, bounded=True),
}
SHOWN = {
    'model': 'Model(shape=(8, 8, 1): denoise, process, decoder, encode, decode, cond, '
             'conditions)',
    'vae': 'VAE(shape=(8, 8, 1), levels=17: encode, decode, sample, bound)',
    'bits': 'Binomial(shape=(20,): reverse, sample)',
    'classifier': 'Classifier(shape=(8, 8, 1), levels=17: logits, features)',
    'noisy': 'NoisyClassifier(shape=(8, 8, 1): logits, process, encode)',
    'autoencoder': 'Autoencoder(shape=(8, 8, 1), latent_shape=(2, 2, 4), levels=17: encode, '
                   'decode, mean, log_prob, prior_nats)',
    'captioner': 'Captioner(shape=(8, 8, 1), levels=17: caption, text_nats)',
    'between': 'Between(shape=(2,): sample, drifts)', 'one step': 'OneStep(shape=(2,): sample)',
    'forecaster': 'Forecaster(series=3, history=24, horizon=6: row_nats)',
    'planner': 'Planner(returns=(), steps=10, horizon=4, bounded=True: )',
}
DOES = {'model': 'denoises and samples and bounds the likelihood and codes images',
        'vae': 'samples and bounds the likelihood', 'bits': 'samples',
        'classifier': 'has features', 'noisy': 'does nothing that commands need',
        'autoencoder': 'bounds the likelihood and reconstructs examples',
        'captioner': 'captions images',
        'between': 'samples', 'one step': 'samples', 'forecaster': 'forecasts time series',
        'planner': 'plans'}
OWN = ('between', 'one step')  # of flows, which draw their own samples
COMMANDS = {
    'evaluate': (lambda: runs.evaluate('run'), {'model'}),
    'sample': (lambda: runs.sample('run', 'a.npz'), {'model', 'vae', 'bits', *OWN}),
    'reconstruct': (lambda: reconstructing.evaluate('run'), {'autoencoder'}),
    'caption': (lambda: describing.evaluate('run'), {'captioner'}),
    'features': (lambda: scoring.extractor('classifier:run'), {'classifier'}),
    'benchmark': (lambda: speed.denoising(speed.of_run('run'), {}), {'model'}),
    'gallery': (lambda: gallery.row('one', 'run', runs.ANCESTRAL), {'model', 'vae', 'bits', *OWN}),
    'compress': (lambda: compressing.encode('run', 'images.npz', 'a.vdmz'), {'model'}),
    'make_pairs': (lambda: runs.make_pairs('run', 'pairs', method=catalogue.method('heun', 2)),
                   {'model'}),
    'forecast': (lambda: forecasting.forecast('run', 'history.csv'), {'forecaster'}),
    'plan': (lambda: planning.plan('run'), {'planner'}),
}
WITHOUT = [(command, made) for command, (_, able) in COMMANDS.items()
           for made in MADE if made not in able]


@pytest.mark.parametrize('made', MADE)
def test_what_comes_of_a_run_says_what_it_is_and_has(made):
  assert repr(MADE[made]) == SHOWN[made]


@pytest.mark.first(13)
@pytest.mark.parametrize('command,made', WITHOUT)
def test_a_command_names_the_run_what_it_is_and_can_and_what_it_takes(command, made, monkeypatch):
  config = types.SimpleNamespace(data=data.default_config())
  trained = workdir.Trained(
      types.SimpleNamespace(model=lambda params: MADE[made], ema={}), config, {}, 1, 'raw')
  monkeypatch.setattr(workdir, 'load_trained', lambda *args, **options: trained)
  call, able = COMMANDS[command]
  with pytest.raises(InputError) as error:
    call()
  told = str(error.value)
  assert re.match(r"\w+='(classifier:)?run('|/config.py')", told) and '\n' not in told
  assert f' {type(MADE[made]).__name__}, which {DOES[made]}; a model that ' in told
  assert all(needs._DOES[kind] in told for kind in needs.NEEDS[command].any_of)
  assert needs.NEEDS[command].remedy in told


def test_a_run_without_a_denoiser_is_named_also_if_its_label_is_to_be_dropped(monkeypatch):
  config = types.SimpleNamespace(data=data.default_config())
  monkeypatch.setattr(workdir, 'load_trained', lambda *args, **options: workdir.Trained(
      types.SimpleNamespace(model=lambda params: MADE['noisy'], ema={}), config, {}, 1, 'raw'))
  with pytest.raises(InputError, match="^workdir='run': this run made a NoisyClassifier"):
    runs.evaluate('run', untold=True)


@pytest.mark.parametrize('command', needs.NEEDS)
def test_every_need_is_met_by_some_run_and_not_by_all(command):
  met = []
  for made in MADE.values():
    try:
      assert needs.require(made, command, 'run') is made
      met.append(made)
    except InputError:
      pass
  assert 0 < len(met) < len(MADE)


@pytest.mark.parametrize('made', MADE)
def test_every_script_that_is_next_after_training_takes_the_run(made):
  """By hand: which of the scripts accept which run."""
  want = {'model': ['evaluate.py', 'sample.py'], 'autoencoder': ['evaluate.py'],
          'captioner': ['evaluate.py'], 'classifier': [], 'noisy': [],
          'forecaster': ['forecast.py'], 'planner': ['plan.py']}
  assert needs.scripts(MADE[made]) == want.get(made, ['sample.py'])


def test_a_model_without_a_likelihood_is_sampled_next_and_not_evaluated():
  model = MADE['model']
  for other in (model._replace(distilled=('ddim', 4)), model._replace(no_likelihood='it has none')):
    assert needs.scripts(other) == ['sample.py']
  assert needs.scripts(None) == []  # of a run without a checkpoint


def test_the_nats_of_an_autoencoder_are_its_bound_with_a_key_for_each_image():
  vae = MADE['vae']._replace(bound=lambda images, keys: (
      images + random.normal(keys, images), {}))
  images, key = jnp.arange(3.0), jax.random.key(5)
  noise = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(3)]
  assert jnp.allclose(vae.nats({'image': images}, key=key), images + jnp.stack(noise))


@pytest.mark.long
def test_a_run_says_what_it_has_made_and_no_weights_are_read(tmp_path, monkeypatch):
  """The learned rates of this chain are a table, which is computed where its model is made."""
  _, config = configs.read('plane/dpm2015')
  workdir.prepare(tmp_path, config, configs.file('plane/dpm2015'))
  assert runs.made(tmp_path) is None
  experiment = configs.read('plane/dpm2015')[0].build(config)
  checkpoints = Checkpoints(tmp_path)
  state = step.init(jax.jit(experiment.init)(random.key(0)), experiment.tx, experiment.ema,
                    experiment.aux)
  checkpoints.save(dataclasses.replace(state, step=jnp.int32(1)))
  checkpoints.close()
  monkeypatch.setattr(Checkpoints, 'restore_weights', None)  # which it does not need
  assert isinstance(runs.made(tmp_path), Model)
