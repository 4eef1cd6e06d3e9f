"""Networks that read texts: parity with recordings of the public code, sizes, settings."""
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.support import published, recordings
from tests.support.published import last, shapes_of
from vdm_jax.errors import InputError
from vdm_jax.nn.text import clip as networks
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.text.clip import CLIP, ImageTower, NoisyCLIP, TextTower
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import STACK
from vdm_jax.published import clip, compvis, glide

assert_close = functools.partial(published.assert_close, tolerance=1e-4)
count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def weights(recorded, shapes):
  """The weights whose names and shapes a recording lists as JSON."""
  return {name: published.array(name, tuple(shape))
          for name, shape in json.loads(str(recorded[shapes])).items()}


@pytest.fixture(scope='module')
def of_clip():
  """The recording, its weights, and the network that their shapes tell."""
  recorded = recordings.shared('clip_small')
  flat = weights(recorded, 'shapes')
  net = clip.network_of(flat, text_heads=4)
  return recorded, flat, CLIP(net.text.clone(remat='none'), net.image.clone(remat='none'))


def before_the_last_norm(call, args, kwargs, context):
  return args[0] if context.module.name == 'norm_out' else call(*args, **kwargs)


@pytest.mark.long
def test_both_towers_of_clip_repeat_the_public_code(of_clip, differs):
  recorded, flat, net = of_clip
  images, tokens = last(recorded['in/image']), recorded['in/tokens'].astype(np.int32)
  params = clip.from_flat(flat, shapes_of(net, images, tokens))

  def run(images):
    sequence, text = net.text.apply({'params': params['text']}, tokens)
    first = {**params['text'], STACK: jax.tree.map(lambda u: u[:-1], params['text'][STACK])}
    with nn.intercept_methods(before_the_last_norm):
      hidden = net.text.clone(depth=net.text.depth - 1).apply({'params': first}, tokens).sequence
    features = net.image.apply({'params': params['image']}, images)
    logits = net.apply({'params': params}, images, tokens)
    cosines = optax.cosine_similarity(features, recorded['text/features'])
    return jnp.sum(cosines), (hidden, sequence, text, features, logits)
  gradient, (hidden, sequence, text, features, logits) = jax.jit(
      jax.grad(run, has_aux=True))(images)
  assert_close(hidden, recorded['hidden_states/-2'])  # of the last block but one
  assert_close(sequence, recorded['text/sequence'])
  assert_close(text, recorded['text/features'])
  assert_close(features, recorded['image/features'])
  assert_close(logits, recorded['logits_per_image'])
  differs('parity', 'nn/text/clip.py', logits, recorded['logits_per_image'])
  assert_close(gradient, last(recorded['grad_cosine']))


def test_the_text_of_clip_is_found_by_the_names_of_both_public_codes(of_clip):
  """The recording has the name in transformers of each parameter of the text tower."""
  recorded, flat, net = of_clip
  like = shapes_of(net.text, recorded['in/tokens'].astype(np.int32))
  params = clip.text_from_flat(flat, like)
  theirs = {}
  for name, old in json.loads(str(recorded['transformers_names'])).items():
    if old.endswith(']'):
      theirs[name] = np.split(flat[old[:-3]], 3)[int(old[-2])]
    elif old.endswith(' (transposed)'):
      theirs[name] = flat[old.removesuffix(' (transposed)')].T
    else:
      theirs[name] = flat[old]
  theirs['text_model.embeddings.position_ids'] = np.arange(9)[None]
  again = clip.of_transformers(theirs)
  assert clip.text_of(again, 4).clone(remat='none') == net.text
  jax.tree.map(np.testing.assert_array_equal, clip.text_from_flat(again, like), params)
  del theirs['text_model.encoder.layers.1.self_attn.k_proj.bias']
  with pytest.raises(InputError, match=r'resblocks\.1\.attn\. has no k for its bias'):
    clip.of_transformers(theirs)


@pytest.mark.parametrize('of, flat', [
    (clip.text_of, {'token_embedding.weight': (9, 100), 'positional_embedding': (5, 100)}),
    (glide.text_of, {'token_embedding.weight': (9, 100), 'positional_embedding': (5, 100),
                     'transformer_proj.weight': (7, 100)}),
    (glide.text_tower_of, {'blocks.input.w_voc': (9, 100), 'blocks.input.w_pos': (5, 100),
                           'blocks.output.f.w': (7, 100)})])
def test_features_that_64_does_not_divide_need_the_number_of_heads(of, flat):
  flat = {name: np.zeros(shape) for name, shape in flat.items()}
  with pytest.raises(InputError, match='features=100: it is no multiple of 64, so no shape tells '
                     'the number of heads; give the number of heads'):
    of(flat)
  assert of(flat, 4).attention_heads == 4


@pytest.mark.long
def test_names_of_clip_go_back(of_clip):
  recorded, flat, net = of_clip
  like = shapes_of(net, last(recorded['in/image']), recorded['in/tokens'].astype(np.int32))
  back = clip.to_flat(clip.from_flat(flat, like))
  assert back.keys() == flat.keys()
  for name, array in flat.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)
  with pytest.raises(InputError, match='left over: extra'):
    clip.from_flat({**flat, 'extra': np.zeros(1)}, like)
  with pytest.raises(InputError, match='no CLIP with a vision transformer'):
    clip.network_of({name: u for name, u in flat.items() if 'class' not in name})


# Counted in the public code.
@pytest.mark.parametrize('name, number', [('ViT-B/32', 151_277_313), ('ViT-B/16', 149_620_737)])
def test_published_clips_have_their_published_sizes(name, number):
  net, side = clip.MODELS[name], clip.SIDES[name]
  images, tokens = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 77), jnp.int32)
  assert count(shapes_of(net, images, tokens)) == number


def test_the_text_encoder_of_stable_diffusion_is_that_of_vit_l_without_its_last_map():
  tokens = jnp.zeros((1, 77), jnp.int32)
  like = shapes_of(TextTower(), tokens)
  assert count(like) == 123_060_480
  assert clip.MODELS['ViT-L/14'].text.clone(outputs=0) == TextTower()


@pytest.fixture(scope='module')
def of_noisy_clip():
  """The recording, the weights of both files, and the network that their shapes tell."""
  recorded = recordings.shared('glide_small')
  text, image = ({name.removeprefix(f'{kind}/'): array for name, array in
                  weights(recorded, f'clip/{kind}_shapes').items()} for kind in ('text', 'image'))
  net = NoisyCLIP(glide.text_tower_of(text, 2).clone(remat='none'),
                  glide.image_tower_of(image, 2).clone(remat='none'))
  return recorded, text, image, net


@pytest.mark.long
def test_the_noise_aware_clip_repeats_the_public_code(of_noisy_clip, differs):
  recorded, text, image, net = of_noisy_clip
  z, time = last(recorded['clip/in/z']), np.float32(recorded['clip/in/t'])
  tokens, lengths = (np.int32(recorded[f'clip/in/{name}']) for name in ('tokens', 'lengths'))
  like = shapes_of(net, z, time, tokens, lengths)
  params = {'text': glide.tower_from_flat(text, like['text']),
            'image': glide.tower_from_flat(image, like['image'])}

  def run(z):
    _, text = net.text.apply({'params': params['text']}, tokens, lengths)
    image = net.image.apply({'params': params['image']}, networks.standardised(z), time)
    cosines = net.apply({'params': params}, z, time, tokens, lengths)
    return 100.0 * jnp.sum(cosines), (text, image, cosines)
  gradient, (text_features, image_features, cosines) = jax.jit(jax.grad(run, has_aux=True))(z)
  assert_close(text_features, recorded['clip/text'])
  assert_close(image_features, recorded['clip/image'])
  assert_close(cosines, recorded['clip/cosine'])
  assert_close(gradient, last(recorded['clip/grad_100_cosine']))
  differs('parity', 'nn/text/clip.py', text_features, recorded['clip/text'])
  with pytest.raises(InputError, match=r'no blocks\.input\.w_t, so it is no image tower'):
    glide.image_tower_of(text)


def test_names_of_the_noise_aware_clip_go_back(of_noisy_clip):
  recorded, text, image, net = of_noisy_clip
  z, time = last(recorded['clip/in/z']), np.float32(recorded['clip/in/t'])
  like = shapes_of(net, z, time, np.int32(recorded['clip/in/tokens']))
  for kind, flat in (('text', text), ('image', image)):
    back = glide.tower_to_flat(glide.tower_from_flat(flat, like[kind]))
    assert back.keys() == flat.keys()
    for name, array in flat.items():
      np.testing.assert_array_equal(back[name], array, err_msg=name)
  few = glide.with_tokens(text, 30)
  np.testing.assert_array_equal(few['blocks.input.w_voc'], text['blocks.input.w_voc'][:30])
  with pytest.raises(InputError, match='its text tower has 40 tokens, and the tokeniser 41'):
    glide.with_tokens(text, 41)


@pytest.mark.long
def test_a_stage_of_the_image_tower_has_its_patches_in_their_places():
  """Blocks whose last maps are 0 change nothing: each stage is norm(patch W + position)."""
  net = ImageTower(features=4, depth=2, attention_heads=2, patch=2, outputs=3, steps=5,
                   remat='none')
  rng = np.random.default_rng(0)
  images, time = rng.normal(size=(2, 4, 6, 3)).astype(np.float32), np.array([1.0, 3.0], np.float32)
  params = jax.tree.map(lambda u: rng.normal(size=u.shape).astype(np.float32),
                        shapes_of(net, images, time))
  params['norm_in'] = {'scale': np.ones(4, np.float32), 'bias': np.zeros(4, np.float32)}
  for part in (params['blocks']['attention']['out'], params['blocks']['mlp']['dense1']):
    part.update(jax.tree.map(np.zeros_like, dict(part)))
  found = net.apply({'params': params}, images, time, stages=True)
  assert [u.shape for u in found] == 2 * [(2, 2, 3, 4)]
  for row, column in np.ndindex(2, 3):
    patch = images[:, 2 * row:2 * row + 2, 2 * column:2 * column + 2].reshape(2, 12)
    h = patch @ params['patches']['kernel'].reshape(12, 4) + params['positions'][
        1 + 3 * row + column]
    want = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    for stage in found:
      np.testing.assert_allclose(stage[:, row, column], want, rtol=1e-4, atol=1e-5)
  # The first vector, of the step, has no place.
  other = net.apply({'params': params}, images, time[::-1], stages=True)
  np.testing.assert_allclose(other[1], found[1], rtol=1e-4, atol=1e-5)


def test_the_published_noise_aware_clip_has_its_published_sizes():
  z, tokens = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 77), jnp.int32)
  like = shapes_of(NoisyCLIP(), z, jnp.zeros(1), tokens)
  assert count(like['text']) == 71_679_488
  assert count(like['image']) == 86_443_776


@pytest.mark.long
@pytest.mark.parametrize('name', ['base', 'super_res', 'inpaint'])
def test_glide_s_text_transformer_repeats_the_public_code(name, differs):
  """The third text of `base` has no token, so the network reads its vectors for padding alone."""
  recorded = recordings.shared('glide_small')
  flat = weights(recorded, f'{name}/shapes')
  net = glide.text_of(flat, heads=4)
  tokens, mask = np.int32(recorded[f'{name}/in/tokens']), recorded[f'{name}/in/mask']
  params = glide.text_from_flat(flat, shapes_of(net, tokens), heads=4)
  sequence, pooled = jax.jit(net.apply)({'params': params}, tokens, mask)
  assert_close(sequence, recorded[f'{name}/text/sequence'].swapaxes(1, 2))
  assert_close(pooled, recorded[f'{name}/text/pooled'])
  differs('parity', 'nn/text/glide.py', pooled, recorded[f'{name}/text/pooled'])
  back = glide.text_to_flat(params, heads=4)
  assert 'transformer.resblocks.1.attn.c_qkv.weight' in back
  for key, array in back.items():
    np.testing.assert_array_equal(array, flat[key], err_msg=key)


def test_the_published_text_transformer_of_glide_has_its_published_size():
  assert count(shapes_of(GLIDEText(), jnp.zeros((1, 128), jnp.int32))) == 76_695_808


def condition(flat):
  return {name.removeprefix('cond_stage_model.'): array for name, array in flat.items()}


def test_the_bert_of_latent_diffusion_repeats_the_public_code(differs):
  recorded = recordings.shared('latent_diffusion_small')
  flat = condition(weights(recorded, 'bert/shapes'))
  net, tokens = compvis.text_encoder_of(flat), np.int32(recorded['bert/in/tokens'])
  assert (net.features, net.depth, net.attention_heads, net.levels) == (32, 2, 8, 50)
  params = compvis.text_encoder_from_flat(flat, shapes_of(net, tokens))
  sequence, pooled = jax.jit(net.apply)({'params': params}, tokens)
  assert_close(sequence, recorded['bert/out'])
  differs('parity', 'nn/text/bert.py', sequence, recorded['bert/out'])
  assert pooled is None


def test_the_bert_of_txt2img_has_its_published_size():
  """The count in the public code, less its map from 1,280 features to the levels of tokens."""
  like = shapes_of(LatentBERT(), jnp.zeros((1, 77), jnp.int32))
  assert count(like) == 581_994_042 - (1280 + 1) * 30_522


def test_a_file_of_stable_diffusion_has_the_text_tower_of_clip_as_its_condition(of_clip):
  recorded, flat, net = of_clip
  theirs = {f'transformer.{name}': flat[old] for name, old in
            json.loads(str(recorded['transformers_names'])).items() if old in flat}
  for i in range(2):
    for part, kind in itertools.product(range(3), ('weight', 'bias')):
      name = f'transformer.text_model.encoder.layers.{i}.self_attn.{"qkv"[part]}_proj.{kind}'
      theirs[name] = np.split(flat[f'transformer.resblocks.{i}.attn.in_proj_{kind}'], 3)[part]
  tower, tokens = net.text.clone(outputs=0), np.int32(recorded['in/tokens'])
  like = shapes_of(tower, tokens)
  params = compvis.text_encoder_from_flat(theirs, like)
  assert_close(jax.jit(tower.apply)({'params': params}, tokens).sequence,
               recorded['text/sequence'])
  with pytest.raises(InputError, match='it has embedding.weight under cond_stage_model, which is'):
    compvis.text_encoder_of({'embedding.weight': np.zeros((3, 2))})


SMALL = TextTower(features=16, depth=2, attention_heads=2, levels=10, length=5, outputs=3)


@pytest.mark.long
def test_a_token_does_not_depend_on_later_tokens_and_the_end_is_the_first_largest():
  rng = np.random.default_rng(0)
  tokens = np.array([[1, 2, 9, 0, 0], [1, 2, 9, 9, 4]], np.int32)
  params = jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32),
                        shapes_of(SMALL, tokens))
  run = jax.jit(SMALL.apply)
  sequence, pooled = run({'params': params}, tokens)
  np.testing.assert_allclose(sequence[0, :3], sequence[1, :3], rtol=0, atol=1e-5)
  assert np.abs(sequence[0, 3:] - sequence[1, 3:]).max() > 1e-2
  out = params['out']['kernel']
  np.testing.assert_allclose(pooled, sequence[:, 2] @ out, rtol=0, atol=1e-5)
  _, told = run({'params': params}, tokens, np.array([1, 4]))
  np.testing.assert_allclose(told, np.stack([sequence[0, 0], sequence[1, 3]]) @ out, rtol=0,
                             atol=1e-5)


@pytest.mark.long
def test_a_text_without_tokens_is_the_same_text_whatever_pads_it():
  net = GLIDEText(features=16, depth=1, attention_heads=2, levels=5, length=3, padding=0,
                  outputs=4)
  rng = np.random.default_rng(0)
  tokens = np.array([[0, 0, 0], [4, 0, 0], [4, 1, 0]], np.int32)
  params = jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32),
                        shapes_of(net, tokens))
  run = jax.jit(net.apply)
  _, pooled = run({'params': params}, tokens)
  _, masked = run({'params': params}, np.full((3, 3), 2, np.int32), tokens > 9)
  np.testing.assert_allclose(masked, np.repeat(pooled[:1], 3, axis=0), rtol=0, atol=1e-6)
  assert all(np.abs(pooled[i] - pooled[j]).max() > 1e-2 for i in range(3) for j in range(i))


def test_images_are_standardised_by_the_published_numbers():
  """Those of openai/CLIP, and those of GLIDE, on a scale to 255."""
  x = jnp.array([[[[-1.0, 0.0, 1.0]]]])
  want = [-122.77093945 / 68.50053285, (127.5 - 116.74601272) / 66.63215831,
          (255.0 - 104.09373519) / 70.32316309]
  np.testing.assert_allclose(networks.standardised(x)[0, 0, 0], want, rtol=1e-5)


@pytest.mark.parametrize('net, args, message', [
    (SMALL, (np.zeros((2, 4), np.int32),), r'they are int32 \(2, 4\), and this network reads 5'),
    (SMALL, (np.zeros((2, 5), np.float32),), r'they are float32'),
    (SMALL.clone(attention_heads=3), (np.zeros((2, 5), np.int32),), 'attention_heads=3: it does'),
    (ImageTower(patch=3), (np.zeros((1, 8, 8, 3)),), 'patch=3: images of 8 x 8'),
    (ImageTower(patch=4), (np.zeros((1, 8, 8, 3)), np.zeros(1)), 'time: this network has 0 steps'),
    (CLIP(SMALL, ImageTower(patch=4, steps=9)), (np.zeros((1, 8, 8, 3)),
                                                 np.zeros((1, 5), np.int32)), 'has 9 steps'),
])
def test_what_does_not_fit_a_network_is_refused(net, args, message):
  with pytest.raises(InputError, match=message):
    shapes_of(net, *args)
