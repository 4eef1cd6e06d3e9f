"""The flags and the `main` of scripts/score_captions.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.evaluation import captions
from vdm_jax.runs import captioning
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png file.  Default: captions.png in the workdir.')
OVERWRITE = cli.overwrite()
WEIGHTS = flags.DEFINE_list('weights', [f'{w:g}' for w in captioning.WEIGHTS],
                            'Weights of classifier-free guidance; see sample.py --guidance.  '
                            'With --clip: scales of its logits.  The first half of the samples '
                            'chooses the best of several weights.  --row writes its accuracy on '
                            'the second half.')
CLIP = cli.path('clip', 'The run of a dual encoder that guides to the captions; the model is then '
                'not conditioned on text.')
CONDITION = drawing.condition()
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.'])
COUNT = flags.DEFINE_integer('count', 720, 'How many images for each weight, 288 or more.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(144)
AVERAGE, STEP = cli.average(), cli.step()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, captions.NAMES)
  with drawing.by_field(CONDITION) as condition:
    found, chosen, out = captioning.score_captions(
        WORKDIR.value, OUT.value or '', weights=cli.numbers('weights', WEIGHTS.value),
        method=SAMPLER.method() if SAMPLER.chosen() else None, condition=condition,
        **cli.values(CLIP, OVERWRITE, COUNT, SEED, BATCH_SIZE, AVERAGE, STEP))
  table = captions.table(found, COUNT.value, chosen)
  metrics.show(table)
  cli.keep_table(MEASURED.value, ROW.value, 'Samples and their captions', table,
                 lambda: captions.figures(chosen))
  cli.wrote(out)
