"""Scheduled sampling as an experiment: when it begins, what is measured, and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.support import configs
from vdm_jax.errors import InputError
from vdm_jax.systems.chains import ddpm, scheduled_sampling
from vdm_jax.typing import Context

SMALL = {'features': 8, 'blocks': 1, 'groups': 4, 'rise_steps': 100}


class Tiny(nn.Module):
  """tanh of a matrix times z."""

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    h = nn.Dense(64, kernel_init=nn.initializers.normal(0.1), name='dense')(z.reshape(len(z), -1))
    return jnp.tanh(h + time[:, None] / 1000).reshape(z.shape)


def built(net=None, **model):
  module, config = configs.read('systems:scheduled_sampling')
  config.model.update(**SMALL | model)
  config.data.batch_size = 8
  return (scheduled_sampling.experiment(config, net=net) if net else module.build(config)), config


def context(step, train=True):
  return Context((jnp.arange(8) + 0.5) / 8, jax.random.split(jax.random.key(1), 8),
                 jnp.int32(step), train=train)


@pytest.mark.long
def test_the_loss_begins_as_l_simple_and_ends_apart_and_validation_is_the_bound():
  experiment, config = built(Tiny(), probability=1.0)
  params = jax.jit(experiment.init)(jax.random.key(0))
  batch = experiment.data.batch(0)
  of = jax.jit(lambda step: experiment.loss(params, batch, context(step)))
  first, terms = of(0)
  last, _ = of(100)
  later, _ = of(1000)
  assert terms.keys() == {'eps_error'}
  np.testing.assert_array_equal(last, later)
  assert (np.abs(np.asarray(last - first)) > 1e-4 * np.asarray(first)).sum() >= 7
  measure = lambda of: jax.jit(lambda: of.loss(params, batch, context(50, False)))()
  plain = ddpm.experiment(config, net=Tiny())
  simple, _ = jax.jit(lambda: plain.loss(params, batch, context(50)))()
  wanted, bound = measure(plain)
  got, measured = measure(experiment)
  np.testing.assert_allclose(first, simple, rtol=1e-3)  # L_simple of the same draws
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  np.testing.assert_allclose(measured['bits_per_dim'], bound['bits_per_dim'], rtol=1e-5)


@pytest.mark.parametrize('field,value', [
    ('rollout', 0), ('rollout', 1000), ('probability', 1.5), ('rise_steps', 0),
    ('variances', True)])
def test_what_is_no_schedule_of_sampling_is_refused(field, value):
  with pytest.raises(InputError, match=f'config.model.{field}={value}') as error:
    built(**{field: value})
  assert '\n' not in str(error.value)
