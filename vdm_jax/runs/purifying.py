"""Purifies attacked images by the model of a run, and measures what a classifier then sees.

Nie et al. (2022), DiffPure: noise of the time t* hides the attack, and the model removes the noise.
An attack that knows the purifier takes gradients through it.  How strong the purifier looks depends
on what such an attack knows of its noise, so the table has both answers.
"""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.table
import tqdm
from matplotlib.figure import Figure

from vdm_jax import data, random
from vdm_jax.data.fields import AUGMENTED, LABEL
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation import robustness
from vdm_jax.evaluation.distances import percent, share
from vdm_jax.evaluation.features import checksum
from vdm_jax.evaluation.robustness import Attack
from vdm_jax.machine import devices, files
from vdm_jax.runs import needs, pictures, workdir
from vdm_jax.runs.workdir import Trained
from vdm_jax.samplers import around, catalogue, drawing
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.sampling import one_time
from vdm_jax.systems.guided.classifier import Classifier
from vdm_jax.train import metrics
from vdm_jax.typing import Array, Model, PyTree

__all__ = ['COLUMNS', 'Purified', 'Setting', 'classifier_of', 'picture', 'purify', 'ready',
           'returning', 'table']

# The attacks of the table, in its order; all are judged with new noise but the last.
COLUMNS = ('no attack', 'the classifier is attacked', 'attack through the purifier',
           'the same, its noise known')
SHOWN = 8  # images in the picture


class Setting(NamedTuple):
  """The model of a run, a way back, and images with their labels."""
  trained: Trained
  model: Model
  method: Method
  pixels: Pixels
  images: np.ndarray  # [n, ...]  integers
  labels: np.ndarray  # [n]

  @property
  def steps(self) -> int:
    """The steps of the way back."""
    return len(self.method.times(self.model.process)) - 1

  @property
  def ends(self) -> tuple[float, float]:
    """The least and the largest x of an image."""
    top = 1.0 - 1.0 / self.pixels.levels
    return -top, top


class Purified(NamedTuple):
  """What the purifier of one t* does.

  Without a purifier, t is 0.  Then `right` has only the first two of `COLUMNS`, and `images` only
  the attacked images.
  """
  t: float
  right: np.ndarray    # bool [4, n]  whether the classifier is right, for each of `COLUMNS`
  images: np.ndarray   # float32 [4, n, ...]  in the units of the grey levels; [0] and [1] are
                       # purified, [2] and [3] are the attacks through the purifier


def ready(directory: str | Path, method: Method | None, times: Sequence[float], *, count: int,
          split: str = 'test', average: str = '', step: int | str = 'latest', data_dir: str = '',
          data_name: str = '') -> Setting:
  """The first `count` images of a split, and the model of the run in `directory`.

  Raises InputError: a model that is told labels or texts, or whose x are not the data; a sampler
  that chooses its own steps, or does not suit the model; times outside of (0, 1]; no labels.
  """
  require_at_least('count', count)
  require(bool(times), 'times', None, 'there are none', 'give times of noise, e.g. 0.05,0.1')
  for t in times:
    require(0.0 < t <= 1.0, 'times', t, 'the time of noise is above 0, and at most 1',
            'give such times')
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model = needs.require(trained.experiment.model(trained.params), 'purify', directory)
  spec = data.resolve(trained.config.data)
  field = needs.data_field(model, spec)
  for holds, problem in (
      (model.latent is None, 'it draws latents of its own'),
      (model.data_space and not model.is_latent, 'it diffuses latents of an autoencoder'),
      (not model.distilled, 'it is a student of a single sampler'),
      (bool(field.levels), 'its data are real numbers, not images'),
      (set(model.conditions(np.arange(1))) <= {AUGMENTED}, 'it is told what an image shows')):
    require(holds, 'workdir', str(directory), f'this model cannot purify: {problem}',
            'name the run of an unconditional model (configs/systems.py:ddpm)')
  method = method or catalogue.method('ancestral', 10)
  sampler = method.make(model.denoise, model.process) if not (
      method.variances or method.head) else None
  require(sampler is not None and sampler.evaluations is not None, 'sampler', method.name,
          'the way back needs steps of a fixed length, and no variances',
          'choose e.g. ancestral, ddim or heun')
  catalogue.require_suited(method, model)
  part = needs.split(trained, split)
  require(LABEL in part.spec, 'workdir', str(directory), 'its data have no labels',
          'name a run of data with labels')
  if count > len(part):
    raise InputError('count', count, f'there are {len(part):,} {split} images', 'ask for fewer')
  batch = part.get(np.arange(count))
  return Setting(trained, model, method, Pixels(int(field.levels or 0)), batch[field.name],
                 batch[LABEL])


def classifier_of(directory: str | Path, setting: Setting) -> Trained:
  """The classifier in `directory`, for these images.  Raises InputError if it does not fit them."""
  trained = workdir.load_trained(directory)
  made = trained.experiment.model(trained.params)
  require(isinstance(made, Classifier), 'classifier', str(directory), 'this run made a '
          f'{type(made).__name__}, and no classifier', 'train one (configs/digits/classifier.py)')
  own, there = (tuple(made.shape), made.levels), (setting.images.shape[1:], setting.pixels.levels)
  require(own == there, 'classifier', str(directory), f'it reads images {own[0]} of {own[1]} '
          f'levels, and the images of the run are {there[0]} of {there[1]}',
          'train both on the same data')
  return trained


def returning(setting: Setting) -> Callable[[PyTree, Array, Array, Array], Array]:
  """(params, keys [n], x [n, ...], times [N + 1]) -> x after noise of times[0] and the way back."""
  def back(params, keys, x, times):
    m = setting.trained.experiment.model(params)
    cond = m.cond(m.conditions(np.arange(x.shape[0])))
    denoise = lambda z, level, _=None: m.denoise(z, level, cond)
    sampler = setting.method.make(denoise, one_time(m.process))
    z = around.around(sampler, m.process, keys, x, times)
    return drawing.x_at_end(m, denoise, z, times[-1])
  return back


def grid(t: float, steps: int) -> np.ndarray:
  """Equal steps from t to the data."""
  return np.linspace(t, 0.0, steps + 1)


# ------------------------------------------------------------------------ attacks of a classifier


def _programs(setting: Setting, judge: Trained, attack: Attack) -> tuple[Callable, Callable]:
  """Two programs of (shared, batch): the attack on the classifier, and all that a t* takes.

  shared: {'of': params, 'judge': the classifier's, 'key', 'times'}.  batch: (numbers [n], images,
  labels), and the second program has the attacked x of the first too.
  """
  back, pixels = returning(setting), setting.pixels
  low, high = setting.ends

  def logits(shared, x):
    return judge.experiment.model(shared['judge']).logits(pixels.unrounded(x))

  def nats(shared, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits(shared, x), labels)

  def keys_of(shared, numbers, name):
    return random.stream(random.per_example(shared['key'], numbers), name)

  def alone(shared, batch):
    numbers, images, labels = batch
    x = pixels.encode(images)
    y = robustness.pgd(lambda x, _: nats(shared, x, labels), keys_of(shared, numbers, 'alone'), x,
                       attack._replace(draws=1), low=low, high=high)
    right = lambda x: jnp.argmax(logits(shared, x), axis=-1) == labels
    return jnp.stack([right(x), right(y)]), y[None]

  def through(shared, batch):
    (numbers, images, labels), attacked = batch
    x = pixels.encode(images)
    defend = lambda x, keys: back(shared['of'], keys, x, shared['times'])
    loss = lambda x, keys: nats(shared, defend(x, keys), labels)
    judged = keys_of(shared, numbers, 'judged')
    through = robustness.pgd(loss, keys_of(shared, numbers, 'through'), x, attack, low=low,
                             high=high)
    known = robustness.pgd(loss, keys_of(shared, numbers, 'known'), x, attack._replace(draws=1),
                           low=low, high=high, known=judged)
    seen = [defend(u, judged) for u in (x, attacked, through, known)]
    right = jnp.stack([jnp.argmax(logits(shared, u), axis=-1) == labels for u in seen])
    return right, jnp.stack([*seen[:2], through, known])

  return devices.over_rows(alone), devices.over_rows(through)


def purify(directory: str | Path, out: str | Path, *, classifier: str | Path,
           times: Sequence[float] = (0.05, 0.1, 0.2), method: Method | None = None,
           attack: Attack | None = None, count: int = 100, split: str = 'test', seed: int = 0,
           batch_size: int = 100, average: str = '', step: int | str = 'latest',
           data_dir: str = '', data_name: str = '', overwrite: bool = False
           ) -> tuple[list[Purified], rich.table.Table]:
  """The accuracy of a classifier on purified images, under each attack of `COLUMNS`; a picture.

  Batches are kept in DIRECTORY/purified, so after a stop the same call goes on.

  Args:
    directory: of a run of an unconditional diffusion model.
    out: a .png.
    classifier: the directory of a run of a classifier of the same data.
    times: the t* of the noise.
    method: the sampler of the way back and its number of steps, which are equal in time.
    attack: its radius is a share of the range of grey levels, for `norm` 'l2' of all pixels
      together.  Default: `Attack(0.1)`.
    count: the first so many images of the split.

  Raises InputError: a file that is there, unless `overwrite`; as `ready`, `classifier_of` and
  `Attack.check` do.
  """
  out = files.output('out', out, '.png', overwrite=overwrite)
  attack = Attack(0.1) if attack is None else attack
  attack.check()
  require_at_least('batch_size', batch_size)
  directory = files.run_directory('workdir', directory)
  setting = ready(directory, method, times, count=count, split=split, average=average, step=step,
                  data_dir=data_dir, data_name=data_name)
  judge = classifier_of(classifier, setting)
  # From shares of the range of grey levels to the units of x.
  unit = 2.0 * (setting.pixels.levels - 1) / setting.pixels.levels
  scaled = attack._replace(radius=unit * attack.radius, step_size=unit * attack.size)
  alone, through = _programs(setting, judge, scaled)
  steps = setting.steps
  shared = {'of': setting.trained.params, 'judge': judge.params, 'key': random.key(seed)}
  about = {'sampler': setting.method.name, 'steps': steps, 'attack': attack._asdict(),
           'seed': seed, 'weights': checksum(setting.trained.params),
           'classifier': checksum(judge.params)}
  size = devices.global_batch_size(min(batch_size, count))
  batches = list(devices.padded_rows(0, count, size))
  found: dict[float, list[Purified]] = {t: [] for t in (0.0, *times)}
  with tqdm.tqdm(total=len(batches) * len(found), desc='purify', unit='batch',
                 dynamic_ncols=True) as bar:
    for rows, mask in batches:
      batch = rows, setting.images[rows], setting.labels[rows]
      asked = checksum(list(batch))

      def run(program, t, batch, asked=asked, mask=mask):
        def make():
          given = devices.replicate({**shared, 'times': np.float32(grid(t or 1.0, steps))})
          right, images = jax.device_get(program(given, devices.place(batch)))
          return {'right': right, 'images': np.float32(images)}
        tag = files.digest({**about, 'rows': asked, 't': t})[:24]
        arrays = files.kept(directory / 'purified' / f'{tag}.npz', make)
        found[t].append(Purified(t, arrays['right'][:, mask], arrays['images'][:, mask]))
        bar.update()
        return arrays['images']

      attacked = run(alone, 0.0, batch)[0]
      for t in times:
        run(through, t, (batch, attacked))
  join = lambda parts: np.concatenate(parts, axis=1)
  levels = lambda x: np.asarray(setting.pixels.unrounded(jnp.asarray(x)))
  results = [Purified(t, join([part.right for part in parts]),
                      levels(join([part.images for part in parts]))) for t, parts in found.items()]
  pictures.save_png(out, picture(setting, results, attack))
  return results, table(setting, results, attack)


# ------------------------------------------------------------------------------ what is shown


def table(setting: Setting, results: Sequence[Purified], attack: Attack) -> rich.table.Table:
  """A row for each t*: the accuracies in per cent, each with its binomial standard error."""
  out = rich.table.Table('t*', *(rich.table.Column(name, justify='right')
                                 for name in ('log-SNR', *COLUMNS)),
                         title=f'Accuracy on {len(setting.labels):,} images in per cent: '
                         f'{attack.norm} {attack.radius:g}, {attack.steps} steps, '
                         f'{attack.draws} draws')
  for each in results:
    shown = [percent(hits) for hits in each.right]
    level = float(setting.model.process(jnp.asarray(each.t)).logsnr) if each.t else np.inf
    out.add_row(f'{each.t:g}' if each.t else 'no purifier', f'{level:.1f}' if each.t else '',
                *shown, *[''] * (len(COLUMNS) - len(shown)))
  calls, products = costs(setting, attack)
  out.caption = (f'An attack through the purifier takes {calls:,} evaluations of the denoiser an '
                 f'image, and {products:,} vector-Jacobian products.')
  metrics.show(out)
  return out


def costs(setting: Setting, attack: Attack) -> tuple[int, int]:
  """Evaluations of the denoiser, and its vector-Jacobian products, of an attack on one image.

  A gradient goes through all steps of the way back.  It evaluates the denoiser twice in each step,
  since only the states before the steps are kept.
  """
  model = setting.model
  sampler = setting.method.make(model.denoise, model.process)
  assert sampler.evaluations is not None
  inside = setting.steps * sampler.evaluations + sampler.extra_evaluations
  last = int(model.ends_denoised)
  gradients = attack.steps * attack.draws
  return gradients * (2 * inside + last), gradients * (inside + last)


def picture(setting: Setting, results: Sequence[Purified], attack: Attack) -> Figure:
  """The accuracies against t*, and the first images: as they are, attacked, and purified.

  A red frame marks an image that the classifier takes for another class.
  """
  plain, *purified = results
  rows: list[tuple[str, np.ndarray, np.ndarray]] = [
      ('image', setting.images, plain.right[0]), ('attacked', plain.images[0], plain.right[1])]
  rows += [(f't* = {each.t:g}', each.images[1], each.right[1]) for each in purified]
  shown = min(SHOWN, len(setting.labels))
  height = 0.62 * len(rows) + 0.5
  figure = Figure(figsize=(4.2 + 0.62 * shown + 1.0, max(height, 3.2)), layout='constrained')
  halves: Any = figure.subfigures(1, 2, width_ratios=(4.2, 0.62 * shown + 1.0))
  left, right = halves
  axes = left.subplots()
  at = [each.t for each in purified]
  for i, name in enumerate(COLUMNS):
    hits = [share(each.right[i]) for each in purified]
    axes.errorbar(at, [100 * hit.value for hit in hits], [100 * hit.error for hit in hits],
                  marker='o', ms=3, lw=1, capsize=2, label=name)
  for hits, line in zip(map(share, plain.right), ('-', '--'), strict=True):
    axes.axhline(100 * hits.value, color='0.6', lw=0.8, ls=line)
  axes.set(xlabel='t*', ylabel='accuracy, %', ylim=(-3, 103))
  axes.set_title(f'{attack.norm}, radius {attack.radius:g} of the range; grey: no purifier',
                 fontsize=8)
  axes.legend(fontsize=7)
  top = setting.pixels.levels - 1
  for places, (name, images, hits) in zip(right.subplots(len(rows), shown, squeeze=False), rows,
                                          strict=True):
    places[0].set_ylabel(name, rotation=0, ha='right', va='center', fontsize=8)
    for i, place in enumerate(places):
      one = np.clip(images[i] / top, 0.0, 1.0)
      place.imshow(one if one.shape[-1] == 3 else one[..., 0], cmap='gray', vmin=0, vmax=1,
                   interpolation='nearest')
      place.set(xticks=[], yticks=[])
      for line in place.spines.values():
        line.set(color='0.7' if hits[i] else 'red', linewidth=0.5 if hits[i] else 2.5)
  return figure
