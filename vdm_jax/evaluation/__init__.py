"""How good samples are: distances between sets of them, and samplers compared by these."""
from vdm_jax.evaluation.comparison import compare
from vdm_jax.evaluation.distances import kernel_distance, sliced_wasserstein

__all__ = ['compare', 'kernel_distance', 'sliced_wasserstein']
