"""Networks of full size take a training step on several devices: by shapes alone, in no memory."""
import math
import re

import jax
import pytest

from vdm_jax import data
from vdm_jax.data import fields
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import dit
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.train import loop, step

LABEL = fields.label(1000)
CONTEXT = fields.reals('context', (77, 768))
SPLIT = r'<@mesh, \[[^\]]*"'  # in a program: over an axis of the mesh


@pytest.mark.long
@pytest.mark.parametrize('layout', ['jit', 'fsdp'])
@pytest.mark.parametrize('net, told, variances, parameters', [
    # Stable Diffusion v1 reads 77 vectors of a text; DiT-XL/2 a class.  Counted in the public code.
    pytest.param(LatentUNet(), CONTEXT, False, 859_520_964, id='stable-diffusion-v1'),
    pytest.param(dit.MODELS['DiT-XL/2'], LABEL, True, 674_834_720, id='DiT-XL/2')])
def test_a_network_of_full_size_takes_a_training_step_on_latents(net, told, variances, parameters,
                                                                 layout):
  config = chain.default_config(betas='scaled_linear', beta_ends=(0.00085, 0.012), clip=False,
                                variances=variances)
  spec = data.Spec('made', (fields.reals('image', (32, 32, 4)), told))
  with config.unlocked():
    config.data.update(spec.to_config())
  experiment = chain.experiment(config, net=net, condition=told.name)

  def init(key):
    return step.init(experiment.init(key), experiment.tx, experiment.ema)
  shapes = jax.eval_shape(init, jax.random.key(0))
  assert numbers(shapes.params) == parameters
  made = loop.LAYOUTS[layout](step.update_of(experiment))
  state = made.target(shapes)
  n = jax.device_count()
  own = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
  kept = numbers(jax.tree.map(own, state)) / numbers(state)
  # All but norms and biases is split.  A whole copy on each device would be n times as much.
  assert n > 1 and (kept == 1.0 if layout == 'jit' else 1.0 / n <= kept < 1.01 / n)
  for leaf in jax.tree.leaves(state.params):
    if layout == 'fsdp' and math.prod(leaf.shape) > 10**6:
      assert not leaf.sharding.is_fully_replicated

  batch = jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype), spec.zeros(2 * n))
  lowered = made.step.lower(state, batch, jax.random.key(0))
  after, metrics = lowered.out_info
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert {'loss', 'eps_error', 'grad_norm'} <= set(metrics)
  # The program takes and leaves the state as it is split, and takes the batch split.
  split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
  assert (split > 0) == (layout == 'fsdp')
  text = lowered.as_text()
  arguments = re.search(r'func\.func public @main\((.*?)\) ->', text, re.DOTALL)
  assert arguments
  assert len(re.findall(SPLIT, arguments[1])) == split + len(jax.tree.leaves(batch))
  assert len(re.findall(f'sdy.sharding_constraint .*{SPLIT}', text)) >= split


def numbers(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
