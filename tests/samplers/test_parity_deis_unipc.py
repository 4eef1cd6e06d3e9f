"""DEIS and UniPC, against what the schedulers of huggingface/diffusers computed in float64.

Their DEIS is not the paper's: it puts polynomials in log rho, not in the time or in rho.
"""
import jax
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax.samplers import sample
from vdm_jax.samplers.deis import deis
from vdm_jax.samplers.unipc import unipc

pytestmark = pytest.mark.usefixtures('x64')

FILE = 'diffusers_gaussian'


def lowers(run):
  return run.options.get('lower_order_final', 'True') == 'True'


def deis_of(run):
  return deis, (('degree', int(run.options['solver_order']) - 1), ('variable', 'logsnr'),
                ('lower_order_below', 15 if lowers(run) else 0))


def unipc_of(run):
  of = 'x' if run.options.get('predict_x0', 'True') == 'True' else 'eps'
  return unipc, (('order', int(run.options['solver_order'])), ('of', of),
                 ('variant', run.options.get('solver_type', 'bh2')),
                 ('lower_order_below', 1000 if lowers(run) else 0))


def times_of(run):
  """Its sigmas as times, the last one where the run ends (sigma = 0 is t = 0)."""
  times = recordings.angle_time(np.append(run.arrays['ve_sigma_eval'], run.arrays['sigmas'][-1]))
  if times[-1] == times[-2]:
    # Theirs goes through a last step of length zero, with its corrector and the lower orders
    # before it; here it would be padding.
    times[-1] *= 1.0 - 1e-12
  return times


@pytest.mark.long
@pytest.mark.parametrize('algorithm,sampler_of', [('deis_multistep', deis_of),
                                                  ('unipc_multistep', unipc_of)])
def test_every_recorded_run_is_reproduced(algorithm, sampler_of):
  runs = recordings.runs(FILE, algorithm)
  longest = max(run.count for run in runs) + 1
  process = recordings.angle('vp')
  programs = {}
  for run in runs:
    data = recordings.data_set(run.path)
    make, options = sampler_of(run)
    key = data, options
    if key not in programs:
      sampler = make(recordings.oracle(FILE, data), process, **dict(options))
      keys = jax.random.split(jax.random.key(0), len(run.arrays['x_init']))
      programs[key] = jax.jit(lambda z, t, s=sampler, k=keys: sample(s, k, z, t))
    times = times_of(run)
    z = programs[key](run.arrays['x_init'], np.pad(times, (0, longest + 1 - len(times)), 'edge'))
    np.testing.assert_allclose(z, run.arrays['x'], atol=1e-8, err_msg=f'{run.path} {run.count}')
  assert len(runs) >= 6
