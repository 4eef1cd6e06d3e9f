"""Likelihoods that the public score-SDE code (Song et al. 2021) computed on Gaussian data.

Its bits/dim are -log p / (D ln 2) + 7: what 256 levels have in [-1, 1].  Its prior on the VE curve
is N(0, sigma_1^2), without what is left of the data there; ours is exchanged for it.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.support import recordings
from vdm_jax import schedules
from vdm_jax.likelihood import ode
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, prior_std, vp

pytestmark = pytest.mark.usefixtures('x64')

FILE, EPS = 'score_sde_gaussian', 1e-5  # where its integration begins
PROCESSES = {'vp': GaussianProcess(schedules.BetaLinear(t_min=0.0), vp),
             've': from_alpha_sigma(jnp.ones_like, lambda t: 0.01 * (50.0 / 0.01)**t)}


@pytest.mark.first(1)
@pytest.mark.parametrize('curve,method', [('vp', {'steps': 400}),
                                          ('ve', {'rtol': 1e-9, 'atol': 1e-9})])
def test_likelihoods_latents_and_exact_traces_of_the_public_code_are_reproduced(curve, method):
  """Its adaptive runs in float64 at a tolerance of 1e-9.  Any signs are exact on this Jacobian."""
  recorded = {key.rpartition('/')[2]: value for key, value in recordings.recording(FILE).items()
              if key.startswith(f'gauss/{curve}/lik/')}
  process, oracle = PROCESSES[curve], recordings.oracle(FILE, 'gauss')
  ends = [process(jnp.asarray(t)) for t in (EPS, 1.0)]
  np.testing.assert_allclose([[level.alpha for level in ends], [level.sigma for level in ends]],
                             recorded['alpha_sigma_at_eps_T'], rtol=1e-7)
  x = jnp.asarray(recorded['x'], float)
  keys = jax.random.split(jax.random.key(0), len(x))
  got = jax.jit(lambda x: ode.log_prob(oracle, process, x, keys, t0=EPS, **method))(x)
  np.testing.assert_allclose(got.z, recorded['z_exact'], rtol=1e-6, atol=1e-7)

  theirs = {'vp': 1.0, 've': 50.0}[curve]
  change = (stats.norm.logpdf(got.z, scale=theirs)
            - stats.norm.logpdf(got.z, scale=float(prior_std(process))))
  nats = -(got.log_prob + change.sum(axis=(1, 2, 3)))
  bits = nats / (x[0].size * np.log(2.0)) + 7.0
  for name in ('bpd_exact_trace', 'bpd_f64_rtol1e-9', 'exact_bpd_prior'):
    np.testing.assert_allclose(bits, recorded[name], rtol=0, atol=1e-7, err_msg=name)
  np.testing.assert_allclose(bits, recorded['bpd_f32_rtol1e-5'], rtol=0, atol=5e-5)
