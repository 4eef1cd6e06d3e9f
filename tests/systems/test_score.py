"""The system of the score networks: at which times it trains, and how it is validated."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import weightings
from vdm_jax.processes import vp
from vdm_jax.systems.scores import score_sde as score
from vdm_jax.typing import Context


class Silent(nn.Module):
  """An estimate of zero, whose error is the noise itself."""

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    return self.param('scale', nn.initializers.zeros_init(), ()) * z


@pytest.mark.long
def test_the_loss_is_weighed_at_its_own_times_and_validated_at_even_log_snr():
  """log-SNR is 6 - 10 t^2: even in it, t = sqrt(u) and 1 / density = 1 / (2 sqrt(u))."""
  config = score.default_config()
  config.data.update(name='made', shape=(2, 2, 1), levels=17, classes=0)
  experiment = score.experiment(
      config, net=Silent(), schedule=lambda t: 6.0 - 10.0 * t**2, curve=vp,
      weight=weightings.p2(), trained_at=lambda t: 0.5 * t)
  u, keys = (jnp.arange(8) + 0.5) / 8, jax.random.split(jax.random.key(0), 8)
  batch = {'image': jnp.zeros((8, 2, 2, 1), jnp.uint8)}

  @jax.jit
  def losses():
    params = experiment.init(jax.random.key(1))
    return [experiment.loss(params, batch, Context(u, keys, jnp.int32(0), train=train))
            for train in (True, False)]

  (trained, at_times), (validated, even) = losses()
  share = 1.0 / (2.0 * np.sqrt(u))
  noise = at_times['eps_error']  # the same draws
  variance = lambda logsnr: 1.0 / (1.0 + np.exp(logsnr))  # of the noise on vp, which is p2's weight
  np.testing.assert_allclose(trained * np.log(2.0), variance(6.0 - 2.5 * u**2) * noise, rtol=1e-4)
  np.testing.assert_allclose(validated * np.log(2.0), share * variance(6.0 - 10.0 * u) * noise,
                             rtol=1e-3)
  # Of the mean over t, as in training.
  np.testing.assert_allclose(even['eps_error'], share * noise, rtol=1e-3)
  # The bound there is half the range of log-SNR times the error, at every time.
  np.testing.assert_allclose(even['diffusion'] * np.log(2.0), 5.0 * noise, rtol=1e-3)
