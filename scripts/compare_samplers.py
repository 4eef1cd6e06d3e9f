"""Compares samplers on a run: a picture and a table of quality against network evaluations.

  python scripts/compare_samplers.py --workdir=runs/digits --samplers=ddim,heun --out=compared.png
"""
import cli
import jax
import numpy as np
from absl import flags

from vdm_jax import files, pictures, workdir
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.evaluation import comparison
from vdm_jax.runs import needs
from vdm_jax.samplers import catalogue
from vdm_jax.train import metrics

# Those that need the network alone, and whose evaluations can be counted beforehand.
SAMPLERS = {name: entry for name, entry in catalogue.SAMPLERS.items()
            if not entry.needs and entry.evaluations}
USUAL = ['ancestral', 'ddim', 'heun', 'edm', 'dpmpp_2m', 'dpmpp_2m_sde', 'deis_t2', 'unipc_2']

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png; default: samplers.png in the workdir.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('samplers', USUAL, f'Of {", ".join(SAMPLERS)}.')
EVALUATIONS = flags.DEFINE_list('evaluations', ['5', '10', '20', '50'],
                                'Of the network, for one image.')
COUNT = flags.DEFINE_integer('count', 300, 'Images of each sampler, and at most of the data.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 100, 'Images at a time.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()


def main():
  chosen = [catalogue.called(name) for name in CHOSEN.value]
  unknown = [name for name in chosen if name not in SAMPLERS]
  if unknown:
    raise InputError('samplers', unknown, 'there is no such choice',
                     f'choose of {", ".join(SAMPLERS)}')
  evaluations = cli.integers('evaluations', EVALUATIONS.value)
  for flag, least, value in [('evaluations', 1, min(evaluations, default=0)),
                             ('count', 2, COUNT.value), ('batch_size', 1, BATCH_SIZE.value)]:
    require_at_least(flag, value, least)
  out = files.output('out', OUT.value or f'{WORKDIR.value}/samplers.png', '.png',
                     overwrite=OVERWRITE.value)
  trained = workdir.load_trained(WORKDIR.value, average=AVERAGE.value, step=STEP.value,
                                 data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '')
  needs.require(trained.experiment.model(trained.params), 'compare_samplers', WORKDIR.value)
  test, train = (trained.experiment.data.split(name) for name in ('test', 'train'))
  field = trained.experiment.model(trained.params).field

  def evenly(split):  # some data sets are sorted by class
    n = min(COUNT.value, len(split))
    return split.get(np.arange(n) * len(split) // n)[field]

  def cond(numbers):  # what the test images have, in turn
    batch = test.get(numbers % len(test))
    return {name: value for name, value in batch.items() if name != field}

  found = comparison.compare(
      trained.experiment.model, trained.params,
      {name: comparison.Entrant(SAMPLERS[name].make, SAMPLERS[name].times)
       for name in chosen},
      evaluations=evaluations, count=COUNT.value, test=evenly(test), train=evenly(train),
      cond=cond, seed=SEED.value, batch_size=BATCH_SIZE.value)
  metrics.show(comparison.table(found))
  if jax.process_index() == 0:
    pictures.save_png(out, comparison.picture(found))
  cli.wrote(out)


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/digits'})
