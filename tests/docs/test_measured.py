"""Measured tables: what a command writes is what a page shows."""
import ast
import datetime
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import rich.table

from vdm_jax import cli, measured
from vdm_jax.benchmark import hardware
from vdm_jax.certification.catalogue import ENTRIES
from vdm_jax.errors import InputError
from vdm_jax.runs import provenance
from vdm_jax.train import metrics

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / 'docs' / 'measured').glob('*.json'))
ONE = measured.Measurement('A title', 'python scripts/a.py', '2026-11-21', '2 CPU cores',
                           {'jax': '0.10.2'}, ['name', 'value'], [['`a`', '1.0'], ['b', '']])
RENDERED = '| name | value |\n|---|---|\n| `a` | 1.0 |\n| b | |'


def test_a_measurement_is_read_as_it_was_written_and_a_row_is_a_line(tmp_path):
  path = tmp_path / 'a.json'
  measured.write(path, ONE)
  assert measured.read(path) == ONE
  assert json.loads(path.read_text())['rows'] == ONE.rows
  assert '    ["`a`", "1.0"],' in path.read_text().splitlines()


def test_a_row_that_is_too_short_is_refused(tmp_path):
  path = tmp_path / 'a.json'
  measured.write(path, ONE._replace(rows=[['a']]))
  with pytest.raises(InputError, match='2 columns and a row of 1 cells'):
    measured.read(path)


def test_what_stands_between_the_marks_is_the_table_with_the_indentation_of_its_mark():
  page = 'a\n<!-- measured: one -->\nold\n<!-- /measured -->\nb\n'
  rendered = f'<!-- measured: one -->\n{RENDERED}\n<!-- /measured -->'
  assert measured.fill(page, {'one': ONE}) == f'a\n{rendered}\nb\n'
  indented = '   <!-- measured: one -->\n   <!-- /measured -->\n'
  expected = ''.join(f'   {line}\n' for line in rendered.splitlines())
  assert measured.fill(indented, {'one': ONE}) == expected
  assert list(measured.named(page)) == ['one']


@pytest.mark.parametrize('page,message', [
    ('<!-- measured: one -->\n', '1 marks open'),
    ('<!-- measured: one -->\n<!-- measured: one -->\n<!-- /measured -->', '2 marks open'),
    ('<!-- measured: two -->\n<!-- /measured -->', "no table 'two' is measured")])
def test_a_mark_without_its_end_or_without_its_table_is_refused(page, message):
  with pytest.raises(InputError, match=message):
    measured.fill(page, {'one': ONE})


def test_one_row_is_written_and_the_rest_of_the_table_stays():
  table = ONE._replace(columns=['name', 'value (test)'])
  changed = measured.with_cells(table, 'a', {'value': '2.0'})
  assert changed == table._replace(rows=[['`a`', '2.0'], ['b', '']])
  assert table.rows[0] == ['`a`', '1.0']


def test_a_column_is_known_by_its_name_and_others_of_a_command_are_left_out():
  """`vlb` is not the beginning of `vlb@100`, and what stands in brackets is no name."""
  table = ONE._replace(columns=['name', '`vlb@100`', '`vlb` (test, bits/dim)'],
                       rows=[['`a`', '1', '2'], ['b', '3', '4']])
  changed = measured.with_cells(table, 'a', {'minutes': '9', 'vlb': '5'})
  assert changed.rows == [['`a`', '1', '5'], ['b', '3', '4']]
  assert measured.shared(table, 'a', ['minutes', 'vlb', 'vlb@100']) == ['vlb@100', 'vlb']


@pytest.mark.parametrize('row,column,message', [
    ('c', 'value', 'no such row.*choose one of: a; b'),
    ('a', 'minutes', 'none of the columns minutes')])
def test_a_row_or_a_column_that_the_table_has_not_is_refused(row, column, message):
  with pytest.raises(InputError, match=message):
    measured.with_cells(ONE, row, {column: ''})


@pytest.mark.parametrize('date,machine,stamp', [
    (0, '', ''), (1, '', ' ({today})'), (0, 'an abacus', ' ({machine})'),
    (1, 'an abacus', ' ({today}, {machine})')])
def test_a_row_of_another_day_or_machine_than_its_table_says_so(date, machine, stamp, tmp_path):
  own, path = hardware.device_name(), tmp_path / 'a.json'
  today = provenance.provenance()['date'][:10]
  measured.write(path, ONE._replace(
      columns=['name', 'value', 'minutes'], rows=[['`a`', '', ''], ['b', '', '']],
      date='2026-11-21' if date else today, machine=machine or own,
      versions={'jax': jax.__version__}))
  cli.keep_row(str(path), 'a', {'minutes': '3.0', 'value': '1.8'})
  assert measured.read(path).rows == [
      ['`a`', '1.8', '3.0' + stamp.format(today=today, machine=own)], ['b', '', '']]


@pytest.mark.parametrize('records,text', [
    ([('validation', 1, 2.0), ('test', 1, 2.5), ('validation', 2, 1.8), ('test', 2, 1.9)], '1.900'),
    ([('train', 1, 2.0), ('validation', 1, 3.0)], '3.000 (validation)')])
def test_a_run_has_reached_its_last_bound_on_the_test_split_if_there_is_one(
    records, text, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(''.join(
      json.dumps({'step': step, 'kind': kind, 'loss': 9.0, 'bits_per_dim': bits}) + '\n'
      for kind, step, bits in records))
  assert metrics.reached(tmp_path) == text


@pytest.mark.parametrize('values,text', [
    ({'loss': 0.1, 'accuracy': 0.98321}, 'accuracy 0.983 (validation)'),
    ({'loss': 0.1, 'bits_per_dim': 0.5, 'K_bits': -2.4214}, '0.500, K = -2.421 bits (validation)')])
def test_a_classifier_has_reached_its_accuracy_and_the_chain_of_2015_its_bound(
    values, text, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'kind': 'validation', **values}))
  assert metrics.reached(tmp_path) == text


def test_the_minutes_of_a_run_are_of_its_updates_whatever_lies_between(tmp_path):
  """60 steps at 1 a second, and 120 at 2 a second: two minutes."""
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in [
      {'step': 60, 'kind': 'train', 'loss': 1.0, 'steps_per_second': 1.0},
      {'step': 60, 'kind': 'validation', 'loss': 1.0},
      {'step': 180, 'kind': 'train', 'loss': 1.0, 'steps_per_second': 2.0}]))
  assert metrics.minutes(tmp_path) == pytest.approx(2.0)


def test_several_rows_are_written_together_or_not_at_all(tmp_path):
  path = tmp_path / 'a.json'
  measured.write(path, ONE)
  with pytest.raises(InputError, match='no such row'):
    cli.keep_rows(str(path), {'a': {'value': '2'}, 'c': {'value': '3'}})
  assert measured.read(path) == ONE
  cli.keep_rows(str(path), {'a': {'value': '2'}, 'b': {'value': '3'}})
  assert [row[1].split()[0] for row in measured.read(path).rows] == ['2', '3']


def test_a_row_without_a_table_is_refused_before_the_work():
  cli.check_row(None, '')
  with pytest.raises(InputError, match='no table is given; add --measured'):
    cli.check_row(None, 'a')


def test_a_run_without_bits_has_reached_a_loss_which_is_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "kind": "validation", "loss": 0.25}\n')
  assert metrics.reached(tmp_path) == 'loss 0.25 (validation)'


def test_the_cells_of_a_table_of_the_screen_are_its_words():
  table = rich.table.Table('name', rich.table.Column('value', justify='right'))
  table.add_row('a', '[bold red]1.0 FAILS[/]')
  table.add_section()
  table.add_row('b', rich.text.Text('2', 'yellow'))
  assert measured.cells(table) == [['name', 'value'], ['a', '1.0 FAILS'], ['b', '2']]


@pytest.mark.parametrize('path', TABLES, ids=lambda path: path.stem)
def test_a_measurement_says_when_on_what_and_by_which_command(path):
  found = measured.read(path)
  assert found.title and found.command and found.machine and 'jax' in found.versions
  assert re.fullmatch(r'\d{4}-\d\d-\d\d', found.date)
  scripts = re.findall(r'scripts/\w+\.\w+', found.command)
  assert all((ROOT / script).is_file() for script in scripts)
  assert all(isinstance(cell, str) and '\n' not in cell for row in found.rows for cell in row)


REFERENCE = (ROOT / 'docs' / 'reference' / 'commands.md').read_text()


@pytest.mark.parametrize('path', TABLES, ids=lambda path: path.stem)
def test_the_command_of_a_table_writes_it(path, request):
  """Each part names a command, or the tests, with the flags that it has and with --measured."""
  for command in measured.read(path).command.split('; '):
    script, *words = re.sub(r'^python ', '', command).split()
    given = {word.partition('=')[0].removeprefix('--') for word in words if word.startswith('--')
             and not word.startswith('--config.')}
    assert 'measured' in given, command
    if script == 'scripts/test.sh':
      assert request.config.getoption('measured', 'absent') != 'absent'
      continue
    section = REFERENCE.partition(f'## {Path(script).name}\n')[2].partition('\n## ')[0]
    flags = set(re.findall(r'^\| `--(\w+)`', section, re.MULTILINE))
    assert given <= flags, (command, given - flags)


def test_a_measured_table_is_shown_on_one_page():
  shown = [name for page in measured.pages(ROOT) for name in measured.named(page.read_text())]
  assert sorted(shown) == [path.stem for path in TABLES]


def ledgers() -> list[tuple[str, str]]:
  """(the paragraph before it, the block) of every printed ledger of a page."""
  found = []
  for page in measured.pages(ROOT):
    prose_and_blocks = re.split(r'^ *```.*\n', page.read_text(), flags=re.MULTILINE)
    found += [(prose.strip().split('\n\n')[-1], block) for prose, block in zip(
        prose_and_blocks[::2], prose_and_blocks[1::2], strict=False) if 'bits/dim  ' in block]
  return found


def test_a_page_says_when_and_on_what_a_ledger_was_printed():
  assert len(ledgers()) == 3
  for before, _ in ledgers():
    words = ' '.join(before.split())
    assert re.search(r'on \d{4}-\d\d-\d\d\b', words) and 'CPU cores (' in words, before
    assert 'jax 0.' in words, before


def test_the_ledger_of_the_readme_is_the_measured_likelihood_within_a_tenth_of_its_error():
  """It is of a later run than the table; docs/results.md compares the two in these words."""
  [[bits, error]] = re.findall(r'^vlb +bound SDE +(\S+) (\S+)', (ROOT / 'README.md').read_text(),
                               re.MULTILINE)
  row = measured.read(ROOT / 'docs' / 'measured' / 'likelihoods.json').rows[0]
  assert abs(float(bits) - float(row[2].partition(' +- ')[0])) <= 0.1 * float(error)
  assert f'{bits} +- {error}' in (ROOT / 'docs' / 'results.md').read_text()


def test_the_table_of_the_samplers_is_of_all_that_are_certified():
  rows = measured.read(ROOT / 'docs' / 'measured' / 'samplers.json').rows
  there = {row[0].split('`')[1]: row for row in rows if row[0].startswith('`')}
  assert list(there) == list(ENTRIES)
  for name, entry in ENTRIES.items():
    assert (there[name][1], there[name][5]) == (entry.paper, entry.use)


# ---------------------------------------------------------------------- configs


def claims(path: Path) -> str:
  """A config's header from 'Hardware' on: how long it takes, and what it reaches."""
  header = ast.get_docstring(ast.parse(path.read_text())) or ''
  return header.partition('\nHardware')[2].partition('\n\n')[0]


CONFIGS = [path for path in sorted((ROOT / 'configs').rglob('*.py')) if claims(path)]
number = re.compile(r'\b\d+\.\d+\b')


def stands(claim: str, text: str) -> bool:
  """Whether a number of the text is the claim, or is the claim when rounded to its digits."""
  digits = len(claim.partition('.')[2])
  return any(len(found.partition('.')[2]) >= digits and f'{float(found):.{digits}f}' == claim
             for found in number.findall(text))


@pytest.mark.parametrize('claim,there', [('5.49', True), ('5.5', True), ('5.48', False),
                                         ('5.4920', False), ('6.0', False)])
def test_a_claim_is_a_number_of_the_table_or_its_rounding(claim, there):
  assert stands(claim, 'the entropy is 5.492, of 60 points') == there


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_what_a_config_takes_and_is_to_reach_stands_in_the_table_of_its_folder(path):
  """Every figure, in the config's row; for scale, also in the table of likelihoods.

  A header that sends to the README may quote all of it.
  """
  text, page = claims(path), (path.parent / 'README.md').read_text()
  row = '\n'.join(line for line in page.splitlines()
                  if line.startswith('|') and f'`{path.name}' in line.split('|')[1])
  for_scale = ' '.join(sum(measured.read(ROOT / 'docs/measured/likelihoods.json').rows, []))
  time, reach, reached = text.partition('\nTo reach')
  if not reach:
    reached, row = text.partition('README.md')[2], page
  elif 'measured here' not in reached:
    for_scale = ''
  assert not [u for u in number.findall(reached) if not stands(u, f'{row} {for_scale}')]
  minutes = re.findall(r'([\d.]+) minutes', time)
  assert not [u for u in minutes if not re.search(rf'\| {u} \||{u} minutes', row)]
  assert number.findall(reached) or not reach


def test_a_header_that_sends_to_a_table_sends_to_one_with_its_name():
  for path in sorted((ROOT / 'configs').rglob('*.py')):
    for page in re.findall(r'see (\S+/README\.md)', path.read_text()):
      assert f'`{path.name}' in (ROOT / page).read_text() or path.name == 'systems.py', path


@pytest.mark.long
def test_a_command_keeps_its_table_with_what_made_it(tmp_path):
  path = tmp_path / 'digits.json'
  line = ['scripts/summarize.py', '--config=configs/digits/vdm.py', '--json', f'--measured={path}']
  done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, f'wrote {path}\n')
  kept, blocks = measured.read(path), json.loads(done.stdout)['blocks']
  assert [row[:2] for row in kept.rows[:-1]] == [
      [block['block'], f'{block["parameters"]:,}'] for block in blocks]
  assert kept.command == f'python {shlex.join(line)}' and kept.versions['jax'] == jax.__version__
  today = datetime.datetime.now(datetime.UTC).date()
  assert 0 <= (today - datetime.date.fromisoformat(kept.date)).days <= 1
