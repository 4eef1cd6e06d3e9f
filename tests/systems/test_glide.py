"""GLIDE as a system: the public code's outputs come from a model with a text as its condition."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published, recordings
from tests.support.published import last, shapes_of
from vdm_jax import data
from vdm_jax.data import fields
from vdm_jax.guidance import Guidance
from vdm_jax.nn.text.trunk import Encoded
from vdm_jax.nn.unets import adm
from vdm_jax.nn.unets.glide import GLIDEUNet, images_of
from vdm_jax.published import glide
from vdm_jax.systems import texts
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import inpainting

WORDS = fields.Texts('words', tuple(f'word{i}' for i in range(39)))  # token 0 is padding
assert_close = functools.partial(published.assert_close, tolerance=1e-3)


def experiment(net, encoder, size):
  """A system of these networks, for images of size x size."""
  config = texts.add(chain.default_config(betas='cosine', variances=True, clip=False), encoder)
  shapes = {'low_res': (size // 4, size // 4, 3), 'known': (size, size, 3), 'mask': (size, size, 1)}
  spec = data.Spec('made', (
      fields.integers('image', (size, size, 3), 256),
      fields.Field('caption', (encoder.length,), 'int32', encoder.levels, WORDS),
      *(fields.integers(name, shapes[name], 2 if name == 'mask' else 256)
        for name in images_of(net))))
  with config.unlocked():
    config.data.update(spec.to_config())
  base = texts.experiment(config, lambda **told: chain.experiment(
      config, net=GLIDEUNet(net), beside=images_of(net), **told), pooled=True)
  return inpainting.experiment(base) if net.inpainting else base


@pytest.mark.long
def test_a_model_of_a_text_repeats_the_base_model_of_the_public_code():
  """Guidance leaves the third text as it is, which has no token.

  The time of a step is found by its log-SNR, so the tolerance is wider than the network's.
  """
  recorded = recordings.shared('glide_small')
  flat = published.state_dict(recorded, 'base')
  # Padding is the last token there, and the first of data whose tokens are words.
  flat['token_embedding.weight'] = np.roll(flat['token_embedding.weight'], 1, axis=0)
  tokens = (np.int32(recorded['base/in/tokens']) + 1) % 40
  net, encoder = glide.unet_of(flat, 16, 16), glide.text_of(flat, heads=4).clone(padding=0)
  z = last(recorded['base/in/z'])
  of = experiment(net, encoder, 16)
  like = jax.eval_shape(of.init, jax.random.key(0))
  params = {'net': glide.unet_from_flat(flat, like['net']),
            'encoder': glide.text_from_flat(flat, like['encoder'], heads=4)}

  @jax.jit
  def run(params, z):
    def outputs(model):
      estimate = model.denoise(z, model.process((recorded['base/in/t'] + 1.0) / 1000.0),
                               model.cond({'caption': tokens}))
      return jnp.concatenate([estimate.eps, estimate.extra['variance']], axis=-1)
    model = of.model(params)
    return outputs(model), outputs(Guidance(2.0).of(model))
  plain, guided = run(params, z)
  assert_close(plain, last(recorded['base/out']))
  assert_close(guided[2], last(recorded['base/cfg_scale_3'])[2])
  assert np.abs(guided - plain)[:2].max() > 0.1


SMALL = adm.UNet(features=8, multipliers=(1, 2), blocks=0, groups=2, attention_heads=2, heads=1,
                 text=True, inpainting=True, super_resolution=True)


@pytest.mark.long
def test_a_network_of_data_reads_levels_from_minus_one_to_one_and_the_mask_as_it_is():
  rng = np.random.default_rng(0)
  z, time = rng.normal(size=(1, 8, 8, 3)).astype(np.float32), np.array([5.0], np.float32)
  text = Encoded(rng.normal(size=(1, 4, 6)).astype(np.float32),
                 rng.normal(size=(1, 32)).astype(np.float32))
  known, mask = rng.integers(0, 256, (1, 8, 8, 3)), rng.integers(0, 2, (1, 8, 8, 1))
  low_res = np.array([0, 51, 102, 255], np.uint8)[rng.integers(0, 4, (1, 2, 2, 3))]
  as_float = np.array([-1.0, -0.6, -0.2, 1.0], np.float32)
  coded = as_float[np.searchsorted([0, 51, 102, 255], low_res)]
  images = {'known': known.astype(np.uint8), 'mask': mask.astype(np.uint8), 'low_res': low_res}
  plain = {'text': text, 'low_res': coded, 'known': np.float32(known / 127.5 - 1.0),
           'mask': np.float32(mask)}
  like = shapes_of(SMALL, z, time, plain)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), like)
  want, got = jax.jit(lambda params, plain, images: (
      SMALL.apply({'params': params}, z, time, plain),
      GLIDEUNet(SMALL).apply({'params': params}, z, time, {'caption': text, **images})))(
          params, plain, images)
  published.assert_close(got, want)
  assert np.abs(want).max() > 0.1


@pytest.mark.long
def test_the_estimates_of_a_model_for_inpainting_have_the_known_part_also_where_it_is_guided():
  encoder = glide.GLIDEText(features=8, depth=1, attention_heads=2, levels=40, length=4, padding=0,
                            outputs=32)
  of = experiment(SMALL, encoder, 8)
  batch = data.Spec('made', (
      fields.integers('image', (8, 8, 3), 256), fields.integers('known', (8, 8, 3), 256),
      fields.integers('mask', (8, 8, 1), 2), fields.integers('low_res', (2, 2, 3), 256))).random(2)
  batch['caption'] = np.array([[1, 2, 0, 0], [0] * 4], np.int32)

  @jax.jit
  def run(key):
    model = of.model(of.init(key))
    draw = lambda m: m.denoise(jnp.ones((2, 8, 8, 3)), m.process(jnp.array([0.5, 0.9])),
                               m.cond(batch)).x
    return draw(model), draw(Guidance(3.0).of(model)), model.cond(batch), model.null(
        model.cond(batch))
  plain, guided, told, untold = run(jax.random.key(0))
  inside = np.broadcast_to(batch['mask'] == 1, plain.shape)
  # The middles of 256 bins that fill [-1, 1].
  y = (batch['known'] + 0.5) / 128.0 - 1.0
  for x in (plain, guided):
    np.testing.assert_allclose(x[inside], y[inside], rtol=0, atol=1e-5)
    assert np.abs(x - y)[~inside].min() > 0.0
  # Untold is the text without tokens, of which the second text is one; the images stay.
  np.testing.assert_allclose(untold['caption'].pooled[0], told['caption'].pooled[1], rtol=1e-5,
                             atol=1e-6)
  for name in ('known', 'mask', 'low_res'):
    np.testing.assert_array_equal(untold[name], batch[name])
