"""The ledger of a run's likelihood: numbers with their kind and error, and their relations."""
from vdm_jax.ledger.comparison import Evaluated, over_seeds
from vdm_jax.ledger.families import own
from vdm_jax.ledger.family import Family, Options
from vdm_jax.ledger.tables import Ledger, table

__all__ = ['Evaluated', 'Family', 'Ledger', 'Options', 'over_seeds', 'own', 'table']
