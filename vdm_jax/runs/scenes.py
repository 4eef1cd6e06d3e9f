"""Scenes that the model of a run optimises: from each told side, they look as a text says."""
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from vdm_jax import data, random
from vdm_jax import scenes as scene_types
from vdm_jax.data import shapes, tokenisers
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation import shapes as judge_of_shapes
from vdm_jax.evaluation.features import checksum
from vdm_jax.guidance import Guidance
from vdm_jax.machine import files
from vdm_jax.objectives import sds
from vdm_jax.runs import needs, pictures, workdir
from vdm_jax.scenes import Scene
from vdm_jax.typing import Array, Model, PyTree

__all__ = ['FIGURES', 'Result', 'View', 'distil', 'figures', 'picture', 'report', 'verdicts',
           'view']

FIGURES = ('least x', 'largest x', 'shown', 'distance')  # of a scene, as one row of a table
CHUNK = 50  # steps after which the state is kept, and in the mean of an error


class View(NamedTuple):
  """What a scene should show from one side."""
  degrees: float
  text: str


class Result(NamedTuple):
  """A scene, and what it shows."""
  theta: PyTree
  views: Sequence[View]
  shown: np.ndarray      # [V, H, W, C]  data: the scene from the side of each view
  angles: np.ndarray     # [F]  degrees, of the turntable
  turntable: np.ndarray  # [F, H, W, C]  data
  ends: tuple[float, float]  # the least and the largest x of the turntable
  errors: np.ndarray     # [steps / CHUNK]  means of w (eps_hat - eps)^2, of one number of x
  evaluations: int       # of the network, for single pictures
  judged: bool           # whether a judge knows the data


def view(text: str) -> View:
  """The view DEGREES=TEXT, or TEXT at 0 degrees.  Raises InputError."""
  head, equals, tail = text.partition('=')
  try:
    found = View(float(head), tail.strip()) if equals else View(0.0, text.strip())
  except ValueError:
    raise InputError('view', text, f'{head!r} is not a number', 'write DEGREES=TEXT') from None
  require(math.isfinite(found.degrees), 'view', text, 'its angle is not finite', 'give degrees')
  require(bool(found.text), 'view', text, 'it has no text', 'write DEGREES=TEXT')
  return found


def _check(views: Sequence[View], scene: Scene, name: str, batch_size: int) -> None:
  """Raises InputError for views that this scene cannot have."""
  require(bool(views), 'view', None, 'there is none', "write --view='0=a large red disk on white'")
  angles = [each.degrees % 360.0 for each in views]
  for i, each in enumerate(views):
    require(angles[i] not in angles[:i], 'view', f'{each.degrees:g}={each.text}', 'two views are '
            'from the same side', 'give each its own angle')
  require(scene.turns or len(views) == 1, 'view', len(views), f'the scene {name} looks the same '
          'from every side', 'give one view, or choose the scene voxels')
  require(batch_size >= len(views), 'batch_size', batch_size, f'there are {len(views)} views, and '
          'each step shows all of them', 'give as many at least')


def _model(trained: workdir.Trained, guidance: float, params: PyTree) -> Model:
  model = trained.experiment.model(params)
  return Guidance(guidance).of(model) if guidance else model


def _require_teacher(trained: workdir.Trained, guidance: float, directory: Path) -> Model:
  """The model.  Raises InputError for one whose eps_hat is not of pictures, or no score."""
  model = needs.require(trained.experiment.model(trained.params), 'distil_scene', directory)
  for holds, problem in ((model.latent is None, 'it draws latents of its own'),
                         (not model.is_latent and model.data_space, 'it diffuses latents'),
                         (not model.distilled, 'it is a student of a single sampler'),
                         (not model.coupled, 'its noise was coupled with the data, so it has no '
                          'score')):
    require(holds, 'workdir', str(directory), f'this model cannot teach a scene: {problem}',
            'name the run of another model (configs/text/glide_shapes.py)')
  require(0.0 <= guidance < math.inf, 'guidance', guidance, 'it must be at least 0, and finite',
          'give 0 for none, or more')
  return _model(trained, guidance, trained.params)


def distil(directory: str | Path, out: str | Path, views: Sequence[View], *, scene: str = 'voxels',
           guidance: float = 3.0, steps: int = 1000, batch_size: int = 8,
           rate: float | None = None, jitter: float = 0.0, first: float = 0.02, last: float = 0.98,
           frames: int = 12, seed: int = 0, judge: bool | None = None, average: str = '',
           step: int | str = 'latest', overwrite: bool = False, data_dir: str = '',
           data_name: str = '') -> Result:
  """Optimises a scene by score distillation, and writes it and a picture of it.

  The state is kept beside `out` until it is written.  So after a stop the same call goes on, and
  its result is the same bit for bit.

  Args:
    out: a .png: the scene from all around.  The scene itself goes into the .npz of the same name.
    views: what the scene should show, and from which side.
    scene: a name of `scenes.SCENES`.
    guidance: the weight w of classifier-free guidance.
    batch_size: pictures of a step, of all views in turn.
    rate: the learning rate of Adam.  Default: the rate of the scene.
    jitter: how many degrees the camera of a step may be off its view, to each side.
    first, last: the times of the noise.
    frames: of the picture of a scene that turns.
    judge: whether the judge of shapes names what is shown.  None: if the data of the run are
      shapes.

  Picture i of step k depends on (seed, k, i) alone.  Raises InputError before anything is compiled,
  except for a scene that is not finite.
  """
  directory = files.run_directory('workdir', directory)
  out = files.output('out', out, '.png', overwrite=overwrite)
  kept = files.output('out', out.with_suffix('.npz'), '.npz', overwrite=overwrite)
  for flag, value in {'steps': steps, 'batch_size': batch_size, 'frames': frames}.items():
    require_at_least(flag, value)
  require(0.0 <= first < last <= 1.0, 'first', first, f'times go from it to {last:g}, within 0 and '
          '1', 'give 0.02 and 0.98, for example')
  require(0.0 <= jitter <= 180.0, 'jitter', jitter, 'it must be from 0 to 180', 'give 10, for '
          'example')
  require(rate is None or 0.0 < rate < math.inf, 'rate', rate, 'it must be above 0, and finite',
          'leave it out')
  key = random.key(seed)
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir,
                                 data_name=data_name)
  model = _require_teacher(trained, guidance, directory)
  spec = data.resolve(trained.config.data)
  field, x = needs.text_field(model, spec, 'view'), needs.data_field(model, spec)
  require(len(x.shape) == 3, 'workdir', str(directory), f'its data have the shape {x.shape}, and '
          'are no images', 'name the run of a model of images')
  judged = judge_of_shapes.is_asked(trained.config.data.name, x.shape, judge)
  made = scene_types.named(scene, x.shape)
  _check(views, made, scene, batch_size)
  rows = np.arange(len(views))
  told = model.conditions(rows, **{field.name: tokenisers.tokens(
      field, [each.text for each in views], 'view')})
  rate = made.rate if rate is None else rate
  about = {'scene': scene, 'views': [list(each) for each in views], 'guidance': guidance,
           'steps': steps, 'batch_size': batch_size, 'rate': rate, 'jitter': jitter, 'first': first,
           'last': last, 'seed': seed, 'weights': checksum(trained.params)}
  parts = out.with_name(f'{out.name}.parts')
  state = _optimised(trained, made, key, told, np.array([each.degrees for each in views]), about,
                     parts / f'{files.digest(about)[:16]}.npz')

  angles = np.arange(frames) * (360.0 / frames) if made.turns else np.zeros(1)

  @jax.jit
  def show(params, theta, angles):
    pictures = made.render(theta, angles)
    return trained.experiment.model(params).decode(pictures), pictures
  look = lambda angles: jax.device_get(show(trained.params, state.theta, np.float32(angles)))
  shown, (turntable, pixels) = look([each.degrees for each in views])[0], look(angles)
  calls = steps * batch_size * (2 if guidance else 1)
  result = Result(state.theta, views, shown, angles, turntable,
                  (float(pixels.min()), float(pixels.max())), state.errors, calls, judged)
  files.save_npz(kept, **needs.by_name({'theta': state.theta}), angles=angles, x=pixels,
                 errors=state.errors)
  pictures.save_png(out, picture(result, x.levels), {
      **about, 'checkpoint': trained.step, 'average': trained.average})
  shutil.rmtree(parts)
  return result


# ------------------------------------------------------------------------ the loop


class _State(NamedTuple):
  theta: PyTree
  optimizer: PyTree
  done: np.ndarray    # []  steps
  errors: np.ndarray  # [chunks]


def _optimised(trained: workdir.Trained, scene: Scene, key: Array, told: PyTree,
               angles: np.ndarray, about: dict, file: Path) -> _State:
  """The state after all steps.  A state in `file` goes on from there."""
  steps, tx = about['steps'], optax.adam(about['rate'])
  start = jax.jit(lambda key: scene.init(jax.random.fold_in(key, 0)))(key)
  chunks = -(-steps // CHUNK)
  state = _State(start, tx.init(start), np.zeros((), np.int32), np.zeros(chunks, np.float32))
  leaves, tree = jax.tree.flatten(state)
  if file.exists():
    with np.load(file) as arrays:
      state = jax.tree.unflatten(tree, [arrays[f'{i}'] for i in range(len(leaves))])
  advance = jax.jit(_advance(trained, scene, tx, angles, about))
  with tqdm.tqdm(total=steps, initial=int(state.done), desc='distil', unit='step',
                 dynamic_ncols=True) as bar:
    while state.done < steps:
      before = int(state.done)
      until = min(before + CHUNK, steps)
      theta, optimizer, error = jax.device_get(advance(
          trained.params, key, told, state.theta, state.optimizer, before, until))
      require(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(theta)), 'rate',
              about['rate'], f'the scene is not finite after {until} steps', 'give a smaller one')
      errors = state.errors.copy()
      errors[before // CHUNK] = error
      state = _State(theta, optimizer, np.array(until, np.int32), errors)
      files.save_npz(file, **{f'{i}': leaf for i, leaf in enumerate(jax.tree.leaves(state))})
      bar.update(until - before)
      bar.set_postfix_str(f'error {error:.4f}', refresh=False)
  return state


def _advance(trained: workdir.Trained, scene: Scene, tx: optax.GradientTransformation,
             angles: np.ndarray, about: dict) -> Callable:
  """(params, key, told, theta, optimizer, from, until) -> theta, optimizer, the mean error.

  The same program makes any number of steps, so a step is the same bit for bit wherever the
  optimisation was stopped.
  """
  batch, turn = about['batch_size'], np.float32(about['jitter'])
  rows = np.arange(batch) % len(angles)

  def advance(params, key, told, theta, optimizer, begin, until):
    m = _model(trained, about['guidance'], params)
    cond = jax.tree.map(lambda u: u[rows], m.cond(told))

    def step(k, carry):
      theta, optimizer, total = carry
      of_step = jax.random.fold_in(key, k + 1)
      keys = random.per_example(of_step, jnp.arange(batch) + 1)
      t = random.stratified(random.unit(of_step), jnp.arange(batch), batch)
      off = random.uniform(random.stream(keys, 'camera'), t)
      at = jnp.asarray(angles, t.dtype)[rows] + turn * (2.0 * off - 1.0)
      gradient, terms = sds.gradient(m.denoise, m.process, lambda theta: scene.render(theta, at),
                                     theta, t, keys, cond, first=about['first'], last=about['last'])
      updates, optimizer = tx.update(gradient, optimizer, theta)
      error = jnp.mean(terms['diffusion']) / math.prod(m.shape)
      return optax.apply_updates(theta, updates), optimizer, total + error
    theta, optimizer, total = jax.lax.fori_loop(begin, until, step,
                                                (theta, optimizer, jnp.zeros(())))
    return theta, optimizer, total / (until - begin)
  return advance


# ------------------------------------------------------------------------ what is shown


def picture(result: Result, levels: int | None) -> np.ndarray:
  """uint8 [H, W, 3]: the scene from all around, with the degrees of each picture below it."""
  return pictures.labelled(pictures.strip(result.turntable[:, None], levels),
                           [f'{angle:g}' for angle in result.angles])


def report(result: Result) -> list[str]:
  """Lines that say how well the network agrees with the scene, and what the views show."""
  return list(_lines(result))


def _lines(result: Result) -> Iterator[str]:
  low, high = result.ends
  yield (f'{result.evaluations:,} evaluations of the network; w (eps_hat - eps)^2 is '
         f'{result.errors[0]:.4f} in the first {CHUNK} steps, {result.errors[-1]:.4f} in the last')
  yield f'x is from {low:.2f} to {high:.2f}; data are from -1 to 1'
  if result.judged:
    for angle, told, shows, row, column, distance in verdicts(result)[1:]:
      verdict = 'as told' if shows == told else f'and was told {told!r}'
      yield (f'from {angle} degrees: {shows} at row {row}, column {column}, {verdict}; '
             f'{distance} from that picture')


def verdicts(result: Result) -> list[list[str]]:
  """A table as cells: the judge's words on each view, below a header.

  The judge names the picture of `shapes` that is nearest to what is shown, and says how far it is
  in Euclidean distance, with pixels in [-1, 1].
  """
  rows = [['degrees', 'told', 'shown', 'row', 'column', 'distance']]
  named = judge_of_shapes.name(result.shown)
  for each, caption, place, distance in zip(result.views, *named, strict=True):
    row, column = shapes.PLACES[place]
    rows.append([f'{each.degrees:g}', each.text, shapes.CAPTIONS[caption], f'{row}', f'{column}',
                 f'{distance:.2f}'])
  return rows


def figures(result: Result) -> dict[str, str]:
  """The range of x all around, and the judge's words on the first view, by `FIGURES`."""
  _, (_, _, shows, _, _, distance), *_ = verdicts(result)
  return dict(zip(FIGURES, (*(f'{u:.2f}' for u in result.ends), shows, distance), strict=True))
