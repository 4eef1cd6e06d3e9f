"""An agent of a run acts in an environment of a few lines, whose returns are known."""
import json
import sys
import types

import numpy as np
import pytest

from tests.support import plans_config
from tests.support.markup import Page
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import planning
from vdm_jax.samplers import catalogue

STEPS = 6


class Walk:
  """A point on a line that starts at its seed, and moves by the action; the reward is -|x|."""
  observation_space = types.SimpleNamespace(shape=(1,), low=-9.0)
  action_space = types.SimpleNamespace(shape=(1,), low=np.float32([-1.0]),
                                       high=np.float32([1.0]))
  made = 0

  def reset(self, seed):
    Walk.made += 1
    self.x, self.t = float(seed), 0
    return np.array([self.x]), {}

  def step(self, action):
    self.x, self.t = self.x + float(action[0]), self.t + 1
    return np.array([self.x]), -abs(self.x), False, self.t == STEPS, {}

  def close(self):
    pass


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plans')
  rng = np.random.default_rng(0)
  actions = rng.uniform(-1.0, 1.0, (12, 9))
  x = np.cumsum(actions, axis=1) + rng.integers(-3, 4, (12, 1))
  np.savez(folder / 'walks.npz', observations=x[..., None], actions=actions, rewards=-abs(x))
  config = plans_config.get_config(str(folder / 'walks.npz'))
  runs.train(config, plans_config.__file__, folder / 'run')
  return folder / 'run', config


@pytest.mark.long
def test_episodes_are_acted_kept_and_reported(trained, tmp_path, monkeypatch):
  run, _ = trained
  monkeypatch.setattr(planning, '_maker', lambda env: Walk)
  options = {'episodes': 3, 'first_seed': 1, 'batch_size': 2, 'asked': (-4.0, -1.0)}
  make, programs = planning._program, []
  monkeypatch.setattr(planning, '_program',
                      lambda *args: programs.append(make(*args)) or programs[-1])
  found, wrote = planning.plan(run, tmp_path / 'a.json', **options)
  assert [path.name for path in wrote] == ['a.json', 'a.png', 'a_returns.png']
  assert [one.asked for one in found] == [-4.0, -1.0] and all(one.returns.shape == (3,)
                                                              for one in found)
  # One program serves all steps, batches and returns.
  assert [program._cache_size() for program in programs] == [1]
  one = found[0]
  assert one.observations.shape == (STEPS, 1) and one.plans.shape == (STEPS, 4, 1)
  # The first episode is that of the first seed, and its return is the sum of what it met.
  np.testing.assert_allclose(one.observations[:, 0],
                             1.0 + np.cumsum([0.0, *one.actions[:-1, 0]]), rtol=1e-5)
  end = one.observations[-1, 0] + one.actions[-1, 0]
  np.testing.assert_allclose(one.returns[0], -np.abs([*one.observations[1:, 0], end]).sum(),
                             rtol=1e-5)
  np.testing.assert_array_equal(one.plans[:, 0], one.observations)
  saved = json.loads((tmp_path / 'a.json').read_text())
  assert saved['asked'][1]['returns'] == found[1].returns.tolist() and saved['episodes'] == 3
  # From a row on, to the end of an episode, with the discount 0.99 of training.
  walked = np.abs([*one.observations[1:, 0], end])
  to_go = [-np.sum(0.99**np.arange(STEPS - t) * walked[t:]) for t in range(STEPS)]
  np.testing.assert_allclose(one.to_go[0], np.mean(to_go), rtol=1e-5)
  assert saved['asked'][0]['to_go']['value'] == one.reached.value
  page = Page((run / 'report.html').read_text())  # this file is elsewhere: plans.json is shown
  assert 'Plans beside windows of held-out episodes after 20 steps' in page.images
  made = Walk.made
  again, _ = planning.plan(run, tmp_path / 'b.json', **options)
  assert Walk.made == made  # nothing is acted twice
  np.testing.assert_array_equal(again[1].returns, found[1].returns)
  with pytest.raises(InputError, match='a.json'):
    planning.plan(run, tmp_path / 'a.json', **options)


@pytest.mark.long
def test_plans_of_a_chosen_sampler_have_their_returns_on_the_page(trained, monkeypatch):
  run, _ = trained
  monkeypatch.setattr(planning, '_maker', lambda env: Walk)
  method = catalogue.method('ddim', 2)
  found, wrote = planning.plan(run, episodes=2, batch_size=2, asked=(-4.0, -1.0), method=method)
  assert wrote[0] == run / 'plans.json'
  page = Page((run / 'report.html').read_text())
  for one in found:
    numbers = (*one.reached, *one.mean)
    assert [f'{one.asked:g}', *(f'{number:.1f}' for number in numbers),
            f'{one.milliseconds:.0f}'] in page.rows
  shown = list(page.images.values())
  assert {(run / name).read_bytes() for name in ('plans.png', 'plans_returns.png')} <= set(shown)
  for path in wrote:
    path.unlink()


@pytest.mark.long
def test_a_return_that_training_never_had_is_warned_of_with_the_range(trained, tmp_path,
                                                                      monkeypatch):
  run, _ = trained
  monkeypatch.setattr(planning, '_maker', lambda env: Walk)
  told = []
  monkeypatch.setattr(planning.logging, 'warning', lambda text, *args: told.append(text % args))
  found, _ = planning.plan(run, tmp_path / 'a.json', episodes=1)
  assert not told and found[0].asked <= 0.0  # the largest of training
  planning.plan(run, tmp_path / 'b.json', episodes=1, asked=(5.0,))
  assert len(told) == 1 and f'{found[0].asked:.4g}' in told[0] and '--returns=5' in told[0]


@pytest.mark.long
def test_environments_that_do_not_fit_are_refused_in_one_line(trained, tmp_path, monkeypatch):
  run, _ = trained
  other = type('Other', (Walk,), {'action_space': types.SimpleNamespace(n=2, shape=())})
  monkeypatch.setattr(planning, '_maker', lambda env: other)
  with pytest.raises(InputError, match='its actions are .* and the run has 1 real'):
    planning.plan(run, tmp_path / 'a.json')
  for options, message in (({'episodes': 0}, 'episodes=0'), ({'temperature': -1.0}, 'below 0')):
    with pytest.raises(InputError, match=message):
      planning.plan(run, tmp_path / 'a.json', **options)


def test_an_action_beyond_the_range_of_the_environment_is_cut_to_it():
  """Plans ask for 3, -0.5 and -7 in turn; the environment takes actions from -1 to 1."""
  asked = iter([3.0, -0.5, -7.0] * (STEPS // 3))

  def decide(observed, keys):
    return np.full((2, 1), next(asked), np.float32), np.zeros((2, 4, 1), np.float32)
  found = planning._act([Walk(), Walk()], np.array([1, 5]), decide, seed=0)
  taken = np.array([1.0, -0.5, -1.0] * (STEPS // 3))
  np.testing.assert_array_equal(found['actions'][:, 0], taken)
  np.testing.assert_array_equal(found['observations'][:, 0],
                                1.0 + np.cumsum([0.0, *taken[:-1]]))
  np.testing.assert_array_equal(found['rewards'], [
      -np.abs(start + np.cumsum(taken)) for start in (1.0, 5.0)])


@pytest.mark.parametrize('span', [0, 2, 9])
def test_the_return_from_a_row_on_is_the_mean_over_rows_that_are_followed_by_enough(span):
  """Of episodes of three rows and of two."""
  rewards, discount = np.array([[1.0, 2.0, 4.0], [-1.0, -2.0, 0.0]]), 0.5
  of = {0: [(3.0 + 4.0 + 4.0) / 3, -2.0], 2: [(2.0 + 4.0) / 2, -2.0], 9: [3.0, -2.0]}[span]
  np.testing.assert_allclose(planning._to_go(rewards, np.array([3, 2]), discount, span), of)


def test_batches_whose_episodes_end_earlier_are_joined():
  joined = planning._joined([np.ones((1, 2)), np.full((2, 3), 2.0)])
  np.testing.assert_array_equal(joined, [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])


def test_without_gymnasium_one_line_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gymnasium', None)
  with pytest.raises(InputError, match=r"needs the package gymnasium.*vdm_jax\[plan\]") as error:
    planning._maker('Pendulum-v1')
  assert '\n' not in str(error.value)


def test_an_environment_that_gymnasium_lacks_is_refused():
  gymnasium = pytest.importorskip('gymnasium')
  with pytest.raises(InputError, match='none of this name'):
    planning._maker('Nowhere-v3')
  assert planning._maker('Pendulum-v1')().spec.id == 'Pendulum-v1' and gymnasium


def test_pictures_show_the_episode_and_the_returns():
  rng = np.random.default_rng(0)
  acted = [planning.Acted(asked, rng.normal(asked, 1.0, 4), rng.normal(size=(30, 3)),
                          rng.normal(size=(30, 1)), rng.normal(size=(30, 8, 3)), 3.0,
                          rng.normal(asked / 2, 1.0, 4))
           for asked in (-1.0, -5.0)]
  episode = planning.episode_picture(acted[0], ('a', 'b', 'c'))
  assert [axes.get_ylabel() for axes in episode.axes] == ['a', 'b', 'c', 'action']
  container, = planning.returns_picture(acted).axes[0].containers
  np.testing.assert_allclose(np.float64(container[0].get_xydata()),
                             [[-5.0, acted[1].to_go.mean()], [-1.0, acted[0].to_go.mean()]])
  windows, plans = rng.normal(size=(2, 8, 3)), rng.normal(size=(2, 5, 8, 3))
  beside = planning.windows_picture(windows, plans, ('x', 'y'), ('a', 'b', 'c'))
  assert [axes.get_title() for axes in beside.axes[:2]] == ['x', 'y']
  *drawn, recorded = beside.axes[3].lines  # the second number of the second window
  np.testing.assert_array_equal(recorded.get_ydata(), windows[1, :, 1])
  np.testing.assert_array_equal([line.get_ydata() for line in drawn], plans[1, :, :, 1])
  row = planning.figures(acted)
  assert row['ms a step'] == '3' and row['mean return'].startswith(f'{acted[0].mean.value:.0f} +-')
