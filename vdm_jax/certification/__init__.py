"""Does a sampler do what it claims?  Samplers are judged against closed forms, on every curve.

The data are one-dimensional: N(m, s^2), and a mixture of two normals.  In one dimension the
probability flow keeps quantiles, so its exact map is known for both.  All marginals are known too.

A deterministic sampler claims an *order*: on grids of N steps, its distance to the exact flow is
C N^-order.  The slope of log error against log N is measured over several N in float64.  At every
N, the steps of the grid are short and long in turn.  On evenly spaced or smoothly graded grids, a
multistep method that used wrong ratios of its steps would keep its order.  For orders above 2 the
first step is shortened (`grids.warm_up`), since a multistep method begins with order 1.

An *adaptive* sampler claims that its distance to the exact flow follows its tolerance.

A sampler that is *exact* in one step claims that its distance to the exact flow is rounding alone.
The data are normal and the process is the rectified flow, because the exact networks of such
samplers are known there.

A stochastic sampler claims the *moments* of the marginal at the end of its grid.  These are the
mean, the standard deviation and the share of draws above 0.  Each must agree within four standard
errors plus a stated tolerance for the finite number of steps.  The sampler starts from the exact
marginal.

The process called `ends` runs from pure noise (alpha = 0) to pure data (sigma = 0), where logsnr is
infinite.  Methods in logsnr step over the two ends by their first-order formula, so they claim
first order there.  No method may use the network at sigma = 0, where the network gives NaN.
"""
from vdm_jax.certification.exact import (
    CURVES,
    FINITE,
    MODELS,
    SCHEDULE,
    ExactDenoiser,
    MixtureData,
    quantiles,
    with_ends,
    with_guidance,
    with_log_prob,
    with_variances,
)
from vdm_jax.certification.judging import (
    STEPS,
    CertificateRow,
    alternating_grid,
    certify,
    certify_adaptive,
    certify_exact,
    count_evaluations,
    equality,
    largest_deviation,
)

__all__ = ['CURVES', 'CertificateRow', 'ExactDenoiser', 'FINITE', 'MODELS', 'MixtureData',
           'SCHEDULE', 'STEPS', 'alternating_grid', 'certify', 'certify_adaptive', 'certify_exact',
           'count_evaluations', 'equality', 'largest_deviation', 'quantiles', 'with_ends',
           'with_guidance', 'with_log_prob', 'with_variances']
