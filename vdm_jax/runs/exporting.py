"""The weights of a run as a file that can be read without this library."""
import json
from pathlib import Path

from vdm_jax.machine import files
from vdm_jax.published import fitting, readers
from vdm_jax.runs import workdir
from vdm_jax.runs.workdir import Trained


def export(directory: str | Path, out: str | Path, *, average: str = '',
           step: int | str = 'latest', overwrite: bool = False) -> Trained:
  """Writes the weights of the run in `directory` to `out`, a .safetensors; returns the weights.

  A parameter's name in the file is its path in our tree, joined by '/'.  The metadata of the file
  are `step` and `average`.  A .json beside the file has the config and the same two values.

  average, step: see `workdir.load_trained`.

  Raises InputError; also if a file exists, unless `overwrite`.
  """
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.safetensors', overwrite=overwrite)
  files.output('out', out.with_suffix('.json'), '.json', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step)
  names, leaves, _ = fitting.named(trained.params)
  readers.write_safetensors(out, dict(zip(names, leaves, strict=True)),
                            {'step': str(trained.step), 'average': trained.average})
  about = json.loads((directory / 'config.json').read_text())['config']
  files.write_text(out.with_suffix('.json'), json.dumps(
      {'config': about, 'step': trained.step, 'average': trained.average}, indent=2))
  return trained
