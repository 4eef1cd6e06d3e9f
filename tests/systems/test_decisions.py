"""Decision Diffuser against a recording of its public code, and against closed forms."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.recordings import replay, shared
from vdm_jax import guidance, oracles, processes, random, schedules, targets
from vdm_jax.data import episodes
from vdm_jax.data.episodes import ACTIONS, OBSERVATIONS, RETURNS
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks.told import Told
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import catalogue, first_order
from vdm_jax.samplers.sampling import tempered
from vdm_jax.schedules import TableSchedule, cosine_betas
from vdm_jax.systems.applications import decisions
from vdm_jax.typing import Context, Estimate

# ------------------------------------------------------------- the recording


def _dense(data, name):
  weight = data[f'param/{name}.weight']
  return {'kernel': weight.reshape(len(weight), -1).T, 'bias': data[f'param/{name}.bias']}


def _conv(data, name):
  return {'kernel': data[f'param/{name}.weight'].transpose(2, 1, 0),
          'bias': data[f'param/{name}.bias']}


def _block(data, name):
  """The parameters of a residual block of the recording under our names."""
  out = {'embedding': _dense(data, f'{name}.time_mlp.1')}
  for own, number in (('first', 0), ('second', 1)):
    out[own] = _convolution(data, f'{name}.blocks.{number}')
  if f'param/{name}.residual_conv.weight' in data:
    out['residual'] = _dense(data, f'{name}.residual_conv')
  return out


def _convolution(data, name):
  return {'conv': _conv(data, f'{name}.block.0'),
          'norm': {'scale': data[f'param/{name}.block.2.weight'],
                   'bias': data[f'param/{name}.block.2.bias']}}


def _imported(data):
  """The parameters of the recording under our names: {'net', 'actions'}."""
  net = {'time_0': _dense(data, 'model.time_mlp.1'), 'time_1': _dense(data, 'model.time_mlp.3'),
         'told': {f'told_0_{k}': _dense(data, f'model.returns_mlp.{2 * k}') for k in range(3)},
         'out_conv': _convolution(data, 'model.final_conv.0'),
         'out': _dense(data, 'model.final_conv.1')}
  for i in range(3):
    net |= {f'down_{i}_{k}': _block(data, f'model.downs.{i}.{k}') for k in range(2)}
  for k in range(2):
    net[f'middle_{k}'] = _block(data, f'model.mid_block{k + 1}')
  for i in range(2):  # the public code counts its way up from below
    net[f'down_{i}_half'] = _conv(data, f'model.downs.{i}.2.conv')
    net |= {f'up_{1 - i}_{k}': _block(data, f'model.ups.{i}.{k}') for k in range(2)}
    turned = data[f'param/model.ups.{i}.2.conv.weight'].transpose(2, 0, 1)[::-1]
    net[f'up_{1 - i}_double'] = {'kernel': turned,
                                 'bias': data[f'param/model.ups.{i}.2.conv.bias']}
  return {'net': net, 'actions': {f'dense_{k}': _dense(data, f'inv_model.{2 * k}')
                                  for k in range(3)}}


LINE = ((-1.0, 1.0), (-1.0, 1.0))


def _config(horizon=16, sizes=(5, 2), told=(), **model):
  """A planner of windows that no file has to hold, in the units of the network."""
  config = decisions.default_config(**{
      'features': 16, 'multipliers': (1, 2, 4), 'timesteps': 20, 'hidden': 32, 'steps': 20,
      'told': (RETURNS, *told), 'returns_scale': 1.0} | model)
  config.data.episodes.update(horizon=horizon, observations=(LINE,) * sizes[0], told=told,
                              widths=(2,) * len(told), actions=(LINE,) * sizes[1])
  return config


def _told(returns, kept):
  returns = jnp.asarray(returns)
  return Told((returns,), jnp.broadcast_to(jnp.asarray(kept, jnp.float32), returns.shape))


@pytest.mark.long
def test_the_networks_equal_those_of_the_public_code():
  data = shared('decision_diffuser')
  of = decisions.experiment(_config()).model(_imported(data)).dynamics
  level = of.process((jnp.asarray(data['net/t'], jnp.float32) + 1.0) / 20)
  run = jax.jit(lambda z, cond: of.denoise(z, level, cond).eps)
  z = jnp.asarray(data['net/x'])
  for kept, name in ((1.0, 'cond'), (0.0, 'uncond')):
    np.testing.assert_allclose(run(z, _told(data['net/returns'], kept)), data[f'net/out_{name}'],
                               atol=3e-6)
  state, following = np.split(data['inv/in'], 2, axis=-1)
  np.testing.assert_allclose(of.act(state, following), data['inv/out'], atol=1e-6)


@pytest.mark.long
def test_the_loss_and_its_gradient_equal_those_of_the_public_code():
  data = shared('decision_diffuser')
  make = decisions.experiment(_config())
  actions, x = np.split(data['loss/trajectories'], [2], axis=-1)
  t = (jnp.asarray(data['loss/t'], jnp.float32) + 1.0) / 20
  keys = random.each(random.key(0), 3)

  def loss(params):
    of = make.model(params).dynamics
    known = jnp.broadcast_to(jnp.arange(16) == 0, (3, 16))
    return jnp.mean(decisions.losses(
        of.denoise, of.act, of.process, jnp.asarray(x), jnp.asarray(actions), known, t, keys,
        _told(data['loss/returns'], data['loss/kept']), steps=20,
        eps=jnp.asarray(data['loss/noise']))[0])

  value, slope = jax.jit(jax.value_and_grad(loss))(_imported(data))
  np.testing.assert_allclose(value, data['loss/value'], rtol=1e-5)
  np.testing.assert_allclose(slope['actions']['dense_0']['kernel'].T,
                             data['loss/grad/inv_model.0.weight'], atol=1e-6)
  np.testing.assert_allclose(slope['net']['out']['kernel'].T,
                             data['loss/grad/model.final_conv.1.weight'][..., 0], atol=1e-5)


@pytest.mark.long
def test_plans_and_actions_equal_those_of_the_public_code_with_its_draws(x64):
  """Its draws are halved, the first too, and the first row is the state at all times.

  In float64, since 20 guided steps amplify rounding: what is left is that of the public code.
  """
  data = shared('decision_diffuser')
  wide = lambda tree: jax.tree.map(lambda u: jnp.asarray(u, jnp.float64), tree)
  of = decisions.experiment(_config()).model(wide(_imported(data))).dynamics
  hidden, shown = (guidance.conditioned_on(of.denoise, lambda _, kept=kept: wide(_told(
      data['sample/return'], kept))) for kept in (0.0, 1.0))
  denoise = guidance.clip(guidance.classifier_free(shown, hidden, 0.2))
  state = wide(data['sample/state'])[:, None]
  mask = (jnp.arange(16) == 0)[:, None]
  sampler = tempered(first_order.ancestral(guidance.pinned(denoise, state, mask), of.process,
                                           temperature=0.5), 0.5)
  noise = wide(data['sample/noise'])
  x = jax.jit(lambda z, draws: replay(sampler, z, jnp.linspace(1.0, 0.0, 21), draws))(
      noise[0], noise[1:, None])
  np.testing.assert_allclose(x[:, 1:], data['sample/plan'][:, 1:], atol=2e-5)
  action = of.act(state[:, 0], x[:, 1])
  np.testing.assert_allclose(action, data['sample/action'], atol=1e-5)


@pytest.mark.long
def test_the_planner_composes_one_condition_as_classifier_free_guidance_does():
  """The same plans by `Planner.plan`, whose draws are those of its keys."""
  data = shared('decision_diffuser')
  planner = decisions.experiment(_config()).model(_imported(data))
  of = planner.dynamics
  state, keys = jnp.asarray(data['sample/state'])[:, None], random.each(random.key(1), 3)
  one = jax.jit(lambda keys: planner.plan(state, keys, {RETURNS: 0.9}))(keys)
  hidden, shown = (guidance.conditioned_on(of.denoise, lambda _, kept=kept: _told(
      data['sample/return'], kept)) for kept in (0.0, 1.0))
  denoise = guidance.clip(guidance.classifier_free(shown, hidden, 0.2))
  x = jax.jit(lambda keys: decisions.plan(denoise, of.process, state, keys, (16, 5),
                                          decisions.ancestral(20, 0.5), 0.5))(keys)
  np.testing.assert_allclose(one.observations, x, atol=1e-5)
  np.testing.assert_array_equal(one.observations[:, 0], state[:, 0])
  np.testing.assert_allclose(one.actions[:, 0], of.act(x[:, 0], x[:, 1]), atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize('name,theirs', [('cdf', 'CDF'), ('limits', 'Limits'),
                                         ('standard', 'Gaussian')])
def test_normalisers_equal_those_of_the_public_code(name, theirs):
  data = shared('decision_diffuser')
  of = decisions.Normaliser(episodes.fit(data['norm/fit'], name), name != 'standard')
  out = of.to(jnp.asarray(data['norm/in']))
  np.testing.assert_allclose(out, data[f'norm/{theirs}Normalizer/out'], atol=2e-6)
  back = of.back(jnp.asarray(data[f'norm/{theirs}Normalizer/out']))
  np.testing.assert_allclose(back, data[f'norm/{theirs}Normalizer/back'], atol=2e-5)


def test_the_cosine_chain_and_returns_to_go_equal_those_of_the_public_code():
  data = shared('decision_diffuser')
  for count, name in ((20, 'betas'), (200, 'betas_200')):
    np.testing.assert_allclose(cosine_betas(count), data[name], rtol=2e-5)
  logsnr = TableSchedule.from_betas(cosine_betas(200)).logsnr
  np.testing.assert_allclose(logsnr[[1, -1]], [8.274, -16.617], atol=5e-4)
  to_go = episodes.returns_to_go(data['returns/rewards'][None], 0.99)[0]
  np.testing.assert_allclose(to_go / 400.0, data['returns/to_go'], rtol=1e-5)


# -------------------------------------------------------------- closed forms


@pytest.mark.long
@pytest.mark.parametrize('std,ratio,cooled', [(1.0, 0.98817, 0.49409), (0.5, 0.98139, 0.49070),
                                              (0.25, 0.96646, 0.48323)])
def test_the_published_chain_and_its_halved_noise_narrow_perfect_plans_by_known_factors(
    std, ratio, cooled):
  process = GaussianProcess(TableSchedule.from_betas(cosine_betas(200)))
  count = 20_000
  for temperature, factor in ((1.0, ratio), (0.5, cooled)):
    x = jax.jit(lambda keys, temperature=temperature: decisions.plan(
        oracles.Gaussian(0.0, std), process, jnp.full((count, 1, 1), jnp.nan), keys, (2, 1),
        decisions.ancestral(200, temperature), temperature))(random.each(random.key(3), count))
    assert abs(float(jnp.std(x)) / std - factor) < 4.0 * factor / math.sqrt(2 * 2 * count)


@pytest.mark.parametrize('steps,temperature,ratio', [(6, 0.7, 0.38), (20, 1.0, 0.80)])
def test_few_cooled_steps_narrow_perfect_plans_as_the_recursion_of_their_variance_says(
    steps, temperature, ratio):
  """Ho et al. (2020), eq. 7: z_s given z_t and E(x | z_t) is normal, and all of it is linear.

  The process, and the first case, are those of configs/applications/pendulum.py.
  """
  std, count = 0.25, 20_000
  logsnr = np.linspace(-8.0, 12.0, steps + 1)
  alpha, sigma = np.sqrt(1.0 / (1.0 + np.exp(-logsnr))), np.sqrt(1.0 / (1.0 + np.exp(logsnr)))
  variance = temperature**2
  for i in range(steps):
    a, s, b, r = alpha[i], sigma[i]**2, alpha[i + 1], sigma[i + 1]**2  # from (a, s) to (b, r)
    added = s - (a / b)**2 * r
    mean = (a / b) * r / s + (b * added / s) * a * std**2 / (a**2 * std**2 + s)
    variance = mean**2 * variance + temperature**2 * added * r / s
  expected = math.sqrt(variance) / alpha[-1] / std
  assert round(expected, 2) == ratio
  process = GaussianProcess(schedules.Linear(12.0, -8.0))
  x = jax.jit(lambda keys: decisions.plan(
      oracles.Gaussian(0.0, std), process, jnp.full((count, 1, 1), jnp.nan), keys, (2, 1),
      decisions.ancestral(steps, temperature), temperature))(random.each(random.key(3), count))
  assert abs(float(jnp.std(x)) / std - expected) < 4.0 * expected / math.sqrt(2 * 2 * count)


@pytest.mark.long
def test_a_known_row_gives_the_exact_conditional_distribution_with_any_sampler():
  """Two unit normals of correlation 0.8, the first is 1.5: the second is N(1.2, 0.36)."""
  process = GaussianProcess(schedules.Cosine(10.0, -10.0))

  def denoise(z, level, _=None):
    """Exact where the first row is read without noise."""
    of = oracles.Gaussian(0.8 * z[:, :1], 0.6)(z[:, 1:], level)
    return Estimate(*(jnp.concatenate([jnp.zeros_like(u), u], axis=1) for u in (of.x, of.eps)))

  count = 20_000
  for method in (catalogue.method('heun', 20), catalogue.method('dpmpp_2m', 40)):
    x = jax.jit(lambda keys, method=method: decisions.plan(
        denoise, process, jnp.full((count, 1, 1), 1.5), keys, (2, 1), method, 1.0))(
            random.each(random.key(5), count))
    assert (np.asarray(x[:, 0]) == 1.5).all()
    rest = np.asarray(x[:, 1, 0], np.float64)
    assert abs(rest.mean() - 1.2) < 4.0 * 0.6 / math.sqrt(count) + 1e-3
    assert abs(rest.std() - 0.6) < 4.0 * 0.6 / math.sqrt(2 * count) + 2e-3


def test_composed_conditions_have_the_score_of_the_product():
  """x ~ N(0, 1) and y_i = x + n_i, n_i ~ N(0, 4), at a level where noise is all but gone.

  There p(y_i | z) are independent given z, so the composition is the posterior of both.
  """
  process = GaussianProcess(schedules.Linear(14.0, -6.0))
  posterior = lambda y, count: oracles.Gaussian(y / (4.0 + count), math.sqrt(4.0 / (4.0 + count)))
  level, z = process(jnp.zeros(3)), jnp.array([[-0.5], [0.3], [1.0]])
  composed = guidance.composed(posterior(0.0, 0), [posterior(1.0, 1), posterior(-3.0, 1)],
                               [1.0, 1.0])(z, level)
  np.testing.assert_allclose(composed.eps, posterior(-2.0, 2)(z, level).eps, atol=1e-5)
  one = guidance.composed(posterior(0.0, 0), [posterior(1.0, 1)], [1.7])(z, level)
  usual = guidance.classifier_free(posterior(1.0, 1), posterior(0.0, 0), 0.7)(z, level)
  np.testing.assert_allclose(one.x, usual.x, atol=1e-6)
  with pytest.raises(InputError, match='one for each'):
    guidance.composed(posterior(0.0, 0), [posterior(1.0, 1)], [])


@pytest.mark.long
def test_the_loss_of_the_known_rows_is_zero_whatever_the_network_says():
  process = processes.GaussianProcess(schedules.Cosine(8.0, -8.0))
  wrong = lambda z, level, cond=None: Estimate(z + 1.0, z - 2.0)
  x, keys = jnp.ones((3, 4, 2)), random.each(random.key(0), 3)
  known = jnp.array([[True] * 4, [True, False, False, False], [False] * 4])
  act = lambda state, following: following[..., :1]
  loss, terms = decisions.losses(wrong, act, process, x, jnp.ones((3, 4, 1)), known,
                                 jnp.full(3, 0.5), keys, target=targets.v)
  np.testing.assert_allclose(loss[0], 0.0, atol=1e-9)
  np.testing.assert_allclose(terms['eps_error'][:1], 0.0, atol=1e-9)
  assert (loss[1:] > 0.1).all()


# --------------------------------------------------------------- experiments


@pytest.mark.long
@pytest.mark.parametrize('net', decisions.NETS)
def test_a_planner_is_trained_with_hidden_conditions_and_asked_by_name(net):
  """The network of what is told changes the loss; hidden at all times, it does not."""
  model = {'net': net, 'features': 8, 'multipliers': (1, 2), 'attention_heads': 2, 'depth': 1}
  rng = np.random.default_rng(0)
  batch = {OBSERVATIONS: rng.uniform(-1, 1, (4, 4, 3)).astype(np.float32),
           ACTIONS: rng.uniform(-1, 1, (4, 4, 1)).astype(np.float32),
           RETURNS: rng.uniform(-1, 0, (4, 1)).astype(np.float32),
           'skill': np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]}
  keys = random.each(random.key(1), 4)
  context = Context(jnp.linspace(0.1, 0.9, 4), keys, jnp.int32(0))
  for rate in (0.0, 1.0):
    make = decisions.experiment(_config(4, (3, 1), ('skill',), hidden_rate=rate, goal_rate=0.5,
                                        kind='continuous', groups=4, **model))
    params = jax.tree.map(lambda u: jnp.asarray(rng.normal(0.0, 0.3, u.shape), jnp.float32),
                          jax.eval_shape(make.init, random.key(0)))
    slope = jax.jit(jax.grad(lambda params, make=make: jnp.mean(
        make.loss(params, batch, context)[0])))(params)
    moved = max(float(jnp.abs(u).max()) for u in jax.tree.leaves(slope['net']['told']))
    assert (moved > 1e-6) == (rate == 0.0)
  of = make.model(params)
  known = np.full((4, 4, 3), np.nan, np.float32)
  known[:, 0], known[:, -1] = batch[OBSERVATIONS][:, 0], 0.25
  run = jax.jit(lambda known: of.plan(known, keys, [{RETURNS: -0.1}, {'skill': [1.0, 0.0]}],
                                      weights=[0.2, 0.5], method=catalogue.method('ddim', 4)))
  found = run(known)
  np.testing.assert_array_equal(found.observations[:, [0, -1]], known[:, [0, -1]])
  assert found.actions.shape == (4, 3, 1) and (np.abs(found.actions) <= 1.0).all()
  # Without guidance, one condition alone is the same as its composition with weight 0.
  alone, composed = (jax.jit(lambda known, w=w: of.plan(
      known, keys, {RETURNS: -0.1}, weights=w, method=catalogue.method('ddim', 4)))(known)
                     for w in (0.0, [0.0]))
  np.testing.assert_allclose(alone.observations, composed.observations, atol=1e-5)
  for wrong, message in (({'speed': 1.0}, 'not told so'), ({'skill': [1.0]}, '2 numbers')):
    with pytest.raises(InputError, match=message):
      of.plan(known, keys, wrong)
  with pytest.raises(InputError, match='4 rows of 3 numbers'):
    of.plan(known[..., :2], keys)


@pytest.mark.parametrize('change,message', [
    ({'net': 'mlp'}, 'unet'), ({'kind': 'flow'}, 'chain'), ({'told': ('speed',)}, 'returns'),
    ({'hidden_rate': 1.5}, 'share'), ({'returns_scale': 0.0}, 'above 0'),
    ({'steps': 0}, '1 or more'), ({'logsnr_max': -9.0}, 'must fall')])
def test_a_planner_that_cannot_be_is_refused(change, message):
  config = _config()
  config.model.update(change)
  with pytest.raises(InputError, match=message):
    decisions.experiment(config)
