"""Networks of latent diffusion: parity with recordings of the public code, sizes, settings."""
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.support import published
from tests.support.published import last, shapes_of
from vdm_jax.editing import attention
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.nn.unets.latent import LabelledUNet, LatentUNet
from vdm_jax.objectives import autoencoding
from vdm_jax.published import compvis, diffusers, fitting, taesd
from vdm_jax.typing import Estimate

RECORDED = Path(__file__).parents[3] / 'shared' / 'oracles' / 'latent_diffusion_small.npz'
there = pytest.mark.skipif(not RECORDED.exists(), reason='../shared/oracles is not there')
KL = KLAutoencoder(3, 4, Trunk(32, (1, 2, 2), 1))
VQ = VQAutoencoder(3, 3, 32, Trunk(32, (1, 2), 1))
UNET = LatentUNet(features=32, multipliers=(1, 2), blocks=1, attention_levels=(0, 1),
                  attention_heads=4)
assert_close = functools.partial(published.assert_close, tolerance=1e-4)
PREFIX = {'kl': 'first_stage_model.', 'vq': 'first_stage_model.', 'unet': 'model.diffusion_model.'}


@pytest.fixture(scope='module')
def recorded():
  with np.load(RECORDED) as file:
    return {name: file[name] for name in file.files}


def weights(recorded, name):
  """The weights of a recording by their published names, with and without the prefix."""
  full = published.state_dict(recorded, name)
  return full, {key.removeprefix(PREFIX[name]): array for key, array in full.items()}


def require_gradients(recorded, name, gradients, names):
  """Norms, and inner products with probes, of the gradient of each parameter."""
  want = {key.removeprefix(PREFIX[name]): i
          for i, key in enumerate(json.loads(str(recorded[f'{name}/grad_names'])))}
  assert set(names) == set(want)
  scale = recorded[f'{name}/grad_norm'].max()
  for key, gradient in names.items():
    probe = published.array(f'probe/{PREFIX[name]}{key}', gradient.shape)
    norm = np.linalg.norm(np.float64(gradient))
    assert abs(norm - recorded[f'{name}/grad_norm'][want[key]]) < 1e-4 * scale, key
    found = np.sum(np.float64(gradient) * probe)
    size = np.linalg.norm(probe)
    assert abs(found - recorded[f'{name}/grad_probe'][want[key]]) < 1e-4 * scale * size, key


@there
@pytest.mark.long
def test_a_kl_autoencoder_and_its_gradients_repeat_the_public_code(recorded, differs):
  r = {key.removeprefix('kl/'): u for key, u in recorded.items() if key.startswith('kl/')}
  _, flat = weights(recorded, 'kl')
  x, noise = last(r['in/x']), last(r['in/noise'])
  params = compvis.autoencoder_from_flat(flat, shapes_of(KL, x))

  def run(params, x):
    run = lambda method, *args: KL.apply({'params': params}, *args, method=method)
    mean, log_variance = run(KL.encode, x)
    z = mean + jnp.exp(0.5 * log_variance) * noise
    return mean, log_variance, z, run(KL.decode, z)
  mean, log_variance, z, decoded = jax.jit(run)(params, x)
  assert_close(np.concatenate([mean, log_variance], -1), last(r['moments']))
  assert_close(jnp.exp(0.5 * log_variance), last(r['std']))
  assert_close(z, last(r['z']))
  assert_close(decoded, last(r['decoded']))
  differs('parity', 'nn/autoencoders/compvis.py', decoded, last(r['decoded']))
  # The recorded `decoded_mode` is D(z) once more, so D(m) has the recorded m and D as its oracles.
  of_recorded = KL.apply({'params': params}, last(r['moments'])[..., :4], method=KL.decode)
  assert_close(jax.jit(KL.apply)({'params': params}, x), of_recorded)

  cotangent = last(published.array('cotangent/kl', r['decoded'].shape))
  gradients, by_x = jax.jit(jax.grad(
      lambda params, x: jnp.sum(run(params, x)[3] * cotangent), argnums=(0, 1)))(params, x)
  assert_close(by_x, last(r['grad/x']))
  require_gradients(recorded, 'kl', gradients, compvis.autoencoder_to_flat(gradients))


@pytest.mark.long
@there
def test_a_vq_autoencoder_repeats_the_public_code_and_passes_gradients_straight_through(
    recorded, differs):
  """The gradients of sum(decoded x cotangent) + the legacy loss of the codebook."""
  r = {key.removeprefix('vq/'): u for key, u in recorded.items() if key.startswith('vq/')}
  _, flat = weights(recorded, 'vq')
  x = last(r['in/x'])
  params = compvis.autoencoder_from_flat(flat, shapes_of(VQ, x))
  run = lambda params, method, *args: VQ.apply({'params': params}, *args, method=method)
  h = jax.jit(lambda: run(params, VQ.encode, x))()
  assert_close(h, last(r['h']))
  cotangent = last(published.array('cotangent/vq', r['decoded'].shape))

  def loss(entries, h):
    of = params | {'codebook': entries}
    (q, index), decoded = run(of, VQ.quantise, h), run(of, VQ.decode, h)
    apart = autoencoding.codebook(h, q, legacy=True).mean()
    return jnp.sum(decoded * cotangent) + apart, (q, index, decoded)
  (by_codebook, by_h), (q, index, decoded) = jax.jit(jax.grad(
      loss, argnums=(0, 1), has_aux=True))(params['codebook'], h)
  np.testing.assert_array_equal(index, r['indices'].reshape(index.shape))
  assert_close(q, last(r['quantised']))
  assert_close(decoded, last(r['decoded']))
  differs('parity', 'nn/autoencoders/compvis.py', decoded, last(r['decoded']))
  assert_close(by_codebook, r['grad/codebook'])
  assert_close(by_h, last(r['grad/h']))


@there
@pytest.mark.long
def test_the_gradient_by_an_image_of_a_vq_autoencoder_is_that_by_h_through_its_encoder(recorded):
  _, flat = weights(recorded, 'vq')
  x = last(recorded['vq/in/x'])
  params = compvis.autoencoder_from_flat(flat, shapes_of(VQ, x))
  _, pull_back = jax.vjp(jax.jit(lambda x: VQ.apply({'params': params}, x, method=VQ.encode)), x)
  assert_close(pull_back(last(recorded['vq/grad/h']))[0], last(recorded['vq/grad/x']))


@there
@pytest.mark.long
def test_a_u_net_with_a_context_and_its_gradients_repeat_the_public_code(recorded, differs):
  r = {key.removeprefix('unet/'): u for key, u in recorded.items() if key.startswith('unet/')}
  _, flat = weights(recorded, 'unet')
  args = last(r['in/z']), np.float32(r['in/t']), r['in/context']
  params = compvis.unet_from_flat(flat, shapes_of(UNET, *args))
  cotangent = last(published.array('cotangent/unet', r['out'].shape))

  def loss(params, z, context):
    y = UNET.apply({'params': params}, z, args[1], context)
    return jnp.sum(y * cotangent), y
  (gradients, by_z, by_context), y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
      params, args[0], args[2])
  assert_close(y, last(r['out']))
  differs('parity', 'nn/unets/latent.py', y, last(r['out']))
  assert_close(by_z, last(r['grad/z']))
  assert_close(by_context, r['grad/context'])
  require_gradients(recorded, 'unet', gradients, compvis.unet_to_flat(gradients))


@there
@pytest.mark.long
def test_the_maps_of_the_attention_to_tokens_are_those_of_the_public_code(recorded):
  r = {key.removeprefix('unet/'): u for key, u in recorded.items() if key.startswith('unet/')}
  _, flat = weights(recorded, 'unet')
  args = last(r['in/z']), np.float32(r['in/t']), r['in/context']
  params = compvis.unet_from_flat(flat, shapes_of(UNET, *args))

  def denoise(z, time, cond):
    y = UNET.apply({'params': params}, z, time, cond)
    return Estimate(y, y)
  maps = jax.jit(lambda *args: attention.captured(denoise, lambda maps: maps)(
      *args).extra['attention'])(*args)
  name = compvis.unet_name(params)
  layer = lambda path: name(f'{path}/query/kernel').removesuffix('.to_q.weight')
  got = {layer(path.removesuffix('/told')): u for path, u in maps.items()
         if path.endswith('/told')}
  want = {key.removeprefix('map/'): u for key, u in r.items() if key.startswith('map/')}
  assert got.keys() == want.keys() and len(got) == 7
  for key, u in want.items():
    np.testing.assert_allclose(got[key], u, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.first(2)
@there
@pytest.mark.parametrize('name', ['kl', 'vq', 'unet'])
def test_names_are_those_of_both_public_codes_and_go_back(recorded, name):
  _, flat = weights(recorded, name)
  net, args = {'kl': (KL, ()), 'vq': (VQ, ()),
               'unet': (UNET, (jnp.zeros(1), jnp.zeros((1, 7, 24))))}[name]
  like = shapes_of(net, jnp.zeros((1, 8, 8, 4 if name == 'unet' else 3)), *args)
  of = 'unet' if name == 'unet' else 'autoencoder'
  params = getattr(compvis, f'{of}_from_flat')(flat, like)
  back = getattr(compvis, f'{of}_to_flat')(params)
  assert back.keys() == flat.keys()
  for key, array in flat.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)
  theirs = json.loads(str(recorded[f'{name}/diffusers_names']))
  renamed = {theirs[PREFIX[name] + key]: array for key, array in flat.items()}
  jax.tree.map(np.testing.assert_array_equal, params,
               getattr(diffusers, f'{of}_from_flat')(renamed, like))


def test_a_file_may_hold_the_networks_of_its_loss_and_older_names_of_the_attention():
  net = VQAutoencoder(3, 3, 4, Trunk(4, (1,), 0, groups=2))
  like = shapes_of(net, jnp.zeros((1, 4, 4, 3)))
  flat = compvis.autoencoder_to_flat(jax.tree.map(lambda leaf: np.ones(leaf.shape), like))
  more = {'loss.logvar': np.zeros(()), 'loss.discriminator.main.0.bias': np.zeros(8),
          'model_ema.decay': np.zeros(())}
  compvis.autoencoder_from_flat(flat | more, like)
  assert 'decoder.mid.attn_1.q.weight' in flat
  older = {name.replace('.to_q.', '.query.').replace('.to_k.', '.key.').replace(
      '.to_v.', '.value.').replace('.to_out.0.', '.proj_attn.'): array
           for name, array in diffusers_flat(like).items()}
  assert 'decoder.mid_block.attentions.0.proj_attn.weight' in older
  diffusers.autoencoder_from_flat(older, like)


def diffusers_flat(like):
  """{name in diffusers: array} of such an autoencoder, in PyTorch's layout."""
  return fitting.flat(jax.tree.map(lambda leaf: np.ones(leaf.shape), like),
                      diffusers.autoencoder_name(like), layout=compvis.to_torch)


def test_a_checkpoint_that_lacks_a_part_is_refused_by_name():
  like = shapes_of(VQ, jnp.zeros((1, 4, 4, 3)))
  with pytest.raises(InputError, match='missing: quantize.embedding.weight'):
    compvis.autoencoder_from_flat({}, like)


# Counted in the public code.
AUTOENCODERS = {'kl-f4': 55_312_063, 'kl-f8': 83_653_863, 'kl-f16': 69_610_963,
                'kl-f32': 103_880_131, 'vq-f4': 55_322_782, 'vq-f4-noattn': 53_219_486,
                'vq-f8': 67_717_295, 'vq-f8-n256': 67_652_783, 'vq-f16': 69_593_371}
UNETS = {'celeba256': 274_056_163, 'ffhq256': 274_056_163, 'lsun_beds256': 274_056_163,
         'lsun_churches256': 294_966_916, 'cin256-v2': 400_920_579, 'cin256': 394_984_196,
         'text2img256': 403_623_939, 'txt2img-f8-large': 872_300_484,
         'inpainting_big': 387_245_827, 'stable-diffusion-v1': 859_520_964,
         'stable-diffusion-v1-inpainting': 859_535_364}


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', published.some(AUTOENCODERS, 'kl-f8', 'vq-f4-noattn'))
def test_published_autoencoders_have_their_published_sizes(name):
  net = compvis.AUTOENCODERS[name]
  like = shapes_of(net, jnp.zeros((1, 64, 64, 3)))
  assert count(like) == AUTOENCODERS[name]
  if name == 'kl-f8':  # of Stable Diffusion
    assert count({k: like[k] for k in ('encoder',)}) == 34_163_592
    assert count({k: like[k] for k in ('decoder',)}) == 49_490_179


@pytest.mark.parametrize('name', published.some(UNETS))
def test_published_u_nets_have_their_published_sizes(name):
  net, shape, context = compvis.UNETS[name]
  cond = None if context is None else jnp.zeros((1, *context))
  assert count(shapes_of(net, jnp.zeros((1, *shape)), jnp.zeros(1), cond)) == UNETS[name]


@pytest.mark.parametrize('net, x, message', [
    (KL, (1, 6, 8, 3), 'images of 6 x 8 pixels cannot be halved 2 times'),
    (KLAutoencoder(3, 4, Trunk(30, (1, 2), 1)), (1, 4, 4, 3), 'groups=32: ')])
def test_settings_that_do_not_fit_are_refused(net, x, message):
  with pytest.raises(InputError, match=message):
    shapes_of(net, jnp.zeros(x))


def test_a_context_of_another_rank_is_refused():
  with pytest.raises(InputError, match=r'cond: its shape is \(1, 5\)'):
    shapes_of(UNET, jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros((1, 5)))


TOLD = LabelledUNet(LatentUNet(features=8, multipliers=(1,), blocks=1, attention_levels=(0,),
                               attention_heads=2, groups=2, weight_gradient='xla'), 3, 6)


class Reads(nn.Module):
  """Returns its context."""

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    return cond


@pytest.mark.first(1)
@pytest.mark.parametrize('untold', [True, False])
def test_a_label_is_the_only_token_of_a_context(untold):
  net = LabelledUNet(Reads(), 3, 6, untold)
  z, time, label = jnp.zeros((3, 4, 4, 2)), jnp.zeros(3), jnp.array([2, 0, -1])
  vectors = np.float32(np.random.default_rng(0).standard_normal((3 + untold, 6)))
  params = {'label': {'embedding': vectors}}
  want = np.stack([vectors[2], vectors[0], vectors[3] if untold else np.zeros(6)])[:, None]
  run = lambda label: net.apply({'params': params}, z, time, label)
  np.testing.assert_array_equal(run(label), want)
  np.testing.assert_array_equal(run(None), want[[2, 2, 2]])
  assert shapes_of(net, z, time, label)['label']['embedding'].shape == vectors.shape
  with pytest.raises(InputError, match='cond: it is float32'):
    run(jnp.zeros((3, 1, 6)))


def test_the_vectors_of_labels_are_those_of_the_public_code():
  """`ClassEmbedder` of latent-diffusion has one table, beside the U-Net."""
  like = shapes_of(TOLD, jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
  params = jax.tree.map(lambda u: np.full(u.shape, 2.0, np.float32), like)
  unet = compvis.unet_to_flat(params['net'])
  table = np.arange(24, dtype=np.float32).reshape(4, 6)
  file = {**{f'model.diffusion_model.{name}': u for name, u in unet.items()},
          'cond_stage_model.embedding.weight': table}
  got = compvis.diffusion_from_flat(compvis.parts(file), like)
  np.testing.assert_array_equal(got['label']['embedding'], table)
  jax.tree.map(np.testing.assert_array_equal, got['net'], params['net'])
  with pytest.raises(InputError, match='missing: cond_stage_model.embedding.weight'):
    compvis.diffusion_from_flat(compvis.parts(
        {f'model.diffusion_model.{name}': u for name, u in unet.items()}), like)
  with pytest.raises(InputError, match='it has embedding.weight under cond_stage_model, and'):
    compvis.diffusion_from_flat(compvis.parts(file), like['net'])
  with pytest.raises(InputError, match='it has no U-Net'):
    compvis.diffusion_from_flat(compvis.parts({'first_stage_model.a': table}), like)


@pytest.mark.parametrize('name', compvis.LATENT_DIFFUSIONS)
def test_a_published_latent_diffusion_fits_its_autoencoder(name):
  """The channels of its latents, and their side; what it is told."""
  trained = compvis.LATENT_DIFFUSIONS[name]
  net = compvis.AUTOENCODERS[trained.autoencoder]
  side = trained.side // net.trunk.factor
  assert compvis.UNETS[name][1] == (side, side, net.latent_channels)
  context, encoder = compvis.UNETS[name][2], compvis.TEXT_ENCODERS.get(name)
  assert (context is not None) == (trained.classes > 0 or encoder is not None)
  assert (encoder is not None) == bool(trained.tokeniser)
  assert encoder is None or context == (encoder.length, encoder.features)


def test_the_tiny_autoencoder_has_its_published_size_names_and_shapes():
  """The layers of the public code, in their order: features to features, and the strides' place."""
  net = TinyAutoencoder()
  like = shapes_of(net, jnp.zeros((1, 16, 16, 3)))
  assert count(like) == 2_445_063
  flat = {}

  def layer(name, outputs, inputs, bias=True):
    flat[f'{name}.weight'] = np.zeros((outputs, inputs, 3, 3), np.float32)
    if bias:
      flat[f'{name}.bias'] = np.zeros(outputs, np.float32)

  def block(name):
    for i in (0, 2, 4):
      layer(f'{name}.conv.{i}', 64, 64)
  layer('encoder.0', 64, 3)
  layer('encoder.14', 4, 64)
  layer('decoder.1', 64, 4)
  layer('decoder.19', 3, 64)
  for i in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
    block(f'encoder.{i}')
  for i in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
    block(f'decoder.{i}')
  for name in ('encoder.2', 'encoder.6', 'encoder.10', 'decoder.7', 'decoder.12', 'decoder.17'):
    layer(name, 64, 64, bias=False)
  taesd.from_flat(flat, like)  # which refuses a name that is missing or left over


def convolved(h, flat, name, stride=1):
  """A 3x3 convolution with a border of one 0, [B, C, H, W], by its kernel [out, in, 3, 3]."""
  rows, columns = h.shape[2:]
  h = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
  kernel = flat[f'{name}.weight']
  found = sum(np.einsum('bihw,oi->bohw', h[:, :, y:y + rows:stride, x:x + columns:stride],
                        kernel[:, :, y, x]) for y in range(3) for x in range(3))
  bias = flat.get(f'{name}.bias', np.zeros(len(kernel)))
  return found + bias[:, None, None]


def residual(h, flat, name):
  """A block of three convolutions, added to h: a relu follows each and the sum."""
  relu = lambda h: np.maximum(h, 0.0)
  first = relu(convolved(h, flat, f'{name}.conv.0'))
  second = relu(convolved(first, flat, f'{name}.conv.2'))
  return relu(h + convolved(second, flat, f'{name}.conv.4'))


def test_the_arithmetic_of_the_tiny_autoencoder_is_that_of_its_public_list_of_layers():
  """In float64 by NumPy, with one halving: the layers and their order are those of taesd.py."""
  net = TinyAutoencoder(features=5, halvings=1)
  like = shapes_of(net, jnp.zeros((1, 4, 4, 3)))
  ends = {'encoder.0': (5, 3), 'encoder.6': (4, 5), 'decoder.1': (5, 4), 'decoder.9': (3, 5)}
  blocks = [f'{half}.{i}.conv.{j}' for half, places in (('encoder', (1, 3, 4, 5)),
                                                       ('decoder', (3, 4, 5, 8)))
            for i in places for j in (0, 2, 4)]
  shapes = dict.fromkeys([*blocks, 'encoder.2', 'decoder.7'], (5, 5)) | ends
  flat = {f'{name}.weight': 1.5 * published.array(f'tiny.{name}.weight', (*shape, 3, 3))
          for name, shape in shapes.items()}
  flat |= {f'{name}.bias': 3.0 * published.array(f'tiny.{name}.bias', shape[:1])
           for name, shape in shapes.items() if name not in ('encoder.2', 'decoder.7')}
  params = taesd.from_flat(flat, like)
  rng = np.random.default_rng(0)

  x = rng.uniform(0.0, 1.0, (2, 3, 6, 8))
  h = residual(convolved(x, flat, 'encoder.0'), flat, 'encoder.1')
  h = convolved(h, flat, 'encoder.2', stride=2)
  for i in (3, 4, 5):
    h = residual(h, flat, f'encoder.{i}')
  want = convolved(h, flat, 'encoder.6')
  images = np.float32(2.0 * last(x) - 1.0)  # the public code has them in [0, 1]
  run = lambda method, u: jax.jit(lambda u: net.apply({'params': params}, u, method=method))(u)
  encoded = run(net.encode, images)
  assert_close(encoded, last(want), tolerance=1e-5)

  y = 4.0 * rng.standard_normal((2, 4, 3, 4))  # far enough that the bound matters
  h = np.maximum(convolved(3.0 * np.tanh(y / 3.0), flat, 'decoder.1'), 0.0)
  for i in (3, 4, 5):
    h = residual(h, flat, f'decoder.{i}')
  h = convolved(h.repeat(2, axis=2).repeat(2, axis=3), flat, 'decoder.7')
  want = convolved(residual(h, flat, 'decoder.8'), flat, 'decoder.9')
  decoded = run(net.decode, np.float32(last(y)))
  assert_close(decoded, 2.0 * last(want) - 1.0, tolerance=1e-5)
