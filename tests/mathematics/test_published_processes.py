"""Published configs, with the exact network of Gaussian data in the place of theirs.

The network is written in the convention of the public code: which z it reads, what its time means,
what it returns.  Then the config's denoiser has to be the exact posterior mean of our x.
"""
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.processes import GaussianProcess, SubVP, sub_vp
from vdm_jax.runs import workdir
from vdm_jax.systems import networks

CONFIGS = Path(__file__).parents[2] / 'configs'
MEAN, STD = 0.2, 0.4      # of images as the public code has them, between -1 and 1
K = 256 / 255             # times ours, whose outermost levels are at 255 / 256


def posterior(z, alpha, sigma, mean=MEAN, std=STD):
  return (mean * sigma**2 + std**2 * alpha * z) / (sigma**2 + (alpha * std)**2)


def edm(z, c_noise):
  """EDMPrecond, solved for F: D = c_skip x + c_out F(c_in x), sigma_data = 1/2."""
  sigma = jnp.exp(4.0 * c_noise)
  norm = jnp.sqrt(sigma**2 + 0.25)
  noisy = z * norm
  return (posterior(noisy, 1.0, sigma) - 0.25 / norm**2 * noisy) / (0.5 * sigma / norm)


def score01(z, sigma):
  """The score of images in [0, 1] at the noise `sigma`."""
  return -(z - 0.5 * (MEAN + 1.0)) / ((0.5 * STD)**2 + sigma**2)


def eps_of(sde):
  def network(z, time):  # their models read 999 t and estimate eps
    alpha, sigma = sde(0.1 * time / 999 + 9.95 * (time / 999)**2)
    return (z - alpha * posterior(z, alpha, sigma)) / sigma
  return network


def chain(alpha_bar, rescaled=1.0, heads=0):
  def network(z, time):
    kept = jnp.asarray(alpha_bar, jnp.float32)[jnp.round(time / rescaled).astype(int)]
    alpha, sigma = jnp.sqrt(kept), jnp.sqrt(1.0 - kept)
    eps = (z - alpha * posterior(z, alpha, sigma)) / sigma
    return jnp.concatenate([eps] + [0.0 * z] * heads, axis=-1)
  return network


def cosine(steps):
  f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2)**2
  betas = [min(1.0 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
  return np.cumprod(1.0 - np.array(betas))


LINEAR = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
LADDER = np.geomspace(1.0, 0.01, 10)

CASES = {
    'edm': ('edm', (), edm, (0.0, 0.1, 0.5, 0.9, 1.0), K, (0.002, 80.0)),
    # Noise levels of images in [0, 1] are half as large.
    've': ('score_sde', ('ve/cifar10_ncsnpp_continuous',),
           lambda z, time: score01(0.5 * (z + 1.0), time), (0.0, 0.3, 0.7, 1.0), K, (0.02, 100.0)),
    'vp': ('score_sde', ('vp/cifar10_ddpmpp_continuous',),
           eps_of(lambda u: (jnp.exp(-0.5 * u), jnp.sqrt(-jnp.expm1(-u)))), (0.0, 0.01, 0.3, 0.7),
           K, None),
    'sub-vp': ('score_sde', ('subvp/cifar10_ddpmpp_continuous',),
               eps_of(lambda u: (jnp.exp(-0.5 * u), -jnp.expm1(-u))), (0.01, 0.1, 0.3, 0.7), K,
               None),
    'ncsnv2': ('ncsnv2', ('ncsnv2-cifar10',), score01, (0.0, 0.3, 0.7, 1.0), K, (0.02, 100.0)),
    # The first NCSN was trained on (k + u) / 256, u in [0, 1): images coded as ours are.
    'ncsn': ('ncsnv2', ('ncsn-cifar10',), lambda z, time: score01(
        z, jnp.asarray(LADDER, jnp.float32)[time.astype(int)]), (0.0, 3 / 9, 6 / 9, 1.0), 1.0,
        (0.02, 2.0)),
    'ddpm': ('ddpm', (), chain(LINEAR), (0.001, 0.01, 0.5, 0.9), K, None),
    'iddpm': ('adm', ('cifar10_uncond_50M_500K',), chain(cosine(4000), 0.25, 1),
              (0.00025, 0.01, 0.5, 0.9), K, None),
}


@pytest.mark.first(1)
@pytest.mark.parametrize('name', CASES)
def test_a_published_config_reads_its_network_as_it_was_trained(name, monkeypatch):
  file, variant, network, times, scale, sigmas = CASES[name]

  class Exact(nn.Module):

    @nn.compact
    def __call__(self, z, time, cond=None, keys=None):
      self.param('unused', nn.initializers.zeros_init(), (1,))
      return network(z, time[:, None, None, None])

  module = workdir.import_config(CONFIGS / 'published' / f'{file}.py')
  config = module.get_config(*variant)
  if 'clip' in config.model:
    config.model.clip = False  # the Gaussian is not
  monkeypatch.setattr(networks, 'configured', lambda net, config: Exact())
  model = module.build(config).model({'net': {'unused': jnp.zeros(1)}})
  level = model.process(jnp.array(times, jnp.float32))
  wide = level.expand(jnp.zeros((1, 1, 1, 1)))
  draw = np.random.default_rng(0).standard_normal((len(times), 4, 4, 3))
  z = jnp.asarray(draw * np.hypot(wide.sigma, STD / scale * wide.alpha), jnp.float32)
  x = model.denoise(z, level).x
  alpha, sigma = (np.asarray(u, np.float64) for u in (wide.alpha, wide.sigma))
  exact = posterior(np.asarray(z, np.float64), alpha, sigma, MEAN / scale, STD / scale)
  # eps comes back as x with a factor sigma / alpha of its rounding.
  np.testing.assert_allclose(x, exact, atol=1e-4, rtol=0)
  if sigmas:
    np.testing.assert_allclose((level.sigma / level.alpha)[jnp.array([0, -1])] * scale, sigmas,
                               rtol=1e-4)


def test_the_images_of_the_public_code_are_a_multiple_of_ours():
  module = workdir.import_config(CONFIGS / 'published' / 'ddpm.py')
  model = module.build(module.get_config()).model({'net': {}})
  levels = jnp.arange(256).reshape(1, 16, 16, 1)
  np.testing.assert_allclose(K * model.encode(levels), levels / 127.5 - 1.0, atol=1e-6)


@pytest.mark.long
def test_the_sub_vp_schedule_is_the_sub_vp_sde():
  t = jnp.linspace(0.01, 1.0, 20)
  schedule = schedules.SameAlpha(schedules.BetaLinear(t_min=0.0))
  level, exact = GaussianProcess(schedule, sub_vp)(t), SubVP()(t)
  np.testing.assert_allclose(level.alpha, exact.alpha, rtol=3e-5)
  np.testing.assert_allclose(level.sigma, exact.sigma, rtol=3e-5)
