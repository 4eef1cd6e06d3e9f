"""The systems of points in the plane, trained and drawn side by side in one picture."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from vdm_jax import runs
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.machine import files
from vdm_jax.runs import gallery, pictures, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.train import metrics

__all__ = ['COLUMNS', 'SYSTEMS', 'Toy', 'figures', 'pairs_of', 'shorten', 'study']


class Toy(NamedTuple):
  """A system of points: its config, and the sampler and steps that draw its samples."""
  title: str
  config: str                # in the folder of configs, without .py
  variant: tuple[str, ...]   # of the config; (): it has none
  sampler: str
  steps: int
  start: str = ''            # the toy that it starts from
  pairs: bool = False        # whether the pairs of that toy are its data

  @property
  def row(self) -> str:
    """The name of its row in the table of the folder's configs: 'flows.py:ot'."""
    return ':'.join((f'{Path(self.config).name}.py', *self.variant))


PAIRS = 20_000
COLUMNS = ('minutes', 'reached here')  # of `figures`
SYSTEMS = {
    'dpm': Toy('DPM 2015', 'plane/dpm2015', (), 'ancestral_learned', 39),
    'vdm': Toy('VDM', 'plane/spiral', ('vdm',), 'ancestral', 250),
    'vp': Toy('VP score SDE', 'plane/spiral', ('vp',), 'euler_maruyama', 1000),
    'subvp': Toy('sub-VP score SDE', 'plane/spiral', ('subvp',), 'euler_maruyama', 1000),
    've': Toy('VE score SDE', 'plane/spiral', ('ve',), 'ancestral', 250),
    'edm': Toy('EDM', 'plane/spiral', ('edm',), 'edm', 40),
    'sliced': Toy('sliced score matching', 'plane/matching', ('sliced',), 'ancestral', 250),
    'truncated': Toy('truncated DPM', 'plane/truncated', ('adversarial',), 'ancestral', 40),
    'energy': Toy('energy', 'plane/energy', (), 'ancestral', 250),
    'ot': Toy('rectified flow', 'plane/flows', ('ot',), 'euler', 100),
    'polynomial': Toy('polynomial path', 'plane/flows', ('polynomial',), 'euler', 100),
    'diffusion_path': Toy('diffusion path', 'plane/flows', ('vp',), 'euler', 100),
    'cosine': Toy('cosine path', 'plane/flows', ('cosine',), 'euler', 100),
    'minibatch_ot': Toy('minibatch OT', 'plane/flows', ('minibatch_ot',), 'euler', 10),
    'curvature': Toy('learned coupling', 'plane/flows', ('curvature',), 'euler', 10),
    'reflow': Toy('reflow', 'plane/flows', ('reflow',), 'euler', 2, 'ot', pairs=True),
    'distilled': Toy('flow in one step', 'plane/flows', ('distilled',), 'euler', 1, 'reflow',
                     pairs=True),
    'between': Toy('interpolant from 8 normals', 'plane/flows', ('between',), 'euler', 100),
    'mean_flow': Toy('MeanFlow', 'plane/flows', ('mean_flow',), 'euler', 1),
    'teacher': Toy('teacher, 8 steps', 'plane/distilled', ('teacher',), 'ddim_to_x', 8),
    'progressive': Toy('progressive, 1 step', 'plane/distilled', ('progressive',), 'ddim_to_x', 1,
                       'teacher'),
    'knowledge': Toy('knowledge, 1 step', 'plane/distilled', ('knowledge',), 'ddim_to_x', 1,
                     'teacher', pairs=True),
    'consistency': Toy('consistency, 1 step', 'plane/consistency', ('distillation',),
                       'consistency', 1, 'edm'),
    'consistency_training': Toy('consistency training', 'plane/consistency', ('training',),
                                'consistency', 1),
    'consistency_public': Toy('public rate, 1 step', 'plane/consistency', ('public',),
                              'consistency', 1),
}


def shorten(config: ml_collections.ConfigDict, train_steps: int | None) -> None:
  """Sets the training steps of `config`, if given; its phases are shortened in proportion."""
  if train_steps is None:
    return
  for field in ('halving_updates', 'growing_updates'):
    if config.model.get(field):
      config.model[field] = max(config.model[field] * train_steps // config.train.steps, 1)
  if config.optimizer.decay_steps:
    config.optimizer.decay_steps = train_steps
  config.train.steps = train_steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, train_steps // 2)


def pairs_of(directory: Path, count: int, method: catalogue.Method | None = None,
             batch_size: int = 5000) -> Path:
  """The pairs of the run in `directory`, in the folder RUN_pairs beside it; made if needed.

  method: the sampler; by default 25 steps of Heun's.

  Raises InputError if there is no such run.
  """
  place = directory.absolute().with_name(f'{directory.name}_pairs')
  return runs.make_pairs(directory, place, method=method or catalogue.method('heun', 25),
                         count=count, batch_size=batch_size)


def study(directory: str | Path, out: str | Path, configs: Path, *,
          systems: Sequence[str] = tuple(SYSTEMS), train_steps: int | None = None,
          only_samples: bool = False, overwrite: bool = False) -> dict[str, gallery.GalleryRow]:
  """Trains each system that is not there yet, and draws all systems.  Returns {system: its row}.

  Args:
    directory: the directory of the runs, DIRECTORY/SYSTEM.
    out: a .png.
    configs: the folder of configs.
    systems: names in `SYSTEMS`.
    train_steps: the steps of training.  Default: as in the configs.
    only_samples: draws the samples of each system alone, which suits many systems.

  Raises InputError if there is no such system.  Raises InputError also if the file exists, unless
  `overwrite`.
  """
  if unknown := [name for name in systems if name not in SYSTEMS]:
    raise InputError('systems', unknown, 'there is no such choice',
                     f"choose one of {', '.join(SYSTEMS)}")
  files.output('out', out, '.png', overwrite=overwrite)
  require_at_least('train_steps', train_steps)
  rows = {}
  for name in systems:
    toy, place = SYSTEMS[name], Path(directory, name)
    file = configs / f'{toy.config}.py'
    config = workdir.import_config(file).get_config(*toy.variant)
    shorten(config, train_steps)
    start = Path(directory, toy.start)
    if toy.pairs:
      config.data.name = str(pairs_of(start, PAIRS))
    print(f'{toy.title}: {place}')
    runs.train(config, file, place, init_from=str(start) if toy.start else '')
    row = gallery.row(toy.title, place, catalogue.method(toy.sampler, toy.steps, ''))
    print(f'{toy.title}: distance {row.distance:.4f}, of training data {row.floor:.4f}; '
          'energy distance {:.5f} +- {:.5f}'.format(*row.energy))
    rows[name] = row
  draw = gallery.samples if only_samples else gallery.picture
  pictures.save_png(out, draw(list(rows.values())))
  return rows


def figures(name: str, directory: str | Path, row: gallery.GalleryRow) -> dict[str, str]:
  """A system's minutes of training and its result as text, by `COLUMNS`.

  The result is the bound at the end of training.  A system without a bound, or one that couples
  noise and data, has the distance of its samples from the data.

  Args:
    name: in `SYSTEMS`.
    directory: as for `study`.
    row: of `study`.
  """
  toy, place = SYSTEMS[name], Path(directory, name)
  result = metrics.reached(place)
  # The bound of a coupled flow assumes independent noise, so it says little.
  if result.startswith('loss') or row.coupled:
    steps = f'{toy.steps} step{"s" if toy.steps > 1 else ""}'
    result = (f'sliced Wasserstein {row.distance:.3f} in {steps} '
              f'(training data {row.floor:.3f})')
  return dict(zip(COLUMNS, (f'{metrics.minutes(place):.1f}', result), strict=True))
