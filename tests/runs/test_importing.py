"""A published file becomes a run; what is no such file leaves no trace."""
import subprocess
import sys
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.nn.unets.ncsnpp import NCSNpp
from vdm_jax.nn.unets.vdm import UNet
from vdm_jax.published import dit, fitting, google_vdm, ncsnv2, readers, score_sde
from vdm_jax.runs import importing, workdir
from vdm_jax.runs.importing import SOURCES, import_weights

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'


def like(net, size=8, channels=3, cond=None):
  z = jnp.zeros((1, size, size, channels))
  return jax.eval_shape(net.init, jax.random.key(0), z, jnp.zeros(1), cond)['params']


def random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda u: rng.standard_normal(u.shape, np.float32), shapes)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A file as those of NCSN: [parameters, ...], of a network for MNIST."""
  net = ncsnv2.MODELS['ncsn-mnist']
  params = random(like(net, 28, 1))
  flat = {f'0.{name}': u for name, u in ncsnv2.to_flat(params, net).items()}
  path = tmp_path_factory.mktemp('published') / 'ncsn-mnist.safetensors'
  readers.write_safetensors(path, flat | {'0.sigmas': np.ones(10, np.float32)}, {})
  return path, params


@pytest.mark.long
def test_the_run_that_comes_of_a_file_has_its_weights(published, tmp_path):
  path, params = published
  out = tmp_path / 'run'
  command = [sys.executable, ROOT / 'scripts' / 'import_weights.py', '--source=ncsnv2',
             f'--in={path}', f'--out={out}']
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert 'ncsn-mnist, 7,638,657 parameters' in done.stdout  # counted from the public code
  trained = workdir.load_trained(out)
  same(trained.params, {'net': params})
  same(workdir.load_trained(out, average='raw').params, {'net': params})
  model = trained.experiment.model(trained.params)
  # Ten noise levels of images in [0, 1], from 0.01 to 1 (Song and Ermon 2019, section 5), which are
  # half as wide as ours.
  level = model.process(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(level.sigma / level.alpha, [0.02, 2.0], rtol=1e-5)
  # A second import does not overwrite what is there.
  again = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert again.returncode == 2 and '--out=' in again.stderr and 'is there already' in again.stderr


@pytest.mark.long
def test_averages_are_taken_where_a_file_has_them():
  net = NCSNpp(features=4, multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
  shapes = like(net)
  old, new = random(shapes), random(shapes, 1)
  new['fourier'] = old['fourier']  # not trained, so not averaged
  flat = {f'model.{name}': u for name, u in score_sde.to_flat(old).items()}
  flat['model.module.sigmas'] = np.ones(3, np.float32)
  # The averages are a list, in the order of the trained parameters.
  averages = [u for name, u in score_sde.to_flat(new).items() if name != 'module.all_modules.0.W']
  shadows = {f'ema.shadow_params.{i}': u for i, u in enumerate(averages)}
  same(SOURCES['score-sde'].params(flat | shadows, {'net': shapes}, ''), {'net': new})
  same(SOURCES['score-sde'].params(flat, {'net': shapes}, ''), {'net': old})

  net = DiT(features=8, depth=2, attention_heads=2, classes=3, heads=1)
  shapes = like(net, channels=4, cond=jnp.zeros(1, jnp.int32))
  old, new = random(shapes), random(shapes, 1)
  flat = ({f'model.{name}': u for name, u in dit.to_flat(old).items()}
          | {f'ema.{name}': u for name, u in dit.to_flat(new).items()})
  same(SOURCES['dit'].params(flat, {'net': shapes}, ''), {'net': new})
  same(SOURCES['dit'].params(dit.to_flat(old), {'net': shapes}, ''), {'net': old})


@pytest.mark.long
def test_a_flax_checkpoint_of_the_official_vdm_code_is_read(tmp_path):
  net = UNet(features=8, blocks=2, groups=2)
  shapes = {'net': like(net), 'schedule': {'w': jax.ShapeDtypeStruct((1,), np.float32),
                                           'b': jax.ShapeDtypeStruct((1,), np.float32)}}
  old, new = random(shapes), random(shapes, 1)

  def nested(params):
    tree = {}
    for name, u in google_vdm.to_flat(params).items():
      *path, leaf = name.split('/')
      at = tree
      for part in path:
        at = at.setdefault(part, {})
      at[leaf] = np.asarray(u)
    return tree

  path = tmp_path / 'ckpt.flax'
  path.write_bytes(flax.serialization.msgpack_serialize(
      {'step': 7, 'params': nested(old), 'ema_params': nested(new)}))
  same(SOURCES['google-vdm'].params(readers.read(path), shapes, ''), new)


@pytest.mark.long
@pytest.mark.parametrize('source,model', [
    ('google-vdm', 'cifar10'), ('ddpm', 'ddpm-cifar10-32'), ('dit', 'DiT-S/8'),
    ('improved-diffusion', 'cifar10_uncond_50M_500K'), ('edm', 'edm-cifar10-32x32-cond-ve'),
    ('score-sde', 'subvp/cifar10_ddpmpp_continuous'), ('ncsnv2', 'ncsnv2-cifar10')])
def test_each_model_has_a_config_whose_network_it_is(source, model, tmp_path):
  name, variant = SOURCES[source].config(model)
  module = workdir.import_config(CONFIGS / f'{name}.py')
  experiment = module.build(module.get_config(*variant))
  shapes = jax.eval_shape(experiment.init, jax.random.key(0))
  # Of an empty file every parameter is missing, and nothing left over.
  with pytest.raises(InputError) as error:
    SOURCES[source].params({} if source != 'edm' else {
        'enc.32x32_conv.weight': np.zeros((128, 3, 3, 3), np.float32)}, shapes, model)
  lines = str(error.value).splitlines()[1:]
  expected = len(jax.tree.leaves(shapes)) - (source == 'edm')
  assert len(lines) >= expected and all(line.startswith('  missing: ') for line in lines)


@pytest.mark.long
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(published, tmp_path):
  path, _ = published
  out = tmp_path / 'run'
  half = tmp_path / 'half.safetensors'
  half.write_bytes(path.read_bytes()[:-1000])
  nan = tmp_path / 'nan.npz'
  (tmp_path / 'other.pt').touch()
  np.savez(nan, **{name: np.full_like(u, np.nan) for name, u in readers.read(path).items()})
  for arguments, message in [
      (('ncsn', path), "source='ncsn': there is no such choice; choose one of google-vdm, "),
      (('ncsnv2', tmp_path / 'other.pt'), "model='other': this source has no such model; "),
      (('ncsnv2', tmp_path / 'gone.pt'), "gone.pt': there is no such file"),
      (('ncsnv2', half, 'ncsn-mnist'), 'half.safetensors'),
      (('ncsnv2', nan, 'ncsn-mnist'), 'is not finite'),
      (('ncsnv2', path, 'ncsn-cifar10'), f"in='{path}': it cannot be read as ncsn-cifar10: "),
      (('dit', path, 'DiT-S/8'), 'missing: ')]:
    source, file, *model = arguments
    with pytest.raises(InputError) as error:
      import_weights(source, file, out, CONFIGS, *model)
    assert message in str(error.value)
    assert not out.exists()


def test_named_parameters_that_do_not_fit_say_how():
  shapes = {'a': {'kernel': jax.ShapeDtypeStruct((2, 3), np.float32)}}
  with pytest.raises(InputError) as error:
    fitting.fit({'b.weight': np.zeros((3, 2)), 'a.weight': np.zeros((4, 2))}, shapes,
                fitting.torch_leaf, layout=fitting.from_torch)
  assert 'shape: a.weight is (4, 2), which does not fit a/kernel (2, 3)' in str(error.value)
  assert 'left over: b.weight (3, 2)' in str(error.value)


def test_pytorch_layouts_go_both_ways():
  rng = np.random.default_rng(0)
  for ours, shape in [('a/kernel', (3, 3, 2, 5)), ('a/kernel', (2, 5)), ('a/scale', (5,))]:
    u = rng.standard_normal(shape)
    np.testing.assert_array_equal(fitting.from_torch(ours, fitting.to_torch(ours, u)), u)
  # A linear map of PyTorch's is y = W x.
  w, x = rng.standard_normal((5, 2)), rng.standard_normal(2)
  np.testing.assert_allclose(x @ fitting.from_torch('a/kernel', w), w @ x, rtol=1e-12)
  np.testing.assert_allclose(x @ fitting.from_torch('a/kernel', w[:, :, None]), w @ x, rtol=1e-12)


def test_every_source_is_described():
  for source in SOURCES:
    assert f'\n  {source} ' in importing.__doc__
