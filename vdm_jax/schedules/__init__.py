"""Noise schedules: t -> logsnr, decreasing.  They are fixed, from tables, or learned."""
from vdm_jax.schedules.fixed import (
           BetaLinear,
           Cosine,
           GeometricSigma,
           KarrasSigma,
           Laplace,
           Linear,
           Polynomial,
           SameAlpha,
           Shifted,
           Sigmoid,
           as_float,
           check_decreasing,
           shifted_cosine,
)
from vdm_jax.schedules.learned import KnotSchedule, LearnedLinear, Monotone, PinnedMonotone
from vdm_jax.schedules.tables import (
           TableSchedule,
           cosine_betas,
           largest_distance,
           linear_betas,
           ncsnv2_sigmas,
           scaled_linear_betas,
           zero_terminal_snr,
)

__all__ = ['BetaLinear', 'Cosine', 'GeometricSigma', 'KarrasSigma', 'KnotSchedule', 'Laplace',
           'LearnedLinear', 'Linear', 'Monotone', 'PinnedMonotone', 'Polynomial', 'SameAlpha',
           'Shifted', 'Sigmoid', 'TableSchedule', 'as_float', 'check_decreasing', 'cosine_betas',
           'largest_distance', 'linear_betas', 'ncsnv2_sigmas',
           'scaled_linear_betas', 'shifted_cosine', 'zero_terminal_snr']
