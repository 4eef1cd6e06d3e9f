"""Published autoencoders, and diffusions of their latents, become runs of images."""
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.published import assert_close, shapes_of
from vdm_jax import guidance, runs, samplers
from vdm_jax.errors import InputError
from vdm_jax.evaluation.features import checksum
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.nn.unets.latent import LabelledUNet, LatentUNet
from vdm_jax.published import autoencoders, compvis, dit, fitting, readers, taesd
from vdm_jax.runs import importing, workdir
from vdm_jax.runs.importing import OPENED, import_weights
from vdm_jax.samplers import grids
from vdm_jax.systems.latent import autoencoder

CONFIGS = Path(__file__).parents[2] / 'configs'
KL = KLAutoencoder(3, 4, Trunk(32, (1, 1, 1, 1), 1, middle_attention=False))
VQ = VQAutoencoder(3, 2, 5, Trunk(32, (1, 2), 1))
TINY = TinyAutoencoder(features=4)
UNET = LatentUNet(features=8, multipliers=(1,), blocks=1, attention_levels=(0,), attention_heads=2,
                  groups=2)
SMALL = DiT(patch=2, features=16, depth=1, attention_heads=2, classes=1000, heads=1)


def random(shapes, seed=0, scale=0.3):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda u: scale * rng.standard_normal(u.shape, np.float32), shapes)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def write(path, flat):
  readers.write_safetensors(path, {name: np.asarray(u) for name, u in flat.items()}, {})
  return path


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A folder of TAESD: {'encoder.0.weight': ...} without the first word, in two files."""
  params = random(autoencoders.shapes(TINY))
  flat = fitting.flat(params, taesd._published(3), layout=fitting.to_torch)
  folder = tmp_path_factory.mktemp('taesd')
  for half in ('encoder', 'decoder'):
    write(folder / f'taesd_{half}.safetensors', readers.subtree(flat, half))
  return folder, params


@pytest.mark.parametrize('net', [KL, VQ, TINY, *autoencoders.NETWORKS.values()],
                         ids=['KL', 'VQ', 'TINY', *autoencoders.NETWORKS])
def test_the_fields_of_a_config_describe_an_autoencoder(net):
  config = autoencoder.default_config(**autoencoders.settings(net))
  assert autoencoder.network(config.model, 3) == net
  assert config.model.legacy == isinstance(net, VQAutoencoder)  # beta on the wrong term


def settled(source, path, model=''):
  """The weights of a file, and the config that they settle."""
  weights = OPENED[source](path, model)
  name, variant = weights.config
  config = workdir.import_config(CONFIGS / f'{name}.py').get_config(*variant)
  weights.settle(config)
  return weights, config


@pytest.fixture(scope='module')
def vq(tmp_path_factory):
  params = random(autoencoders.shapes(VQ))
  path = tmp_path_factory.mktemp('vq') / 'vq.safetensors'
  return write(path, compvis.autoencoder_to_flat(params)), params


@pytest.mark.long
@pytest.mark.parametrize('source', ['sd-vae', 'latent-diffusion'])
def test_the_file_of_an_autoencoder_settles_its_config(vq, source):
  path, params = vq
  weights, config = settled(source, path)
  assert (weights.model, weights.files) == ('vq', (path,))
  assert autoencoder.network(config.model, 3) == VQ
  made = weights.params(None)
  same(made['net'], params)
  np.testing.assert_allclose(np.exp(made['log_std']), autoencoder.FIRST_STD, rtol=1e-6)
  with pytest.raises(InputError, match='model=.kl-f8.: the file is of another network'):
    settled('sd-vae', path, 'kl-f8')


@pytest.mark.long
def test_an_autoencoder_of_any_size_becomes_a_run(vq, tmp_path):
  path, params = vq
  imported = import_weights('sd-vae', path, tmp_path / 'run', CONFIGS)
  assert imported.model == 'vq' and imported.parameters == sum(
      math.prod(u.shape) for u in jax.tree.leaves(params)) + 1  # of p(x | y)
  trained = workdir.load_trained(tmp_path / 'run')
  same(trained.params['net'], params)
  assert trained.experiment.model(trained.params).latent_shape == (128, 128, 2)
  kept = json.loads((tmp_path / 'run' / 'imported.json').read_text())
  assert (kept['source'], kept['file']) == ('sd-vae', 'vq.safetensors')


@pytest.mark.long
def test_the_tiny_autoencoder_becomes_a_run_and_is_not_trained(tiny, tmp_path):
  folder, params = tiny
  import_weights('taesd', folder, tmp_path / 'run', CONFIGS)
  trained = workdir.load_trained(tmp_path / 'run')
  same(trained.params['net'], params)
  model = trained.experiment.model(trained.params)
  y = jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
  want = jax.jit(lambda: TINY.apply({'params': params}, y, method=TINY.decode))()
  assert_close(256 / 255 * jax.jit(model.mean)(y), want)
  with pytest.raises(InputError, match='tiny'):
    jax.eval_shape(lambda p: trained.experiment.loss(p, {}, None), trained.params)


@pytest.mark.first(1)
@pytest.mark.parametrize('source', ['sd-vae', 'latent-diffusion'])
def test_an_autoencoder_of_grey_images_does_not_become_a_run_of_colours(source, tmp_path):
  grey = VQAutoencoder(1, 2, 5, Trunk(32, (1,), 1, middle_attention=False))
  path = write(tmp_path / 'grey.safetensors', compvis.autoencoder_to_flat(
      random(autoencoders.shapes(grey))))
  with pytest.raises(InputError, match=r'^in=.*grey.*: it has net/decoder/conv_out/bias of shape '
                     r'\(1,\), and the network of published/autoencoder \(3,\)'):
    import_weights(source, path, tmp_path / 'run', CONFIGS)
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def file_of_dit(tmp_path_factory):
  params = random(shapes_of(SMALL, jnp.zeros((1, 4, 4, 4)), jnp.zeros(1)))
  path = tmp_path_factory.mktemp('dit') / 'small.safetensors'
  return write(path, dit.to_flat(params)), params


@pytest.fixture
def small(monkeypatch, file_of_dit):
  """A small DiT of latents 4x4, whose name the library is told."""
  monkeypatch.setitem(dit.MODELS, 'small', SMALL)
  monkeypatch.setitem(dit.SHAPES, 'small', (4, 4, 4))
  return file_of_dit


@pytest.mark.long
def test_dit_and_an_autoencoder_draw_images(small, tiny, tmp_path):
  (path, net), (folder, decoder) = small, tiny
  run = tmp_path / 'run'
  imported = import_weights('dit', path, run, CONFIGS, autoencoder=folder)
  assert imported.config.endswith('configs/published/dit.py:small,images')
  trained = workdir.load_trained(run)
  same(trained.params['net'], net)
  same(trained.params['autoencoder']['net'], decoder)
  assert trained.params['scale'] == 1.0  # TAESD has latents times s
  model = trained.experiment.model(trained.params)
  assert model.shape == (4, 4, 4) and not model.is_latent
  z = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
  decoded = jax.jit(lambda z: TINY.apply({'params': decoder}, z, method=TINY.decode))(z)
  want = np.clip(np.round(127.5 * (np.float64(decoded) + 1.0)), 0, 255)
  assert (np.abs(jax.jit(model.decode)(z) - want) <= 1).all()
  method = runs.Method('ddim', samplers.ddim, 'uniform', lambda process: grids.uniform(2))
  runs.sample(run, tmp_path / 'a.npz', method=method, count=2, batch_size=2,
              guided=guidance.Guidance(0.5, channels=3))
  with np.load(tmp_path / 'a.npz') as file:
    assert file['images'].shape == (2, 32, 32, 3) and file['images'].dtype == np.uint8
    assert json.loads(str(file['about']))['guidance'] == [0.5, -math.inf, math.inf, 3]


@pytest.fixture
def whole(monkeypatch, tmp_path):
  """A file of a U-Net that is told a class, the vectors of the classes, and a VQ autoencoder."""
  told = LabelledUNet(UNET, 3, 6)
  monkeypatch.setitem(compvis.UNETS, 'small', (UNET, (128, 128, 2), (1, 6)))
  monkeypatch.setitem(compvis.LATENT_DIFFUSIONS, 'small', compvis.LatentDiffusion(
      'vq-f4', (0.00085, 0.012), classes=3, untold=True, scale=None))
  net = random(shapes_of(told, jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32)))
  params = {'net': net, 'autoencoder': random(autoencoders.shapes(VQ))}
  unet = {f'model.diffusion_model.{name}': u
          for name, u in compvis.unet_to_flat(net['net']).items()}
  old = {name: np.zeros_like(u) for name, u in unet.items()}  # of which `unet` is the average
  averages = {f'model_ema.{name.removeprefix("model.").replace(".", "")}': u
              for name, u in unet.items()}
  return write(tmp_path / 'small.safetensors', {
      **old, **averages, 'scale_factor': np.float32(0.25), 'betas': np.zeros(3, np.float32),
      'cond_stage_model.embedding.weight': net['label']['embedding'],
      **{f'first_stage_model.{name}': u
         for name, u in compvis.autoencoder_to_flat(params['autoencoder']).items()}}), params


@pytest.mark.long
def test_the_file_of_a_latent_diffusion_settles_its_config(whole):
  path, params = whole
  weights, config = settled('latent-diffusion', path)
  assert autoencoder.network(config.autoencoder.model, 3) == VQ
  assert config.model.beta_ends == (0.00085, 0.012) and config.data.classes == 3
  made = weights.params({'net': params['net']})
  same(made['net'], params['net'])
  same(made['autoencoder']['net'], params['autoencoder'])
  assert made['scale'] == 0.25


@pytest.mark.long
def test_a_whole_latent_diffusion_becomes_a_run(whole, tmp_path):
  path, params = whole
  imported = import_weights('latent-diffusion', path, tmp_path / 'run', CONFIGS)
  assert imported.config.endswith('configs/published/latent.py:small')
  trained = workdir.load_trained(tmp_path / 'run')
  same(trained.params['net'], params['net'])
  # Latents that are kept of an import of the autoencoder alone have this fingerprint too.
  assert trained.config.autoencoder.sha256 == checksum(
      {'net': params['autoencoder'], 'log_std': np.float32(np.log(autoencoder.FIRST_STD))})
  model = trained.experiment.model(trained.params)
  assert model.shape == (128, 128, 2) and not model.is_latent
  # The chain of Stable Diffusion, as its public code has it.
  np.testing.assert_allclose(model.process(jnp.array([0.001, 1.0])).logsnr, [7.0694, -5.3640],
                             atol=2e-4)
  assert model.null(jnp.array([2])) == -1


@pytest.mark.long
@pytest.mark.parametrize('source, file, options, message', [
    ('dit', 'small', {'autoencoder': 'vq'}, '^autoencoder=.*: it cannot be read: it has latents '
     'of 2 channels and halves images 1 times; DiT knows'),
    ('dit', 'small', {'autoencoder': 'gone'}, r'^autoencoder=.*gone.*: there is no such file'),
    ('ddpm', 'small', {'autoencoder': 'vq'}, r'^autoencoder=.*: only dit takes its autoencoder'),
    ('latent-diffusion', 'vq', {'model': 'celeba256'}, r'^in=.*: .* it has no U-Net'),
    ('latent-diffusion', 'vq', {'model': 'stable-diffusion-v1'}, r'^in=.*: .* it has no U-Net'),
    ('latent-diffusion', 'vq', {'model': 'inpainting_big'}, '^model=.*: it completes images'),
    ('sd-vae', 'vq', {'merges': 'vq'}, '^merges=.*: this model is told no text; leave it out'),
    ('sd-vae', 'small', {}, r'^in=.*: it cannot be read as sd-vae: it holds .*which belong to no'),
    ('sd-vae', 'vq', {'model': 'kl-f9'}, '^model=.kl-f9.: did you mean kl-f'),
    *(('latent-diffusion', 'folder', {'model': model}, r'^in=.*: it is a folder of diffusers, .*; '
       r'give the file of CompVis \(model.ckpt\), or .* by the source sd-vae\.$')
      for model in ('', 'celeba256', 'txt2img-f8-large')),
    *(('dit', 'folder', {'model': model}, r'^in=.*: it is a directory; name the file of facebook'
       r'research/DiT \(.*\), because folders of diffusers are not read for this source\.$')
      for model in ('', 'DiT-XL-2-256x256')),
    ('dit', 'names', {}, '^in=.*: its names are those of diffusers, .*; give the '
     'file of facebookresearch/DiT')])
def test_what_cannot_be_imported_leaves_nothing(source, file, options, message, small, vq,
                                                tmp_path):
  paths = {'small': small[0], 'vq': vq[0], 'gone': tmp_path / 'gone',
           'folder': tmp_path / 'ldm-celebahq-256', 'names': tmp_path / 'small.safetensors'}
  (paths['folder'] / 'unet').mkdir(parents=True)
  (paths['folder'] / 'model_index.json').write_text('{}')
  write(paths['names'], {'transformer_blocks.0.attn1.to_q.bias': np.zeros(2)})
  options = {name: paths.get(u, u) for name, u in options.items()}
  with pytest.raises(InputError, match=message):
    import_weights(source, paths[file], tmp_path / 'run', CONFIGS, **options)
  assert not (tmp_path / 'run').exists()


def test_every_source_of_latents_is_described():
  for source in OPENED:
    assert f'\n  {source} ' in importing.__doc__
