"""Any process, target and objective diffuses latents: the loss is the system's own, of z = s y."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.latent_config import ENDS, Linear, Net
from vdm_jax import data, inputs, processes, random, schedules, targets
from vdm_jax.errors import InputError
from vdm_jax.systems import compose
from vdm_jax.systems.flows import flow_matching
from vdm_jax.systems.latent import latent
from vdm_jax.systems.scores import weighted
from vdm_jax.systems.variational import learned_schedule, vdm
from vdm_jax.typing import Context

S = 0.3


def of_target(target):
  return lambda config: compose.experiment(config, net=Net(), schedule=schedules.Cosine(*ENDS),
                                           target=target)


def edm(config):
  """Of unscaled data, with a loss at noise levels of its own."""
  return compose.experiment(
      config, net=Net(), schedule=schedules.KarrasSigma(), curve=processes.ve,
      target=targets.edm(0.7), inputs=inputs.edm(0.7), objective=weighted.log_normal(0.7))


SYSTEMS = {  # name: (its config, what makes it)
    'v': (latent.default_config, of_target(targets.v)),
    'x': (latent.default_config, of_target(targets.x)),
    'flow matching': (lambda: latent.add(flow_matching.default_config()),
                      lambda config: flow_matching.experiment(config, net=Net(),
                                                              read=inputs.lines())),
    'edm': (latent.default_config, edm),
    'learned schedule': (latent.default_config, lambda config: vdm.experiment(config, net=Net()))}


def of_shape(config, shape):
  """`config` with real data of this shape."""
  with config.unlocked():
    config.data.update(data.Spec('numbers', (data.fields.reals('image', shape),)).to_config())
  return config


@pytest.mark.long
@pytest.mark.parametrize('name', SYSTEMS)
def test_the_loss_of_latents_and_its_gradient_are_those_of_the_system_itself(name):
  config, build = SYSTEMS[name]
  outer = latent.of(of_shape(config(), (8, 8, 1)), build, autoencoder=Linear())
  own = build(of_shape(config(), (2, 2, 2)))
  params = jax.jit(outer.init)(jax.random.key(0)) | {'scale': jnp.float32(S)}
  trained = {name: u for name, u in params.items() if name not in ('autoencoder', 'scale')}
  assert ('schedule' in trained) == (name == 'learned schedule')
  images = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype(np.float32)
  keys = jax.random.split(jax.random.key(1), 8)
  of = Context((jnp.arange(8) + 0.5) / 8, keys, jnp.int32(0))
  mean, log_variance = Linear().apply({'params': params['autoencoder']['net']}, images,
                                      method='encode')
  eps = random.normal(random.stream(keys, 'y'), mean)
  z = S * (mean + jnp.exp(0.5 * log_variance) * eps)

  def of_latents(trained):
    losses, _ = outer.loss(params | trained, {'image': images}, of)
    return jnp.mean(losses), losses

  def of_system(trained):
    losses, _ = own.loss(trained, {'image': z}, of)
    return jnp.mean(losses), losses
  found, expected = jax.jit(lambda trained: [
      jax.value_and_grad(loss, has_aux=True)(trained) for loss in (of_latents, of_system)])(trained)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
  assert all(np.any(slope) for slope in jax.tree.leaves(found[1]))


def test_a_system_with_an_update_of_its_own_is_refused_in_a_line():
  """The interior of its schedule follows another gradient, of the variance of the bound."""
  config = of_shape(latent.default_config(), (8, 8, 1))
  with pytest.raises(InputError, match='^this system makes its own steps, and latents need the '
                     'usual ones; take another system$'):
    latent.of(config, lambda inner: learned_schedule.experiment(inner, net=Net()),
              autoencoder=Linear())
