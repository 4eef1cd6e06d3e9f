"""Names of estimates: what each means, what is refused, and that on closed forms all of them agree.

The model is an oracle: the posterior mean of two pixels of four levels whose probabilities are
known.  Then whatever `relations` asks holds; and where one thing in it is broken, it is found.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.gaussian import chain_nats
from vdm_jax import dequantisers, oracles, schedules
from vdm_jax.decoders import Pixels, Reals
from vdm_jax.errors import InputError
from vdm_jax.ledger import families, family, measuring, relations
from vdm_jax.ledger.families import AnnealedSettings, BoundSettings, FlowSettings
from vdm_jax.ledger.family import Options, TrainingStatistics
from vdm_jax.likelihood import bounds, closed_forms, gaussian, replaced_schedules
from vdm_jax.processes import GaussianProcess
from vdm_jax.typing import Model

# --------------------------------------------------------------------- names


@pytest.mark.parametrize('name,of,settings', [
    ('vlb', 'vlb', BoundSettings()),
    ('vlb@1000', 'vlb', BoundSettings(1000)),
    ('vlb@10/large', 'vlb', BoundSettings(10, 'large')),
    ('vlb@10/learned/ddpm', 'vlb', BoundSettings(10, 'learned', ddpm=True)),
    ('vlb@2/ddpm', 'vlb', BoundSettings(2, ddpm=True)),
    ('iw@20x100', 'iw', BoundSettings(100, paths=20)),
    ('iw@5x10/analytic', 'iw', BoundSettings(10, 'analytic', paths=5)),
    ('ode', 'ode', FlowSettings()),
    ('ode@50', 'ode', FlowSettings(50)),
    ('ode/truncated_normal', 'ode', FlowSettings(dequantiser='truncated_normal')),
    ('ode@50/variational', 'ode', FlowSettings(50, 'variational')),
    ('immse', 'immse', ()),
    ('codec@50', 'codec', BoundSettings(50)),
    ('codec@20/analytic', 'codec', BoundSettings(20, 'analytic')),
    ('ais@64x1000', 'ais', AnnealedSettings(64, 1000)),
])
def test_a_name_says_what_is_estimated(name, of, settings):
  asked = families.parse([name])[-1]
  assert (asked.name, asked.family.name, asked.settings) == (name, of, settings)


def test_names_are_taken_once_in_order_after_the_bound_that_is_always_there():
  names = [estimate.name for estimate in families.parse(['ode', 'vlb@10', 'ode', 'vlb'])]
  assert names == ['vlb', 'ode', 'vlb@10']


@pytest.mark.parametrize('name', [
    '', 'elbo', 'VLB', 'vlb@', 'vlb@x', 'vlb@0', 'vlb@-1', 'vlb@1.5', 'vlb@10/small', 'vlb/large',
    'vlb@10/ddpm/large', 'vlb@1/ddpm', 'vlb ', 'vlb@10 ', 'iw', 'iw@20', 'iw@0x10', 'iw@20x0',
    'iw@x100', 'iw@20x100x3', 'ode@0', 'ode@', 'ode/flow', 'ode@10/large', 'immse@10',
    'codec', 'codec@0', 'codec@10/large', 'codec@10/ddpm', 'ais', 'ais@10', 'ais@1x10', 'ais@2x0',
    'vlb (cosine)', 'vlb@１０'])
def test_a_name_that_is_none_is_refused_in_one_line_that_says_what_is_accepted(name):
  with pytest.raises(InputError) as error:
    families.parse(['vlb', name])
  message = str(error.value)
  assert message.startswith(f'estimates={name!r}: ') and '\n' not in message
  if name not in ('vlb@1/ddpm', 'ais@1x10'):
    assert families.ACCEPTED in message


@pytest.mark.parametrize('variance', ['large', 'learned'])
def test_paths_of_few_wide_steps_are_refused_and_of_more_say_that_their_weights_have_heavy_tails(
    variance):
  with pytest.raises(InputError, match='heavy tails .*take 10 steps or more, or iw@4x9'):
    families.parse([f'iw@4x9/{variance}'])
  families.parse([f'iw@4x9/{same}' for same in ('analytic',)] + ['iw@4x9', f'vlb@9/{variance}'])
  said = lambda name: family.about(families.parse([name])[-1], Options())['error_beside']
  assert 'heavy-tailed' in said(f'iw@4x10/{variance}')
  assert said('iw@4x10') is said(f'vlb@10/{variance}') is None


@pytest.mark.parametrize('options,flag', [
    ({'times': 0}, '^times=0: '), ({'importance': 0}, '^importance=0: '),
    ({'probes': -1}, '^probes=-1: '), ({'probe': 'normal'}, "^probe='normal': "),
    ({'ode_tolerance': 0.0}, '^ode_tolerance=0.0: '),
    ({'ode_tolerance': 2.0}, '^ode_tolerance=2.0: '),
    ({'ode_tolerance': float('nan')}, '^ode_tolerance=nan: '),
    ({'ode_start': 0.0}, '^ode_start=0.0: '),
    ({'ode_start': 1.0}, '^ode_start=1.0: ')])
def test_a_number_out_of_range_is_refused_by_its_flag(options, flag):
  with pytest.raises(InputError, match=flag):
    family.check_options(Options(**options))
  family.check_options(Options())


def test_what_a_row_says_of_its_estimate():
  about = lambda name, **options: family.about(families.parse([name])[-1], Options(**options))
  said = about('ode/uniform', ode_tolerance=1e-4, probes=3)
  assert (said['model'], said['dequantiser'], said['tolerance'], said['probes']) == (
      'probability flow', 'uniform', 1e-4, 3)
  assert about('ode@10')['tolerance'] is about('ode', probe='exact')['probes'] is None
  assert '10 fixed steps' in about('ode@10')['error_beside']
  assert about('vlb')['error_beside'] is None
  assert about('ode')['decoder'] == about('vlb')['decoder'] == 'of the model'
  assert about('vlb@10')['variance'] == 'small' and about('vlb')['variance'] is None
  assert about('vlb@10')['model'] == 'chain' and about('vlb')['model'] == 'reverse SDE'
  assert about('vlb@10/ddpm')['decoder'] == 'discretised normal'
  assert (about('iw@4x10')['paths'], about('iw@4x10')['times_per_image']) == (4, None)
  # What makes it another number is in its name, where tables of several runs look for it.
  assert about('ode', importance=20)['estimate'] == 'ode x20'
  started = about('ode/uniform', importance=2, ode_start=1e-3)
  assert started['estimate'] == 'ode/uniform x2 from 0.001' and started['start'] == 1e-3
  assert started['decoder'] == 'normal, of the dequantised'
  assert about('ode/uniform')['start'] is about('ode/uniform')['decoder'] is None
  assert about('vlb', importance=20, ode_start=1e-3)['estimate'] == 'vlb'
  fields = [set(about(name)) for name in ('vlb', 'vlb@10', 'iw@4x10', 'ode', 'immse', 'ais@2x2')]
  assert all(names == fields[0] for names in fields)


# ------------------------------------------------------------- a known distribution

HIGH, LOW, LEVELS = 3.0, -3.0, 4
COUNTS = np.array([[6, 1, 0, 1], [2, 5, 1, 0], [0, 1, 4, 2], [1, 0, 2, 6]])  # of 32, two pixels
PAIRS = np.repeat(np.argwhere(COUNTS), COUNTS[COUNTS > 0], axis=0).astype(np.uint8)
PIXELS = Pixels(LEVELS)
ORACLE = oracles.Empirical(PIXELS.encode(jnp.asarray(PAIRS)))


class Split:
  """Images in memory, read by row as the splits of a data set are."""

  def __len__(self):
    return len(PAIRS)

  def get(self, rows):
    return {'image': PAIRS[rows]}


PROCESS = GaussianProcess(schedules.Linear(HIGH, LOW))


def model(denoise=ORACLE, process=PROCESS, decoder=PIXELS.log_prob, **more):
  return Model(denoise=denoise, process=process, decoder=decoder, encode=PIXELS.encode,
               decode=PIXELS.decode, cond=lambda batch: None, shape=(2,), **more)


@functools.cache
def moments():
  return gaussian.fit(Split(), PIXELS.encode, LEVELS)


def measured(name, of, times=64, repeats=8, **given):
  about = {'dataset': {'sha256': '', 'examples': len(PAIRS)}, 'checkpoint': {}, **given}
  return measuring.measure(
      families.parse([name])[-1], Options(
          times=times, probe='exact', ode_tolerance=1e-3, repeats=repeats, batch_size=1 << 14),
      lambda params: of, {}, Split(), shape=(2,), levels=LEVELS,
      statistics=TrainingStatistics(moments()), fields=about, progress=False)


def end_terms(draws=64 * 8):
  """In bits/dim, with the errors of the means of so many draws."""
  table, variance = closed_forms.reconstruction(LEVELS, HIGH)
  variance = variance[PAIRS].sum() / draws
  errors = {'reconstruction': variance**0.5 / len(PAIRS) / (2 * np.log(2)), 'latent': 0.0}
  return {name: (u / (2 * np.log(2)), errors[name])
          for name, u in closed_forms.end_terms(PAIRS, table, LOW).items()}


def entropy():
  p = COUNTS[COUNTS > 0] / COUNTS.sum()
  return -np.sum(p * np.log2(p)) / 2


def mean_and_error(of):
  """Over draws: the images are the distribution itself."""
  return of.row['bits_per_dim'], of.row['standard_error_draws']


def test_on_an_oracle_every_relation_holds_and_every_bound_is_above_the_entropy():
  rows = [measured(name, model()) for name in ('vlb', 'vlb@10', 'iw@4x10', 'immse')]
  checks = relations.check(rows, end_terms())
  assert [check['name'] for check in checks] == [
      'iw@4x10 <= its paths one by one', 'the best path of iw@4x10 <= it',
      'iw@4x10, its paths one by one = vlb@10', 'immse = vlb',
      'reconstruction term of vlb = its closed form', 'latent term of vlb = its closed form',
      'vlb <= vlb@10']
  assert all(check['passed'] for check in checks)
  # They could tell: a tenth of the bound would be missed by none.
  assert all(4 * check['standard_error'] < 0.1 * entropy() for check in checks[:6])
  for of in rows[:3]:
    mean, error = mean_and_error(of)
    assert mean > entropy() - 4 * error


@pytest.mark.long
def test_a_code_of_an_oracle_is_as_long_as_the_bound_of_its_chain():
  rows = [measured(name, model(), repeats=2) for name in ('vlb@10', 'codec@10')]
  checks = relations.check(rows)
  assert [check['name'] for check in checks] == [
      'codec@10 <= vlb@10, to 1 %', 'vlb@10 <= codec@10, to 1 %']
  assert all(check['passed'] for check in checks)
  said = rows[1].row
  assert (said['kind'], said['times_per_image']) == ('code length', None)
  assert said['evaluations_max'] == 2 * 10 * 2  # each image there and back, twice
  mean, error = mean_and_error(rows[1])
  assert mean > entropy() - 4 * error


def test_the_flow_of_an_oracle_is_above_the_entropy_and_says_what_it_cost():
  of = measured('ode@8/uniform', model(), repeats=4)
  mean, error = mean_and_error(of)
  assert mean > entropy() - 4 * error
  # Four stages a step, each with the two rows of the exact Jacobian; all repetitions together.
  assert of.row['evaluations_per_image'] == of.row['evaluations_max'] == 4 * 8 * 4 * 3


@pytest.mark.long
def test_where_jax_has_64_bits_the_times_of_the_bound_are_those_of_32():
  """In float64 a key draws other numbers."""
  times = lambda: np.asarray(bounds.draw_times({}, jax.random.split(jax.random.key(0), 5), 4)[1])
  expected = times()
  with jax.enable_x64(True):
    np.testing.assert_array_equal(times(), expected)


def test_the_bound_of_a_model_with_a_dequantiser_says_so():
  bound = lambda batch, t, keys, steps: (jnp.ones(len(t)), {'diffusion': jnp.ones(len(t))})
  said = measured('vlb', model(bound=bound, dequantise=dequantisers.uniform(LEVELS)), 2, 1).row
  assert (said['dequantiser'], said['decoder']) == ('of the model', 'normal, of the dequantised')
  said = measured('vlb', model(bound=bound), 2, 1).row
  assert (said['dequantiser'], said['decoder']) == (None, 'of the model')
  said = measured('vlb', model(bound=bound, data_space=False), 2, 1).row  # of drawn latents
  assert (said['dequantiser'], said['decoder']) == ('of the model', 'normal, of the dequantised')


def test_the_row_of_a_chain_with_a_bound_of_its_own_says_its_variance_and_counts_its_calls():
  bound = lambda batch, t, keys, steps: (jnp.ones(len(t)), {'diffusion': jnp.ones(len(t))})
  def said(denoise=ORACLE, **more):
    found = measured('vlb@10', model(denoise, bound=bound, **more), 3, 1).row
    return found['variance'], found['evaluations_per_image']
  assert said() == ('small', 3)
  assert said(bound_variance='learned') == ('learned', 3)
  published = {'bound_variance': 'published', 'bound_evaluations': 2}
  assert said(**published) == ('large', 6) and said(heads, **published) == ('learned', 6)


def test_a_chain_of_real_numbers_ends_in_their_normal_density():
  """Of x ~ N(0, 1); the data are 2 x + 1, whose density is half as large in each dimension."""
  betas, coding = np.linspace(0.02, 0.6, 10), Reals(1.0, 2.0)
  process = GaussianProcess(schedules.TableSchedule.from_betas(betas))
  of = Model(denoise=oracles.Gaussian(0.0, 1.0), process=process, decoder=coding.log_prob,
             encode=coding.encode, decode=coding.decode, cond=lambda batch: None, shape=(2,),
             steps=10)
  points = np.random.default_rng(0).normal(1.0, 2.0, (4000, 2)).astype(np.float32)

  class Points(Split):
    def __len__(self):
      return len(points)
    def get(self, rows):
      return {'image': points[rows]}
  one = Points().get(np.arange(1))
  first, = families.chain_estimates(families.parse([]), Options(), of, one)
  assert first.name == 'vlb@10/large/ddpm' and not families.needs([first], Options(), of, one)
  row = measuring.measure(
      first, Options(times=9, batch_size=1 << 16), lambda params: of, {}, Points(), shape=(2,),
      levels=None, statistics=TrainingStatistics(), progress=False).row
  expected = (chain_nats(betas) + np.log(2.0)) / np.log(2.0)
  assert abs(row['bits_per_dim'] - expected) < 4 * row['standard_error'] < 0.1
  assert row['decoder'] == 'normal'


def test_what_was_read_from_the_data_is_an_argument_of_the_program(monkeypatch):
  """75 MB of eigenvectors, of data of 3072 dimensions: as a constant they would be compiled."""
  constants, whole = [], measuring.over_images
  def watched(run, of, params, split, key, **options):
    batch, keys = split.get(np.arange(3)), jax.random.split(key, 3)
    found = jax.make_jaxpr(lambda params: run(of(params), batch, keys))(params)
    constants.extend(np.shape(u) for u in found.consts)
    return whole(run, of, params, split, key, **options)
  monkeypatch.setattr(measuring, 'over_images', watched)
  measured('immse', model(oracles.Gaussian(0.0, 0.5)), times=2, repeats=1)
  assert moments().eigenvectors.shape == (2, 2) not in constants


def violated(rows):
  draws = rows[0].row['times_per_image'] * rows[0].row['repeats']
  return [check['name'] for check in relations.check(rows, end_terms(draws))
          if check['serious'] and not check['passed']]


def test_a_decoder_that_is_off_by_a_few_percent_is_found_by_its_closed_form():
  sharper = lambda data, z, level: PIXELS.log_prob(
      data, z, level._replace(logsnr=level.logsnr + 0.2))
  assert violated([measured('vlb', model(decoder=sharper), times=512)]) == [
      'reconstruction term of vlb = its closed form']


@pytest.mark.long
def test_a_derivative_of_the_schedule_that_is_off_is_found_by_the_other_formula():
  def process(t):
    level = PROCESS(t)
    return level._replace(dlogsnr=1.1 * level.dlogsnr)
  assert violated([measured(name, model(process=process)) for name in ('vlb', 'immse')]) == [
      'immse = vlb']


@pytest.mark.long
def test_a_network_told_the_log_snr_has_one_bound_under_all_schedules_and_one_told_t_has_not():
  told_t = lambda z, level, cond=None: ORACLE(z, PROCESS(level.t))  # the same under its own
  def under_two(of):
    moved = replaced_schedules.with_schedule(lambda params: of, 'sigmoid')({})
    return [measured('vlb', of, times=512), measured(
        'vlb', moved, times=512, estimate='vlb (sigmoid)', schedule='sigmoid')]
  assert violated(under_two(model())) == []
  assert violated(under_two(model(told_t))) == ['vlb (sigmoid) = vlb']


def test_only_a_schedule_of_all_pixels_with_finite_ends_is_exchanged_for_others():
  assert replaced_schedules.has_replaceable_schedule(model())
  for schedule in (schedules.BetaLinear(t_min=0.0), of_pixels):
    assert not replaced_schedules.has_replaceable_schedule(model(process=GaussianProcess(schedule)))
  assert not replaced_schedules.has_replaceable_schedule(model(bound=lambda *_: None))


def test_other_schedules_have_the_ends_of_the_models_own_and_decrease():
  @jax.jit
  def logsnr():
    return [replaced_schedules.with_schedule(lambda params: model(), name)({}).process(
        jnp.linspace(0.0, 1.0, 11)).logsnr for name in replaced_schedules.SCHEDULES]
  found = np.array(logsnr())
  np.testing.assert_allclose(found[:, [0, -1]], [[HIGH, LOW]] * len(found), atol=1e-5)
  assert np.all(np.diff(found) < 0)
  assert np.all(np.ptp(found, axis=0)[1:-1][[1, 6]] > 0.1)  # and differ between


# ---------------------------------------------------- what a model cannot have


def heads(z, level, cond=None):
  return ORACLE(z, level)._replace(extra={'variance': z})


own_bound = {'bound': lambda batch, t, keys, steps: None}
own_latent = {'latent': lambda keys: None}
dequantiser = {'dequantise': dequantisers.uniform(LEVELS)}


def of_pixels(t):
  return jnp.array([HIGH, HIGH + 1.0]) + (LOW - HIGH) * t[..., None]


per_pixel = GaussianProcess(of_pixels)


@pytest.mark.parametrize('names,of,remedy', [
    (['vlb@10/learned'], model(), 'ask for another variance'),
    (['iw@4x10/learned/ddpm'], model(), 'ask for another variance'),
    (['ode/variational'], model(), 'ode/uniform'),
    (['ode'], model(**own_bound), 'ask for vlb'),
    (['ode/uniform'], model(**own_bound, **own_latent), 'ask for vlb'),
    (['iw@4x10'], model(**own_bound), 'ask for vlb'),
    (['immse'], model(**own_bound), 'ask for vlb'),
    (['vlb@10/large'], model(**own_bound), 'ask for vlb'),
    (['iw@4x10'], model(process=per_pixel), 'ask for vlb or vlb@T'),
    (['codec@10'], model(process=per_pixel), 'ask for vlb'),
    (['codec@10'], model(**own_bound), 'ask for vlb'),
    (['codec@10'], model(**own_latent), 'ask for vlb'),
    (['codec@10/learned'], model(), 'ask for another variance'),
    (['immse'], model(process=per_pixel), 'ask for vlb or vlb@T'),
    (['vlb@10/analytic'], model(process=per_pixel), 'ask for vlb or vlb@T'),
])
def test_what_a_model_cannot_have_is_refused_with_a_remedy(names, of, remedy):
  with pytest.raises(InputError) as error:
    families.needs(families.parse(names), Options(), of, Split().get(np.arange(1)))
  message = str(error.value)
  assert message.startswith(f'estimates={names[0]!r}: ') and remedy in message
  assert '\n' not in message


@pytest.mark.parametrize('names,of', [
    (['vlb@10/learned', 'iw@4x10/learned', 'codec@10/learned'], model(heads)),
    (['codec@10', 'codec@10/analytic'], model()),
    (['ode', 'ode/uniform', 'iw@4x10', 'immse', 'vlb@10/analytic'], model()),
    (['vlb@10'], model(**own_bound)),
    (['ode/variational', 'ode/uniform'], model(**own_bound, **dequantiser)),
    (['vlb@10/large', 'ode', 'ode/uniform'], model(process=per_pixel)),
])
def test_what_a_model_can_have_is_not_refused(names, of):
  families.needs(families.parse(names), Options(), of, Split().get(np.arange(1)))


def test_the_exact_trace_of_many_dimensions_is_refused():
  large = model()._replace(shape=(32, 32, 3))
  of = lambda names: families.needs(families.parse(names), Options(probe='exact'), large,
                                           Split().get(np.arange(1)))
  with pytest.raises(InputError, match="probe='exact': .* 3072 products .* choose rademacher"):
    of(['ode'])
  of(['immse'])  # which has no trace


def test_a_result_that_is_not_a_number_is_refused_with_the_image():
  def decoder(data, z, level):
    return jnp.where(jnp.arange(len(z)) == 3, jnp.nan, 0.0)
  with pytest.raises(InputError, match="'vlb': .* not finite on 1 examples, .* number 0; choose"):
    measured('vlb', model(decoder=decoder), times=4, repeats=1)


# ------------------------------------------------------------- of one's own


def exact(of, batch, keys):
  """-log of the known probability of each image, the least that any bound can be."""
  pair = batch['image'].astype(int)
  return {'nats': -jnp.log(jnp.asarray(COUNTS)[pair[:, 0], pair[:, 1]] / COUNTS.sum()),
          'first': jnp.ones(len(pair)), 'second': -jnp.ones(len(pair))}


exact_bound = families.own(exact, says={'kind': 'upper bound'})._replace(
    relations=lambda mine, rows: [relations.compare(mine, '<=', row, 'no bound is below it')
                                  for row in rows if row.row['family'] == 'vlb'])


def test_a_function_of_ones_own_is_a_row_with_its_parts():
  of = measured(exact, model(), times=1, repeats=1)
  assert of.row['bits_per_dim'] == pytest.approx(entropy(), rel=1e-6)
  assert (of.row['estimate'], of.row['family'], of.row['kind']) == ('exact', 'exact', 'estimate')
  assert of.row['parts'] == pytest.approx({'first': 0.5 / np.log(2), 'second': -0.5 / np.log(2)})
  assert of.row['evaluations_per_image'] is None
  assert set(of.row) == set(measured('vlb', model(), times=1, repeats=1).row)


def test_a_row_of_ones_own_is_held_to_its_range_and_to_what_it_claims_alone():
  ends = {'logsnr_max': HIGH, 'logsnr_min': LOW}
  def failed(mine):
    rows = [measured(one, model(), **ends) for one in ('vlb', mine)]
    rows[1].row.update(family='mine')
    found = relations.ranges(rows, LEVELS) + relations.check(rows)
    claimed = mine.relations(rows[1], rows)
    names = [check['name'] for check in found]
    assert names == ['0 <= vlb <= 6.3', 'terms of vlb >= 0', '0 <= exact <= 6.3']
    return [check['name'] for check in found + claimed if not check['passed']], len(claimed)
  of = lambda shift: families.own(
      lambda *args: {'nats': exact(*args)['nats'] + shift}, 'exact')
  assert failed(exact_bound) == ([], 1)
  assert failed(of(-3.0)) == (['0 <= exact <= 6.3'], 0)
  above = of(3.0)._replace(relations=exact_bound.relations)
  assert failed(above) == (['exact <= vlb'], 1)


def test_draws_of_ones_own_are_independent_of_the_others_and_belong_to_the_image():
  normal = lambda of, batch, keys: {'nats': jax.vmap(jax.random.normal)(keys)}
  one, again, other = (measured(families.own(normal, name), model(), 1, 1).bits['total']
                       for name in ('one', 'one', 'other'))
  np.testing.assert_array_equal(one, again)
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.6 and np.unique(one).size == one.size


FILE = '''
import jax.numpy as jnp
mine = lambda model, batch, keys: {'nats': jnp.full(len(keys), jnp.log(4.0))}
number, plain = 3, lambda batch: None
'''


def test_an_estimate_is_read_from_a_file_of_three_lines(tmp_path):
  file = tmp_path / 'my.py'
  file.write_text(FILE)
  asked = families.parse([f'{file}:mine', 'vlb@10'])
  assert [one.name for one in asked] == ['vlb', 'mine', 'vlb@10']
  assert measured(f'{file}:mine', model(), 1, 1).row['bits_per_dim'] == pytest.approx(1.0)


@pytest.mark.parametrize('name,problem,remedy', [
    ('gone.py:mine', 'there is no file', 'give one of your own'),
    ('my.py:yours', "has no 'yours'", 'name what it defines'),
    ('my.py:number', 'it is not an estimate', 'give a Family, or a function'),
    ('my.py:plain', 'cannot be called with .model, batch, keys.', 'define it so'),
    ('my.py:mine@10', 'mine has no such settings', 'choose mine'),
    ('broken.py:mine', 'line 1 is not Python', ''),
    ('my.py:', "has no ''", 'name what it defines')])
def test_a_file_without_the_estimate_is_refused_in_one_line(tmp_path, name, problem, remedy):
  (tmp_path / 'my.py').write_text(FILE)
  (tmp_path / 'broken.py').write_text('def')
  with pytest.raises(InputError, match=f'{problem}.*{remedy}') as error:
    families.parse([f'{tmp_path}/{name}'])
  message = error.value.as_flag()
  assert message.startswith('--estimates=') and name.partition(':')[2] in message
  assert '\n' not in message


@pytest.mark.parametrize('value,message', [
    (7, 'estimates=7: it is not an estimate'),
    (lambda model, batch, keys: None, 'this function has no name'),
    (families.own(exact, 'vlb'), "estimates='vlb': vlb is a family of the library"),
    (families.own(exact, 'iw'), 'iw is a family of the library')])
def test_a_value_that_is_no_estimate_is_refused(value, message):
  with pytest.raises(InputError, match=message):
    families.parse([value])


def test_two_estimates_of_one_name_are_refused():
  with pytest.raises(InputError, match="estimates='exact': there are two estimates of this name"):
    families.parse([exact, families.own(lambda *_: {}, 'exact')])


@pytest.mark.parametrize('out,problem', [
    (lambda keys: jnp.ones(len(keys)), "no dictionary with 'nats'"),
    (lambda keys: {'bits': jnp.ones(len(keys))}, "no dictionary with 'nats'"),
    (lambda keys: {'nats': jnp.ones(())}, "'nats' of the shape ()"),
    (lambda keys: {'nats': jnp.ones(len(keys)), 'part': jnp.ones((len(keys), 2))},
     "'part' of the shape (5, 2)")])
def test_an_estimate_that_returns_no_number_for_each_image_is_refused_before_it_runs(out, problem):
  asked = families.parse([families.own(lambda model, batch, keys: out(keys), 'mine')])
  with pytest.raises(InputError) as error:
    families.needs(asked, Options(), model(), Split().get(np.arange(1)))
  assert problem in str(error.value) and 'a number for each example' in str(error.value)


def test_a_field_that_no_row_has_is_refused():
  with pytest.raises(InputError, match="says=.'kinds'.: a row has no such fields; .*kind, model"):
    families.own(exact, says={'kinds': 'upper bound'})
