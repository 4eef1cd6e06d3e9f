"""The flags by which several processes find each other."""
from absl import flags

from vdm_jax.machine import distributed

FLAGS = [
    flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0.  TPU slices, SLURM, Open MPI '
                        'and Kubernetes need none of these three flags.'),
    flags.DEFINE_integer('num_processes', None, 'How many processes there are.  1 without the '
                         'other two flags: one process, whatever the environment says.'),
    flags.DEFINE_integer('process_id', None, 'The number of this process, from 0 on.')]


def join(argv: list[str]) -> None:
  """Joins the other processes.  Call it before a config is read: the reading may use a device.

  Raises InputError, or absl's flags.Error.
  """
  own = flags.FlagValues()
  for flag in FLAGS:
    own[flag.name] = flags.FLAGS[flag.name]
  own(argv, known_only=True)
  distributed.start(own.coordinator, own.num_processes, own.process_id)
