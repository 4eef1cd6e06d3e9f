"""Likelihoods: estimates of -log p(data) for every image, and an exact pass over a split."""
from vdm_jax.likelihood.bounds import BoundSamples, evaluate_bound
from vdm_jax.likelihood.passes import Estimator, over_images

__all__ = ['BoundSamples', 'Estimator', 'evaluate_bound', 'over_images']
