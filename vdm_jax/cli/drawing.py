"""The flags that choose a sampler and its grid."""
from typing import NamedTuple

from absl import flags

from vdm_jax.samplers import catalogue

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


class Sampler(NamedTuple):
  """--sampler, --steps, --grid and --eta."""
  name: flags.FlagHolder
  steps: flags.FlagHolder
  grid: flags.FlagHolder
  eta: flags.FlagHolder

  def chosen(self) -> bool:
    """Whether any of these flags is on the command line."""
    return any(flag.present for flag in self)

  def method(self) -> catalogue.Method:
    """The sampler with its grid.  Raises InputError."""
    return catalogue.method(*(flag.value for flag in self))


def sampler(names: str, grids: str, eta: str, default: str = 'ancestral') -> Sampler:
  """Defines the flags --sampler, --steps, --grid and --eta, with these texts for --help."""
  return Sampler(flags.DEFINE_string('sampler', default, names),
                 flags.DEFINE_integer('steps', None, 'Number of steps.  Default: 250.'),
                 flags.DEFINE_string('grid', '', grids), flags.DEFINE_float('eta', None, eta))
