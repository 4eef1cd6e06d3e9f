"""Files of GLIDE become runs that are told a text, a small image or a part of the image."""
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.text.trunk import Encoded
from vdm_jax.nn.unets import adm
from vdm_jax.published import glide, readers
from vdm_jax.runs import workdir
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
