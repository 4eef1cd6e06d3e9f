"""The flags and the `main` of scripts/sample.py."""
import jax
from absl import flags

from vdm_jax import cli, data, runs
from vdm_jax.cli import drawing
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png to look at; an .npz, which the same command resumes; or a .csv with '
               'a row for each sample; of music also a .mid.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(
    catalogue.describe(), f'The times of the steps: {", ".join(catalogue.GRIDS)}.  Those from '
    'trailing to stable_diffusion, and iddpm:10,10,5, select from a chain of 1000.  Or your own '
    "times: 1,0.7,0.3,0 or a .npy file.  Default: the sampler's own grid, mostly uniform.",
    'ddim: its noise, from 0 (none) to 1 (as ancestral).')
TRACE = cli.path('trace', 'Also write a .png that shows the first samples on their way from noise.')
COUNT = flags.DEFINE_integer('count', 64, 'How many samples.  Sample i is the same for any '
                             'count.')
SEED = cli.seed('the samples')
CONDITIONS = drawing.conditions('samples')
PROMPTS = drawing.prompts()
CLIP = drawing.clips()
BATCH_SIZE = cli.batch_size(64)
TILE = flags.DEFINE_integer(
    'tile', None, 'Decode large latents in tiles of this side, in positions of the latent: memory '
    'then depends on the tile.  Default: whole.')
OVERLAP = flags.DEFINE_integer('overlap', None, 'The positions that neighbouring tiles share.  '
                               'Default: a quarter of --tile.')
OF_RUN = cli.of_run()


def main():
  # A run that draws its own samples takes no sampler by name.
  method = SAMPLER.method() if SAMPLER.chosen() else None
  with drawing.by_field(CONDITIONS.condition) as values, PROMPTS.texts() as prompts:
    evaluations = runs.sample(
        WORKDIR.value, OUT.value, method=method, guided=CONDITIONS.guided(), clip=CLIP.guided(),
        condition=values, prompts=prompts,
        **cli.values(OVERWRITE, TRACE, COUNT, SEED, CONDITIONS.label, BATCH_SIZE, TILE,
                     OVERLAP, *OF_RUN))
  if jax.process_index() == 0 and evaluations:
    print(f'{evaluations} evaluations of the network for each sample')
  if evaluations == 0:
    print(f'{OUT.value}: all samples were there already')
    if TRACE.value:
      cli.wrote(TRACE.value)
    return
  then = ''
  if OUT.value.endswith('.npz'):
    config = workdir.read_config(WORKDIR.value).data
    real = data.resolve(config).x.levels is None
    then = cli.command('score_samples.py', samples=OUT.value, reference=f'{config.name}:test',
                       features='values' if real else 'pixels')
  cli.wrote(*filter(None, (OUT.value, TRACE.value)), then=then)
