"""GLIDE's U-Nets: parity with recordings of the public code, sizes, names, guidance, settings."""
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published, recordings
from tests.support.published import last, shapes_of
from vdm_jax import denoisers, guidance, inputs, oracles, processes, targets
from vdm_jax.errors import InputError
from vdm_jax.nn.text.clip import NoisyCLIP
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import Encoded
from vdm_jax.nn.unets import adm
from vdm_jax.published import glide
from vdm_jax.samplers import ancestral
from vdm_jax.schedules import TableSchedule, cosine_betas

assert_close = functools.partial(published.assert_close, tolerance=1e-4)
CASES = ['base', 'super_res', 'inpaint']
INTER = {'conv_in': 'input_blocks.0', 'down_1_attention': 'input_blocks.1', 'mid_1': 'middle_block'}


SCHEDULE = TableSchedule.from_betas(cosine_betas(1000))
COSINE = processes.GaussianProcess(SCHEDULE)


class Recorded:
  """A recorded case: its weights, and the networks that their shapes tell."""

  def __init__(self, name):
    self.name = name
    self.arrays = {key.removeprefix(f'{name}/'): array for key, array
                   in recordings.shared('glide_small').items() if key.startswith(f'{name}/')}
    self.flat = published.state_dict(self.arrays | {f'{name}/shapes': self.arrays['shapes']}, name)
    self.unet = glide.unet_of(self.flat, side=16, head_features=16)
    self.text = glide.text_of(self.flat, heads=4)
    self.tokens, self.mask = np.int32(self.arrays['in/tokens']), self.arrays['in/mask']
    self.z, self.time = last(self.arrays['in/z']), np.float32(self.arrays['in/t'])
    self.told = {}
    if 'in/low_res' in self.arrays:
      self.told['low_res'] = last(self.arrays['in/low_res'])
    if 'in/inpaint_mask' in self.arrays:
      self.told |= {'known': last(self.arrays['in/inpaint_image']),
                    'mask': last(self.arrays['in/inpaint_mask'])}

  def params(self):
    like = shapes_of(self.text, self.tokens, self.mask)
    encoded = jax.eval_shape(lambda: Encoded(jnp.zeros((len(self.z), 8, 32)),
                                             jnp.zeros((len(self.z), 128))))
    of_unet = shapes_of(self.unet, self.z, self.time, {**self.told, 'text': encoded})
    return {'text': glide.text_from_flat(self.flat, like, heads=4),
            'net': glide.unet_from_flat(self.flat, of_unet)}

  def cond(self, params, tokens, mask=None):
    text = self.text.apply({'params': params['text']}, tokens, mask)
    return {**self.told, 'text': text}

  def run(self, params, z):
    """The output, and what the recorded layers return."""
    y, seen = self.unet.apply(
        {'params': params['net']}, z, self.time, self.cond(params, self.tokens, self.mask),
        capture_intermediates=lambda module, _: module.name in INTER)
    return y, {name: seen['intermediates'][name]['__call__'][0] for name in INTER}

  def require_forward(self, y, seen):
    assert_close(y, last(self.arrays['out']))
    for ours, theirs in INTER.items():
      assert_close(seen[ours], last(self.arrays[f'inter/{theirs}']))


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_a_u_net_of_glide_and_its_gradients_repeat_the_public_code(name, differs):
  case = Recorded(name)
  cotangent = last(published.array(f'cotangent/{name}', case.arrays['out'].shape))

  def loss(params, z):
    y, seen = case.run(params, z)
    return jnp.sum(y * cotangent), (y, seen)
  (gradients, by_z), (y, seen) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
      case.params(), case.z)
  case.require_forward(y, seen)
  differs('parity', 'nn/unets/adm.py, GLIDE', y, last(case.arrays['out']))
  assert_close(by_z, last(case.arrays['grad/z']))
  found = glide.text_to_flat(gradients['text'], heads=4) | glide.unet_to_flat(gradients['net'])
  names = json.loads(str(case.arrays['grad_names']))
  assert set(found) == set(names)
  scale = case.arrays['grad_norm'].max()
  for key, norm, product in zip(names, case.arrays['grad_norm'], case.arrays['grad_probe'],
                                strict=True):
    gradient, probe = np.float64(found[key]), published.array(f'probe/{key}', found[key].shape)
    assert abs(np.linalg.norm(gradient) - norm) < 1e-4 * scale, key
    assert abs(np.sum(gradient * probe) - product) < 1e-4 * scale * np.linalg.norm(probe), key


@pytest.mark.long
def test_the_base_model_repeats_the_public_code():
  case = Recorded('base')
  case.require_forward(*jax.jit(case.run)(case.params(), case.z))


@pytest.mark.long
def test_guidance_moves_eps_alone_and_keeps_the_variance_of_the_told_half():
  """The outputs of the public code, told and untold, become those of its notebook for scale 3."""
  arrays = Recorded('base').arrays
  of = lambda name: denoisers.denoiser(lambda z, time, cond: last(arrays[name]), targets.eps,
                                       heads=('variance',))
  level = COSINE((arrays['in/t'] + 1.0) / 1000.0)
  guided = guidance.classifier_free(of('out'), of('untold'), 2.0)(last(arrays['in/z']), level)
  got = np.concatenate([guided.eps, guided.extra['variance']], axis=-1)
  assert_close(got, last(arrays['cfg_scale_3']))


@pytest.mark.long
def test_guidance_by_clip_moves_the_mean_by_the_variance_times_the_recorded_gradient():
  """With the larger variance, beta_t, of a step of the chain; and eps, by sigma times it."""
  recorded = recordings.shared('glide_small')
  flat = {kind: {name.removeprefix(f'{kind}/'): published.array(name, tuple(shape)) for name, shape
                 in json.loads(str(recorded[f'clip/{kind}_shapes'])).items()}
          for kind in ('text', 'image')}
  net = NoisyCLIP(glide.text_tower_of(flat['text'], 2), glide.image_tower_of(flat['image'], 2))
  z, step = last(recorded['clip/in/z']), recorded['clip/in/t']
  tokens, lengths = (np.int32(recorded[f'clip/in/{name}']) for name in ('tokens', 'lengths'))
  like = shapes_of(net, z, np.float32(step), tokens, lengths)
  params = {kind: glide.tower_from_flat(flat[kind], like[kind]) for kind in like}
  reads, keys = inputs.chain(SCHEDULE), jax.random.split(jax.random.key(0), len(z))
  t, s = (step + 1.0) / 1000.0, step / 1000.0

  @jax.jit
  def run(params):
    cosine = lambda z, level: net.apply({'params': params}, *reads(z, level), tokens, lengths)
    slope = lambda z, level, cond=None: jax.grad(
        lambda z: 100.0 * jnp.sum(cosine(z, level)))(z)
    plain = oracles.Gaussian(0.0, 1.0)
    move = lambda gradient: ancestral(plain, COSINE, 1.0, gradient).step(keys, z, t, s, None)
    eps = guidance.classifier(plain, slope)(z, COSINE(t)).eps - plain(z, COSINE(t)).eps
    return move(slope) - move(None), eps
  moved, eps = run(params)
  want, wide = last(recorded['clip/grad_100_cosine']), lambda u: u[:, None, None, None]
  # The variance is a difference of neighbouring levels, in float32.
  published.assert_close(moved, wide(cosine_betas(1000)[step]) * want, tolerance=1e-3)
  assert_close(eps, -wide(COSINE(t).sigma) * want)


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_the_names_of_a_file_of_glide_go_there_and_back(name):
  case = Recorded(name)
  params = case.params()
  back = glide.unet_to_flat(params['net']) | glide.text_to_flat(params['text'], heads=4)
  assert back.keys() == case.flat.keys()
  for key, array in case.flat.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)
  with pytest.raises(InputError, match=r'left over: extra(.|\n)*'):
    glide.unet_from_flat({**case.flat, 'extra': np.zeros(1)}, params['net'])
  with pytest.raises(InputError, match=r'missing: middle_block\.1\.encoder_kv\.weight'):
    glide.unet_from_flat({key: array for key, array in case.flat.items()
                          if 'middle_block.1.encoder_kv.weight' != key}, params['net'])
  with pytest.raises(InputError, match=r'no out\.2\.weight, so it is no U-Net of GLIDE'):
    glide.unet_of({key: array for key, array in case.flat.items() if key != 'out.2.weight'})


# Counted in the public code, with the text transformer of 76,695,808 parameters.
COUNTS = {'base': 385_030_726, 'upsample': 398_361_286, 'base_inpaint': 385_030_726 + 6_912,
          'upsample_inpaint': 398_361_286 + 6_912}


def cond_of(net, z):
  cond = {'text': Encoded(jnp.zeros((len(z), 128, 512)), jnp.zeros((len(z), 4 * net.features)))}
  if net.super_resolution:
    cond['low_res'] = z[:, ::4, ::4]
  if net.inpainting:
    cond |= {'known': z, 'mask': z[..., :1]}
  return cond


@pytest.mark.long
@pytest.mark.parametrize('name', published.some(COUNTS, 'base'))
def test_a_published_model_has_its_published_size_and_tells_its_settings(name):
  net, z = glide.MODELS[name], jnp.zeros((1, *glide.SHAPES[name]))
  like = shapes_of(net, z, jnp.zeros(1), cond_of(net, z))
  text = shapes_of(GLIDEText(), jnp.zeros((1, 128), jnp.int32))
  count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
  assert count(like) + count(text) == COUNTS[name]
  zero = np.zeros(1, np.float32)
  flat = glide.unet_to_flat(jax.tree.map(lambda leaf: np.broadcast_to(zero, leaf.shape), like))
  assert glide.unet_of(flat) == net.clone(dropout=0.0)


@pytest.mark.long
def test_pixels_attend_to_tokens_and_pixels_by_one_softmax():
  """In each head, W softmax(q [k_text, k]^T / sqrt(C)) [v_text, v], in plain NumPy."""
  rng = np.random.default_rng(0)
  h, text = rng.normal(size=(2, 2, 3, 8)), rng.normal(size=(2, 5, 6))
  block = adm.AttentionBlock(attention_heads=2, groups=2)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes_of(block, h, text))
  dense = lambda name, u: u @ params[name]['kernel'] + params[name]['bias']
  grouped = h.reshape(2, 6, 2, 4)
  mean, var = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  norm = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(2, 6, 8)
  norm = norm * params['norm']['scale'] + params['norm']['bias']
  q, k, v = np.moveaxis(dense('qkv', norm).reshape(2, 6, 2, 3, 4), 3, 0)
  k_text, v_text = np.moveaxis(dense('text', text).reshape(2, 5, 2, 2, 4), 3, 0)
  k, v = np.concatenate([k_text, k], axis=1), np.concatenate([v_text, v], axis=1)
  scores = np.exp(np.einsum('bphc,bthc->bhpt', q, k) / 2.0)
  read = np.einsum('bhpt,bthc->bphc', scores / scores.sum(axis=-1, keepdims=True), v)
  want = h + dense('out', read.reshape(2, 6, 8)).reshape(h.shape)
  got = block.apply({'params': jax.tree.map(jnp.float32, params)}, jnp.float32(h),
                    jnp.float32(text))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


SMALL = adm.UNet(features=8, multipliers=(1, 2), blocks=0, groups=2, attention_heads=2, text=True,
                 inpainting=True)


@pytest.mark.parametrize('net, change, message', [
    (SMALL, lambda cond: None, 'this network is conditioned on text, known, mask'),
    (SMALL, lambda cond: {'text': cond['text']}, 'give a dict of text, known, mask'),
    (SMALL, lambda cond: {**cond, 'low_res': 0}, 'give a dict of text, known, mask'),
    (SMALL.clone(inpainting=False), lambda cond: np.zeros((2, 5)), 'the text is not encoded'),
    (SMALL.clone(classes=3), lambda cond: cond['text'], 'text, known, mask and a label'),
    (SMALL, lambda cond: {**cond, 'mask': cond['known'][..., :2]}, r'give .*\(2, 4, 4, 1\)'),
    (SMALL, lambda cond: {**cond, 'text': Encoded(cond['text'].sequence, None)}, r'vector \[2, 32'),
])
def test_a_condition_that_does_not_fit_is_refused(net, change, message):
  z = jnp.zeros((2, 4, 4, 3))
  with pytest.raises(InputError, match=message):
    shapes_of(net, z, jnp.zeros(2), change(cond_of(net, z)))
