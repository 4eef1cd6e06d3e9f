"""The commands from outside: what they say of themselves, of flags, and on odd terminals."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def called(*line, python=(sys.executable,), cwd=ROOT, **environment):
  return subprocess.run([*python, str(ROOT / 'scripts' / line[0]), *line[1:]], cwd=cwd, text=True,
                        capture_output=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.long
def test_help_lists_the_flags_and_the_configs_there_are():
  for flag in ('--help', '-h'):
    done = called('summarize.py', flag)
    assert (done.returncode, done.stderr) == (0, '')
    assert '--data_dir: The folder that holds the data sets' in done.stdout
    listed = {line.split(':')[0].strip() for line in done.stdout.splitlines()}
    assert listed >= {f'{file.relative_to(ROOT)}' for file in (ROOT / 'configs').rglob('*.py')}


@pytest.mark.long
def test_the_fields_of_a_config_are_printed_as_the_flags_that_set_them():
  """What is printed, put back on the command line, prints the same."""
  given = ['summarize.py', '--config=tests/support/tiny_config.py', '--config.model.features=24']
  shown = called(*given, '--print_config')
  assert (shown.returncode, shown.stderr) == (0, '')
  assert '--config.model.features=24' in shown.stdout.splitlines()
  words = [arg for arg in subprocess.run(
      ['bash', '-c', 'printf "%s\\n" ' + ' '.join(shown.stdout.splitlines())], text=True,
      capture_output=True).stdout.splitlines() if not arg.endswith(('=', '.shape=()'))]
  again = called('summarize.py', '--config=tests/support/tiny_config.py', *words, '--print_config')
  assert again.stdout == shown.stdout, again.stderr
  help_text = called(*given, '--help').stdout
  assert all(f'  {line}' in help_text.splitlines() for line in shown.stdout.splitlines())


@pytest.mark.long
@pytest.mark.parametrize('line,message', [
    (['sample.py', '--out=a.png'], 'error: --workdir: it is missing; give it, as in '
     '--workdir=runs/digits.\n'),
    (['sample.py', '--workdir=', '--out=a.png'], 'error: --workdir=: it is empty; give a path (is '
     'a shell variable unset?).\n'),
    (['compress.py', 'info', 'a.vdmz', '--coordinator=a:1', '--num_processes=2', '--process_id=0'],
     'error: --coordinator=a:1: this command runs in one process only; leave it out, and start the '
     'command once.\n'),
    (['distil.py', '--num_processes=2'], 'error: --num_processes=2: this command runs in one '
     'process only; leave it out, and start the command once.\n'),
    (['summarize.py', '--config=configs/digits/vmd.py'], 'error: --config=configs/digits/vmd.py: '
     'there is no such file; there is configs/digits/vdm.py'),
    (['summarize.py', '--config=nothing-like-it'], 'choose a file of your own, or one of '
     'configs/'),
    (['sample.py', '--workdir=a[0', '--out=a.png'], "error: --workdir=a[0: no checkpoint can be "
     "kept below '['"),
    (['sample.py', '--workdir=runs/none', '--out=a.png', '--condition=three'],
     'error: --condition=three: it is not of the form FIELD=VALUE; write '
     '--condition=caption=three.\n'),
    (['sample.py', '--workdir=runs/none', '--out=a.png', '--eta=0.5'],
     'error: --eta=0.5: the sampler ancestral has no eta; leave it out, or choose ddim.\n'),
    (['sample.py', '--workdir=runs/none', '--out=a.png', '--clip=b', '--like_scale=2'],
     'error: --like_scale=2.0: without --like it has no effect; name a picture by --like.\n'),
])
def test_what_is_wrong_with_a_flag_is_one_line_with_its_remedy(line, message, tmp_path):
  done = called(*line, cwd=ROOT if 'summarize.py' in line else tmp_path)
  assert (done.returncode, done.stdout) == (2, '')
  assert message in done.stderr and done.stderr.count('\n') == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_python_without_jax_is_told_where_the_environment_is():
  isolated = (sys.executable, '-I', '-S')  # as the system's: the standard library alone
  for script in sorted((ROOT / 'scripts').glob('*.py')):
    if script.name == 'bootstrap.py':
      continue
    # -I leaves out the script's own folder, where `bootstrap` is.
    code = (f'import runpy, sys; sys.path.insert(0, {str(script.parent)!r}); '
            f'sys.argv = [{str(script)!r}, "--workdir=a b"]; '
            f'runpy.run_path({str(script)!r}, run_name="__main__")')
    done = subprocess.run([*isolated, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, script
    assert done.stderr.startswith(f'error: {sys.executable} has no absl and no jax'), done.stderr
    assert 'bash scripts/setup.sh' in done.stderr and ".venv/bin/python" in done.stderr
    assert done.stderr.count('\n') == 1 and "'--workdir=a b'" in done.stderr


SHOWING = '''
import sys
from vdm_jax import cli

def main():
  import rich.table
  from vdm_jax.train import metrics
  table = rich.table.Table('a', title='5 \\u00b1 1\\u00a0bits \\u2026 Fr\\u00e9chet \\u65e5')
  for i in range(5000):
    table.add_row(f'row {i} \\u00b1')
  metrics.show(table)
  print('the end', file=sys.stderr)

if __name__ == '__main__':
  cli.run(main)
'''


@pytest.mark.long
def test_a_table_is_spelt_in_ascii_where_the_terminal_has_no_more(tmp_path):
  (tmp_path / 'showing.py').write_text(SHOWING)
  line = [sys.executable, str(tmp_path / 'showing.py')]
  environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(line, cwd=ROOT, capture_output=True, env=environment)
  assert done.returncode == 0, done.stderr
  text = done.stdout.decode('ascii')
  assert 'row 4999 +-' in text and 'Frechet' in text and '\n+' in text


@pytest.mark.long
def test_a_reader_that_leaves_ends_nothing(tmp_path):
  (tmp_path / 'showing.py').write_text(SHOWING)
  done = subprocess.run(
      ['bash', '-c', f'{sys.executable} {tmp_path}/showing.py | head -1; exit ${{PIPESTATUS[0]}}'],
      cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert (done.returncode, done.stderr) == (0, 'the end\n')
