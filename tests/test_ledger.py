"""The ledger: what a row says of its samples, and that it can be read by people and by programs."""
import json
import math

import numpy as np
import pytest
import rich.console

from vdm_jax import files
from vdm_jax.likelihood import Ledger, bound_row, table
from vdm_jax.likelihood.bounds import BoundSamples

SHAPE = (2, 3, 1)


def samples(total, steps=0, times=32):
  """Samples with this total [R, N], of which 1 % is reconstruction and 2 % is latent."""
  total = np.asarray(total, float)
  draws = np.zeros((*total.shape, times), np.float32)
  return BoundSamples({'reconstruction': 0.01 * total, 'latent': 0.02 * total,
                       'diffusion': 0.97 * total}, draws, draws, steps)


def ledger(rows, name='digits', version='1.0.0', examples=300, step=1500):
  return Ledger({'name': name, 'version': version, 'split': 'test', 'examples': examples,
                 'of': examples, 'sha256': '0123456789abcdef' * 4},
                {'step': step, 'average': 'ema'}, rows, {'seed': 1, 'ema': {'ema': 0.99}})


def printed(rows, **options):
  console = rich.console.Console(width=80, record=True, file=open('/dev/null', 'w'))
  with console.file:
    console.print(table(ledger(rows, **options)))
  return console.export_text()


def test_a_row_is_in_bits_per_dimension_and_its_terms_add_up():
  nats = 6 * math.log(2)  # of one bit in each of the 6 dimensions
  row = bound_row(samples([[nats, 2 * nats], [nats, 4 * nats]]), SHAPE, 13.3, -5.0)
  assert row['bits_per_dim'] == pytest.approx(2.0)
  assert row['reconstruction'] == pytest.approx(0.02)
  assert row['latent'] == pytest.approx(0.04)
  assert row['diffusion'] == pytest.approx(1.94)
  # Images have the means 1 and 3, repetitions 1.5 and 2.5.
  assert row['standard_error'] == pytest.approx(1.0)
  assert row['standard_error_draws'] == pytest.approx(0.5)


def test_a_row_says_what_it_is_and_what_it_cost():
  row = bound_row(samples(np.ones((3, 5)), times=32), SHAPE, 13.3, -5.0)
  assert {k: row[k] for k in ('estimate', 'kind', 'examples', 'repeats', 'times_per_image',
                              'evaluations_per_image', 'steps', 'dequantiser', 'logsnr_max',
                              'logsnr_min')} == {
      'estimate': 'vlb', 'kind': 'bound', 'examples': 5, 'repeats': 3, 'times_per_image': 32,
      'evaluations_per_image': 96, 'steps': None, 'dequantiser': None, 'logsnr_max': 13.3,
      'logsnr_min': -5.0}
  chain = bound_row(samples(np.ones((3, 5)), steps=1000), SHAPE, 13.3, -5.0)
  assert (chain['estimate'], chain['steps']) == ('vlb@1000', 1000)


def test_an_error_that_cannot_be_estimated_is_absent_rather_than_zero():
  of_one_repetition = bound_row(samples([[1.0, 2.0]]), SHAPE, 13.3, -5.0)
  assert of_one_repetition['standard_error'] > 0
  assert of_one_repetition['standard_error_draws'] is None
  of_one_image = bound_row(samples([[1.0], [2.0]]), SHAPE, 13.3, -5.0)
  assert of_one_image['standard_error'] is None and of_one_image['standard_error_draws'] > 0


def test_the_file_is_strict_json_and_comes_back_as_it_was():
  rows = [bound_row(samples([[1.0, 2.0]]), SHAPE, 13.3, -5.0)]
  text = ledger(rows).to_json()
  def refuse(name):
    raise AssertionError(f'{name} is not JSON')
  assert Ledger(**json.loads(text, parse_constant=refuse)) == ledger(rows)
  assert list(json.loads(text)) == ['dataset', 'checkpoint', 'rows', 'config']


def test_what_is_not_a_number_is_not_written():
  rows = [bound_row(samples([[1.0, math.nan]]), SHAPE, 13.3, -5.0)]
  with pytest.raises(ValueError, match='nan'):
    ledger(rows).to_json()


def test_a_write_that_fails_leaves_the_ledger_before_it(tmp_path, monkeypatch):
  path = tmp_path / 'ledger.json'
  files.write_text(path, 'the one before')
  def full(*_):
    assert path.read_text() == 'the one before'
    raise OSError('no space left on device')
  monkeypatch.setattr('vdm_jax.files.os.replace', full)
  with pytest.raises(OSError, match='no space'):
    files.write_text(path, 'the next')
  assert path.read_text() == 'the one before'


def test_the_table_of_usual_rows_has_one_line_each_in_80_columns():
  """Nothing is cut off: every number of the row is on its line."""
  rng = np.random.default_rng(0)
  rows = [bound_row(samples(rng.uniform(5, 9, (3, 20)), steps), SHAPE, 13.3, -5.0)
          for steps in (0, 1000, 10_000)]
  text = printed(rows)
  assert '…' not in text and all(len(line) <= 80 for line in text.splitlines())
  for row in rows:
    line, = [line for line in text.splitlines() if line.split()[:1] == [row['estimate']]]
    assert line.split() == [
        row['estimate'], 'bound', f'{row["bits_per_dim"]:.4f}', f'{row["standard_error"]:.4f}',
        f'({row["standard_error_draws"]:.4f})', f'{row["reconstruction"]:.5f}',
        f'{row["latent"]:.5f}', f'{row["diffusion"]:.4f}', '96']


def test_the_table_of_unusual_rows_is_folded_and_not_cut():
  rows = [bound_row(samples([[9e4, 1e5], [2e5, 3e5]], 1_000_000, times=2048), SHAPE, 13.3, -5.0)]
  text = printed(rows, name='downsampled_imagenet/64x64', examples=49_999, step=10_000_000,
                 version='2.0.0, old (49,999 validation images)')
  assert '…' not in text and all(len(line) <= 80 for line in text.splitlines())
  joined = ''.join(text.split())
  assert 'step10,000,000(ema)' in joined and '49,999images' in joined


def test_the_table_says_which_data_which_weights_and_where_the_schedule_ends():
  text = printed([bound_row(samples([[1.0, 2.0]]), SHAPE, 13.3, -5.0)])
  for part in ('digits 1.0.0, test: 300 images', 'sha256 0123456789ab', 'step 1,500 (ema)',
               'log-SNR 13.300 to -5.000'):
    assert part in text
  assert '(-)' in text  # one repetition says nothing of the draws
