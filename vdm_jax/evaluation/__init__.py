"""The quality of samples: distances between sets of samples, or between sets of features.

`robustness` attacks classifiers, and `anomalies` judges scores of odd examples.
"""
from vdm_jax.evaluation.comparison import compare
from vdm_jax.evaluation.distances import (
    blocked_kernel_distance,
    kernel_distance,
    sliced_wasserstein,
)
from vdm_jax.evaluation.manifold import density_coverage, precision_recall
from vdm_jax.evaluation.scores import score

__all__ = ['blocked_kernel_distance', 'compare', 'density_coverage', 'kernel_distance',
           'precision_recall', 'score', 'sliced_wasserstein']
