"""Measures what the autoencoder of a run keeps of its data, and draws it and the latents."""
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from vdm_jax import data, random
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.ledger.tables import shown
from vdm_jax.likelihood.passes import over_images
from vdm_jax.machine import files
from vdm_jax.runs import evaluations, latents, needs, pictures, reporting, workdir
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.systems.latent.autoencoder import Autoencoder
from vdm_jax.train.step import default_average
from vdm_jax.typing import Experiment, PyTree
from vdm_jax.units import bits_per_dim

__all__ = ['Reconstruction', 'evaluate', 'figures', 'picture', 'table']

SHOWN = 8  # originals in a picture

# Name -> what it is, for people; in the order of the table.
MEANINGS = {
    'bits_per_dim': 'a bound on -log2 P(example): the next two together',
    'reconstruction': 'bits/dim of the example, given its latent',
    'latent': 'bits/dim of the latent under its prior: N(0, 1), or equal odds of all indices',
    'psnr': 'dB, of decoded images clipped to the range of the data',
    'l1': 'mean |x - decoded|, images in [-1, 1]',
    'accuracy': 'share of the numbers that are decoded as they were',
    'latent_mean': 'mean of all numbers of the latents',
    'latent_std': 'standard deviation of all numbers of the latents: 1 / s of a latent diffusion',
    'entries_used': 'how many entries of the codebook occur',
}


class Reconstruction(NamedTuple):
  """The measurements of an autoencoder on a split."""
  dataset: dict
  checkpoint: dict
  rows: list[dict]  # name, mean, standard_error over images (None if it has none), meaning
  repeats: int      # draws of the latent of each image
  provenance: dict
  format: int

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=2, allow_nan=False)


def evaluate(directory: str | Path, *, split: str = 'test', average: str = '',
             step: int | str = 'latest', examples: int | None = None, batch_size: int = 512,
             repeats: int = 1, seed: int = 0, data_dir: str = '', data_name: str = '',
             out: str | Path = '', overwrite: bool = False,
             show: Callable[[Reconstruction], None] = lambda found: None) -> Reconstruction:
  """Measures the autoencoder of a run on every image of a split.

  Writes reconstruction.json, reconstructions.png, latents.png and the page that shows them, into
  the run's directory or into `out`.  As for `runs.evaluate`, the first three names end in the
  differences from the main evaluation, of all test images and the newest weights.  Each image has
  `repeats` draws of its latent, and one in latents.png.

  Args:
    overwrite: also replace a file of the same name, weights and images that has more draws.
    show: gets the result before it is written.

  The other arguments are those of `runs.evaluate`.

  Raises InputError for wrong arguments, a run that is no autoencoder, weights or measurements that
  are not finite, and files that cannot be written.  Then nothing is written.
  """
  if split not in ('train', 'validation', 'test'):
    raise InputError('split', split, 'there is no such choice', 'choose train, validation or test')
  for name, value in {'examples': examples, 'batch_size': batch_size, 'repeats': repeats}.items():
    require_at_least(name, value)
  directory = files.run_directory('workdir', directory)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  experiment = trained.experiment
  needs.finite(trained)
  model = needs.require(experiment.model(trained.params), 'reconstruct', directory)
  part = needs.split(trained, split)
  count = min(len(part), examples or len(part))
  if not count:
    raise InputError('split', split, 'this run has no such examples', 'choose another')
  folder, newest = Path(out or directory), workdir.steps_made(directory)
  ending = evaluations.ending(
      split, None if trained.step == newest else trained.step,
      None if trained.average == default_average(experiment.ema) else trained.average,
      None if count == len(part) else count)
  about = {
      'dataset': {'name': part.spec.name, 'version': part.version, 'split': split,
                  'examples': count, 'of': len(part), 'sha256': part.sha256(model.field)},
      'checkpoint': {'step': trained.step, 'average': trained.average}}
  written = folder / f'reconstruction{ending}.json'
  files.output('out', written, '.json', overwrite=True)
  if not overwrite:
    _require_no_less(written, about, repeats)
  found = over_images(lambda of, batch, keys: of.quality(batch, keys), experiment.model,
                      trained.params, part, random.key(seed), label='reconstruction',
                      at_once=batch_size, repeats=repeats, count=count)
  codebook = None if model.codebook is None else latents.usage(found['index'],
                                                               len(model.codebook))
  rows = _rows(found, part.spec.x, _has_prior(model, part.spec.x), codebook)
  if wrong := [row['name'] for row in rows if not math.isfinite(row['mean'])]:
    raise InputError('step', trained.step, f'not finite for these examples: {", ".join(wrong)}',
                     'choose another --step or --average')
  result = Reconstruction(**about, rows=rows, repeats=repeats, provenance=provenance(),
                          format=FORMAT)
  show(result)
  y = latents.draw(experiment.model, trained.params, part, random.key(seed), count=count,
                   at_once=batch_size)
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(written, result.to_json())
    pictures.save_png(folder / f'reconstructions{ending}.png',
                      picture(experiment, trained.params, part, seed))
    pictures.save_png(folder / f'latents{ending}.png', latents.picture(
        latents.statistics(y), f'{part.spec.name}, {split}', codebook))
    reporting.write(directory, folder)
  return result


def _require_no_less(path: Path, about: Mapping, repeats: int) -> None:
  """Raises InputError if `path` has more draws of the same images and weights."""
  try:
    old = json.loads(path.read_text())
    same = (old['checkpoint'] == about['checkpoint']
            and old['dataset']['sha256'] == about['dataset']['sha256'])
    more = old['repeats'] > repeats
  except FileNotFoundError:
    return
  except (ValueError, KeyError, TypeError):  # of an older version, or damaged
    return
  if same and more:
    raise InputError('overwrite', False, f'{path} has {old["repeats"]} draws of each example',
                     'ask for at least as many (--repeats), write elsewhere (--out), or overwrite '
                     'it')


def _has_prior(model: Autoencoder, x: data.Field) -> bool:
  """Whether the latents have a prior: a density, or a codebook.  The tiny kind has neither."""
  image = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
  return model.index is not None or jax.eval_shape(model.encode, image)[1] is not None


def _rows(found: dict[str, np.ndarray], x: data.Field, prior: bool,
          codebook: latents.Usage | None) -> list[dict]:
  """The rows of a result.  Without a prior of the latents, there is no bound."""
  names = {'bits_per_dim': 'nats', 'reconstruction': 'reconstruction', 'latent': 'latent'}
  bits = {new: bits_per_dim(found[old], x.shape) for new, old in names.items()
          if prior or new == 'reconstruction'}
  each = bits | {name: found[name] for name in ('psnr', 'l1', 'accuracy') if name in found}
  rows = [{'name': name, 'mean': float(u.mean()),
           'standard_error': float(u.mean(axis=0).std(ddof=1) / math.sqrt(u.shape[1]))
           if u.shape[1] > 1 else None, 'meaning': MEANINGS[name]} for name, u in each.items()]
  mean = float(found['y'].mean())
  std = math.sqrt(max(float(found['y_squared'].mean()) - mean**2, 0.0))
  whole = {'latent_mean': mean, 'latent_std': std}
  if codebook is not None:
    whole['entries_used'] = float(codebook.used)
  return rows + [{'name': name, 'mean': value, 'standard_error': None, 'meaning': MEANINGS[name]}
                 for name, value in whole.items()]


def table(result: Reconstruction) -> rich.table.Table:
  """The measurements for the screen."""
  return evaluations.table(result.dataset, result.checkpoint, result.rows, digits=4)


def figures(result: Reconstruction) -> dict[str, str]:
  """{quantity: its mean and standard error} as text.  'reached here' is the headline of a run."""
  found = {row['name']: shown(row['mean'], row['standard_error']) for row in result.rows}
  headline = (f'PSNR {found["psnr"]} dB' if 'psnr' in found else
              f'accuracy {found["accuracy"]}' if 'accuracy' in found else found['bits_per_dim'])
  return {**found, 'reached here': headline}


def picture(experiment: Experiment, params: PyTree, part: data.Split, seed: int) -> np.ndarray:
  """uint8 [H, W, 3]: images of a split in a row, each with its reconstruction below it.

  Music is drawn as piano rolls.
  """
  x, count = part.spec.x, min(SHOWN, len(part))
  images = part.get(np.arange(count))[x.name]
  keys = random.per_example(random.key(seed), jnp.arange(count))
  found = jax.jit(lambda params, images: experiment.model(params).reconstruct(images, keys))(
      params, images)
  return pictures.of_paths(np.stack([images, np.asarray(found)], axis=1), x)
