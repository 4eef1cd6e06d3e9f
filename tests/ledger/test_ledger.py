"""The ledger: what a row says of its numbers, and that it can be read by people and by programs."""
import json
import math
import re

import numpy as np
import pytest
import rich.console

from vdm_jax.errors import InputError
from vdm_jax.ledger import (
  Evaluated,
  Ledger,
  Options,
  comparison,
  families,
  over_seeds,
  table,
  tables,
)
from vdm_jax.ledger import family as family_lib
from vdm_jax.ledger import rows as rows_lib
from vdm_jax.machine import files

DATA = {'name': 'digits', 'version': '1.0.0', 'split': 'test', 'examples': 300, 'of': 300,
        'sha256': '0123456789abcdef' * 4}


def row(total, name='vlb', evaluations=32, speed=12.5, options=None):
  """A row with this total [R, N] in bits/dim, of which 1 % is reconstruction and 2 % is latent."""
  total = np.asarray(total, float)
  about = family_lib.about(families.parse([name])[-1], options or Options())
  bits = {'total': total, 'reconstruction': 0.01 * total, 'latent': 0.02 * total,
          'diffusion': 0.97 * total}
  calls = np.broadcast_to(np.asarray(evaluations), total.shape)
  return rows_lib.row(about, bits, calls) | {
      'logsnr_max': 13.3, 'logsnr_min': -5.0, 'seconds': 30.0, 'images_per_second': speed}


def ledger(rows, checks=(), step=1500, **data):
  return Ledger(DATA | data, {'step': step, 'average': 'ema'}, list(rows),
                {'seed': 1, 'ema': {'ema': 0.99}}, list(checks))


def check(passed, serious=True):
  return {'name': 'immse = vlb', 'difference': -0.12345, 'standard_error': 0.01, 'passed': passed,
          'serious': serious, 'meaning': 'two formulae of one curve disagree'}


def printed(rows, checks=(), **options):
  console = rich.console.Console(width=80, record=True, file=open('/dev/null', 'w'))
  with console.file:
    console.print(table(ledger(rows, checks, **options)))
  return console


def test_a_row_has_the_mean_its_two_errors_and_its_parts():
  got = row([[1.0, 2.0], [1.0, 4.0]])
  assert got['bits_per_dim'] == pytest.approx(2.0)
  assert got['parts'] == pytest.approx({'reconstruction': 0.02, 'latent': 0.04, 'diffusion': 1.94})
  # Images have the means 1 and 3, repetitions 1.5 and 2.5.
  assert got['standard_error'] == pytest.approx(1.0)
  assert got['standard_error_draws'] == pytest.approx(0.5)


def test_a_row_counts_the_calls_of_all_repetitions_for_the_mean_image_and_for_the_worst():
  got = row(np.ones((2, 2)), 'ode', evaluations=[[10, 20], [30, 60]])
  assert (got['examples'], got['repeats']) == (2, 2)
  assert (got['evaluations_per_image'], got['evaluations_max']) == (60, 80)


def test_an_error_that_cannot_be_estimated_is_absent_rather_than_zero():
  of_one_repetition = row([[1.0, 2.0]])
  assert of_one_repetition['standard_error'] > 0
  assert of_one_repetition['standard_error_draws'] is None
  of_one_image = row([[1.0], [2.0]])
  assert of_one_image['standard_error'] is None and of_one_image['standard_error_draws'] > 0


def test_the_file_is_strict_json_and_comes_back_as_it_was():
  rows = [row([[1.0, 2.0]]), row([[1.0, 2.0]], 'ode', speed=None)]
  text = ledger(rows, [check(True)]).to_json()
  def refuse(name):
    raise AssertionError(f'{name} is not JSON')
  assert Ledger(**json.loads(text, parse_constant=refuse)) == ledger(rows, [check(True)])
  assert list(json.loads(text)) == ['dataset', 'checkpoint', 'rows', 'config', 'checks',
                                    'provenance', 'format']


def test_what_is_not_a_number_is_not_written():
  with pytest.raises(ValueError, match='nan'):
    ledger([row([[1.0, math.nan]])]).to_json()


def test_a_write_that_fails_leaves_the_ledger_before_it(tmp_path, monkeypatch):
  path = tmp_path / 'ledger.json'
  files.write_text(path, 'the one before')
  def full(*_):
    assert path.read_text() == 'the one before'
    raise OSError('no space left on device')
  monkeypatch.setattr('vdm_jax.machine.files.os.replace', full)
  with pytest.raises(OSError, match='no space'):
    files.write_text(path, 'the next')
  assert path.read_text() == 'the one before'


# ------------------------------------------------------------------ the table


def test_the_table_of_usual_rows_has_one_line_each_in_80_columns():
  """Nothing is cut off: every number of the row is on its line."""
  rng = np.random.default_rng(0)
  names = {'vlb': ('bound', 'SDE'), 'vlb@1000': ('bound', 'chain'), 'immse': ('estimate', 'SDE'),
           'iw@20x100/analytic': ('bound', 'chain'), 'ode/truncated_normal': ('bound', 'ODE'),
           'vlb@4000/learned/ddpm': ('bound', 'chain')}
  rows = [row(rng.uniform(5, 9, (3, 20)), name, 1500) for name in names]
  text = printed(rows).export_text()
  assert '…' not in text and all(len(line) <= 80 for line in text.splitlines())
  for of in rows:
    # The first line of that name; that of its terms comes later.
    line = next(line for line in text.splitlines() if line.split()[:1] == [of['estimate']])
    assert line.split() == [
        of['estimate'], *names[of['estimate']], f'{of["bits_per_dim"]:.4f}',
        f'{of["standard_error"]:.4f}', f'({of["standard_error_draws"]:.4f})', '4500', '12.5']


def test_points_of_levels_are_examples_in_bits_and_no_images():
  about = {'dataset': DATA | {'shape': [2], 'levels': 256}}
  text = printed([row(np.full((2, 3), 5.5)) | about], **about['dataset']).export_text()
  assert 'examples/s' in text and 'test: 300 examples' in text and 'image' not in text
  assert 'bits/dim' in text


def test_data_of_three_axes_are_images_unless_their_field_is_something_else():
  shape = {'shape': [32, 4, 1], 'levels': 128}
  older, image, music = (tables.one(DATA | shape | field)
                         for field in ({}, {'field': 'image'}, {'field': 'pitches'}))
  assert (older, image, music) == ('image', 'image', 'example')
  about = {'dataset': DATA | shape | {'field': 'pitches'}}
  text = printed([row(np.full((2, 3), 5.5)) | about], **about['dataset']).export_text()
  assert 'examples/s' in text and 'test: 300 examples' in text and 'image' not in text


def test_of_real_numbers_the_table_is_in_nats_of_an_example_and_nats_per_dimension():
  nats = np.array([[-7.0, -5.0], [-9.0, -7.0]])  # of examples of 2 x 3 numbers
  about = {'dataset': DATA | {'shape': [2, 3], 'levels': None}}
  rows = [row(nats / (6 * math.log(2)), name) | about for name in ('vlb', 'ode')]
  text = printed(rows, [check(True) | {'difference': 1 / math.log(2)}],
                 **about['dataset']).export_text().replace('\N{NO-BREAK SPACE}', ' ')
  assert 'bits' not in text and 'test: 300 examples' in text
  header = next(line for line in text.splitlines() if line.startswith('estimate'))
  assert header.split() == ['estimate', 'kind', 'of', 'nats', '+-', 'nats/dim', 'calls',
                            'examples/s']
  line = next(line for line in text.splitlines() if line.startswith('vlb'))
  assert line.split() == ['vlb', 'bound', 'SDE', '-7.0000', '1.0000', '(0.7071)', '-1.1667', '64',
                          '12.5']
  assert 'vlb -0.07000 recon. - 0.14000 latent - 6.79000 diff.' in text
  assert 'difference, nats' in text and '6.00000' in text  # of six dimensions


def test_an_adaptive_row_shows_its_most_expensive_image():
  text = printed([row(np.ones((1, 2)), 'ode', [[100, 200]])]).export_text()
  assert '150 (max 200)' in text


def test_the_table_of_unusual_rows_is_folded_and_not_cut():
  rows = [row([[9e4, 1e5], [2e5, 3e5]], 'vlb@1000000', 2048)]
  text = printed(rows, name='downsampled_imagenet/64x64', examples=49_999, step=10_000_000,
                 version='2.0.0, old (49,999 validation images)').export_text()
  assert '…' not in text and all(len(line) <= 80 for line in text.splitlines())
  joined = ''.join(text.split())
  assert 'step10,000,000(ema)' in joined and '49,999of300images' not in joined


def test_the_table_says_which_data_which_weights_and_where_the_schedule_ends():
  text = printed([row([[1.0, 2.0]])], examples=16).export_text()
  for part in ('digits 1.0.0, test: 16 of 300 images', 'sha256 0123456789ab', 'step 1,500 (ema)',
               'log-SNR 13.300 to -5.000', '0.01500 recon. + 0.03000 latent + 1.45500 diff.'):
    assert part in text.replace('\N{NO-BREAK SPACE}', ' ')
  assert '(-)' in text  # one repetition says nothing of the draws


def test_the_error_that_a_flow_has_beside_its_standard_errors_is_stated():
  text = ' '.join(printed([row([[1.0]]), row([[1.0]], 'ode'), row([[1.0]], 'ode@10')])
                  .export_text().split())
  assert 'ode: +- leaves out the error of the adaptive steps, tolerance 1e-05.' in text
  assert 'ode@10: +- leaves out the error of 10 fixed steps, which is not controlled.' in text
  assert 'vlb: +-' not in text


def test_flow_and_sde_are_said_to_be_different_models_where_both_are_shown():
  said = 'different models unless the score is exact'
  assert said in ' '.join(printed([row([[1.0]]), row([[1.0]], 'ode')]).export_text().split())
  assert said not in ' '.join(printed([row([[1.0]])]).export_text().split())


@pytest.mark.parametrize('found,style,word', [
    (check(True), None, 'holds'), (check(False), '\x1b[1;31m', 'VIOLATED'),
    (check(False, serious=False), '\x1b[33m', 'unusual')])
def test_a_violation_is_red_and_says_what_it_means(found, style, word):
  console = printed([row([[1.0, 2.0]])], [found])
  styled = console.export_text(clear=False, styles=True)
  line = next(line for line in styled.splitlines() if 'immse = vlb' in line)
  assert '-0.12345' in line and word in line
  if style:
    assert line.startswith(style)
  assert ('two formulae' in console.export_text()) == (not found['passed'])


@pytest.mark.parametrize('share,said', [(0.97, True), (0.11, True), (0.09, False)])
def test_an_average_that_still_holds_the_first_weights_says_so(share, said):
  of = ledger([row([[1.0, 2.0]])])
  console = rich.console.Console(width=80, record=True, file=open('/dev/null', 'w'))
  with console.file:
    console.print(table(of._replace(checkpoint=of.checkpoint | {'first_weights': share})))
  text = ' '.join(console.export_text().split())
  assert (f'{100 * share:.0f} % of the average ema are still the first weights' in text) == said


def test_a_ledger_without_labels_or_texts_says_so():
  of = ledger([row([[1.0, 2.0]])])
  untold = of._replace(checkpoint=of.checkpoint | {'untold': True})
  assert 'told nothing' in tables.heading(untold)[1]
  assert 'told nothing' not in tables.heading(of)[1]


# ------------------------------------------------------------- kinds of number


@pytest.mark.parametrize('name,options,kind', [
    ('vlb', {}, 'upper bound'), ('vlb@10/analytic', {}, 'upper bound'),
    ('iw@4x10', {}, 'upper bound'), ('immse', {}, 'estimate'), ('ode', {}, 'upper bound'),
    ('ode/uniform', {'importance': 20}, 'estimate'),
    ('ode/uniform', {'importance': 20, 'probe': 'exact'}, 'upper bound'),
    ('ode@50', {'probe': 'exact'}, 'estimate')])
def test_what_noise_in_logarithms_or_fixed_steps_may_lower_is_called_no_bound(name, options, kind):
  assert row([[1.0]], name, options=Options(**options))['kind'] == kind


def test_noise_in_the_logarithms_does_push_such_a_mean_below_the_truth():
  """Why: exp(unbiased noise) has a mean above 1.  20 draws of p(y) / q(y) = 1 exactly."""
  noise = np.random.default_rng(0).normal(size=(20_000, 20))
  nll = np.log(20) - np.logaddexp.reduce(noise, axis=1)
  assert nll.mean() + 4 * nll.std() / 20_000**0.5 < 0.0
  assert abs(noise[:, 0].mean()) < 4 / 20_000**0.5  # and one draw is a bound


# ---------------------------------------------------------------- several runs


def evaluated(bits, **data):
  """A run with these bits of every image, {estimate: [N]}."""
  rows = [row([of], name) for name, of in bits.items()]
  return Evaluated(ledger(rows, **data), bits)


def test_runs_are_compared_image_by_image_and_the_best_are_marked():
  own = np.random.default_rng(0).uniform(1, 3, 50)  # what images differ by, much more than runs
  noise = lambda seed: 1e-3 * np.random.default_rng(seed).normal(size=50)
  runs = {'good': evaluated({'vlb': own + noise(1), 'ode': own}),
          'as good': evaluated({'vlb': own + noise(2)}),
          'worse': evaluated({'vlb': own + noise(3) + 2e-3, 'ode': own + 1.0})}
  found = comparison.comparison(runs)
  assert {name: best for name, (_, _, best) in found['vlb'].items()} == {
      'good': True, 'as good': True, 'worse': False}
  assert {name: best for name, (_, _, best) in found['ode'].items()} == {
      'good': True, 'worse': False}
  header, *lines = comparison.comparison_cells(runs)
  assert header == ['run', 'vlb', 'ode']
  value = runs['worse'].ledger.rows[0]
  assert lines[2][:2] == ['worse', f'{value["bits_per_dim"]:.4f} ± {value["standard_error"]:.4f}']
  assert lines[0][1].startswith('**') and lines[1][2] == '-'


def test_a_run_that_fails_what_must_hold_is_never_best_and_others_are_not_measured_against_it():
  """A bound below 0, of a schedule that rises, is no better one."""
  own = np.random.default_rng(0).uniform(1, 3, 50)
  wrong = evaluated({'vlb': own - 1e4})
  wrong = wrong._replace(ledger=wrong.ledger._replace(checks=[check(False)]))
  unusual = evaluated({'vlb': own})
  unusual = unusual._replace(ledger=unusual.ledger._replace(checks=[check(False, serious=False)]))
  runs = {'wrong': wrong, 'right': unusual}
  found = comparison.comparison(runs)['vlb']
  assert {name: best for name, (_, _, best) in found.items()} == {'wrong': False, 'right': True}
  _, *lines = comparison.comparison_cells(runs)
  assert lines[0][0] == 'wrong (failed checks)' and '**' not in lines[0][1]
  assert lines[1][0] == 'right' and lines[1][1].startswith('**')
  # Alone, it is not best either.
  assert not comparison.comparison({'wrong': wrong})['vlb']['wrong'][2]


def test_the_figures_of_a_ledger_are_its_estimates_with_their_errors_over_images():
  """The mean of 1 and 2 has the standard error 1/2; one image has none."""
  assert tables.figures(ledger([row([[1.0, 2.0]]), row([[4.0]], 'ode')])) == {
      'vlb': '1.500 +- 0.500', 'ode': '4.000'}


def test_the_figures_of_a_code_are_its_rate_its_bound_and_their_difference():
  rows = [row([[1.0, 2.0]], 'vlb@20'), row([[1.0, 3.0]], 'codec@20')]
  names = 'codec@20 <= vlb@20, within 1 %', 'vlb@20 <= codec@20, within 1 %'
  checks = [{**check(True), 'name': name, 'difference': u, 'standard_error': 0.5}
            for name, u in zip(names, (0.5, -0.5), strict=True)]
  found = tables.figures(ledger(rows)._replace(checks=checks))
  assert {name: found[name] for name in ('bound', 'net rate', 'net minus bound')} == {
      'bound': '1.500 +- 0.500', 'net rate': '2.000 +- 1.000', 'net minus bound': '0.500 +- 0.500'}


def test_several_seeds_have_a_mean_and_a_standard_deviation():
  runs = {'seed_1': ledger([row([[1.0, 2.0]]), row([[4.0]], 'ode')]),
          'seed_2': ledger([row([[2.0, 3.0]])])}
  console = rich.console.Console(width=80, record=True, file=open('/dev/null', 'w'))
  with console.file:
    console.print(over_seeds(runs))
  lines = console.export_text().replace('│', ' ').replace('┃', ' ').splitlines()
  cells = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
  assert cells['estimate'] == ['seed_1', 'seed_2', 'mean', 'std']
  assert cells['vlb'] == ['1.5000', '2.5000', '2.0000', '0.7071']
  assert cells['ode'] == ['4.0000', '-', '4.0000', '-']


def test_numbers_of_other_draws_of_the_dequantiser_have_columns_of_their_own():
  def run(importance):
    of = row([np.arange(4.0)], 'ode/uniform', options=Options(importance=importance))
    return Evaluated(ledger([of]), {of['estimate']: np.arange(4.0)})
  header, *_ = comparison.comparison_cells({'one': run(1), 'many': run(20)})
  assert header == ['run', 'ode/uniform', 'ode/uniform x20']


def test_the_cells_are_a_header_and_a_line_for_each_run():
  runs = {name: evaluated({'vlb': np.arange(4.0)}) for name in 'ab'}
  assert comparison.comparison_cells(runs) == [
      ['run', 'vlb'], *([name, '**1.5000 ± 0.6455**'] for name in 'ab')]


@pytest.mark.parametrize('data', [{'sha256': 'f' * 64}, {'examples': 100}])
def test_ledgers_of_other_images_are_not_put_into_one_table(data):
  runs = {'one': evaluated({'vlb': np.arange(4.0)}),
          'other': evaluated({'vlb': np.arange(4.0)}, **data)}
  with pytest.raises(InputError) as error:
    comparison.comparison(runs)
  message = str(error.value)
  assert 'one' in message and 'other' in message and 'same examples' in message
  assert '\n' not in message


def test_a_ledger_is_shown_as_its_table():
  """In Python as text, in a notebook as HTML with colours; the words are the same."""
  shown = ledger([row([[1.0, 2.0]])], [check(passed=False)])
  text, html = repr(shown), shown._repr_html_()
  assert 'digits 1.0.0, test: 300 images' in text and '1.5000' in text and 'VIOLATED' in text
  assert '\x1b' not in text and not text.startswith('Ledger(')
  assert html.startswith('<pre>') and 'VIOLATED' in html and 'color' in html
  words = re.sub(r'<[^>]*>', '', html)
  assert words.split() == text.split()
