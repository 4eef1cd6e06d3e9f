"""Predictor and corrector in turn: a step down the levels, and moves that correct its distribution.

The predictor carries z from one noise level to the next, with a bias of the predictor's order.  The
corrector (`vdm_jax.samplers.langevin`) moves z towards the marginal of its level, and forgets where
z came from.
"""
from collections.abc import Callable

from vdm_jax import random
from vdm_jax.samplers.first_order import ancestral
from vdm_jax.samplers.langevin import Corrector, annealed_corrector
from vdm_jax.samplers.sampling import require_one_step
from vdm_jax.typing import Denoiser, Process, Sampler


def predictor_corrector(denoise: Denoiser, process: Process,
                        predictor: Callable[[Denoiser, Process], Sampler] = ancestral,
                        corrector: Callable[[Denoiser], Corrector] = annealed_corrector,
                        n_corrections: int = 1) -> Sampler:
  """A step t -> s: n_corrections moves at level t, then the predictor.

  Song et al. (2021), algorithm 1.  In the paper the corrector follows the predictor.  Here, as in
  their code, the corrector comes first: the last z is then free of the corrector's noise, and no
  score is needed at sigma = 0.  Their corrector is `langevin_corrector`; the default is also right
  in few dimensions.  Bind options of either with `functools.partial`.

  Raises InputError if the predictor remembers estimates, since the corrector has moved their z.
  """
  forward, correct = predictor(denoise, process), corrector(denoise)
  calls = require_one_step(forward, 'predictor', 'a corrector')

  def step(keys, z, t, s, plan):
    at_t, at_s = process(t), process(s)
    for i in range(n_corrections):
      z = correct.step(random.stream(keys, f'correction_{i}'), z, at_t, at_s)
    return forward.step(keys, z, t, s, plan)

  return forward._replace(
      step=step, evaluations=calls + n_corrections * correct.evaluations)
