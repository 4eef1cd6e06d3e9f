"""Trains the systems of points in the plane and draws them side by side: one picture.

  python scripts/toy_gallery.py --workdir=runs/toys --out=toys.png [--systems=vdm,edm]

A run that is there already is not trained again.  2 CPU cores: ten minutes.
"""
from pathlib import Path

import cli
from absl import flags

from vdm_jax import runs
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.machine import files
from vdm_jax.runs import gallery, pictures, workdir
from vdm_jax.samplers import catalogue

SYSTEMS = {  # name -> title, config, its variant, sampler, steps
    'dpm': ('DPM 2015', 'dpm_swiss_roll', (), 'ancestral_learned', 39),
    'vdm': ('VDM', 'plane/spiral', ('vdm',), 'ancestral', 250),
    'vp': ('VP score SDE', 'plane/spiral', ('vp',), 'euler_maruyama', 1000),
    'subvp': ('sub-VP score SDE', 'plane/spiral', ('subvp',), 'euler_maruyama', 1000),
    've': ('VE score SDE', 'plane/spiral', ('ve',), 'ancestral', 250),
    'edm': ('EDM', 'plane/spiral', ('edm',), 'edm', 40),
    'sliced': ('sliced score matching', 'plane/matching', (), 'ancestral', 250),
    'energy': ('energy', 'plane/energy', (), 'ancestral', 250),
}

WORKDIR = cli.run_directory('A directory for the runs.')
OUT = cli.path('out', 'The .png to write.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('systems', list(SYSTEMS), f'Of {", ".join(SYSTEMS)}.')
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, "Of training; default: the configs'.")


def main():
  unknown = [name for name in CHOSEN.value if name not in SYSTEMS]
  if unknown:
    raise InputError('systems', unknown, 'there is no such choice',
                     f'choose of {", ".join(SYSTEMS)}')
  files.output('out', OUT.value, '.png', overwrite=OVERWRITE.value)
  require_at_least('train_steps', TRAIN_STEPS.value)
  rows = []
  for name in CHOSEN.value:
    title, file, variant, sampler, steps = SYSTEMS[name]
    file = cli.ROOT / 'configs' / f'{file}.py'
    config = workdir.import_config(file).get_config(*variant)
    if TRAIN_STEPS.value is not None:
      config.train.steps = config.optimizer.decay_steps = TRAIN_STEPS.value
      config.optimizer.warmup_steps = min(config.optimizer.warmup_steps,
                                          TRAIN_STEPS.value // 2)
    directory = Path(WORKDIR.value) / name
    print(f'{title}: {directory}')
    runs.train(config, file, directory)
    rows.append(gallery.row(title, directory, catalogue.method(sampler, steps, '')))
    print(f'{title}: distance {rows[-1].distance:.4f}, of training data {rows[-1].floor:.4f}; '
          'energy distance {:.5f} +- {:.5f}'.format(*rows[-1].energy))
  pictures.save_png(OUT.value, gallery.picture(rows))
  cli.wrote(OUT.value, *(Path(WORKDIR.value, name) for name in CHOSEN.value))


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/toys', 'out': 'toys.png'}, alone=True)
