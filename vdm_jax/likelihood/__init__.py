"""Likelihoods: an exact pass over a split, and the ledger that says what each number is."""
from vdm_jax.likelihood.bounds import BoundSamples, evaluate_bound
from vdm_jax.likelihood.ledger import Ledger, bound_row, table

__all__ = ['BoundSamples', 'Ledger', 'bound_row', 'evaluate_bound', 'table']
