"""scripts/train.py from outside: a mistake is one line on stderr and exit code 2, at once."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_config
from vdm_jax.runs import workdir

ROOT = Path(__file__).parents[2]


def command(*arguments):
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
  return subprocess.Popen(
      [sys.executable, 'scripts/train.py', '--config=tests/support/tiny_config.py', *arguments],
      cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


MISTAKES = {
    'an unknown field': (
        ['--config.train.step=3'], "--config.train.step: the config has no field 'step'"),
    'an unknown group': (['--config.foo.bar=3'], "no field 'foo'"),
    'a wrong type': (['--config.data.batch_size=7.5'], '--config.data.batch_size=7.5'),
    'an unknown flag': (['--nothing=1'], "'nothing'"),
    'no config file': (['--config=nothing.py'], "nothing.py"),
    'a batch that is not divided': (['--config.data.batch_size=6'], 'choose a multiple of 4'),
    'no data set': (['--config.data.name=cifar10'], 'python scripts/prepare_data.py cifar10'),
    'no such layout': (['--config.train.layout=pjit'], 'choose one of jit, fsdp, pmap'),
    'seeds that are no numbers': (['--seeds=1,b'], '--seeds=1,b'),
    'a row without its table': (['--row=vdm'], '--row=vdm'),
    'no such row': (['--row=none', '--measured=docs/measured/systems.json'], '--row=none'),
    'a table of several runs': (['--seeds=1,2', '--measured=a.json'], '--measured=a.json'),
}


@pytest.mark.long
@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_line_and_code_2(name, tmp_path):
  arguments, expected = MISTAKES[name]
  process = command(*arguments, f'--workdir={tmp_path}/run', f'--data_dir={tmp_path}/data')
  out, err = process.communicate()
  assert process.returncode == 2
  assert expected in err
  assert err.startswith('error: ') and err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def alone(*arguments):
  return subprocess.run([sys.executable, 'scripts/train.py', *arguments], cwd=ROOT, text=True,
                        capture_output=True)


@pytest.mark.long
def test_a_run_is_gone_on_with_by_its_directory_alone(tmp_path):
  config = tiny_config.get_config()
  config.model.features = 11
  workdir.prepare(tmp_path, config, tiny_config.__file__)
  done = alone(f'--workdir={tmp_path}', '--config.train.steps=77', '--print_config')
  assert (done.returncode, done.stderr) == (0, '')
  assert {'--config.model.features=11', '--config.train.steps=77',
          '--config.data.name=swirl'} < set(done.stdout.splitlines())


@pytest.mark.long
def test_a_directory_without_a_run_needs_a_config(tmp_path):
  done = alone(f'--workdir={tmp_path}/none')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (f'error: --config: it is missing, and {tmp_path}/none holds no run to go '
                         'on with; give it, as in --config=configs/digits/vdm.py.\n')


@pytest.mark.long
def test_a_training_says_where_it_is_its_trace_and_what_is_next(tmp_path):
  process = command(f'--workdir={tmp_path}/a run', '--config.train.steps=8', '--profile=2')
  out, err = process.communicate()
  assert process.returncode == 0, err
  kept, then, trace = out.splitlines()[-3:]
  assert kept == f'kept in {tmp_path}/a run'
  run = f"'--workdir={tmp_path}/a run'"
  assert then == (f'next: python scripts/evaluate.py {run}, python scripts/sample.py {run} '
                  '--out=samples.png')
  file = Path(trace.removeprefix('trace: ').partition('; ')[0])
  assert file.is_file() and file.is_relative_to(tmp_path / 'a run' / 'profile')
  assert 'ui.perfetto.dev' in trace


@pytest.mark.long
def test_a_directory_below_a_file_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  process = command(f'--workdir={tmp_path}/file/run')
  out, err = process.communicate()
  assert process.returncode == 2
  assert err.count('\n') == 1 and 'cannot be written' in err


@pytest.mark.long
def test_a_run_that_diverges_says_where_and_exits_with_1(tmp_path):
  process = command(f'--workdir={tmp_path}', '--config.model.explode_at=13')
  _, err = process.communicate()
  assert process.returncode == 1
  last = err.splitlines()[-1]
  assert last.startswith('error: The loss is not finite at step 13:') and 'step 10' in last
  assert 'Traceback' not in err


@pytest.mark.long
def test_another_model_in_the_same_directory_is_refused_with_the_difference(tmp_path):
  few = [f'--workdir={tmp_path}', '--config.train.steps=2']
  process = command(*few)
  process.communicate()
  assert process.returncode == 0
  process = command(*few, '--config.model.features=9')
  _, err = process.communicate()
  assert process.returncode == 2
  assert 'model.features: 8 there, 9 asked for' in err and 'Traceback' not in err
