"""The page of a run: all that is known of it, in one file that loads nothing and that all can read.

tests/runs/test_commands.py has the page of a run that was trained and evaluated.
"""
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny_config
from tests.support.markup import Page
from vdm_jax import ledger as ledgers
from vdm_jax.ledger import families
from vdm_jax.ledger import family as family_lib
from vdm_jax.ledger import rows as rows_lib
from vdm_jax.runs import evaluations, pictures, reporting, workdir

DOCS = Path(__file__).parents[2] / 'docs'
SAMPLE = np.arange(4 * 8 * 8).reshape(4, 8, 8, 1) % 5


def record(step, kind='train', bits=3.0, **others):
  return {'step': step, 'kind': kind, 'bits_per_dim': bits, 'loss': bits, **others}


@pytest.fixture
def run(tmp_path):
  """What is there when a run begins."""
  directory = tmp_path / 'a run & <its> "page"'
  workdir.prepare(directory, tiny_config.get_config(), tiny_config.__file__,
                  {'sha256': 'a1b2' * 16, 'count': 2, 'parts': {'train': 40, 'x<y>.png': 13}})
  return directory


def log(run, *records):
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in records))


def evaluate(run):
  """The files of an evaluation: the widest rows of a ledger with checks, and pictures of the docs.

  The bits are made up: 2.5 bits/dim of 300 images, by four repetitions.
  """
  draws = np.random.default_rng(0).normal(2.5, 0.3, (4, 300))
  rows = []
  for request in families.parse(['vlb@1000/analytic/ddpm', 'iw@16x1000/learned/ddpm', 'ode',
                                 'codec@1000/learned', 'immse']):
    about = family_lib.about(request, ledgers.Options(repeats=4))
    parts = {name: share * draws for name, share in (
        ('reconstruction', 0.01), ('latent', 0.02), ('diffusion', 0.97))}
    rows.append(rows_lib.row(about, {'total': draws, **parts}, np.full((4, 300), 1000)) | {
        'logsnr_max': 13.3, 'logsnr_min': -5.0, 'seconds': 30.0, 'images_per_second': 0.123})
  files = evaluations.Files.of(run)
  ledger = ledgers.Ledger(
      {'name': 'digits', 'version': '1.0.0', 'split': 'test', 'examples': 300, 'of': 300,
       'sha256': '0123456789abcdef' * 4}, {'step': 1500, 'average': 'ema'}, rows, {'seed': 1},
      [{'name': 'vlb@1000/analytic/ddpm >= iw@16x1000/learned/ddpm', 'difference': -0.12345,
        'standard_error': 0.01, 'passed': passed, 'serious': True,
        'meaning': 'more paths have a higher bound'} for passed in (True, False)])
  files.ledger.write_text(ledger.to_json())
  shutil.copy(DOCS / 'digits_bits_by_noise.png', files.bits_by_noise)
  shutil.copy(DOCS / 'digits_curves.png', files.curves)


def test_of_a_run_that_has_just_begun_the_page_says_what_is_not_there_yet(run):
  page = Page(reporting.page(run))
  for said in ('This run has not been evaluated yet', 'This run has recorded nothing yet',
               'This run has no samples yet'):
    assert said in page.text
  assert page.headings == ['h1', *['h2'] * 6] and not page.images


def test_every_field_of_the_config_and_the_fingerprint_and_the_command_are_on_the_page(run):
  page, saved = Page(reporting.page(run)), json.loads((run / 'config.json').read_text())
  cells = page.rows

  def check(fields, prefix=''):
    for name, value in fields.items():
      if isinstance(value, dict):
        check(value, f'{prefix}{name}.')
      else:
        shown = value if isinstance(value, str) and value else json.dumps(value)
        assert [prefix + name, shown] in cells

  check(saved['config'])
  assert ['sha256', 'a1b2' * 16] in cells and ['x<y>.png', '13'] in cells
  start, = saved['starts']
  assert ['start of training', *(start[name] or '-' for name in (
      'date', 'vdm_jax', 'commit', 'jax', 'command'))] in cells


def test_texts_are_text_and_no_markup_whoever_wrote_them(run):
  saved = json.loads((run / 'config.json').read_text())
  saved['config']['data']['name'] = evil = '</td><script>alert("1")</script>日本\'&amp;'
  (run / 'config.json').write_text(json.dumps(saved))
  log(run, record(1, '"><b>', **{'<i>': 1.0}), record(2, '"><b>', **{'<i>': 2.0}))
  text = reporting.page(run)
  page = Page(text)
  assert text.isascii() and not {'script', 'i'} & page.tags
  assert ['data.name', evil] in page.rows
  assert 'a run & <its> "page"' in page.text and '"><b>' in page.text
  assert any('"><b>: 3 at step 1' in label for label in page.labels)


def test_a_chart_has_the_points_where_they_are_and_says_how_they_run(run):
  log(run, *(record(step, bits=bits) for step, bits in ((10, 4.0), (20, 3.0), (30, 2.0))),
      record(30, 'validation', 2.5, frechet=0.5))
  page = Page(reporting.page(run))
  assert [label.partition('.')[0] for label in page.labels if 'against' in label] == [
      'bits/dim against steps', 'frechet against steps']  # the loss is the same curve
  assert any(label.endswith('train: 4 at step 10, 2 at step 30; validation: 2.5 at step 30, 2.5 at '
                            'step 30') for label in page.labels)
  train, validation, _ = page.paths
  x, y = train.T
  assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[0] < x[1]
  assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2) and y[0] < y[1]  # downwards
  assert validation[0, 0] == x[2] and validation[0, 1] == pytest.approx(0.5 * (y[1] + y[2]),
                                                                       abs=0.1)


def test_the_start_and_spikes_of_a_long_training_do_not_flatten_its_curve(run):
  bits = np.full(1000, 2.0) + 0.1 * np.sin(np.arange(1000.0))
  bits[:3], bits[500] = 900.0, 1e30
  log(run, *(record(step, bits=u) for step, u in enumerate(bits)))
  line, = Page(reporting.page(run)).paths
  assert len(line) <= 500 and np.ptp(line[100:, 1]) > 100 and np.abs(line).max() < 1e5


@pytest.mark.parametrize('values', [[0.0], [2.0, 2.0], [-3.0], [np.nan], [2.0, np.nan, 3.0],
                                    [1e300, -1e300], [1e-12, 2e-12]])
def test_curves_of_one_record_of_equal_ones_and_of_nan_are_drawn(values, run):
  log(run, *(record(step, bits=value) for step, value in enumerate(values)))
  page = Page(reporting.page(run))
  assert sum(map(len, page.paths)) == np.isfinite(values).sum()
  assert 'could not be made' not in page.text


def test_the_first_and_the_last_samples_are_shown_and_some_between_and_those_of_sample_py(run):
  for step in (0, 5, 10, 15, 20, 100, 1000):
    pictures.save_png(run / 'samples' / f'step_{step}.png', pictures.samples(SAMPLE, 5))
  pictures.save_png(run / 'samples.png', pictures.samples(SAMPLE, 5), {'sampler': '<ddim>'})
  page = Page(reporting.page(run))
  steps = [alt for alt in page.images if alt.startswith('Samples after')]
  assert len(steps) == 6
  assert (steps[0], steps[-1]) == ('Samples after 0 steps', 'Samples after 1,000 steps')
  assert page.images['Samples of the trained model'] == (run / 'samples.png').read_bytes()
  assert 'samples.png: sampler <ddim>' in page.text


def of_real_numbers(run, section, **fields):
  """Makes the run one of time series or of episodes."""
  saved = json.loads((run / 'config.json').read_text())
  saved['config']['data'][section].update(fields)
  (run / 'config.json').write_text(json.dumps(saved))


def test_the_page_of_a_planner_has_its_returns_and_plans_and_no_likelihood(run):
  of_real_numbers(run, 'episodes', horizon=8)
  for step in (10, 20):
    pictures.save_png(run / 'samples' / f'step_{step}.png', pictures.samples(SAMPLE, 5), {
        'of': step})
  page = Page(reporting.page(run))
  assert page.headings == ['h1', *['h2'] * 5] and 'plans' in page.ids
  assert 'scripts/plan.py does it' in page.text
  for other in ('evaluate.py', 'sample.py', 'bits', 'image'):
    assert other not in page.text.partition(' Values ')[0]
  last, = page.images.values()  # the last alone
  assert last == (run / 'samples' / 'step_20.png').read_bytes()
  asked = [{'return': -300.0, 'mean': -900.04, 'error': 12.3, 'milliseconds_a_step': 7.4,
            'to_go': {'value': -281.0, 'error': 6.5}},
           {'return': -0.5, 'mean': -146.0, 'error': None, 'milliseconds_a_step': 7.0,
            'to_go': {'value': -11.0, 'error': None}}]
  (run / 'plans.json').write_text(json.dumps({
      'env': 'Pendulum-v1', 'guidance': 2.0, 'temperature': 0.7, 'episodes': 20,
      'checkpoint': {'step': 2500, 'average': 'ema'}, 'asked': asked}))
  for name in ('plans.png', 'plans_returns.png'):
    pictures.save_png(run / name, pictures.samples(SAMPLE, 5), {'of': name})
  page = Page(reporting.page(run))
  assert '20 episodes of Pendulum-v1' in page.text and 'guidance 2 and temperature 0.7' in page.text
  assert ['-300', '-281.0', '6.5', '-900.0', '12.3', '7'] in page.rows
  assert ['-0.5', '-11.0', '-', '-146.0', '-', '7'] in page.rows
  assert 'mean return, told -0.5 -146.0' in page.text  # the best, among the facts
  assert len(page.images) == 3 and 'could not be made' not in page.text


def test_the_page_of_a_forecaster_has_its_scores_and_before_them_a_held_out_forecast(run):
  of_real_numbers(run, 'series', history=24)
  pictures.save_png(run / 'samples' / 'step_10.png', pictures.samples(SAMPLE, 5))
  page = Page(reporting.page(run))
  alt, = page.images
  assert alt == 'A forecast of rows that were held out after 10 steps'
  assert 'scripts/forecast.py does it' in page.text and 'evaluate.py' not in page.text
  pair = {'value': 0.31234, 'error': 0.0123}
  (run / 'forecasts.json').write_text(json.dumps({
      'windows': 73, 'paths': 100, 'checkpoint': {'step': 1500, 'average': 'ema'},
      'scores': {'CRPS': pair, 'ND': 0.4, 'nats': None}, 'coverage': {'0.9': pair},
      'series': {'sea': {'value': 0.2, 'error': None}}}))
  pictures.save_png(run / 'forecasts.png', pictures.samples(SAMPLE, 5))
  page = Page(reporting.page(run))
  assert list(page.images) == ['Fan charts of each series, beside the observed values']
  assert 'CRPS, test 0.3123 ± 0.0123' in page.text
  for row in (['CRPS', '0.3123', '0.0123'], ['90 % interval', '0.3123', '0.0123'],
              ['ND', '0.4000', '-'], ['sea', '0.2000', '-']):
    assert row in page.rows


def test_the_page_of_an_autoencoder_has_its_reconstructions_and_no_likelihood(run):
  pictures.save_png(run / 'samples' / 'step_10.png', pictures.samples(SAMPLE, 5), {'of': 10})
  rows = [{'name': 'accuracy', 'mean': 0.98765, 'standard_error': 0.00123,
           'meaning': 'share of <numbers>'},
          {'name': 'latent_std', 'mean': 1.5, 'standard_error': None, 'meaning': 'of latents'}]
  for ending, step in (('', 1500), ('_validation', 20)):
    (run / f'reconstruction{ending}.json').write_text(json.dumps({
        'dataset': {'name': 'chorales', 'split': ending[1:] or 'test', 'examples': 1234},
        'checkpoint': {'step': step, 'average': 'ema'}, 'rows': rows, 'repeats': 1}))
    for name in ('reconstructions', 'latents'):
      pictures.save_png(run / f'{name}{ending}.png', pictures.samples(SAMPLE, 5),
                        {'of': name + ending})
  page = Page(reporting.page(run))
  assert 'reconstructions' in page.ids and not {'likelihood', 'samples'} & page.ids
  assert 'not been evaluated' not in page.text and 'could not be made' not in page.text
  assert 'chorales, test: 1,234 examples, step 1,500 (ema)' in page.text
  assert 'accuracy, test 0.9877 ± 0.0012' in page.text  # among the facts
  assert page.rows.count(['accuracy', '0.9877', '0.0012', 'share of <numbers>']) == 2
  assert ['latent_std', '1.5000', '-', 'of latents'] in page.rows
  shown = set(page.images.values())
  assert (run / 'samples' / 'step_10.png').read_bytes() in shown
  assert (run / 'reconstructions.png').read_bytes() in shown
  assert page.text.count('evaluate it again') == 1  # the run has made no step


def test_the_page_of_a_captioner_has_its_captions(run):
  (run / 'captions.json').write_text(json.dumps({
      'dataset': {'name': 'shapes', 'split': 'test', 'examples': 40},
      'checkpoint': {'step': 0, 'average': 'ema'}, 'captions': [['a disk', 'a <square>']],
      'rows': [{'name': 'exact', 'mean': 25.0, 'standard_error': 7.0, 'meaning': '% right'}]}))
  page = Page(reporting.page(run))
  assert 'captions' in page.ids and ['a disk', 'a <square>'] in page.rows
  assert ['exact', '25.0000', '7.0000', '% right'] in page.rows
  assert 'could not be made' not in page.text and 'again' not in page.text


def test_a_number_that_equals_the_loss_at_all_steps_has_no_chart_of_its_own(run):
  log(run, *({'step': step, 'kind': 'train', 'loss': 1.0 / step, 'eps_error': 1.0 / step,
              'action_error': 0.5} for step in (1, 2)))
  page = Page(reporting.page(run))
  assert [label.partition(' against')[0] for label in page.labels if 'against' in label] == [
      'loss', 'action error']


def test_an_evaluation_is_shown_with_its_rows_its_checks_and_its_pictures(run):
  evaluate(run)
  page = Page(reporting.page(run))
  assert [row[0] for row in page.rows].count('iw@16x1000/learned/ddpm') == 2  # rows, terms
  assert 'more paths have a higher bound' in page.text and 'could not be made' not in page.text
  shown = {page.images[alt] for alt in page.images}
  assert {(DOCS / f'digits_{name}.png').read_bytes() for name in (
      'bits_by_noise', 'curves')} <= shown


def test_damaged_files_spoil_their_own_part_alone(run):
  (run / 'ledger.json').write_text('{"dataset": ')
  (run / 'samples.png').write_text('no picture')
  log(run, record(1))
  page = Page(reporting.page(run))
  assert 'ledger.json is damaged' in page.text and 'could not be made' in page.text
  assert len(page.paths) == 1 and ['sha256', 'a1b2' * 16] in page.rows


def test_a_page_that_fails_is_a_warning_and_the_one_before_stays(run, monkeypatch):
  reporting.write(run)
  before, warned = (run / 'report.html').read_bytes(), []
  monkeypatch.setattr(reporting.logging, 'warning', lambda text, *of: warned.append(text % of))
  (run / 'config.json').write_text('')
  reporting.write(run)
  assert (run / 'report.html').read_bytes() == before
  assert len(warned) == 1 and 'report.html was not written' in warned[0]


# ---------------------------------------------------------------- in a browser

FRAMES = '''<!DOCTYPE html><link rel="icon" href="data:,"><pre id="out"></pre>
<iframe src="report.html" width="390" height="844"></iframe>
<iframe src="report.html" width="1280" height="800"></iframe>
<script>onload = () => {
  document.getElementById('out').textContent = JSON.stringify([frames[0], frames[1]].map(frame => {
    const page = frame.document, of = style => [...style.matchAll(/[0-9.]+/g)].map(Number)
    page.querySelectorAll('details').forEach(one => { one.open = true })
    return {width: frame.innerWidth, content: page.documentElement.scrollWidth,
            background: of(frame.getComputedStyle(page.body).backgroundColor),
            loaded: [...page.images].map(one => one.complete && one.naturalWidth > 0),
            cells: page.querySelectorAll('td').length,
            texts: [...page.querySelectorAll('p, a, th, td, dt, dd, h2, caption, figcaption')].map(
                one => of(frame.getComputedStyle(one).color))}
  }))
}</script>'''


def luminance(colour):
  """Relative luminance of sRGB, WCAG 2.2."""
  u = np.asarray(colour[:3]) / 255.0
  linear = np.where(u <= 0.04045, u / 12.92, ((u + 0.055) / 1.055)**2.4)
  return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
  high, low = sorted([luminance(one), luminance(other)], reverse=True)
  return (high + 0.05) / (low + 0.05)


@pytest.mark.long
@pytest.mark.parametrize('scheme', ['dark', 'light'])
def test_a_browser_shows_the_page_on_a_phone_and_on_a_desk_without_a_complaint(
    scheme, run, tmp_path):
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if browser is None:
    pytest.skip('needs Chromium: apt-get install chromium')
  log(run, *(record(step, kind, 3.0 / step, grad_norm=1.0) for step in range(1, 99)
             for kind in ('train', 'validation')))
  for path in (run / 'samples.png', run / 'samples' / 'step_50.png'):
    pictures.save_png(path, pictures.samples(SAMPLE, 5))
  evaluate(run)
  site = tmp_path / 'site'
  site.mkdir()
  (site / 'report.html').write_text(reporting.page(run))
  (site / 'index.html').write_text(FRAMES)

  class Handler(http.server.SimpleHTTPRequestHandler):
    log_message = lambda *_: None

  with http.server.ThreadingHTTPServer(
      ('127.0.0.1', 0), functools.partial(Handler, directory=site)) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = subprocess.run(
        [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
         f'--user-data-dir={tmp_path}/profile', '--virtual-time-budget=5000', '--dump-dom',
         f'--blink-settings=preferredColorScheme={["dark", "light"].index(scheme)}',
         f'http://127.0.0.1:{server.server_port}/index.html'],
        capture_output=True, text=True, timeout=120, check=True)
    server.shutdown()
  assert 'CONSOLE' not in done.stderr, done.stderr
  told = re.search('<pre id="out">(.*?)</pre>', done.stdout)
  assert told, done.stdout
  phone, desk = json.loads(html.unescape(told[1]))
  assert (phone['width'], desk['width']) == (390, 1280)
  for frame in (phone, desk):
    assert frame['content'] <= frame['width']  # only what is in a box of its own scrolls
    assert (luminance(frame['background']) < 0.1) == (scheme == 'dark')
    assert len(frame['texts']) > 300
    assert frame['loaded'] == 4 * [True] and frame['cells'] > 100
    assert min(contrast(colour, frame['background']) for colour in frame['texts']) > 4.5


def test_the_luminance_is_that_of_black_and_white():
  assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21.0)

