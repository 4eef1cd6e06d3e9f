"""Latent diffusion of shapes, told a caption: trained, sampled by a prompt, and edited."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from vdm_jax import guidance, processes, random, runs
from vdm_jax.data import shapes, tokenisers
from vdm_jax.editing import methods
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.runs import editing, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems.latent import autoencoder
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.long
PROMPTS = ['a large red disk on grey', 'a small blue cross on white']
OTHERS = ['a large green disk on grey', 'a small blue square on white']
NET = LatentUNet(features=8, multipliers=(1, 2), blocks=1, attention_heads=4, groups=4,
                 attention_levels=(0, 1))
TEXT = LatentBERT(features=8, depth=1, attention_heads=2, levels=18, length=6, head_features=4)


def train(stage, out, **model):
  """A run of two steps of a small network."""
  module, config = configs.read(f'text/latent_shapes:{stage}')
  config.model.update(features=8, groups=4, **model)
  if stage == 'latent':
    config.text.update(features=8, depth=1, attention_heads=2, head_features=4)
  config.data.update(batch_size=4, validation=4)
  config.train.update(steps=2, log_every=2, validate_every=2, checkpoint_every=2,
                      validation_repeats=1, splits=('validation',))
  runs.train(config, configs.file('text/latent_shapes'), out)
  return out


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A trained run whose weights were then moved: after two steps, its output is nearly 0."""
  folder = tmp_path_factory.mktemp('latents')
  first = train('autoencoder', folder / 'first')
  second = workdir.load_trained(train('latent', folder / 'second', autoencoder=str(first)))
  moved = jax.tree.map(lambda u: u + 0.2 * np.random.default_rng(u.size).standard_normal(
      u.shape).astype(np.float32), second.params)
  params = moved | {'scale': second.params['scale'], 'autoencoder': jax.tree.map(
      lambda u, v: 0.5 * (u + v), second.params['autoencoder'], moved['autoencoder'])}
  workdir.prepare(folder / 'run', second.config, configs.file('text/latent_shapes'))
  experiment, checkpoints = second.experiment, Checkpoints(folder / 'run')
  checkpoints.save(step_lib.init(params, experiment.tx, experiment.ema, experiment.aux))
  checkpoints.close()
  return folder / 'run'


def test_a_prompt_draws_what_the_formulas_of_ddim_and_guidance_say(run, tmp_path):
  """v gives x = alpha z - sigma v and eps = sigma z + alpha v; each is guided, told to untold."""
  w, steps, seed = 1.5, 2, 3
  runs.sample(run, tmp_path / 'a.npz', method=catalogue.method('ddim', steps), count=2,
              batch_size=2, seed=seed, prompts=PROMPTS, guided=guidance.Guidance(w))
  trained = workdir.load_trained(run)
  params = trained.params
  model = trained.experiment.model(params)
  tokens = tokenisers.of(trained.experiment.data.spec['caption']).encode([*PROMPTS, ''])
  context = TEXT.apply({'params': params['encoder']}, tokens[[0, 1, 2, 2]]).sequence
  logsnr = np.float64(model.process(jnp.linspace(1.0, 0.0, steps + 1)).logsnr)
  alpha, sigma = (np.sqrt(1.0 / (1.0 + np.exp(sign * logsnr))) for sign in (-1.0, 1.0))
  net = jax.jit(lambda z, time: NET.apply({'params': params['net']}, z, time, context))
  z = np.asarray(processes.sample_prior(model.process, random.per_example(
      random.key(seed), jnp.arange(2)), jnp.zeros((2, 8, 8, 4))), np.float64)
  for i in range(steps):
    time = 1000.0 * (13.3 - logsnr[i]) / (13.3 + 9.0)
    v = np.float64(net(jnp.float32(np.concatenate([z, z])), jnp.full(4, time, jnp.float32)))
    told, untold = np.split(v, 2)
    assert np.abs(told - untold).max() > 0.05 * np.abs(v).max()  # so the text matters
    guided = (1.0 + w) * told - w * untold
    x, eps = alpha[i] * z - sigma[i] * guided, sigma[i] * z + alpha[i] * guided
    z = alpha[i + 1] * x + sigma[i + 1] * eps
  stage = autoencoder.network(trained.config.autoencoder.model, 3)
  pixels = stage.apply({'params': params['autoencoder']['net']}, jnp.float32(
      z / alpha[-1] / params['scale']), method='decode')
  want = np.clip(np.rint(127.5 * (np.asarray(pixels) + 1.0)), 0, 255)
  with np.load(tmp_path / 'a.npz') as drawn:
    got = drawn['images'].astype(int)
  assert np.ptp(got) > 20 and np.mean(np.abs(got - want) <= 1) > 0.99


def test_edits_of_latents_keep_the_source_under_its_own_text_and_the_latents_outside_a_mask(run):
  trained = workdir.load_trained(run)
  images = np.stack([shapes.images()[64 * shapes.CAPTIONS.index(one) + 9] for one in PROMPTS])
  ask = editing.editor(trained, methods.PromptToPrompt(), guidance=1.0, steps=2)
  same, other = (ask(editing.Request(np.arange(2), images, PROMPTS, texts))
                 for texts in (PROMPTS, OTHERS))
  np.testing.assert_array_equal(same.images, same.sources)
  np.testing.assert_array_equal(other.sources, same.sources)
  assert np.any(other.images != other.sources, axis=(1, 2, 3)).all()

  left = np.broadcast_to(np.arange(8)[:, None] < 4, (2, 8, 8, 1))

  @jax.jit
  def edited(params):
    model = trained.experiment.model(params)
    texts = [model.cond(model.conditions(np.arange(2), caption=one)) for one in (PROMPTS, OTHERS)]
    case = methods.Case(model, random.per_example(random.key(0), jnp.arange(2)),
                        model.encode(images), *texts, model.null(texts[1]), 1.0, 2, left)
    return methods.Inpaint()(case).x, case.image
  x, before = edited(trained.params)
  outside = np.broadcast_to(~left, x.shape)
  np.testing.assert_array_equal(x[outside], before[outside])
  assert np.mean(x[~outside] != before[~outside]) > 0.99
