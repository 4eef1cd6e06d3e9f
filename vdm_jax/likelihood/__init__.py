"""Likelihoods: an exact pass over a split, and the ledger that says what each number is."""
from vdm_jax.likelihood.bounds import BoundSamples, evaluate_bound
from vdm_jax.likelihood.ledger import Evaluated, Ledger, over_seeds, table
from vdm_jax.likelihood.passes import Estimator, over_images

__all__ = ['BoundSamples', 'Estimator', 'Evaluated', 'Ledger', 'evaluate_bound', 'over_images',
           'over_seeds', 'table']
