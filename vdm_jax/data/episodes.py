"""Episodes of an agent, and the windows of a run that plans.

A .npz file holds E recorded episodes of T steps each:

  observations  [E, T, O]        the state before each action
  actions       [E, T, A], or [E, T]
  rewards       [E, T]           of each action
  any other     [E] or [E, K]    of whole episodes: constraints that hold, skills, ...

An example of a run is a window of `horizon` rows of one episode.  Its fields are `observations`
[H, O], `actions` [H, A], `returns` [1], the discounted sum of the rewards from its first row on,
and the arrays of whole episodes that `told` names, [K].

The episodes are put into an order that is always the same.  Every sixth of them is for testing, and
the last windows of the others are those of config.data.validation: so no episode is in two splits.
"""
import functools
import math
import operator
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from vdm_jax.data import arrays, fields
from vdm_jax.data.fields import Batch, Field
from vdm_jax.data.sources import Source, Store, every_sixth
from vdm_jax.errors import InputError, require, require_at_least, require_choice

__all__ = ['ACTIONS', 'Episodes', 'NONE', 'NORMALISERS', 'OBSERVATIONS', 'Piecewise', 'RETURNS',
           'Windows', 'declared', 'default_config', 'fit', 'found', 'open_episodes', 'read',
           'returns_to_go', 'settings']

OBSERVATIONS, ACTIONS, RETURNS = 'observations', 'actions', 'returns'
REWARDS = 'rewards'
NORMALISERS = ('limits', 'cdf', 'standard')
_CONDITION = re.compile(r'\s*(\w+)\s*(<=|>=|<|>|=)\s*(\S+)\s*')
_HOLDS = {'<': operator.lt, '<=': operator.le, '>': operator.gt, '>=': operator.ge,
          '=': operator.eq}
_KNOTS = 101  # of a distribution function, at most


class Piecewise(NamedTuple):
  """A map of one number, linear between knots: the knots go to the levels."""
  knots: tuple[float, ...]   # increasing
  levels: tuple[float, ...]


class Windows(NamedTuple):
  """The windows of a run: the fields of `config.data.episodes`."""
  horizon: int = 0                # rows of a window; 0: the data are no episodes
  where: str = ''                 # which episodes: 'epsilon>0', of an array [E]; empty: all
  discount: float = 0.99          # of a reward, for each row that it is later
  span: int = 0                   # rows whose rewards a return sums; 0: to the episode's end
  told: tuple[str, ...] = ()      # arrays of whole episodes that are fields too
  widths: tuple[int, ...] = ()    # the numbers of each of these; empty: read from the file
  normaliser: str = 'limits'      # how the two maps below are found: see `fit`
  observations: tuple[Piecewise, ...] = ()  # of each number of an observation; empty: found in the
                                  # episodes that are trained on
  actions: tuple[Piecewise, ...] = ()       # of each number of an action
  returns: tuple[float, ...] = ()  # the least and the largest return in training; found


NONE = Windows()  # of data that are no episodes


class Episodes(NamedTuple):
  """The episodes of a file."""
  observations: np.ndarray      # [E, T, O]  float32
  actions: np.ndarray           # [E, T, A]  float32
  rewards: np.ndarray           # [E, T]     float64
  others: dict[str, np.ndarray]  # [E, K]    float32

  def __len__(self) -> int:
    return len(self.rewards)

  def chosen(self, rows: np.ndarray) -> 'Episodes':
    """The episodes of these numbers, or where a mask holds."""
    return Episodes(self.observations[rows], self.actions[rows], self.rewards[rows],
                    {name: one[rows] for name, one in self.others.items()})


def default_config() -> ml_collections.ConfigDict:
  """The fields of `config.data.episodes`."""
  return ml_collections.ConfigDict(Windows()._asdict()).lock()


def settings(config: ml_collections.ConfigDict) -> Windows:
  """The windows of `config.data`, which may be older than its section `episodes`.

  Raises InputError for numbers that no window could have.
  """
  section = config.get('episodes')
  if section is None or not section.horizon:
    return NONE
  maps = lambda of: tuple(Piecewise(*map(tuple, one)) for one in of)
  out = Windows(section.horizon, section.where, section.discount, section.span,
                tuple(section.told), tuple(section.widths), section.normaliser,
                maps(section.observations), maps(section.actions), tuple(section.returns))
  require_at_least('config.data.episodes.horizon', out.horizon, 2)
  require_at_least('config.data.episodes.span', out.span, 0)
  require(0.0 < out.discount <= 1.0, 'config.data.episodes.discount', out.discount,
          'a discount is above 0, and at most 1', 'give 0.99, for example')
  require_choice('config.data.episodes.normaliser', out.normaliser, NORMALISERS)
  require(len(out.widths) in (0, len(out.told)), 'config.data.episodes.widths', out.widths,
          f'{len(out.told)} arrays are told', 'give one number for each, or none')
  return out


# --------------------------------------------------------------------- files


def read(path: str, where: str = '') -> Episodes:
  """The episodes in a file, of those for which `where` holds.

  Raises FileNotFoundError, or InputError: for a file that cannot be read, arrays that it lacks or
  that do not fit each other, numbers that are not finite, and a condition that no episode meets.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no file {path}: see --config.data.name')
  try:
    with np.load(path, allow_pickle=False) as file:
      held = {key: file[key] for key in getattr(file, 'files', ())}
  except (ValueError, OSError, EOFError, KeyError) as error:
    raise InputError('config.data.name', path, f'it cannot be read ({error})',
                     'save it with np.savez') from None
  for name, axes in ((OBSERVATIONS, (3,)), (ACTIONS, (2, 3)), (REWARDS, (2,))):
    require(name in held, 'config.data.name', path, f'it has no {name}', 'store observations '
            '[E, T, O], actions [E, T, A] and rewards [E, T]')
    require(held[name].ndim in axes and held[name].dtype.kind in 'fiub', 'config.data.name', path,
            f'its {name} are {held[name].dtype} {held[name].shape}', 'store observations '
            '[E, T, O], actions [E, T, A] and rewards [E, T]')
    require(held[name].shape[:2] == held[OBSERVATIONS].shape[:2], 'config.data.name', path,
            f'its {name} are {held[name].shape}, and its observations '
            f'{held[OBSERVATIONS].shape}', 'store one row for each step of each episode')
  count, length = held[REWARDS].shape
  require(count > 0 and length > 0, 'config.data.name', path, 'it has no episode', 'record some')
  others = {name: one for name, one in held.items()
            if name not in (OBSERVATIONS, ACTIONS, REWARDS) and one.ndim in (1, 2)
            and len(one) == count and one.dtype.kind in 'fiub'}
  for name in (OBSERVATIONS, ACTIONS, REWARDS, *others):
    wrong = np.argwhere(~np.isfinite(held[name]))
    require(not wrong.size, 'config.data.name', path, f'{name} has no finite number in episode '
            f'{wrong[0][0] if wrong.size else ""}', 'leave this episode out')
  out = Episodes(held[OBSERVATIONS].astype(np.float32),
                 held[ACTIONS].reshape(count, length, -1).astype(np.float32),
                 held[REWARDS].astype(np.float64),
                 {name: one.reshape(count, -1).astype(np.float32) for name, one in others.items()})
  return out.chosen(_mask(out, where)) if where else out


def _mask(episodes: Episodes, where: str) -> np.ndarray:
  """Which episodes meet a condition such as 'epsilon>0': bool [E].  Raises InputError."""
  field = 'config.data.episodes.where'
  match = _CONDITION.fullmatch(where)
  try:
    name, sign, number = match.groups() if match else ('', '', 'nan')
    number = float(number)
  except ValueError:
    number = math.nan
  require(not math.isnan(number), field, where, 'it is no condition',
          "write 'epsilon>0', for example")
  usable = [key for key, one in episodes.others.items() if one.shape[1] == 1]
  require(name in usable, field, where, 'the file has no such array of one number for each episode',
          f'choose one of {", ".join(usable) or "none: add one"}')
  mask = _HOLDS[sign](episodes.others[name][:, 0], np.float32(number))
  require(bool(mask.any()), field, where, 'no episode meets it', 'choose another condition')
  return mask


def returns_to_go(rewards: np.ndarray, discount: float, span: int = 0) -> np.ndarray:
  """sum_k discount^k r_(t + k), k < span, for each row t: [E, T] -> [E, T].

  span: 0 sums to the end of the episode.
  """
  rewards = np.asarray(rewards, np.float64)
  out = np.zeros_like(rewards)
  ahead = np.zeros(len(rewards))
  for t in reversed(range(rewards.shape[1])):
    ahead = rewards[:, t] + discount * ahead
    if span and t + span < rewards.shape[1]:
      ahead = ahead - discount**span * rewards[:, t + span]
    out[:, t] = ahead
  return out


# ---------------------------------------------------------------- normalisers


def fit(values: np.ndarray, normaliser: str, most: int = 0) -> tuple[Piecewise, ...]:
  """The map of each number of `values` [N, D] to where a network has it.

    limits    the least and the largest value go to -1 and 1
    cdf       the distribution function of the values, stretched to (-1, 1]
    standard  mean - deviation and mean + deviation go to -1 and 1

  most: knots of a distribution function; 0: every value.  A number that is constant goes to 0.
  These are the normalisers of Janner et al. (2022), and of Ajay et al. (2023), who take `cdf`.
  """
  require_choice('normaliser', normaliser, NORMALISERS)
  return tuple(_fit(one.astype(np.float64), normaliser, most) for one in np.asarray(values).T)


def _fit(values: np.ndarray, normaliser: str, most: int) -> Piecewise:
  low, high = float(values.min()), float(values.max())
  if low == high:
    return Piecewise((low - 1.0, low + 1.0), (-1.0, 1.0))
  if normaliser == 'standard':
    mean, std = float(values.mean()), float(values.std())
    return Piecewise((mean - std, mean + std), (-1.0, 1.0))
  if normaliser == 'limits':
    return Piecewise((low, high), (-1.0, 1.0))
  knots, counts = np.unique(values, return_counts=True)
  levels = 2.0 * np.cumsum(counts) / values.size - 1.0
  if most and len(knots) > most:
    even = np.searchsorted(levels, np.linspace(levels[0], levels[-1], most))
    kept = np.unique([0, *np.minimum(even, len(knots) - 1), len(knots) - 1])
    knots, levels = knots[kept], levels[kept]
  return Piecewise(tuple(knots.tolist()), tuple(levels.tolist()))


# -------------------------------------------------------------------- windows


def declared(windows: Windows, sizes: tuple[int, int], widths: Sequence[int]
             ) -> tuple[Field, ...]:
  """The fields of windows with (O, A) numbers in an observation and an action."""
  observation, action = sizes
  return (fields.reals(OBSERVATIONS, (windows.horizon, observation)),
          fields.reals(ACTIONS, (windows.horizon, action)), fields.reals(RETURNS, (1,)),
          *(fields.reals(name, (width,))
            for name, width in zip(windows.told, widths, strict=True)))


def found(path: str, windows: Windows, validation: int) -> dict:
  """What `config.data.episodes` keeps of the episodes that are trained on, for later commands.

  validation: the windows at the end that are held out.  Raises as `open_episodes` does.
  """
  path = os.path.expanduser(path)
  train, _ = _parts(path, windows)
  starts = _starts(train, windows, path)
  kept = train.chosen(np.arange(max(len(train) - -(-validation // starts), 1)))
  flat = lambda u: u.reshape(-1, u.shape[-1])
  of = lambda u: fit(flat(u), windows.normaliser, _KNOTS)
  returns = returns_to_go(kept.rewards, windows.discount, windows.span)[:, :starts]
  return {'observations': windows.observations or of(kept.observations),
          'actions': windows.actions or of(kept.actions),
          'widths': tuple(train.others[name].shape[1] for name in windows.told),
          'returns': (float(returns.min()), float(returns.max()))}


def open_episodes(path: str, windows: Windows) -> Store:
  """The windows of a file as a Store.

  Raises FileNotFoundError, or InputError as `read` does.  Raises InputError also if the episodes
  are shorter than a window, if there are too few of them, or if `told` names what is not there.
  """
  train, test = _parts(path, windows)
  starts = _starts(train, windows, path)
  widths = [train.others[name].shape[1] for name in windows.told]
  sizes = train.observations.shape[-1], train.actions.shape[-1]

  def source(name, part):
    returns = returns_to_go(part.rewards, windows.discount, windows.span).astype(np.float32)
    return Source(name, len(part) * starts,
                  functools.partial(_read, part, returns, windows, starts))
  return Store(source('not every sixth', train), source('every sixth', test),
               declared(windows, sizes, widths), '', functools.partial(arrays.marks, path))


def _parts(path: str, windows: Windows) -> tuple[Episodes, Episodes]:
  """The episodes for training and for testing, in their order."""
  every = read(path, windows.where)
  for name in windows.told:
    require(name in every.others, 'config.data.episodes.told', name, f'{path} has no such array '
            '[E] or [E, K]', f'choose one of {", ".join(every.others) or "none"}')
  require(len(every) >= 2, 'config.data.name', path, f'it has {len(every)} episode, and one is for '
          'testing', 'record more')
  every = every.chosen(np.random.default_rng(0).permutation(len(every)))
  train, test = every_sixth(len(every))
  return every.chosen(train), every.chosen(test)


def _starts(episodes: Episodes, windows: Windows, path: str) -> int:
  """The windows of an episode.  Raises InputError."""
  length = episodes.rewards.shape[1]
  rows = max(windows.horizon, windows.span)
  name = 'horizon' if windows.horizon >= windows.span else 'span'
  require(rows <= length, f'config.data.episodes.{name}', rows, f'the episodes of {path} have '
          f'{length} steps', 'give fewer rows')
  return length - rows + 1


def _read(episodes: Episodes, returns: np.ndarray, windows: Windows, starts: int, rows: np.ndarray
          ) -> Batch:
  number, start = np.divmod(np.asarray(rows), starts)
  steps = start[:, None] + np.arange(windows.horizon)
  return {OBSERVATIONS: episodes.observations[number[:, None], steps],
          ACTIONS: episodes.actions[number[:, None], steps],
          RETURNS: returns[number, start][:, None],
          **{name: episodes.others[name][number] for name in windows.told}}
