"""The flags by which several processes find each other."""
from absl import flags

from vdm_jax.machine import distributed

FLAGS = [
    flags.DEFINE_string('coordinator', None, 'Of several processes: HOST:PORT of process 0.  A TPU '
                        'slice, SLURM and Open MPI need none of these three.'),
    flags.DEFINE_integer('num_processes', None, 'Of several processes: how many there are.  1 '
                         'alone: this one, whatever the environment says.'),
    flags.DEFINE_integer('process_id', None, 'Of several processes: which this is, from 0 on.')]


def join(argv: list[str]) -> None:
  """Starts with the other processes: before a config is read, which may touch a device.

  Raises InputError, or absl's flags.Error.
  """
  own = flags.FlagValues()
  for flag in FLAGS:
    own[flag.name] = flags.FLAGS[flag.name]
  own(argv, known_only=True)
  distributed.start(own.coordinator, own.num_processes, own.process_id)
