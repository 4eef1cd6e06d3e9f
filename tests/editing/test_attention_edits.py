"""Attention maps are read and changed from outside, and what is not changed stays bit for bit."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import inputs, schedules, targets
from vdm_jax.denoisers import denoiser
from vdm_jax.editing import attention, prompt_to_prompt
from vdm_jax.errors import InputError
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.nn.unets import adm
from vdm_jax.nn.unets.latent import HeadsAttention, LabelledUNet, LatentUNet
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ddim, sample
from vdm_jax.typing import Estimate
from vdm_jax.values import Bound

PROCESS = GaussianProcess(schedules.Cosine(8.0, -6.0))
NET = LatentUNet(features=8, multipliers=(1,), blocks=1, attention_levels=(0,), groups=4,
                 attention_heads=2)
TIMES = jnp.linspace(1.0, 0.0, 6)
LENGTH = 5


@functools.cache
def case():
  """z, the contexts of two sources and of their two targets, and parameters without zeros."""
  z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  context = jax.random.normal(jax.random.key(1), (4, LENGTH, 6))
  params = jax.jit(NET.init)(jax.random.key(2), jnp.tile(z, (2, 1, 1, 1)), jnp.ones(4), context)
  leaves, tree = jax.tree.flatten(params['params'])
  keys = jax.random.split(jax.random.key(3), len(leaves))
  moved = [u + 0.3 * jax.random.normal(key, u.shape) for u, key in zip(leaves, keys, strict=True)]
  return jnp.tile(z, (2, 1, 1, 1)), context, jax.tree.unflatten(tree, moved)


def denoise_of(net, params):
  return denoiser(Bound(params, net), targets.eps, inputs.logsnr)


@functools.cache
def programs(remat):
  """Samplers along a grid, as two programs: plain, and edited by words, own and a context."""
  z, _, params = case()
  net = NET.clone(remat=remat)

  def drawn(denoise, context):
    sampler = ddim(lambda z, level, cond=None: denoise(z, level, context), PROCESS)
    return sample(sampler, jax.random.split(jax.random.key(4), 4), z, TIMES)

  def edited(params, context, words, own):
    change = prompt_to_prompt.edit(words, own)
    return drawn(attention.edited(denoise_of(net, params), change, told=True), context)

  plain = jax.jit(lambda params, context: drawn(denoise_of(net, params), context))
  edited = jax.jit(edited)
  return (lambda context: np.asarray(plain(params, context)),
          lambda context, cross, own: np.asarray(edited(params, context, exchanged(cross), own)))


def exchanged(cross):
  """Both pairs: a text of five words, of which one is exchanged."""
  source, target = (prompt_to_prompt.prompt(text, lambda word: [ord(word)])
                    for text in ('a b c d e', 'a b x d e'))
  return prompt_to_prompt.stack(
      2 * [prompt_to_prompt.replace(source, target, LENGTH, cross=cross)])


@pytest.mark.long
@pytest.mark.parametrize('remat', ['none', 'block'])
def test_limits_of_an_edit_hold_bit_for_bit_under_jit(remat):
  drawn, edited = programs(remat)
  _, context, _ = case()
  plain = drawn(context)
  assert np.abs(plain[:2] - plain[2:]).min() > 0.0  # another text gives another sample
  early = edited(context, 0.8, 0.4)
  np.testing.assert_array_equal(early[:2], plain[:2])  # the source is unchanged
  assert np.abs(early[2:] - plain[2:]).max() > 1e-3
  np.testing.assert_array_equal(edited(context, 0.0, 0.0), plain)
  same = jnp.tile(context[:2], (2, 1, 1))
  both = edited(same, 1.0, 1.0)
  np.testing.assert_array_equal(both[:2], both[2:])
  np.testing.assert_array_equal(both, drawn(same))


def split(cross):
  """A text of three words, of which one is exchanged for a word of two tokens."""
  source, target = (prompt_to_prompt.prompt(text, lambda word: [ord(one) for one in word])
                    for text in ('a b c', 'a xy c'))
  return prompt_to_prompt.replace(source, target, LENGTH, cross=cross)


def of_split(told):
  """M_s A for `split`: each token of the new word reads half of the old word's map."""
  a, b, c, _, padding = np.moveaxis(np.asarray(told), -1, 0)
  return np.stack([a, b / 2, b / 2, c, padding], axis=-1)


@pytest.mark.long
def test_in_all_of_the_time_every_map_of_a_target_is_made_of_its_source_bit_for_bit():
  """tau = 1: one pair exchanges a word for another of one token, the other for one of two."""
  z, context, params = case()
  words = jax.tree.map(lambda one, other: jnp.stack([one[0], other]), exchanged(1.0), split(1.0))

  @jax.jit
  def maps(params, t):
    keep = lambda denoise: attention.captured(denoise, lambda maps: maps)(
        z, PROCESS(jnp.full(4, t)), context).extra['attention']
    denoise = denoise_of(NET, params)
    change = prompt_to_prompt.edit(words, own=1.0)
    return keep(denoise), keep(attention.edited(denoise, change, told=True))

  for t in TIMES[:-1]:  # those at which a sampler calls the network
    plain, edited = maps(params, t)
    assert {name.rpartition('/')[2] for name in edited} == {'told', 'own'}
    for name, found in edited.items():
      want = found[:2]
      if name.endswith('told'):
        want = np.stack([found[0], of_split(found[1])])
        assert np.abs(plain[name][2:] - want).max() > 1e-3  # another text has other maps
      np.testing.assert_array_equal(found[2:], want, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize('t, cross, own, positions, told_edited, own_edited', [
    (0.9, 1.0, 1.0, 6, True, True), (0.9, 1.0, 1.0, 5, True, False),
    (0.9, 1.0, 0.0, 6, True, False), (0.9, 0.0, 1.0, 6, False, True),
    (0.9, 0.0, 0.0, 6, False, False), (1.0, 0.0, 0.0, 6, False, False),
    (0.25, 0.8, 0.8, 6, True, True), (0.2, 0.8, 0.8, 6, False, False)])
def test_one_softmax_over_text_and_pixels_is_edited_in_both_of_its_parts(
    t, cross, own, positions, told_edited, own_edited):
  """Attention of ADM's U-Net that is told a text, with 2 x 3 positions."""
  layer = adm.AttentionBlock(attention_heads=2, qkv_order='new', groups=2)
  h = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
  text = jax.random.normal(jax.random.key(1), (2, LENGTH, 5))
  params = layer.init(jax.random.key(2), h, text)['params']
  params['out']['kernel'] = jax.random.normal(jax.random.key(3), (4, 4))
  change = prompt_to_prompt.edit(prompt_to_prompt.stack([split(cross)]), own, positions)
  seen = []

  def denoise(z, level, cond=None):
    y = layer.apply({'params': params}, z, text)
    return Estimate(y, y)

  def keep(maps, where, level, cond):
    seen.extend([maps, change(maps, where, level, cond)])
    return seen[-1]
  level = PROCESS(jnp.full(2, t))
  plain, y = (np.asarray(found(h, level).x) for found in (
      denoise, attention.edited(denoise, keep, told=True)))
  maps, new = map(np.asarray, seen)
  assert maps.shape == (2, 2, 6, LENGTH + 6)
  np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-6)
  told, pixels = maps[..., :LENGTH], maps[..., LENGTH:]
  want = np.concatenate([of_split(told[0]) if told_edited else told[1],
                         pixels[0] if own_edited else pixels[1]], axis=-1)
  np.testing.assert_array_equal(new, np.stack([maps[0], want]))

  np.testing.assert_array_equal(y[0], plain[0])
  if not (told_edited or own_edited):
    np.testing.assert_array_equal(y, plain)
  normed = nn.GroupNorm(2, epsilon=1e-5).apply({'params': params['norm']}, h).reshape(2, 6, 4)
  values = np.concatenate([
      (u @ params[name]['kernel'] + params[name]['bias'])[1, :, -4:].reshape(-1, 2, 2)
      for name, u in (('text', text), ('qkv', normed))])
  out = np.einsum('hqk,khc->qhc', np.float64(want), np.float64(values)).reshape(2, 3, 4)
  np.testing.assert_allclose(y[1] - h[1], out @ np.float64(params['out']['kernel'])
                             + params['out']['bias'], atol=1e-5)


@pytest.mark.long
def test_a_layer_multiplies_the_edited_maps_by_its_values():
  """out(c) - out(1) = W (c - 1) M[:, j] v_j, and a source's maps give W M_s V_t."""
  layer = HeadsAttention(heads=2)
  h = jax.random.normal(jax.random.key(0), (2, 7, 6))
  read = jax.random.normal(jax.random.key(1), (2, LENGTH, 4))
  params = layer.init(jax.random.key(2), h, read, True)['params']
  level = PROCESS(jnp.full(2, 0.9))

  def output(edit):
    seen = []

    def denoise(z, level, cond=None):
      y = layer.apply({'params': params}, h, read, True)
      return Estimate(y, y)

    def keep(maps, layer, level, cond):
      seen.append(maps)
      return edit(maps)
    return np.float64(attention.edited(denoise, keep, told=True)(h, level).x), seen[0]

  plain, maps = output(lambda maps: maps)
  v = (read @ params['value']['kernel']).reshape(2, LENGTH, 2, 3)
  out = lambda u: np.float64(u).reshape(2, 7, 6) @ np.float64(params['out']['kernel'])
  c, j = -1.5, 3
  scaled, _ = output(lambda maps: maps.at[..., j].multiply(c))
  want = (c - 1.0) * maps[..., j].transpose(0, 2, 1)[..., None] * v[:, None, j]
  np.testing.assert_allclose(scaled - plain, out(want), atol=1e-5)
  taken, _ = output(lambda maps: jnp.tile(maps[:1], (2, 1, 1, 1)))
  want = np.einsum('hqk,khc->qhc', np.float64(maps[0]), np.float64(v[1]))
  bias = np.float64(params['out']['bias'])
  np.testing.assert_allclose(taken[1], want.reshape(7, 6) @ np.float64(params['out']['kernel'])
                             + bias, atol=1e-5)
  np.testing.assert_array_equal(taken[0], plain[0])


@pytest.mark.long
def test_maps_are_captured_under_jit_and_remat_after_an_edit_and_are_softmaxes():
  z, context, params = case()

  @jax.jit
  def run(params, context):
    denoise = denoise_of(NET.clone(remat='block'), params)
    double = attention.edited(denoise, lambda maps, *_: 2.0 * maps)
    level = PROCESS(jnp.full(4, 0.5))
    return denoise(z, level, context), [
        attention.captured(d, lambda maps: maps)(z, level, context) for d in (denoise, double)]

  unseen, (plain, doubled) = run(params, context)
  np.testing.assert_allclose(plain.x, unseen.x, rtol=1e-5, atol=1e-5)
  maps = plain.extra['attention']
  shapes = {name.rpartition('/')[2]: u.shape for name, u in maps.items()}
  assert shapes == {'told': (4, 2, 16, LENGTH), 'own': (4, 2, 16, 16)}
  assert 'mid_attention/block_0/cross/told' in maps
  for name, u in maps.items():
    np.testing.assert_allclose(np.sum(u, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.sum(doubled.extra['attention'][name], axis=-1), 2.0, atol=1e-5)


@pytest.mark.long
def test_maps_are_captured_of_a_network_inside_another():
  z, _, _ = case()
  net = LabelledUNet(NET, classes=3, features=6)
  label, level = jnp.array([0, 1, 2, -1]), PROCESS(jnp.full(4, 0.5))

  def maps(z):
    params = net.init(jax.random.key(0), z, jnp.ones(4), label)['params']
    return attention.captured(denoise_of(net, params), lambda maps: maps)(z, level, label)
  found = jax.eval_shape(maps, z).extra['attention']
  assert found['net/mid_attention/block_0/cross/told'].shape == (4, 2, 16, 1)


@pytest.mark.long
def test_what_shows_no_maps_is_refused_in_one_clear_line():
  z, context, params = case()
  level = PROCESS(jnp.full(4, 0.5))
  call = lambda denoise, *cond: jax.eval_shape(denoise, z, level, *cond)
  fused = denoise_of(NET.clone(attention='cudnn'), params)
  bare = denoiser(lambda z, time, cond: z, targets.eps, inputs.logsnr)
  keep = lambda maps, *_: maps
  with pytest.raises(InputError, match='shows no attention: .*attention=.xla'):
    call(attention.edited(bare, keep))
  with pytest.raises(InputError, match='shows no attention'):
    call(attention.captured(bare, lambda maps: maps))
  with pytest.raises(InputError, match='shows no attention'):
    call(attention.edited(lambda *args: _without_a_gpu(fused, *args), keep), context)
  with pytest.raises(InputError, match='keep the shape'):
    call(attention.edited(denoise_of(NET, params), lambda maps, *_: maps[:1]), context)

  def untold(z, level):
    params = NET.init(jax.random.key(0), z, jnp.ones(4))['params']
    return attention.edited(denoise_of(NET, params), keep, told=True)(z, level)
  with pytest.raises(InputError, match='shows no attention to tokens'):
    call(untold)


def _without_a_gpu(denoise, *args):
  """A fused kernel cannot even be traced here; its output has the shape of its queries."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.nn, 'dot_product_attention', lambda query, *_, **__: query)
    return denoise(*args)


@pytest.mark.long
def test_maps_of_stacked_blocks_are_edited_but_not_captured():
  net = DiT(patch=2, features=8, depth=2, attention_heads=2)
  level, seen = PROCESS(jnp.full(2, 0.5)), []

  def call(wrap):
    def run(z):
      params = net.init(jax.random.key(1), z, jnp.ones(2))['params']
      return wrap(denoise_of(net, params))(z, level)
    return jax.eval_shape(run, jnp.zeros((2, 4, 4, 3)))
  call(lambda d: attention.edited(d, lambda maps, *_: seen.append(maps.shape) or maps))
  assert set(seen) == {(2, 2, 4, 4)}
  with pytest.raises(InputError, match='edited but not captured'):
    call(lambda d: attention.captured(d, lambda maps: maps))
