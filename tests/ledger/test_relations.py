"""What must hold between the rows of a ledger: found where it does, where it does not, and where
rows say nothing of each other.
"""
import numpy as np
import pytest

from vdm_jax.ledger import relations
from vdm_jax.ledger.rows import Measured

R, N = 2, 200
DATA = {'sha256': 'a' * 64, 'examples': N}


def draws(seed, mean=2.0, noise=0.1):
  """Bits of N images, of R repetitions: their own level, the same for all seeds, and noise."""
  own = np.random.default_rng(0).normal(mean, 0.3, N)
  return own + noise * np.random.default_rng(seed).normal(size=(R, N))


def row(name, bits, family='vlb', steps=None, schedule=None, variance=None, paths=None,
        dataset=DATA, step=1500, **parts):
  about = {'estimate': name, 'family': family, 'steps': steps, 'schedule': schedule,
           'variance': variance, 'paths': paths, 'decoder': 'of the model', 'dataset': dataset,
           'checkpoint': {'step': step, 'average': 'ema'}}
  return Measured(about, {'total': bits, **parts})


def verdicts(*rows, **options):
  return {check['name']: check['passed'] for check in relations.check(rows, **options)}


def iw(name='iw@4x10', bits=None, gain=0.05, seed=5, **options):
  single = draws(seed) if bits is None else bits
  paths, steps = map(int, name.removeprefix('iw@').split('x'))
  total = single - gain
  return row(name, total, 'iw', steps, variance='small', paths=paths, single=single,
             **{'best': total - 0.01, **options})


CHAIN = row('vlb@10', draws(1), steps=10, variance='small')


def test_paths_weighted_together_are_below_the_same_paths_one_by_one_exactly():
  holds = lambda gain: verdicts(iw(gain=gain))['iw@4x10 <= its paths one by one']
  assert holds(0.05) and not holds(-0.001)
  # One draw of one image is enough, and rounding is not.
  gain = np.full((R, N), 0.5)
  gain[1, 7] = -1e-3
  assert not holds(gain) and holds(-1e-6)


def test_paths_weighted_together_are_above_the_best_of_them_exactly():
  """A sum of weights in place of their mean is below it where two of the weights are alike."""
  log_w = -np.random.default_rng(0).normal(3.0, 0.5, (4, R, N))
  together = -np.logaddexp.reduce(log_w)
  def checked(total):
    of = row('iw@4x10', total, 'iw', 10, variance='small', paths=4, single=-log_w.mean(axis=0),
             best=-log_w.max(axis=0))
    return verdicts(of)
  assert checked(together + np.log(4)) == {'iw@4x10 <= its paths one by one': True,
                                           'the best path of iw@4x10 <= it': True}
  assert checked(together) == {'iw@4x10 <= its paths one by one': True,
                               'the best path of iw@4x10 <= it': False}


@pytest.mark.parametrize('shift,holds', [(0.0, True), (0.1, False), (-0.1, False)])
def test_paths_one_by_one_are_the_bound_of_their_chain(shift, holds):
  found = verdicts(iw(bits=draws(2) + shift), CHAIN)
  assert found['iw@4x10, its paths one by one = vlb@10'] is holds
  # Of another number of steps, another variance or another decoder they are another bound.
  for other in ({'steps': 20}, {'variance': 'large'}, {'decoder': 'discretised normal'}):
    changed = CHAIN._replace(row=CHAIN.row | other)
    assert list(verdicts(iw(bits=draws(2) + shift), changed)) == [
        'iw@4x10 <= its paths one by one', 'the best path of iw@4x10 <= it']


@pytest.mark.parametrize('shift,more,fewer', [
    (0.0, True, True), (0.01, True, True), (0.1, False, True), (-0.1, True, False)])
def test_a_file_has_the_bits_of_the_bound_of_its_chain_to_one_percent(shift, more, fewer):
  of = lambda **other: row('codec@10', draws(2, noise=0.01) + shift, 'codec',
                           **{'steps': 10, 'variance': 'small'} | other)
  chain = row('vlb@10', draws(1, noise=0.01), steps=10, variance='small')  # 2 bits, error 5e-4
  assert verdicts(of(), chain) == {'codec@10 <= vlb@10, to 1 %': more,
                                   'vlb@10 <= codec@10, to 1 %': fewer}
  assert not verdicts(of(steps=20), chain) and not verdicts(of(variance='analytic'), chain)


@pytest.mark.parametrize('gain,holds', [(0.2, True), (0.0, True), (-0.1, False)])
def test_more_paths_are_no_looser(gain, holds):
  found = verdicts(iw('iw@8x10', draws(2) - gain), iw('iw@4x10', draws(3)))
  assert found['iw@8x10 <= iw@4x10'] is holds
  assert 'iw@4x10 <= iw@8x10' not in found


@pytest.mark.parametrize('name,options', [('immse', {'family': 'immse'}),
                                          ('vlb (cosine)', {'schedule': 'cosine'})])
@pytest.mark.parametrize('shift,holds', [(0.0, True), (0.1, False), (-0.1, False)])
def test_another_way_to_the_bound_is_the_bound(name, options, shift, holds):
  assert verdicts(row('vlb', draws(1)), row(name, draws(2) + shift, **options)) == {
      f'{name} = vlb': holds}


def test_differences_are_taken_image_by_image():
  """Images differ by 30 times what draws do: compared as two means, nothing would be seen."""
  one, other = draws(1, noise=0.01), draws(2, noise=0.01) + 0.02
  check, = relations.check([row('vlb', one), row('immse', other, 'immse')])
  assert not check['passed']
  assert check['difference'] == pytest.approx(0.02, abs=0.005)
  assert check['standard_error'] == pytest.approx(0.01 * 2**0.5 / (R * N)**0.5, rel=0.2)


def test_more_steps_that_loosen_the_bound_are_a_warning_and_no_violation():
  vlb = lambda steps, shift: row(f'vlb@{steps}', draws(steps) + shift, steps=steps,
                                 variance='small')
  checks = relations.check([row('vlb', draws(9)), vlb(10, 0.5), vlb(15, 0.0), vlb(20, 1.0)])
  assert {check['name']: check['passed'] for check in checks} == {
      'vlb <= vlb@10': True, 'vlb <= vlb@15': True, 'vlb <= vlb@20': True,
      'vlb@20 <= vlb@10': False}  # of 15 steps nothing is expected: they share no grid
  assert not any(check['serious'] for check in checks)


def test_of_chains_without_a_common_grid_variance_or_decoder_nothing_is_expected():
  def chain(steps, variance='small', decoder='of the model'):
    of = row(f'vlb@{steps}', draws(steps), steps=steps, variance=variance)
    return of._replace(row=of.row | {'decoder': decoder})
  rows = [row('vlb', draws(9)), chain(10), chain(25), chain(20, 'large'),
          chain(50, decoder='discretised normal')]
  assert set(verdicts(*rows)) == {'vlb <= vlb@10', 'vlb <= vlb@25'}


@pytest.mark.parametrize('name', ['reconstruction', 'latent'])
def test_a_term_at_an_end_is_its_closed_form(name):
  expected = np.random.default_rng(0).uniform(0.001, 0.003, N)
  noisy = expected + 1e-4 * np.random.default_rng(1).normal(size=(R, N))
  exact = np.broadcast_to(expected, (R, N))
  def checked(values, error):
    found = verdicts(row('vlb', draws(1), **{name: values}),
                     closed_forms={name: (expected, error)})
    return found[f'{name} term of vlb = its closed form']
  error = 1e-4 / (R * N)**0.5
  assert checked(noisy, error) and checked(exact, 0.0) and checked(exact * (1 + 2e-6), 0.0)
  assert not checked(noisy * 1.05, error) and not checked(exact * 1.001, 0.0)


def test_a_term_of_almost_no_bits_may_differ_from_its_closed_form_by_the_rounding_of_float32():
  """log p of a certain level is log(1 - tiny), which float32 rounds in units of 6e-8."""
  def passes(bits):
    rounded = row('vlb', draws(1), reconstruction=np.full((R, N), bits))
    check, = relations.check([rounded], {'reconstruction': (np.full(N, 1e-12), 0.0)})
    return check['passed']
  assert passes(6e-8) and not passes(1e-6)


def test_a_term_of_rare_events_is_not_missed_where_none_was_drawn():
  """Draws without any have no spread; the closed form knows how many to expect."""
  zeros = row('vlb', draws(1), reconstruction=np.zeros((R, N)))
  check, = relations.check([zeros], {'reconstruction': (np.full(N, 1e-4), 1e-4)})
  assert check['passed'] and check['standard_error'] == 1e-4


@pytest.mark.parametrize('expected', [0.001, 0.04, 1.0, 30.0])
def test_a_single_rare_event_is_no_violation_and_a_broken_decoder_is(expected):
  """Events of 2 nats among few images, of which so many are expected: at 0.04 one is 4.8 sigma."""
  size = 2.0 / N
  closed = {'reconstruction': (np.full(N, expected * size), expected**0.5 * size)}
  red = lambda sums: np.array([not relations.check(
      [row('vlb', np.zeros((1, N)), reconstruction=np.full((1, N), u))], closed)[0]['passed']
      for u in sums])
  events, times = np.unique(np.random.default_rng(0).poisson(expected, 100_000),
                            return_counts=True)
  assert np.sum(times * red(size * events)) <= 12  # 3.2 of so many would be four standard errors
  assert red(size * np.array([3.0 * expected + 8.0])).all()


def test_the_probability_flow_is_held_against_nothing():
  ode = row('ode', draws(2) - 1.0, 'ode')
  assert verdicts(row('vlb', draws(1)), ode, row('ode@10', draws(3) + 1.0, 'ode', steps=10)) == {}


@pytest.mark.parametrize('other', [
    {'dataset': {'sha256': 'b' * 64, 'examples': N}}, {'dataset': DATA | {'examples': 100}},
    {'step': 1000}])
def test_rows_of_other_images_or_weights_are_never_compared(other):
  wrong = draws(2) + 5.0
  assert verdicts(row('vlb', draws(1)), row('immse', wrong, 'immse', **other),
                  row('vlb@10', draws(3) - 9.0, steps=10, **other)) == {}


def test_what_holds_is_rarely_called_violated_by_few_images_of_few_repetitions():
  """Student's t: of 3 images and one repetition, 4 standard errors are exceeded by one in 30."""
  rng = np.random.default_rng(0)
  violated = [not passed for r, n in [(1, 3), (2, 1), (3, 2)]
              for difference in rng.normal(size=(500, r, n))
              for passed in verdicts(row('vlb', np.zeros((r, n))),
                                     row('immse', difference, 'immse')).values()]
  assert len(violated) == 1500 and sum(violated) <= 2  # of 0.1 to be expected


def test_of_a_single_draw_nothing_is_said():
  assert verdicts(row('vlb', np.ones((1, 1))), row('immse', np.zeros((1, 1)), 'immse')) == {}


def test_a_check_says_what_its_failure_means():
  check, = relations.check([row('vlb', draws(1)),
                            row('vlb (linear)', draws(2) + 1, schedule='linear')])
  assert set(check) == {'name', 'difference', 'standard_error', 'passed', 'serious', 'meaning'}
  assert 'told t' in check['meaning'] and check['serious']


# ------------------------------------------------------------------- ranges


def in_range(bits, levels=4, data_space=True, **parts):
  of = row('vlb', bits, **parts)
  of.row.update(logsnr_max=2.0, logsnr_min=-2.0)
  return [check['passed'] for check in relations.ranges([of], levels, data_space)]


def test_bits_of_discrete_data_are_between_0_and_what_a_network_of_zeros_reaches():
  limit = 2.0 + 0.5 * 4.0 / np.log(2)  # equal odds of 4 levels, and half a nat at each log-SNR
  for value, holds in ((-14_253.0, False), (-0.05, False), (0.0, True), (1.9, True),
                       (limit - 0.1, True), (limit + 0.1, False), (26.8, False)):
    assert in_range(draws(1, mean=value)) == [holds] or value == 0.0
    assert in_range(np.full((1, 1), value)) == [holds]  # also of a single draw
  # Noise alone is no failure: the mean of these is 0.
  assert in_range(draws(1) - draws(1).mean()) == [True]


@pytest.mark.parametrize('name', ['reconstruction', 'latent', 'diffusion'])
def test_a_term_that_is_negative_on_one_image_fails_however_the_others_scatter(name):
  values = np.abs(np.random.default_rng(0).normal(0.0, 100.0, (R, N)))
  assert in_range(np.ones((R, N)), **{name: values}) == [True, True]
  values[0, 3] = -0.1
  assert in_range(np.ones((R, N)), **{name: values}) == [True, False]
  assert in_range(np.ones((R, N)), **{name: values, 'reference': -values}) == [True, False]


def test_the_density_of_what_is_continuous_and_the_parts_of_a_difference_may_be_negative():
  of = row('vlb', np.ones((R, N)), reconstruction=np.full((R, N), -1.0), latent=np.ones((R, N)))
  of.row.update(logsnr_max=2.0, logsnr_min=-2.0, decoder='normal, of the dequantised')
  assert all(check['passed'] for check in relations.ranges([of], 4))
  assert in_range(np.ones((R, N)), reference=np.full((R, N), -1.0)) == [True]


def test_latents_of_images_may_cost_any_number_of_bits_but_no_fewer_than_0():
  """Their density may be above 1, and no network of zeros bounds the cost of an autoencoder."""
  density = {'reconstruction': np.full((R, N), -1.0), 'latent': np.ones((R, N))}
  assert in_range(draws(1, mean=40.0), data_space=False, **density) == [True, True]
  assert in_range(draws(1, mean=-0.05), data_space=False, **density) == [False, True]
  assert in_range(np.ones((R, N)), data_space=False, latent=-np.ones((R, N))) == [True, False]
