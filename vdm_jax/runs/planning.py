"""The work of scripts/plan.py: a run's agent acts in an environment, and is told which return to
reach."""
import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from matplotlib.figure import Figure

from vdm_jax import random
from vdm_jax.data import episodes as episodes_lib
from vdm_jax.data.episodes import OBSERVATIONS, RETURNS, returns_to_go
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.evaluation.distances import Estimated, mean
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.runs import needs, pictures, reporting, workdir
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.samplers.catalogue import Method
from vdm_jax.systems.applications.decisions import Planner
from vdm_jax.typing import Array, Experiment, PyTree

__all__ = ['Acted', 'NAMES', 'episode_picture', 'figures', 'plan', 'preview', 'returns_picture',
           'windows_picture']

NAMES = ('mean return', 'ms a step')  # of the measurements of `plan`

SHOWN = 12  # plans in the picture of an episode
WINDOWS, DRAWN = 4, 8  # in the picture of windows: windows, and plans for each


class Acted(NamedTuple):
  """Episodes in which the agent was told the same return."""
  asked: float
  returns: np.ndarray       # [N]           the sum of the rewards of each episode, not discounted
  observations: np.ndarray  # [T, O]        of the first episode
  actions: np.ndarray       # [T, A]        as they were made
  plans: np.ndarray         # [T, H, O]
  milliseconds: float       # of a step in which all episodes of a batch plan together
  to_go: np.ndarray = np.full(1, np.nan)  # [N] the mean over rows of the return from a row on, as
                            # plans are told it: discounted, over as many rows as in training

  @property
  def mean(self) -> Estimated:
    return mean(self.returns)

  @property
  def reached(self) -> Estimated:
    return mean(self.to_go)


def plan(directory: str | Path, out: str | Path = '', *, env: str = 'Pendulum-v1',
         episodes: int = 50, first_seed: int = 90_000, asked: Sequence[float] = (),
         guidance: float | None = None, temperature: float | None = None,
         method: Method | None = None, seed: int = 0, average: str = '',
         step: int | str = 'latest', batch_size: int = 50, overwrite: bool = False
         ) -> tuple[list[Acted], list[Path]]:
  """Acts in an environment by plans, of which only the first action is made.

  An action beyond the range of the environment's actions is cut to this range.

  Writes OUT.json (the mean return with its standard error, the return of each episode, and the mean
  return from a row on, for each return that was asked for) and OUT.png (the first episode with its
  plans).  If several returns are asked for, OUT_returns.png shows what was reached from a row on.
  Renews report.html of the run.  Finished batches of episodes are kept in `planned` of the run's
  directory, so a command that was stopped goes on.

  Args:
    out: the .json.  Default: plans.json in the run's directory.
    env: a name of gymnasium's, with real observations and actions as in the run's data.
    first_seed: episode i is reset with the seed first_seed + i.
    asked: returns that plans are told, discounted as in training.  Default: the largest there.
    guidance: w; the paper calls 1 + w the guidance.  temperature: a factor of the noise.  Default
      of both: the model's own.
    method: the sampler of plans.  Default: `ancestral` at this temperature.
    batch_size: episodes that plan together.

  Raises InputError for a run that does not plan, for an environment that is not there or has other
  observations or actions, and without the package gymnasium.  Warns of a return that no episode of
  training had.
  """
  for field, value in (('episodes', episodes), ('batch_size', batch_size)):
    require_at_least(field, value)
  require(temperature is None or temperature >= 0.0, 'temperature', temperature, 'it is below 0',
          'give 0.5, for example')
  out = files.output('out', out or Path(directory, 'plans.json'), '.json', overwrite=overwrite)
  picture, curve = (files.output('out', out.with_name(f'{out.stem}{more}.png'), '.png',
                                 overwrite=overwrite) for more in ('', '_returns'))
  trained = workdir.load_trained(directory, average=average, step=step)
  needs.finite(trained)
  model = needs.require(trained.experiment.model(trained.params), 'plan', directory)
  guidance = float(model.guidance if guidance is None else guidance)
  temperature = float(model.temperature if temperature is None else temperature)
  make = _maker(env)
  _require_fits(make(), env, model)
  asked = _asked(model, asked)
  if method is not None:
    require(not (method.variances or method.head or method.ends), 'sampler', method.name,
            'it needs more of a model than its estimates', 'choose another sampler')
  program = _program(trained, guidance, temperature, method)
  batch_size = min(batch_size, episodes)
  windows = episodes_lib.settings(trained.config.data)
  about = {'env': env, 'guidance': guidance, 'temperature': temperature, 'seed': seed,
           'method': method and [method.name, np.asarray(
               method.times(model.dynamics.process)).tolist()],
           'batch_size': batch_size, 'weights': checksum(trained.params)}
  found = []
  batches = range(0, episodes, batch_size)
  with tqdm.tqdm(total=len(asked) * episodes, unit='episode', dynamic_ncols=True) as bar:
    for one in asked:
      parts = []
      for start in batches:
        # The last batch goes on past the last episode, so that one program serves all.
        seeds = first_seed + np.arange(start, start + batch_size)
        run = lambda one=one, seeds=seeds: _act(
            [make() for _ in seeds], seeds, lambda observation, keys: program(
                trained.params, observation, keys, np.float32(one)), seed)
        tag = files.digest({**about, 'asked': one, 'seeds': seeds.tolist(),
                            'kept': 'rewards, lengths'})[:24]
        parts.append(files.kept(Path(directory, 'planned', f'{tag}.npz'), run))
        bar.update(min(batch_size, episodes - start))
      first, rewards = parts[0], _joined([part['rewards'] for part in parts])[:episodes]
      lengths = np.concatenate([part['lengths'] for part in parts])[:episodes]
      found.append(Acted(one, rewards.sum(axis=1), first['observations'], first['actions'],
                         first['plans'], float(np.mean([part['milliseconds'] for part in parts])),
                         _to_go(rewards, lengths, windows.discount, windows.span)))
  files.write_text(out, _json(found, trained, about))
  best = max(found, key=lambda each: each.mean.value)
  pictures.save_png(picture, episode_picture(best))
  wrote = [out, picture]
  if len(found) > 1:
    pictures.save_png(curve, returns_picture(found))
    wrote.append(curve)
  reporting.write(directory)
  return found, wrote


def preview(experiment: Experiment, params: PyTree, seed: int) -> np.ndarray:
  """uint8 [H, W, 3]: held-out windows, each with plans from its first row.

  The plans are told what is true of their window, such as its return.
  """
  part = experiment.data.split('validation')
  count = min(WINDOWS, len(part))
  batch = part.get(np.linspace(0, len(part) - 1, count).astype(int))
  each = lambda values: np.repeat(values, DRAWN, axis=0)
  told = {name: each(batch[name].reshape(count, -1)) for name in experiment.model(params).told}
  keys = random.per_example(random.key(seed), jnp.arange(count * DRAWN))
  run = jax.jit(lambda params, known, told: experiment.model(params).plan(known, keys, told))
  plans = run(params, each(batch[OBSERVATIONS][:, :1]), told).observations
  plans = np.asarray(plans).reshape(count, DRAWN, *plans.shape[1:])
  titles = [f'return {one:.4g}' for one in batch[RETURNS][:, 0]] if RETURNS in told else ()
  return pictures.of_figure(windows_picture(batch[OBSERVATIONS], plans, titles))


def figures(found: Sequence[Acted]) -> dict[str, str]:
  """The measurements of the best return that was asked for, as text by `NAMES`, for a table."""
  best = max(found, key=lambda each: each.mean.value)
  return dict(zip(NAMES, (f'{best.mean.value:.0f} +- {best.mean.error:.0f}',
                          f'{best.milliseconds:.0f}'), strict=True))


def _maker(env: str) -> Callable[[], Any]:
  """() -> the environment of this name.  Raises InputError."""
  try:
    gymnasium = importlib.import_module('gymnasium')
  except ImportError:
    raise InputError('env', env, 'it needs the package gymnasium',
                     "pip install 'vdm_jax[plan]'") from None
  try:
    gymnasium.spec(env)
  except gymnasium.error.Error as error:
    raise InputError('env', env, f'gymnasium has none of this name ({error})'.replace('\n', ' '),
                     'name another, such as Pendulum-v1') from None
  return lambda: gymnasium.make(env)


def _require_fits(one: Any, env: str, model: Planner) -> None:
  """Raises InputError unless observations and actions have the sizes of the run's data."""
  for space, maps, what in ((one.observation_space, model.states.maps, 'observations'),
                            (one.action_space, model.actions.maps, 'actions')):
    shape = getattr(space, 'shape', None)
    require(hasattr(space, 'low') and shape == (len(maps),), 'env', env, f'its {what} are '
            f'{space}, and the run has {len(maps)} real numbers', 'name the environment of the '
            "run's episodes")


def _asked(model: Planner, asked: Sequence[float]) -> list[float]:
  """The returns that plans are told; warns of those that no episode of training had."""
  require(RETURNS in model.told, 'workdir', None, 'this run was not told returns in training',
          "train one that is (config.model.told=('returns',))")
  if not asked:
    require(bool(model.returns), 'returns', None, 'this run does not know the returns of training',
            'say which to reach')
    return [model.returns[1]]
  for one in asked if model.returns else ():
    low, high = model.returns
    if not low <= one <= high:
      logging.warning('--returns=%g is outside of the returns of training, %.4g to %.4g: plans for '
                      'it are extrapolated.', one, low, high)
  return [float(one) for one in asked]


def _program(trained: workdir.Trained, guidance: float, temperature: float,
             method: Method | None) -> Callable:
  """(params, observations [B, O], keys [B], a return) -> actions [B, A], plans [B, H, O]."""
  @jax.jit
  def program(params, observations, keys, asked):
    made = trained.experiment.model(params).plan(
        observations[:, None], keys, {RETURNS: asked}, weights=guidance, temperature=temperature,
        method=method)
    return made.actions[:, 0], made.observations
  return program


@jax.jit
def _at(keys: Array, t: int) -> Array:
  """The keys of step t of the episodes with these keys: [B]."""
  return jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)


def _act(environments: list, seeds: np.ndarray, decide: Callable, seed: int
         ) -> dict[str, np.ndarray]:
  """Runs the environments to their ends, together.  See `Acted`."""
  observed = np.stack([one.reset(seed=int(number))[0] for one, number in
                       zip(environments, seeds, strict=True)]).astype(np.float32)
  keys = random.per_example(random.key(seed), jnp.asarray(seeds))
  rewards, lengths, going = [], np.zeros(len(seeds), int), np.ones(len(seeds), bool)
  space = environments[0].action_space
  observations, actions, plans, seconds = [], [], [], []
  while going.any():
    began = time.perf_counter()
    action, planned = jax.device_get(decide(observed, _at(keys, len(actions))))
    seconds.append(time.perf_counter() - began)
    action = np.clip(action, space.low, space.high)
    if going[0]:
      observations.append(observed[0].copy())
      actions.append(action[0])
      plans.append(planned[0])
    rewards.append(np.zeros(len(seeds)))
    lengths += going
    for i in np.flatnonzero(going):
      observed[i], rewards[-1][i], ended, cut, _ = environments[i].step(action[i])
      going[i] = not (ended or cut)
  for one in environments:
    one.close()
  # The first step compiles.
  return {'rewards': np.stack(rewards, axis=1), 'lengths': lengths,
          'observations': np.stack(observations), 'actions': np.stack(actions),
          'plans': np.stack(plans),
          'milliseconds': np.asarray(1e3 * np.mean(seconds[1:] or seconds))}


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Rewards [N, T] of batches whose episodes may end earlier; 0 after the end."""
  length = max(part.shape[1] for part in parts)
  return np.concatenate([np.pad(part, ((0, 0), (0, length - part.shape[1]))) for part in parts])


def _to_go(rewards: np.ndarray, lengths: np.ndarray, discount: float, span: int) -> np.ndarray:
  """See `Acted.to_go`: [N, T] and [N] -> [N], the mean over the rows that `span` rows follow.

  lengths: of the episodes, after which rewards are 0.
  """
  starts = np.maximum(lengths - span + 1, 1) if span else lengths
  every = returns_to_go(rewards, discount, span)
  return np.mean(every, axis=1, where=np.arange(rewards.shape[1]) < starts[:, None])


def _json(found: Sequence[Acted], trained: workdir.Trained, about: dict) -> str:
  known = lambda error: error if np.isfinite(error) else None
  return json.dumps({
      'format': FORMAT, **{name: about[name] for name in ('env', 'guidance', 'temperature')},
      'episodes': len(found[0].returns), 'batch_size': about['batch_size'],
      'checkpoint': {'step': trained.step, 'average': trained.average},
      'asked': [{'return': one.asked, 'mean': one.mean.value, 'error': known(one.mean.error),
                 'to_go': {'value': one.reached.value, 'error': known(one.reached.error)},
                 'milliseconds_a_step': one.milliseconds, 'returns': one.returns.tolist()}
                for one in found],
      'provenance': provenance()}, indent=1, allow_nan=False)


# -------------------------------------------------------------------- pictures


def episode_picture(acted: Acted, names: Sequence[str] = ()) -> Figure:
  """The observations of an episode with some of its plans, and the actions, over the steps.

  names: of the numbers of an observation; default: s0, s1, ...
  """
  length, count = acted.observations.shape
  figure = Figure(figsize=(7.0, 1.2 * (count + 1) + 0.6), layout='constrained')
  axes = figure.subplots(count + 1, 1, sharex=True, squeeze=False)[:, 0]
  every = max(length // SHOWN, 1)
  for i in range(count):
    for start in range(0, length, every):
      rows = start + np.arange(acted.plans.shape[1])
      axes[i].plot(rows, acted.plans[start, :, i], color='tab:orange', linewidth=1.0)
    axes[i].plot(acted.observations[:, i], color='black', linewidth=1.0)
    axes[i].set_ylabel(names[i] if names else f's{i}')
  axes[-1].step(np.arange(length), acted.actions, where='post', linewidth=1.0)
  axes[-1].set_ylabel('action')
  axes[-1].set_xlabel('step')
  axes[0].set_title(f'return {acted.returns[0]:.0f}; black: what happened, orange: plans',
                    fontsize=9)
  return figure


def windows_picture(windows: np.ndarray, plans: np.ndarray, titles: Sequence[str] = (),
                    names: Sequence[str] = ()) -> Figure:
  """Windows [N, H, O] of episodes side by side, each with its plans [N, S, H, O].

  titles: of the windows; names: as in `episode_picture`.
  """
  count, _, size = windows.shape
  figure = Figure(figsize=(2.2 * count + 1.0, 1.2 * size + 0.8), layout='constrained')
  axes = figure.subplots(size, count, sharex=True, sharey='row', squeeze=False)
  for k, (column, window) in enumerate(zip(axes.T, windows, strict=True)):
    for i, one in enumerate(column):
      one.plot(plans[k, :, :, i].T, color='tab:orange', linewidth=0.8)
      one.plot(window[:, i], color='black', linewidth=1.2)
    column[-1].set_xlabel('row')
  for i, one in enumerate(axes[:, 0]):
    one.set_ylabel(names[i] if names else f's{i}')
  for one, title in zip(axes[0], titles, strict=False):
    one.set_title(title, fontsize=9)
  figure.suptitle('black: recorded, orange: plans', fontsize=9)
  return figure


def returns_picture(found: Sequence[Acted]) -> Figure:
  """The mean return from a row on against the return that was asked for, with standard errors."""
  figure = Figure(figsize=(4.5, 3.2), layout='constrained')
  axes = figure.subplots()
  ordered = sorted(found, key=lambda one: one.asked)
  asked, means = [one.asked for one in ordered], [one.reached for one in ordered]
  axes.errorbar(asked, [one.value for one in means], yerr=[one.error for one in means], marker='o',
                capsize=3)
  axes.plot(asked, asked, color='grey', linestyle=':', label='as asked')
  axes.set_xlabel('return asked for')
  axes.set_ylabel('return reached')
  axes.set_title('discounted, from a row on, mean over the rows', fontsize=9)
  axes.legend(fontsize=8)
  return figure
