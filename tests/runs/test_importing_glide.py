"""Files of GLIDE become runs that are told a text, a small image or a part of the image.

Those of its noise-aware CLIP become a run that guides them.
"""
import json
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published, recordings
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError
from vdm_jax.nn.text.clip import NoisyCLIP
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import Encoded
from vdm_jax.nn.unets import adm
from vdm_jax.published import glide, readers
from vdm_jax.runs import steering, workdir
from vdm_jax.runs.importing import import_weights

CONFIGS = Path(__file__).parents[2] / 'configs'
TEXT = GLIDEText(features=64, depth=1, attention_heads=1, outputs=256)
KINDS = {'base': {}, 'upsample_inpaint': {'super_resolution': True, 'inpainting': True}}


@pytest.fixture(scope='module')
def merges(tmp_path_factory):
  """A file of as many merges as GPT-2's, of pairs that mean nothing."""
  pairs = (f'{a}{b} {c}' for a in string.ascii_letters for b in string.ascii_letters
           for c in string.ascii_letters)
  path = tmp_path_factory.mktemp('merges') / 'vocab.bpe'
  path.write_text('#version: 0.2\n' + '\n'.join(next(pairs) for _ in range(50_000)) + '\n')
  return path


@pytest.fixture(scope='module')
def of_clip(merges):
  """As many of these pairs as CLIP's, each the end of a word."""
  path = merges.with_name('merges.txt')
  first, *pairs = merges.read_text().split('\n')[:48_895]
  path.write_text('\n'.join([first, *(f'{pair}</w>' for pair in pairs)]) + '\n')
  return path


def written(path, **settings):
  """The random parameters of a small GLIDE with these settings, written to `path`."""
  net = adm.UNet(features=64, multipliers=(1, 2), blocks=0, attention_resolutions=(32,),
                 head_features=64, resblock_updown=True, heads=1, text=True, **settings)
  z = jnp.zeros((1, 64, 64, 3))
  cond = {'text': Encoded(jnp.zeros((1, 128, 64)), jnp.zeros((1, 256)))}
  if net.super_resolution:
    cond['low_res'] = z[:, ::4, ::4]
  if net.inpainting:
    cond |= {'known': z, 'mask': z[..., :1]}
  shapes = lambda net, *args: jax.eval_shape(net.init, jax.random.key(0), *args)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda u: rng.standard_normal(u.shape, np.float32), {
      'net': shapes(net, z, jnp.zeros(1), cond),
      'encoder': shapes(TEXT, jnp.zeros((1, 128), jnp.int32))})
  readers.write_safetensors(path, {
      **glide.unet_to_flat(params['net']), **glide.text_to_flat(params['encoder'])}, {})
  return params


@pytest.mark.long
@pytest.mark.parametrize('name', KINDS)
def test_a_file_of_glide_becomes_a_run_with_its_weights_and_its_conditions(
    name, merges, tmp_path):
  params = written(tmp_path / f'{name}.safetensors', **KINDS[name])
  imported = import_weights('glide', tmp_path / f'{name}.safetensors', tmp_path / 'run', CONFIGS,
                            merges=merges)
  assert imported.model == name
  trained = workdir.load_trained(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, trained.params, params)
  model = trained.experiment.model(trained.params)
  batch = model.conditions(np.arange(2), caption='ab')
  size = 256 if name == 'upsample_inpaint' else 64
  images = {'low_res': (2, 64, 64, 3), 'known': (2, 256, 256, 3), 'mask': (2, 256, 256, 1)}
  assert {key: u.shape for key, u in batch.items()} == {
      'caption': (2, 128), **(images if KINDS[name] else {})}
  assert model.shape == (size, size, 3) and model.null is not None
  # Two letters whose pair is no merge, and padding.
  assert (batch['caption'][0, 2:] == 50_256).all() and (batch['caption'][0, :2] < 256).all()
  # The cosine ends in noise; the linear chain of 1,000 steps at alpha^2 = 4e-5.
  alpha = float(model.process(jnp.ones(1)).alpha[0]) * 255 / 256
  assert alpha**2 < 1e-7 if name == 'base' else abs(alpha**2 - 4.0e-5) < 1e-6


@pytest.mark.long
def test_a_file_of_another_model_is_refused_and_leaves_no_run(merges, tmp_path):
  written(tmp_path / 'base.safetensors')
  for changes, message in (
      ({'model': 'upsample'}, 'its network has text, and upsample has text and super_resolution'),
      ({'model': 'small'}, "model='small'"),
      ({'merges': ''}, 'merges'),
      ({'image_size': 32}, 'images of one size')):
    with pytest.raises(InputError, match=message):
      import_weights(**{'source': 'glide', 'file': tmp_path / 'base.safetensors',
                        'out': tmp_path / 'run', 'configs': CONFIGS, 'merges': merges, **changes})
  assert not (tmp_path / 'run').exists()


def towers(folder):
  """Files with the names of the public code, for images of 64x64 pixels; their arrays."""
  recorded, out = recordings.shared('glide_small'), {}
  sizes = {32: 64, 128: 256, 17: 257}  # twice the recorded width, 16 times its patches
  for kind in ('image', 'text'):
    shapes = json.loads(str(recorded[f'clip/{kind}_shapes']))
    flat = {name.removeprefix(f'{kind}/'): published.array(
        name, tuple(sizes.get(n, n) for n in shape)) for name, shape in shapes.items()}
    if kind == 'text':  # more tokens than the tokeniser has, as published
      flat['blocks.input.w_voc'] = published.array('w_voc', (49_500, 64))
    readers.write_safetensors(folder / f'clip_{kind}_enc.safetensors', flat, {})
    out[kind] = flat
  return out


@pytest.mark.long
def test_the_noise_aware_clip_becomes_a_run_that_guides_the_base_model(merges, of_clip, tmp_path):
  flat = towers(tmp_path)
  imported = import_weights('glide', tmp_path, tmp_path / 'clip', CONFIGS, model='clip',
                            merges=of_clip)
  assert imported.model == 'clip' and imported.config.endswith('published/noisy_clip.py')
  trained, encoder = steering.load_encoder(tmp_path / 'clip')
  assert encoder.shape == (64, 64, 3) and abs(encoder.scale - 100.0) < 1e-3
  tokens = tokenisers.of(encoder.caption).encode(['ab c', 'cab'])
  net = NoisyCLIP(glide.text_tower_of(flat['text']), glide.image_tower_of(flat['image']))
  like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 64, 64, 3)), jnp.zeros(2),
                        tokens)['params']
  params = {kind: glide.tower_from_flat(flat[kind], like[kind]) for kind in flat}
  z = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  steps = np.array([20.0, 700.0], np.float32)
  lengths = 1 + np.argmax(tokens == 49_407, axis=1)

  @jax.jit
  def cosines(params, own):
    m = trained.experiment.model(own)
    level = m.process(jnp.asarray((steps + 1.0) / 1000.0))
    return (jnp.sum(m.image(z, level) * m.text(tokens), axis=1),
            net.apply({'params': params}, z, steps, tokens, lengths))
  published.assert_close(*cosines(params, trained.params), tolerance=1e-4)

  written(tmp_path / 'base.safetensors')
  import_weights('glide', tmp_path / 'base.safetensors', tmp_path / 'base', CONFIGS, merges=merges)
  base = workdir.load_trained(tmp_path / 'base')
  steered = steering.steering(steering.Clip(tmp_path / 'clip', 3.0), base.experiment.model(
      base.params), base, np.linspace(1.0, 0.0, 101), ['ab c'])
  np.testing.assert_array_equal(steered.tokens, tokens[:1])


def test_a_folder_without_both_towers_is_refused(of_clip, tmp_path):
  for make, message in ((lambda: None, r"^in=.*it has 0 files clip_image_enc\.\*, the image tower"),
                        (lambda: towers(tmp_path), 'merges')):
    make()
    with pytest.raises(InputError, match=message):
      import_weights('glide', tmp_path, tmp_path / 'run', CONFIGS, model='clip')
  file = tmp_path / 'clip_text_enc.safetensors'
  for model, message in (('clip', '^in=.*it is one file, and the noise-aware CLIP has two'),
                         ('', "^model='clip_text_enc': ")):
    with pytest.raises(InputError, match=message):
      import_weights('glide', file, tmp_path / 'run', CONFIGS, model=model, merges=of_clip)
  assert not (tmp_path / 'run').exists()
