"""Files of autoencoders, of every code that wrote one, become networks and their parameters."""
import json

import jax
import numpy as np
import pytest

from tests.support import published, torch_files
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.published import autoencoders, compvis, diffusers, fitting, readers

KL = KLAutoencoder(3, 2, Trunk(32, (1, 2), 1, (1,)))
VQ = VQAutoencoder(3, 3, 5, Trunk(32, (1,), 1, middle_attention=False))
TINY = TinyAutoencoder(features=4, halvings=1)


def made(net, prefix=''):
  """Parameters of `net` by a rule from their published names, which begin with `prefix`."""
  names = fitting.named(autoencoders.shapes(net))[0]
  like = dict(zip(names, jax.tree.leaves(autoencoders.shapes(net)), strict=True))
  flat = {}
  for name, leaf in like.items():
    shape = compvis.to_torch(name, np.zeros(leaf.shape)).shape
    key = compvis.autoencoder_name(name)
    flat[key] = published.array(prefix + key, shape)
  return flat


@pytest.fixture(scope='module')
def kl():
  flat = made(KL)
  return flat, compvis.autoencoder_from_flat(flat, autoencoders.shapes(KL))


def same(read, net, params):
  assert read.net == net
  assert jax.tree.structure(read.params) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, read.params, params)


TABLES = {name: np.ones(4, np.float32) for name in (
    'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod',
    'sqrt_one_minus_alphas_cumprod', 'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod',
    'sqrt_recipm1_alphas_cumprod', 'posterior_variance', 'posterior_log_variance_clipped',
    'posterior_mean_coef1', 'posterior_mean_coef2', 'logvar',
    'cond_stage_model.transformer.text_model.embeddings.position_ids')}


def test_the_autoencoder_of_a_whole_latent_diffusion_is_read(kl, tmp_path):
  """A training state of Lightning: beside the parameters it holds tables, text and classes."""
  flat, params = kl
  state = {**TABLES, 'scale_factor': np.float32(0.5).reshape(()),
           **{f'first_stage_model.{name}': array for name, array in flat.items()},
           'first_stage_model.loss.logvar': np.zeros((), np.float32),
           'model.diffusion_model.out.2.bias': np.zeros(3, np.float32),
           'model_ema.decay': np.float32(0.9).reshape(()),
           'model_ema.diffusion_modelout2bias': np.ones(3, np.float32),
           'cond_stage_model.embedding.weight': np.zeros((2, 3), np.float32)}
  path = tmp_path / 'model.ckpt'
  torch_files.write(path, {
      'epoch': 3, 'pytorch-lightning_version': '1.4.2', 'state_dict': state,
      'callbacks': {torch_files.Named(
          'pytorch_lightning.callbacks.model_checkpoint', 'ModelCheckpoint'): {
              'best_model_score': np.zeros((), np.float32), 'best_model_path': 'a/b.ckpt'}}})
  read = autoencoders.read(path)
  same(read, KL, params)
  assert read.scale == 0.5 and read.files == (path,)
  parts = compvis.parts(readers.read(path))
  assert set(parts.unet) == {'out.2.bias'} and set(parts.condition) == {'embedding.weight'}
  np.testing.assert_array_equal(parts.unet['out.2.bias'], 1.0)  # the average


def test_averages_of_an_autoencoder_are_taken_where_its_file_has_them(kl, tmp_path):
  flat, _ = kl
  averages = {name: array + 1.0 for name, array in flat.items()}
  file = {**flat, 'loss.discriminator.main.0.bias': np.zeros(8, np.float32),
          'model_ema.num_updates': np.zeros((), np.int32),
          'model_ema.lossdiscriminatormain0bias': np.zeros(8, np.float32),
          **{f'model_ema.{name.replace(".", "")}': u for name, u in averages.items()}}
  path = tmp_path / 'model.safetensors'
  readers.write_safetensors(path, file, {})
  read = autoencoders.read(path)
  same(read, KL, compvis.autoencoder_from_flat(averages, autoencoders.shapes(KL)))
  assert read.scale is None
  del file['model_ema.encoderconv_inweight']
  with pytest.raises(InputError, match=r'^its averages lack encoder\.conv_in\.weight; '):
    compvis.parts(file)


def folder_of(path, flat, **settings):
  path.mkdir(parents=True)
  readers.write_safetensors(path / 'diffusion_pytorch_model.safetensors', flat, {})
  (path / 'config.json').write_text(json.dumps(settings))
  return path


def test_a_folder_of_diffusers_is_read_and_its_file_alone(kl, tmp_path):
  flat, params = kl
  name = diffusers.autoencoder_name(params)
  theirs = fitting.flat(params, name, layout=fitting.to_torch)
  assert 'encoder.mid_block.attentions.0.to_q.weight' in theirs  # [out, in], as in diffusers
  folder = folder_of(tmp_path / 'model' / 'vae', theirs, _class_name='AutoencoderKL', act_fn='silu',
                     norm_num_groups=16, scaling_factor=0.25)
  read = autoencoders.read(folder)
  same(read, KL.clone(trunk=Trunk(32, (1, 2), 1, (1,), groups=16)), params)
  assert read.scale == 0.25 and read.files == (folder / 'diffusion_pytorch_model.safetensors',)
  (tmp_path / 'model' / 'model_index.json').write_text('{}')  # of the whole pipeline
  same(autoencoders.read(tmp_path / 'model'), read.net, params)
  same(autoencoders.read(read.files[0]), KL, params)


def layers_of_diffusers(halvings, features):
  """{name: shape} of EncoderTiny and DecoderTiny of diffusers 0.42.1, in their order."""
  flat = {}

  def conv(name, outputs, inputs, bias=True):
    flat[f'{name}.weight'] = (outputs, inputs, 3, 3)
    if bias:
      flat[f'{name}.bias'] = (outputs,)

  def sequence(half, layers):
    for number, layer in enumerate(layers):
      if layer == 'block':
        for i in (0, 2, 4):
          conv(f'{half}.layers.{number}.conv.{i}', features, features)
      elif layer not in ('relu', 'doubling'):
        conv(f'{half}.layers.{number}', *layer)
  stride = (features, features, False)
  sequence('encoder', [(features, 3), 'block', *halvings * [stride, *3 * ['block']], (4, features)])
  sequence('decoder', [(features, 4), 'relu', *halvings * [*3 * ['block'], 'doubling', stride],
                       'block', (3, features)])
  return flat


@pytest.mark.parametrize('halvings', [1, 3])
def test_the_tiny_autoencoder_is_read_from_its_two_files_and_from_diffusers(halvings, tmp_path):
  theirs = {name: published.array(name, shape)
            for name, shape in layers_of_diffusers(halvings, 4).items()}
  read = autoencoders.read(folder_of(tmp_path / 'folder', theirs, _class_name='AutoencoderTiny',
                                     act_fn='relu', scaling_factor=1.0))
  net = TinyAutoencoder(features=4, halvings=halvings)
  assert read.net == net and read.scale == 1.0
  params = read.params
  for name, kernel in [('encoder.layers.0', 'encode_in'), ('decoder.layers.0', 'decode_in'),
                       ('encoder.layers.2', 'downsample_0'), ('decoder.layers.6', 'upsample_0'),
                       (f'decoder.layers.{5 * halvings + 3}', 'decode_out')]:
    np.testing.assert_array_equal(params[kernel]['kernel'],
                                  theirs[f'{name}.weight'].transpose(2, 3, 1, 0), err_msg=name)
  # The bound of the latents and the relu have numbers in the decoder's own file.
  halves = {'encoder': {}, 'decoder': {}}
  for name, array in theirs.items():
    half, _, number, rest = name.split('.', 3)
    halves[half][f'{int(number) + (half == "decoder")}.{rest}'] = array
  for half, flat in halves.items():
    torch_files.write(tmp_path / f'taesd_{half}.pth', flat)
  files = tmp_path / 'taesd_encoder.pth', tmp_path / 'taesd_decoder.pth'
  for path in (tmp_path, *files):
    read = autoencoders.read(path)
    same(read, net, params)
    assert read.files == files
  files[0].unlink()
  with pytest.raises(InputError, match='the encoder is missing: .*taesd_encoder.pth; put both'):
    autoencoders.read(files[1])
  with pytest.raises(InputError, match='has 0 files tae.*_encoder'):
    autoencoders.read(tmp_path)


@pytest.mark.parametrize('net', [KL, VQ], ids=['kl', 'vq'])
def test_the_shapes_of_parameters_tell_the_network(net):
  assert compvis.autoencoder_of(made(net)) == net


@pytest.mark.parametrize('name', published.some(compvis.AUTOENCODERS, 'kl-f16'))
def test_the_shapes_of_published_parameters_tell_the_published_network(name):
  net = compvis.AUTOENCODERS[name]
  like = autoencoders.shapes(net)
  zeros = [np.broadcast_to(np.float32(0.0), leaf.shape) for leaf in jax.tree.leaves(like)]
  params = jax.tree.unflatten(jax.tree.structure(like), zeros)
  assert compvis.autoencoder_of(compvis.autoencoder_to_flat(params)) == net
  theirs = fitting.flat(params, diffusers.autoencoder_name(params), layout=fitting.to_torch)
  assert diffusers.autoencoder_of(theirs) == net


@pytest.mark.parametrize('change, message', [
    (lambda flat: flat.pop('decoder.conv_in.weight'), r'^it has no decoder\.conv_in\.weight, so'),
    (lambda flat: flat.pop('quant_conv.weight'), r'^it has no quant_conv\.weight, so'),
    (lambda flat: flat.pop('decoder.mid.block_2.norm1.bias'), r'missing: decoder\.mid\.block_2\.n'),
    (lambda flat: flat.update({'other.weight': np.zeros(1), 'more': np.zeros(1)}),
     r'^it holds more, other\.weight, which belong to no network here'),
    (lambda flat: flat.clear() or flat.update(betas=np.zeros(1)), '^it holds no autoencoder: ')])
def test_what_a_file_lacks_or_has_beside_is_named(kl, change, message, tmp_path):
  flat = dict(kl[0])
  change(flat)
  path = tmp_path / 'model.safetensors'
  readers.write_safetensors(path, flat, {})
  with pytest.raises(InputError, match=message):
    autoencoders.read(path)


def test_a_folder_of_another_kind_is_refused(kl, tmp_path):
  flat, _ = kl
  with pytest.raises(InputError, match='has no diffusion_pytorch_model.safetensors; give'):
    autoencoders.read(tmp_path)
  with pytest.raises(InputError, match='^it is a model of the class UNet2DModel; '):
    autoencoders.read(folder_of(tmp_path / 'a', flat, _class_name='UNet2DModel'))
  with pytest.raises(InputError, match='shift_factor=0.1'):
    autoencoders.read(folder_of(tmp_path / 'b', flat, shift_factor=0.1))
  folder = folder_of(tmp_path / 'c', flat)
  (folder / 'config.json').write_text('{"a"')
  with pytest.raises(InputError, match='config.json is damaged'):
    autoencoders.read(folder)
