"""Parity with the official VDM code, on outputs it computed for fixed parameters and draws.

The files in tests/data hold one small network; a second one (two blocks, attention everywhere,
monotone schedule) is compared where the full recordings lie beside the repository.

What float32 allows was measured once against the same functions in float64: our numbers and the
recorded ones lie equally far from the exact ones, and the tolerances below are that distance.
Two consequences.  A gradient that is zero in exact arithmetic (with 32 channels in 32 groups the
norms remove the conditioning and the last biases) is recorded as noise of 1e-8 of the gradient's
norm.  And a free-running sampler amplifies rounding through the Fourier features by about a
hundred a step, so each transition of the chain is compared from the recorded state.
"""
import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import (
  decoders,
  denoisers,
  processes,
  random,
  samplers,
  schedules,
  targets,
  units,
  values,
)
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.unets.vdm import STACKS, ResBlock, UNet
from vdm_jax.objectives import vlb
from vdm_jax.published import google_vdm
from vdm_jax.systems.variational import vdm
from vdm_jax.train import optimizer, parallel
from vdm_jax.train import step as step_lib

DATA = Path(__file__).parents[1] / 'data'
FULL = Path(__file__).parents[3] / 'shared' / 'oracles' / 'vdm_monotone_attn_2x32.npz'
SHAPE = (32, 32, 3)
pixels = decoders.Pixels(256)


def read(path):
  with np.load(path) as file:
    return {name: file[name] for name in file.files}


def under(recorded, prefix):
  return {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}


def shapes_of(net, schedule):
  def init(key):
    return {'net': net.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1))['params'],
            'schedule': schedule.init(key, jnp.zeros(()))['params']}
  return jax.eval_shape(init, jax.random.key(0))


class Case(NamedTuple):
  recorded: dict[str, np.ndarray]
  net: nn.Module
  schedule: nn.Module
  like: Any
  params: Any
  value_and_grad: Any

  def process(self, params):
    return processes.GaussianProcess(values.Bound(params['schedule'], self.schedule))

  def denoiser(self, params):
    return denoisers.denoiser(values.Bound(params['net'], self.net), targets.eps)

  def bound(self, params, draw):
    return vlb.continuous(
        self.denoiser(params), self.process(params), pixels.encode(draw['images']), draw['t'],
        None, draw['cond'], data=draw['images'], decoder=pixels.log_prob, eps=draw['eps'],
        eps_0=draw['eps_0'])

  def draw(self, prefix=''):
    names = ('t', 'eps', 'eps_0')
    return {'images': self.recorded['images'], 'cond': self.recorded['conditioning'],
            **{name: self.recorded[prefix + name] for name in names}}


def make_case(recorded, net, schedule):
  like = shapes_of(net, schedule)
  params = google_vdm.fit(under(recorded, 'params/'), like)
  case = Case(recorded, net, schedule, like, params, None)

  def mean_bits(params, draw):
    nats, terms = case.bound(params, draw)
    return units.bits_per_dim(jnp.mean(nats), SHAPE), terms
  return case._replace(value_and_grad=jax.jit(jax.value_and_grad(mean_bits, has_aux=True)))


def scalar_case():
  recorded = read(DATA / 'vdm_scalar_1x32.npz') | read(DATA / 'vdm_scalar_1x32_train.npz')
  return make_case(recorded, UNet(features=32, blocks=1, dropout=0.0), schedules.LearnedLinear())


def monotone_case():
  if not FULL.exists():
    pytest.skip(f'the full recording {FULL.name} is not in ../shared/oracles')
  net = UNet(features=32, blocks=2, attention_everywhere=True, dropout=0.0)
  return make_case(read(FULL), net, schedules.Monotone())


@pytest.fixture(scope='module')
def scalar():
  return scalar_case()


@pytest.fixture(scope='module', params=[scalar_case, monotone_case],
                ids=['scalar_1x32', 'monotone_attention_2x32'])
def case(request):
  return request.param()


def norm(tree):
  return np.sqrt(sum(np.sum(np.square(np.float64(u))) for u in jax.tree.leaves(tree)))


# ------------------------------------------------------------ the import


@pytest.mark.long
def test_every_official_name_has_its_place_and_shape():
  recorded = read(DATA / 'vdm_monotone_2x32.npz')
  flat = {k: np.zeros(v) for k, v in json.loads(str(recorded['shapes'])).items()}
  net = UNet(features=32, blocks=2, attention_everywhere=True)
  params = google_vdm.fit(flat, shapes_of(net, schedules.Monotone()))
  assert sum(u.size for u in jax.tree.leaves(params)) == sum(u.size for u in flat.values())


@pytest.mark.long
def test_written_out_again_the_official_parameters_are_the_same(scalar):
  flat = google_vdm.to_flat(scalar.params)
  official = under(scalar.recorded, 'params/')
  assert flat.keys() == official.keys()
  for name, value in official.items():
    np.testing.assert_array_equal(flat[name], value, err_msg=name)


def test_missing_left_over_and_misshapen_parameters_are_named(scalar):
  flat = under(scalar.recorded, 'params/')
  flat['score_model/down.block_7/conv1/kernel'] = flat.pop('score_model/down.block_0/conv1/kernel')
  flat['gamma/w'] = np.zeros((2,))
  with pytest.raises(ValueError) as error:
    google_vdm.fit(flat, scalar.like)
  text = str(error.value)
  assert 'missing: score_model/down.block_0/conv1/kernel (here net/down_0/conv1/kernel ' in text
  assert 'left over: score_model/down.block_7/conv1/kernel' in text
  assert 'shape: gamma/w is (2,), which does not fit schedule/w (1,)' in text


# --------------------------------------------------------- the functions


@pytest.mark.first(1)
def test_the_network_repeats_the_recorded_noise_estimate(case, differs):
  r = case.recorded
  apply = jax.jit(lambda params, *args: case.net.apply({'params': params}, *args))
  eps_hat = apply(case.params['net'], r['net/z_t'], -r['net/g_t'], r['net/cond'])
  np.testing.assert_allclose(eps_hat, r['net/eps_hat'], rtol=1e-6, atol=1e-6)
  differs('parity', 'nn/unets/vdm.py', eps_hat, r['net/eps_hat'])
  differs('official_vdm', 'network output', eps_hat, r['net/eps_hat'])


def test_every_block_repeats_its_recorded_output(scalar):
  r, net = scalar.recorded, scalar.net
  apply = jax.jit(lambda params, *args: net.apply(
      {'params': params}, *args, capture_intermediates=True)[1]['intermediates'])
  seen = apply(scalar.params['net'], r['net/z_t'], -r['net/g_t'], r['net/cond'])
  out = {name: u['__call__'][0] for name, u in seen.items() if name != '__call__'}
  # The stacked blocks, which leave no record, between those that do.
  params = stack.unrolled(scalar.params['net'], STACKS)
  apply = jax.jit(ResBlock(net.features, net.groups).apply)
  block = lambda name, *h: apply({'params': params[name]}, jnp.concatenate(h, axis=-1),
                                 out['embedding'])
  out['down_0'] = block('down_0', out['conv_in'])
  out['up_0'] = block('up_0', out['mid_1'], out['down_0'])
  out['up_1'] = block('up_1', out['up_0'], out['conv_in'])
  blocks = {'conv_in': 'conv_in', 'down_0': 'down.block_0', 'mid_0': 'mid.block_1',
            'mid_attention': 'mid.attn_1', 'mid_1': 'mid.block_2', 'up_0': 'up.block_0',
            'up_1': 'up.block_1'}
  for ours, official in blocks.items():
    np.testing.assert_allclose(out[ours][:, ::8, ::8], r['net/inter/' + official], rtol=1e-6,
                               atol=2e-6, err_msg=ours)
  # The phases of the embedding reach 1000, where float32 has a resolution of 6e-5.
  for dense in ('dense0', 'dense1'):
    np.testing.assert_allclose(seen['embedding'][dense]['__call__'][0], r['net/inter/' + dense],
                               rtol=1e-5, atol=6e-5, err_msg=dense)


@pytest.mark.parametrize('file,schedule', [('vdm_scalar_1x32', schedules.LearnedLinear()),
                                           ('vdm_monotone_2x32', schedules.Monotone())])
def test_learned_schedules_repeat_their_values_and_derivatives(file, schedule):
  recorded = read(DATA / f'{file}.npz')
  like = jax.eval_shape(lambda key: {'schedule': schedule.init(key, jnp.zeros(()))['params']},
                        jax.random.key(0))
  params = google_vdm.fit(
      {k: v for k, v in under(recorded, 'params/').items() if k.startswith('gamma/')}, like)
  process = jax.jit(processes.GaussianProcess(values.Bound(params['schedule'], schedule)))
  np.testing.assert_allclose(-process(recorded['gamma/t_grid']).logsnr, recorded['gamma/grid'],
                             rtol=2e-7, atol=1e-6)
  level = process(recorded['t'])
  np.testing.assert_allclose(-level.logsnr, recorded['gamma/at_t'], rtol=2e-7, atol=1e-6)
  np.testing.assert_allclose(-level.dlogsnr, recorded['gamma/grad_at_t'], rtol=2e-7)
  ends = -process(jnp.array([0.0, 1.0])).logsnr
  np.testing.assert_allclose(ends, [*recorded['gamma/0'], *recorded['gamma/1']], rtol=2e-7)


@pytest.mark.first(1)
def test_the_three_terms_of_the_bound_repeat(case, differs):
  (bits, terms), _ = case.value_and_grad(case.params, case.draw())
  r = case.recorded
  np.testing.assert_allclose(terms['diffusion'], r['loss_diff'], rtol=2e-6)
  # The recorded latent term is 5e-5 off the exact one, a small difference of numbers near 1.
  np.testing.assert_allclose(terms['latent'], r['loss_klz'], rtol=1e-4)
  # float32 resolves z_0 to 5e-5 of its noise.  Where p(data | z_0) is almost 1 in all 3072
  # dimensions, each log of it is rounded at 6e-8.
  np.testing.assert_allclose(terms['reconstruction'], r['loss_recon'], rtol=1e-4, atol=2e-5)
  np.testing.assert_allclose(bits, r['bpd'], rtol=1e-6)
  differs('official_vdm', 'total bound', bits, r['bpd'])
  for row, name in {'diffusion': 'loss_diff', 'latent': 'loss_klz'}.items():
    differs('official_vdm', f'{row} term', terms[row], r[name])
  differs('official_vdm', 'reconstruction term, nats', terms['reconstruction'], r['loss_recon'],
          relative=False)


@pytest.mark.first(1)
def test_the_gradient_repeats_for_every_parameter(case, differs):
  (bits, _), got = case.value_and_grad(case.params, case.draw('grad/'))
  want = google_vdm.fit(under(case.recorded, 'grad/d/'), case.like)
  np.testing.assert_allclose(bits, case.recorded['grad/bpd'], rtol=1e-6)
  error = jax.tree.map(np.subtract, got, want)
  assert norm(error) < 1e-4 * norm(want)
  for row, of in {'gradient': lambda u: u, 'gradient of the schedule': lambda u: u['schedule']
                  }.items():
    differs('official_vdm', f'{row}, in norm', norm(of(error)) / norm(of(want)), 0.0,
            relative=False)
  # The schedule's is a difference of larger terms; the recorded one is 4e-4 off the exact one.
  tolerance = {'net': 1.5e-4, 'schedule': 1e-3}
  for (path, e), w in zip(jax.tree_util.tree_leaves_with_path(error), jax.tree.leaves(want),
                          strict=True):
    allowed = tolerance[path[0].key] * norm(w) + 1e-8 * norm(want)
    assert norm(e) < allowed, (jax.tree_util.keystr(path), norm(e), norm(w))


@pytest.mark.long
def test_three_steps_of_adamw_and_its_average_repeat(scalar, differs):
  r = scalar.recorded
  b1, b2, eps, decay, rate = (float(u) for u in r['train/hparams_b1_b2_eps_wd_ema'])
  config = optimizer.default_config()
  config.update(learning_rate=2e-4, warmup_steps=100, decay_steps=0, b1=b1, b2=b2, eps=eps,
                weight_decay=decay, clip_norm=0.0, official_decay_mask=True)
  tx = optimizer.adamw(config)

  def loss(params, draw, context):
    nats, terms = scalar.bound(params, draw)
    return units.bits_per_dim(nats, SHAPE), terms

  update = step_lib.make_step(loss, tx, {'ema': rate})
  step = jax.jit(lambda state, draw: update(state, draw, jax.random.key(0), parallel.Axis()))
  state = step_lib.init(scalar.params, tx)
  for i in range(3):
    np.testing.assert_allclose(optimizer.learning_rate(config)(i), r[f'train/{i}/lr'], rtol=1e-6)
    state, metrics = step(state, scalar.draw(f'train/{i}/'))
    np.testing.assert_allclose(metrics['loss'], r[f'train/{i}/bpd'], rtol=1e-6)

  # Adam turns a gradient that is rounding noise into a step of arbitrary sign, at most as long as
  # the learning rates together, 6e-6.
  gradient = under(r, 'grad/d/')
  moved, averaged = under(r, 'train/params_moved/'), under(r, 'train/ema_moved/')
  before, after, mean = map(google_vdm.to_flat, (scalar.params, state.params, state.ema['ema']))
  for name, start in before.items():
    params, ema, move, average = after[name], mean[name], moved[name], averaged[name]
    zero = norm(gradient[name]) < 1e-7
    off = np.abs(np.float64(params) - (np.float64(start) + move))
    if zero:
      assert off.max() < 6.1e-6, name
    else:
      assert norm(off) < 2e-3 * norm(move) + 1e-9, name
      if norm(move) > 1e-6:  # others hardly move
        differs('official_vdm', 'movement of a tensor in three AdamW steps, in norm',
                norm(off) / norm(move), 0.0, relative=False)
    # Two units in the last place.  At this rate an average of numbers near 1 does not move at all
    # in three steps, and must not drift either.
    np.testing.assert_allclose(ema, start + average, rtol=2.4e-7,
                               atol=2e-9 if zero else 1e-10, err_msg=name)
    if not zero:
      differs('official_vdm', 'averages', ema, start + average)


@pytest.mark.long
def test_every_transition_of_the_ancestral_sampler_repeats(case, differs):
  r, process = case.recorded, case.process(case.params)
  keys = jax.random.split(jax.random.key(0), len(r['sample/z_T']))

  @jax.jit
  def transition(z, t, s, noise):
    sampler = samplers.ancestral(case.denoiser(case.params), case.process(case.params))
    with mock.patch.object(random, 'normal', lambda keys, like: noise):
      return sampler.step(keys, z, t, s, None)

  steps = len(r['sample/eps'])
  z = r['sample/z_T']
  for i, (noise, after) in enumerate(zip(r['sample/eps'], r['sample/z'], strict=True)):
    got = transition(z, np.float32((steps - i) / steps), np.float32((steps - i - 1) / steps), noise)
    # The recorded sigma_s^2 is 1 - alpha_s^2, rounded at 1.2e-7: near the data that moves sigma_s,
    # and the noise with it, by a few per cent.
    sigma = float(process(np.float32((steps - i - 1) / steps)).sigma)
    atol = 3e-6 + 0.5 * 1.2e-7 / sigma * np.abs(noise).max()
    np.testing.assert_allclose(got, after, rtol=0.0, atol=atol, err_msg=f'step {i}')
    assert norm(got - after) < 1e-4 * norm(after), i
    differs('official_vdm', 'each transition of the ancestral sampler, in norm',
            norm(got - after) / norm(after), 0.0, relative=False)
    z = after
  images = pixels.decode(z / process(jnp.zeros(())).alpha)
  np.testing.assert_array_equal(images, r['sample/images'])


def test_a_config_is_enough_to_import_official_parameters():
  recorded = under(read(DATA / 'vdm_scalar_1x32.npz'), 'params/')
  config = vdm.default_config()
  config.data.update(name='cifar10', shape=SHAPE, levels=256)
  config.model.update(features=32, blocks=1)
  params = google_vdm.from_flat(recorded, config)
  np.testing.assert_array_equal(params['schedule']['w'], recorded['gamma/w'])
  np.testing.assert_array_equal(params['net']['up']['conv2']['kernel'][1],
                                recorded['score_model/up.block_1/conv2/kernel'])
  config.model.blocks = 2
  with pytest.raises(InputError, match=r'missing: score_model/down.block_1'):
    google_vdm.from_flat(recorded, config)
