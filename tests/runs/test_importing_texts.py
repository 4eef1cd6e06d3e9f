"""Stable Diffusion's files become runs that are told a text.  All names are the public codes'."""
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from tests.support.published import array, assert_close, shapes_of
from vdm_jax import guidance, processes, random, runs
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import readers, stable_diffusion
from vdm_jax.runs import workdir
from vdm_jax.runs.importing import import_weights
from vdm_jax.samplers import catalogue, drawing, grids

CONFIGS = recordings.ROOT / 'configs'
WIDTH = 64
UNET = LatentUNet(features=32, multipliers=(1, 2), blocks=1, attention_levels=(0, 1))
KL = KLAutoencoder(3, 4, Trunk(32, (1, 2, 2), 1))
TEXT = TextTower(features=WIDTH, depth=2, attention_heads=1)


def text_shape(name):
  """The shape of an array of transformers' CLIPTextModel of this width."""
  inner = {'fc1': (4 * WIDTH, WIDTH), 'fc2': (WIDTH, 4 * WIDTH)}.get(name.split('.')[-2],
                                                                       (WIDTH, WIDTH))
  if 'embedding' in name:
    return (49_408 if 'token' in name else 77, WIDTH)
  return inner if name.endswith('weight') and 'norm' not in name else inner[:1]


@pytest.fixture(scope='module')
def parts():
  """Arrays by a rule, {part: {name: array}}, by the names of CompVis; and the other code's names.
  """
  recorded = recordings.shared('latent_diffusion_small')
  theirs = recordings.shared('clip_small')
  read = lambda name: json.loads(str(recorded[name]))
  flat = {}
  for part in ('unet', 'kl'):
    for name, shape in read(f'{part}/shapes').items():
      told = re.search(r'attn2\.to_[kv]\.weight$', name)  # reads the vectors of the text
      shape = (shape[0], WIDTH) if told else tuple(shape)
      flat[name] = array(name, shape)
  names = json.loads(str(theirs['transformers_names']))
  for name in (name for name in names if name.startswith('text_model.')):
    flat[f'cond_stage_model.transformer.{name}'] = array(name, text_shape(name))
  return flat, {**read('unet/diffusers_names'), **read('kl/diffusers_names')}


def write(path, flat):
  readers.write_safetensors(path, {name: np.asarray(u) for name, u in flat.items()}, {})
  return path


@pytest.fixture(scope='module')
def file(parts, tmp_path_factory):
  """With old weights, whose averages are the arrays, and with the tables that such a file has."""
  flat, _ = parts
  unet = {name: u for name, u in flat.items() if name.startswith('model.')}
  averages = {f'model_ema.{name.removeprefix("model.").replace(".", "")}': u
              for name, u in unet.items()}
  return write(tmp_path_factory.mktemp('sd') / 'sd.safetensors', {
      **flat, **{name: np.zeros_like(u) for name, u in unet.items()}, **averages,
      'model_ema.decay': np.float32(0.9999), 'betas': np.zeros(1000, np.float32),
      'cond_stage_model.transformer.text_model.embeddings.position_ids': np.arange(77)[None]})


@pytest.fixture(scope='module')
def folder(parts, tmp_path_factory):
  """The same by diffusers."""
  flat, names = parts
  place = tmp_path_factory.mktemp('diffusers')
  settings = {
      'unet': {'_class_name': 'UNet2DConditionModel', 'sample_size': 16, 'attention_head_dim': 8},
      'vae': {'_class_name': 'AutoencoderKL', 'scaling_factor': 0.25},
      'text_encoder': {'num_attention_heads': 1, 'hidden_act': 'quick_gelu'}}
  prefixes = {'unet': 'model.', 'vae': 'first_stage_model.', 'text_encoder': 'cond_stage_model.'}
  for part, prefix in prefixes.items():
    (place / part).mkdir()
    (place / part / 'config.json').write_text(json.dumps(settings[part]))
    own = {names.get(name) or name.removeprefix('cond_stage_model.transformer.'): u
           for name, u in flat.items() if name.startswith(prefix)}
    write(place / part / ('model.safetensors' if part == 'text_encoder' else
                          'diffusion_pytorch_model.safetensors'), own)
  (place / 'tokenizer').mkdir()
  (place / 'tokenizer' / 'merges.txt').write_text('#version: 0.2\na b</w>\n')
  (place / 'scheduler').mkdir()
  (place / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(
      {'beta_start': 0.00085, 'beta_end': 0.0155, 'beta_schedule': 'scaled_linear'}))
  return place


@pytest.fixture(scope='module')
def merges(tmp_path_factory):
  """48,894 merges by a rule: two letters to a pair, and a pair with a letter that ends a word."""
  letters = 'etaoinshrdlucmfwygpbvkxqjz'
  pairs = [(a, b + end) for end in ('', '</w>') for a in letters for b in letters]
  longer = [(a + b, c + end) for end in ('</w>', '') for a in letters for b in letters
            for c in letters]
  longest = [(a + b, c + d) for a in letters for b in letters for c in letters for d in 'etaoi']
  path = tmp_path_factory.mktemp('merges') / 'merges.txt'
  rows = [*pairs, *longer, *longest][:48_894]
  path.write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in rows))
  assert len(rows) == 48_894
  return path


def shapes():
  return {'net': shapes_of(UNET, jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 77, WIDTH))),
          'encoder': shapes_of(TEXT, jnp.zeros((1, 77), jnp.int32))}


@pytest.mark.long
def test_a_file_and_a_folder_tell_the_sizes_of_all_networks_and_hold_the_same_arrays(
    parts, file, folder):
  like = shapes()
  one, other = (stable_diffusion.read(path, 'stable-diffusion-v1') for path in (file, folder))
  for read in (one, other):
    assert (read.unet, read.encoder, read.autoencoder.net) == (UNET, TEXT, KL)
  assert (one.scale, one.betas, one.side) == (None, None, None)
  assert (other.scale, other.betas, other.side) == (0.25, (0.00085, 0.0155), 64)
  assert (one.merges, other.merges) == (None, folder / 'tokenizer' / 'merges.txt')
  params, again = one.params(like), other.params(like)
  jax.tree.map(np.testing.assert_array_equal, (params, one.autoencoder.params),
               (again, other.autoencoder.params))
  flat, _ = parts
  place = 'middle_block.1.transformer_blocks.0.attn2.to_k.weight'
  np.testing.assert_array_equal(  # the average, not the old weights
      params['net']['mid_attention']['block_0']['cross']['key']['kernel'],
      flat[f'model.diffusion_model.{place}'].T)
  np.testing.assert_array_equal(params['encoder']['tokens']['embedding'], flat[
      'cond_stage_model.transformer.text_model.embeddings.token_embedding.weight'])


@pytest.mark.first(3)
@pytest.mark.parametrize('change, message', [
    (lambda name: name.startswith('cond_stage_model.'), 'it has no text encoder: no cond_stage_m'),
    (lambda name: name.startswith('first_stage_model.'), 'it holds no autoencoder'),
    (lambda name: name.startswith('model.'), 'it has no U-Net: no model.diffusion_model'),
    (lambda name: 'input_blocks.0.' in name, 'its U-Net has no input_blocks.0.0.weight'),
    pytest.param('model.diffusion_model.label_emb.0.0.weight', 'left over: label_emb.0.0.weight',
                 marks=pytest.mark.long),
    ('cond_stage_model.transformer.text_model.encoder.final.bias',
     'it holds text_model.encoder.final.bias, which are no part of a text tower of CLIP'),
    ('cond_stage_model.logit_scale', 'it has logit_scale under cond_stage_model, which is no netw'),
    ('discriminator.weight', 'it holds discriminator.weight, which belong to no network here')])
def test_a_file_that_lacks_a_part_or_has_another_leaves_nothing(parts, merges, change, message,
                                                                 tmp_path):
  flat = parts[0]
  flat = ({**flat, change: np.zeros(3, np.float32)} if isinstance(change, str) else
          {name: u for name, u in flat.items() if not change(name)})
  path = write(tmp_path / 'a.safetensors', flat)
  with pytest.raises(InputError, match=r'(?s)^in=.*' + re.escape(message)):
    import_weights('stable-diffusion', path, tmp_path / 'run', CONFIGS, merges=merges,
                   image_size=64)
  assert [path.name for path in tmp_path.iterdir()] == ['a.safetensors']


@pytest.mark.long
def test_what_a_text_model_needs_is_asked_for(file, merges, tmp_path, folder):
  for options, message in (
      ({}, '^merges: the tokeniser clip needs a file; name bpe_simple_vocab'),
      ({'merges': tmp_path / 'gone'}, '^merges=.*gone.*: there is no such file'),
      ({'merges': merges, 'model': 'txt2img-f8-large'},
       '^in=.*its text encoder is a TextTower, and txt2img-f8-large has a LatentBERT'),
      ({'merges': merges, 'model': 'sd'}, '^model=.sd.: ')):
    with pytest.raises(InputError, match=message):
      import_weights('stable-diffusion', file, tmp_path / 'run', CONFIGS, **options)
  with pytest.raises(InputError, match="^merges=.*tokenizer.*: it has 1 merges, and CLIP's"):
    import_weights('stable-diffusion', folder, tmp_path / 'run', CONFIGS)
  settings = folder / 'scheduler' / 'scheduler_config.json'
  kept = settings.read_text()
  settings.write_text(kept[:-1] + ', "prediction_type": "v_prediction"}')
  with pytest.raises(InputError, match='prediction_type=v_prediction, and the model here needs'):
    stable_diffusion.read(folder, 'stable-diffusion-v1')
  settings.write_text(kept)
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def run(file, merges, tmp_path_factory):
  place = tmp_path_factory.mktemp('runs') / 'sd'
  imported = import_weights('stable-diffusion', file, place, CONFIGS, merges=merges, image_size=64)
  assert imported.config.endswith('configs/published/latent.py:stable-diffusion-v1')
  return place


def published_ddim(trained, prompt, n, w, seed, number):
  """z_0 by the sampler of CompVis/stable-diffusion, eta 0, float64 but for the networks.

  x_prev = sqrt(a_prev) (x - sqrt(1 - a) e) / sqrt(a) + sqrt(1 - a_prev) e, with
  e = e_untold + (1 + w) (e_told - e_untold), at the steps range(0, 1000, 1000 // n) + 1.
  """
  a = recordings.shared('latent_diffusion_small')['schedule/sd_v1_and_txt2img/alphas_cumprod']
  steps = np.arange(0, 1000, 1000 // n) + 1
  tokens = tokenisers.of(trained.experiment.data.spec['caption']).encode(['', prompt])

  @jax.jit
  def both(z, step):
    params = trained.params
    context = TEXT.apply({'params': params['encoder']}, tokens).sequence
    pair = jnp.concatenate([z, z])
    return UNET.apply({'params': params['net']}, pair, jnp.full(2, step), context)
  model = trained.experiment.model(trained.params)
  keys = random.per_example(random.key(seed), jnp.array([number]))
  z = np.float64(processes.sample_prior(model.process, keys, jnp.zeros((1, 16, 16, 4)),
                                        (steps[-1] + 1) / 1000))
  for step, before in zip(steps[::-1], [*steps[:-1][::-1], 0], strict=True):
    untold, told = np.split(np.float64(both(jnp.float32(z), jnp.float32(step))), 2)
    e = untold + (1 + w) * (told - untold)
    x = (z - np.sqrt(1 - a[step]) * e) / np.sqrt(a[step])
    z = np.sqrt(a[before]) * x + np.sqrt(1 - a[before]) * e
  return z / np.sqrt(a[0])


@pytest.mark.long
def test_an_import_draws_what_the_public_sampler_draws_and_other_samplers_draw_too(
    run, tmp_path):
  trained = workdir.load_trained(run)
  model = trained.experiment.model(trained.params)
  assert trained.config.data.merges == str(run / 'merges.txt')
  assert trained.params['scale'] == np.float32(0.18215)
  prompts, w = ['a red cat', 'blue'], guidance.Guidance(2.0)
  method = lambda name: catalogue.method(name, 2, 'stable_diffusion')
  pairs, = drawing.draw_pairs(
      lambda params: w.of(trained.experiment.model(params)), trained.params, method('ddim').make,
      times=method('ddim').times(model.process), start=0, stop=2, seed=3, batch_size=2,
      cond=functools.partial(model.conditions, caption=prompts))
  want = np.concatenate([published_ddim(trained, prompt, 2, w.weight, 3, i)
                         for i, prompt in enumerate(prompts)])
  assert_close(pairs.x, want, 1e-4)
  decoded = np.asarray(jax.jit(model.decode)(jnp.float32(want)))
  tokeniser = tokenisers.of(trained.experiment.data.spec['caption'])
  for name in ('ddim', 'plms', 'dpmpp_2m'):
    out = tmp_path / f'{name}.npz'
    runs.sample(run, out, method=method(name), count=2, batch_size=2, prompts=prompts, seed=3,
                guided=w)
    with np.load(out) as drawn:
      assert tokeniser.decode(drawn['caption']) == prompts
      assert drawn['images'].shape == decoded.shape == (2, 64, 64, 3)
      if name == 'ddim':
        assert (np.abs(drawn['images'].astype(int) - decoded) <= 1).mean() > 0.99


@pytest.mark.long
def test_prompts_that_cannot_be_said_are_refused_before_anything_is_drawn(run, tmp_path):
  long = 'word ' * 80
  with pytest.raises(InputError, match="^prompt='word .*: it has .* tokens, and 77 are read"):
    runs.sample(run, tmp_path / 'a.npz', count=1, prompts=[long],
                method=catalogue.method('ddim', 2))
  assert not list(tmp_path.iterdir())


def test_the_grid_is_the_published_one():
  recorded = recordings.shared('latent_diffusion_small')
  for n in (50, 200):
    times = grids.stable_diffusion(n)
    np.testing.assert_allclose(times[:-1], (recorded[f'schedule/ddim_timesteps_{n}'][::-1] + 1)
                               / 1000, rtol=1e-12)
    assert times[-1] == 1 / 1000  # where `alphas_prev` begins there: alphas_cumprod[0]


@pytest.mark.long
@pytest.mark.parametrize('name, net, stage, encoder', [
    ('stable-diffusion-v1', 859_520_964, 83_653_863, 123_060_480),
    ('txt2img-f8-large', 872_300_484, 83_653_863, None),
    ('text2img256', 403_623_939, 55_322_782, None)])
def test_published_models_have_their_published_sizes(name, net, stage, encoder):
  """The "BERT" of the first text model has 581,994,042 parameters with a map that nothing reads."""
  module = workdir.import_config(CONFIGS / 'published' / 'latent.py')
  config = module.get_config(name)
  params = jax.eval_shape(module.build(config).init, random.key(0))
  count = lambda tree: sum(math.prod(u.shape) for u in jax.tree.leaves(tree))
  assert (count(params['net']), count(params['autoencoder']['net'])) == (net, stage)
  if encoder:
    assert count(params['encoder']) == encoder
