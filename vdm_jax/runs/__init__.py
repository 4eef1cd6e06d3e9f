"""What the commands do with a run's directory: train it, evaluate it, sample from it."""
from vdm_jax.runs.encoding import encode
from vdm_jax.runs.evaluating import evaluate, evaluated, report, seeds
from vdm_jax.runs.pairing import make_pairs
from vdm_jax.runs.sampling import sample
from vdm_jax.runs.training import train, train_seeds, transfer
from vdm_jax.runs.workdir import made
from vdm_jax.samplers.catalogue import ANCESTRAL, Method

__all__ = ['ANCESTRAL', 'Method', 'encode', 'evaluate', 'evaluated', 'made', 'make_pairs', 'report',
           'sample', 'seeds', 'train', 'train_seeds', 'transfer']
