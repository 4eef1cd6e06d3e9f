"""The FID's Inception v3 against features that the public code computed."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax.errors import InputError
from vdm_jax.nn.inception import Inception
from vdm_jax.published import inception

DATA = Path(__file__).parents[1] / 'data'


def flat_parameters(shapes):
  """As `published` makes them; running variances are positive."""
  flat = {name: published.array(name, tuple(shape)) for name, shape in shapes.items()
          if not name.startswith('fc.')}
  return {name: np.abs(u) + np.float32(0.5) if name.endswith('running_var') else u
          for name, u in flat.items()}


@pytest.fixture(scope='module')
def recorded():
  with np.load(DATA / 'inception_fid.npz') as file:
    r = {name: file[name] for name in file.files}
  return r, flat_parameters(json.loads(str(r['shapes'])))


@pytest.mark.long
def test_the_public_features_repeat_for_small_and_for_large_images(recorded, differs):
  """Of noise, fine and coarse; both sizes are resized to 299 x 299."""
  r, flat = recorded
  params = inception.from_flat(flat)
  features = jax.jit(lambda images: Inception().apply({'params': params}, images))
  rng = np.random.default_rng(0)
  fine, coarse = rng.integers(0, 256, (40, 40, 3)), rng.integers(0, 256, (5, 5, 3))
  small = np.stack([fine, coarse.repeat(8, 0).repeat(8, 1)])
  large = np.random.default_rng(1).integers(0, 256, (1, 350, 310, 3))
  for images, want in ((small, r['features']), (large, r['features_large'])):
    got = features(images.astype(np.uint8))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    differs('parity', 'nn/inception.py', got, want)


@pytest.mark.long
def test_what_is_not_the_network_of_the_fid_is_refused(recorded):
  _, flat = recorded
  with pytest.raises(InputError, match=r"Mixed_5b.branch1x1: has \['bn.bias', 'bn.running_mean'"):
    inception.from_flat({k: u for k, u in flat.items() if k != 'Mixed_5b.branch1x1.conv.weight'})
  gone = {k: u for k, u in flat.items() if not k.startswith('Mixed_7a.branch3x3_2.')}
  with pytest.raises(InputError, match='missing: Mixed_7a.branch3x3_2.bias'):
    inception.from_flat(gone)


@pytest.mark.long
def test_it_has_as_many_parameters_as_the_public_network():
  """21,785,568, counted by instantiating the public code.

  There a layer has two vectors, gain and bias; here it has one.
  """
  params = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  vectors = sum(u.size for u in jax.tree.leaves(params) if u.ndim == 1)
  assert sum(u.size for u in jax.tree.leaves(params)) + vectors == 21_785_568
