"""Networks of full size take a training step: by shapes alone, in the memory of none."""
import math

import jax
import jax.numpy as jnp
import pytest

from vdm_jax import data
from vdm_jax.data import fields
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import dit
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.train import parallel, step

LABEL = fields.label(1000)
CONTEXT = fields.reals('context', (77, 768))


@pytest.mark.long
@pytest.mark.parametrize('net, told, variances, parameters', [
    # Stable Diffusion v1 reads 77 vectors of a text; DiT-XL/2 a class.  Counted in the public code.
    pytest.param(LatentUNet(), CONTEXT, False, 859_520_964, id='stable-diffusion-v1'),
    pytest.param(dit.MODELS['DiT-XL/2'], LABEL, True, 674_834_720, id='DiT-XL/2')])
def test_a_network_of_full_size_takes_a_training_step_on_latents(net, told, variances, parameters):
  config = chain.default_config(betas='scaled_linear', beta_ends=(0.00085, 0.012), clip=False,
                                variances=variances)
  spec = data.Spec('made', (fields.reals('image', (32, 32, 4)), told))
  with config.unlocked():
    config.data.update(spec.to_config())
  experiment = chain.experiment(config, net=net, condition=told.name)

  def init(key):
    return step.init(experiment.init(key), experiment.tx, experiment.ema)
  state = jax.eval_shape(init, jax.random.key(0))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) == parameters
  batch = jax.tree.map(jnp.asarray, spec.zeros(2))
  after, metrics = jax.eval_shape(
      lambda state, key: step.update_of(experiment)(state, batch, key, parallel.Axis()), state,
      jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert {'loss', 'eps_error', 'grad_norm'} <= set(metrics)
