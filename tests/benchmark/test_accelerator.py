"""What only an accelerator can show.  Elsewhere these tests are skipped."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import random
from vdm_jax.benchmark.device import model
from vdm_jax.typing import Context


@pytest.mark.gpu
def test_the_loss_and_its_gradient_agree_with_those_of_the_cpu():
  """In float32, with products in float32: convolutions, normalisation, attention and the bound."""
  e = model.experiment(model.Size(2, 32, 8), model.Computed('float32', scan=False, remat='none'))
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(e.init, random.key(0))
  # Without zeros, behind which gradients would vanish.
  params = jax.tree.map(lambda u: rng.normal(0.0, 0.1, u.shape).astype(np.float32), shapes)
  params['schedule'] = {'w': np.float32([18.3]), 'b': np.float32([-13.3])}
  batch = {'image': rng.integers(0, 256, (4, *model.SHAPE), np.uint8)}

  def value_and_grad(device):
    with jax.default_device(device), jax.default_matmul_precision('highest'):
      context = Context(jnp.linspace(0.1, 0.9, 4), random.each(random.key(1), 4), jnp.int32(0), {},
                        None, train=False)
      mean = lambda params: jnp.mean(e.loss(params, batch, context)[0])
      return jax.device_get(jax.jit(jax.value_and_grad(mean))(params))
  got, want = map(value_and_grad, (jax.devices()[0], jax.devices('cpu')[0]))
  norm = lambda tree: np.sqrt(sum(np.sum(np.square(u)) for u in jax.tree.leaves(tree)))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
  assert norm(jax.tree.map(np.subtract, got[1], want[1])) < 1e-3 * norm(want[1])
