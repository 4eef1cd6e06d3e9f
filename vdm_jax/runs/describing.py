"""Measures the captions that a run's captioner writes, and keeps them beside the true ones."""
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.table

from vdm_jax import random
from vdm_jax.data import tokenisers
from vdm_jax.data.fields import CAPTION
from vdm_jax.errors import InputError, require_at_least, require_choice
from vdm_jax.evaluation import bleu
from vdm_jax.likelihood.passes import over_images
from vdm_jax.machine import files
from vdm_jax.runs import evaluations, needs, reporting, workdir
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.train.step import default_average

__all__ = ['Captioned', 'evaluate', 'figures', 'table']

SHOWN = 6  # captions on the screen

# Name -> what it is, for people; in the order of the table.
MEANINGS = {
    'exact': '% of the captions that are the text of their image, word for word',
    'BLEU': 'words and phrases of up to 4 words in common with the text, 0 to 100',
    'nats': '-log p(text | image), where each token follows the true ones before it',
}


class Captioned(NamedTuple):
  """The measurements of a captioner on a split, and its captions."""
  dataset: dict
  checkpoint: dict
  rows: list[dict]           # name, mean, standard_error over images (None if it has none), meaning
  captions: list[list[str]]  # of each image: what was said, and its text
  provenance: dict
  format: int

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=1, allow_nan=False, ensure_ascii=False)


def evaluate(directory: str | Path, *, split: str = 'test', average: str = '',
             step: int | str = 'latest', examples: int | None = None, batch_size: int = 512,
             data_dir: str = '', data_name: str = '', out: str | Path = '',
             overwrite: bool = False, show: Callable[[Captioned], None] = lambda found: None
             ) -> Captioned:
  """Measures the captioner of a run on every image of a split.

  Each token of a caption is the most probable one after those that were said before it.  Writes
  captions.json, into the run's directory or into `out`.  As for `runs.evaluate`, its name ends in
  the differences from the main evaluation, of all test images and the newest weights.

  Args:
    overwrite: also replace a file of the same name that `evaluate` did not write.
    show: gets the result before it is written.

  The other arguments are those of `runs.evaluate`.

  Raises InputError for wrong arguments, a run that is no captioner, weights or measurements that
  are not finite, and files that cannot be written.  Then nothing is written.
  """
  require_choice('split', split, ('train', 'validation', 'test'))
  for name, value in {'examples': examples, 'batch_size': batch_size}.items():
    require_at_least(name, value)
  directory = files.run_directory('workdir', directory)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  experiment = trained.experiment
  needs.finite(trained)
  needs.require(experiment.model(trained.params), 'caption', directory)
  part = needs.split(trained, split)
  count = min(len(part), examples or len(part))
  if not count:
    raise InputError('split', split, 'this run has no such images', 'choose another')
  newest, x = workdir.steps_made(directory), part.spec.x.name
  ending = evaluations.ending(
      split, None if trained.step == newest else trained.step,
      None if trained.average == default_average(experiment.ema) else trained.average,
      None if count == len(part) else count)
  written = Path(out or directory) / f'captions{ending}.json'
  files.output('out', written, '.json', overwrite=overwrite or _is_ours(written))
  found = over_images(
      lambda of, batch, keys: {'said': of.caption(batch[x]), 'texts': batch[CAPTION],
                               'nats': of.text_nats(batch[x], batch[CAPTION])},
      experiment.model, trained.params, part, random.key(0), label='captions',
      at_once=batch_size, count=count)
  decode = tokenisers.of(part.spec[CAPTION]).decode
  said, texts = (decode(found[name][0]) for name in ('said', 'texts'))
  nats = found['nats'][0]
  if not np.isfinite(nats).all():
    raise InputError('step', trained.step, 'not finite for these images: nats',
                     'choose another --step or --average')
  exact = bleu.exact(said, texts)
  error = nats.std(ddof=1) / math.sqrt(count) if count > 1 else None
  numbers = {'exact': (100.0 * exact.value, 100.0 * exact.error),
             'BLEU': (100.0 * bleu.score(said, texts), None),
             'nats': (float(nats.mean()), error if error is None else float(error))}
  result = Captioned(
      dataset={'name': part.spec.name, 'version': part.version, 'split': split,
               'examples': count, 'of': len(part), 'sha256': part.sha256(x)},
      checkpoint={'step': trained.step, 'average': trained.average},
      rows=[{'name': name, 'mean': mean, 'standard_error': error, 'meaning': MEANINGS[name]}
            for name, (mean, error) in numbers.items()],
      captions=[list(pair) for pair in zip(said, texts, strict=True)],
      provenance=provenance(), format=FORMAT)
  show(result)
  if jax.process_index() == 0:
    written.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(written, result.to_json())
    reporting.write(directory, written.parent)
  return result


def _is_ours(path: Path) -> bool:
  """Whether `path` is a file that `evaluate` wrote, which a new evaluation may replace."""
  try:
    return {'captions', 'provenance'} <= json.loads(path.read_text()).keys()
  except (OSError, ValueError, AttributeError):
    return False


def table(result: Captioned) -> rich.table.Table:
  """The measurements for the screen, and the first captions."""
  out = evaluations.table(result.dataset, result.checkpoint, result.rows, digits=2)
  for said, text in result.captions[:SHOWN]:
    right = 'right' if said.split() == text.split() else f'not: {text}'
    out.add_row('said', '', '', f'{said} ({right})')
  return out


def figures(result: Captioned) -> dict[str, str]:
  """{quantity: its mean and standard error} as text.  'reached here' is the headline of a run."""
  digits = lambda row: 2 if row['name'] == 'nats' else 1
  found = {row['name']: f'{row["mean"]:.{digits(row)}f}' + (
      '' if row['standard_error'] is None else f' ± {row["standard_error"]:.{digits(row)}f}')
      for row in result.rows}
  return {**found, 'reached here': f'{found["exact"]} % exact'}
