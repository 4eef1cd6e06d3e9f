"""The flags by which several processes find each other, and their first look at the shared disk."""
import jax
from absl import flags

from vdm_jax.cli.flags import read_some, run_directories
from vdm_jax.machine import distributed

FLAGS = [
    flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0.  TPU slices, SLURM, Open MPI '
                        'and Kubernetes need none of these three flags.'),
    flags.DEFINE_integer('num_processes', None, 'How many processes there are.  1 without the '
                         'other two flags: one process, whatever the environment says.'),
    flags.DEFINE_integer('process_id', None, 'The number of this process, from 0 on.')]


def join(argv: list[str]) -> None:
  """Joins the other processes, and waits until all see the same files of the runs that flags name.

  Call it before a config is read: the reading may use a device.

  Raises InputError, or absl's flags.Error.
  """
  distributed.start(*_given(argv))
  if jax.distributed.is_initialized():
    from vdm_jax.runs import workdir
    for name, directory in run_directories(argv).items():
      workdir.see_alike(directory, name)


def require_alone(argv: list[str]) -> None:
  """Raises InputError if there are other processes, or absl's flags.Error."""
  distributed.require_alone(*_given(argv))


def _given(argv: list[str]) -> tuple[str | None, int | None, int | None]:
  """The values of the three flags in a command line."""
  read_some(argv, [flag.name for flag in FLAGS])
  coordinator, num_processes, process_id = (flags.FLAGS[flag.name].value for flag in FLAGS)
  return coordinator, num_processes, process_id
