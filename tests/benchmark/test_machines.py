"""The names of machines, and the error where a compiler is missing."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import wide_config
from vdm_jax.benchmark import hardware, machines
from vdm_jax.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name,kind,count', [
    ('h200', 'NVIDIA H200', 1), ('h200x8', 'NVIDIA H200', 8), ('h100x2', 'NVIDIA H100', 2),
    ('v5e:2x4', 'TPU v5e', 8), ('v5p:4x4x4', 'TPU v5p', 64), ('v6e:16x16', 'TPU v6e', 256),
    ('v4:2x2x4', 'TPU v4', 16)])
def test_a_machine_is_known_by_its_kind_and_its_number_of_devices(name, kind, count):
  machine = machines.machine(name)
  assert (machine.kind, machine.count) == (kind, count)
  assert machine.peak == hardware.PEAKS[kind] and machine.is_tpu == name.startswith('v')


@pytest.mark.parametrize('name', ['', 'h300', 'h200x0', 'h200x16', 'v5e', 'v5e:4', 'v5e:2x2x2',
                                  'v5p:4x4', 'v5e:0x4', 'v7:2x2', 'v5e:4x4 ', 'H200'])
def test_an_unknown_machine_is_refused_with_the_known_ones(name):
  with pytest.raises(InputError, match='no such machine is known; name one of h100, h200') as error:
    machines.machine(name)
  assert error.value.field == 'target' and 'v5p:4x4x4' in error.value.remedy


@pytest.mark.parametrize('name,module,extra', [
    ('v5e:2x4', 'libtpu', 'tpu'), ('h200', 'jax_cuda13_plugin', 'cuda13')])
def test_a_missing_compiler_is_one_line_that_says_how_to_get_it(name, module, extra, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda one: None if one == module else find(one))
  with pytest.raises(InputError, match=rf'{module} is missing\); pip install "jax\[{extra}\]=='):
    machines.devices(machines.machine(name))


@pytest.mark.parametrize('kind,known', [
    ('NVIDIA H100 80GB HBM3', True), ('NVIDIA H200', True), ('NVIDIA H100 PCIe', False),
    ('NVIDIA H100 NVL', False), ('NVIDIA H200 NVL', False)])
def test_the_rates_are_of_the_modules_and_not_of_other_boards(kind, known):
  assert (hardware.peak(kind) is not None) == known


def test_the_extras_bring_what_a_compiler_needs():
  text = (ROOT / 'pyproject.toml').read_text()
  assert 'cuda13 = ["jax[cuda13]' in text and 'tpu = ["jax[tpu]' in text


# ------------------------------------------------------------ with the compilers

def compiled(*arguments: str) -> dict:
  """The account of a network of products 2 x 16,384 and 16,384 x 2."""
  file = f'{wide_config.__file__}:{2**14}'
  done = subprocess.run(
      [sys.executable, 'scripts/benchmark.py', 'compile', f'--config={file}', '--json', *arguments],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


needs = lambda module: pytest.mark.skipif(
    importlib.util.find_spec(module) is None, reason=f'{module} is not installed')


@pytest.mark.long
@needs('jax_cuda13_plugin')
def test_a_step_is_compiled_for_a_gpu_that_is_not_here():
  """The state is 2^16 numbers four times; the network is two products, of 2 x 16,384 each.

  Forwards there are two products, and backwards three: the input needs no gradient.
  """
  account = compiled('--target=h200')
  assert account['compiles'] and account['fits'] and account['collectives'] == 'none'
  assert 16 * 2**16 <= account['argument_bytes'] <= 16 * 2**16 + 2**12
  assert account['flop_on_each_device'] >= 5 * 2 * 64 * 2 * 2**14
  # At least the state is read and written.
  assert account['moved_bytes'] > 2 * 16 * 2**16
  assert account['longest_seconds'] <= account['summed_seconds']


@pytest.mark.long
@needs('libtpu')
def test_a_step_is_compiled_for_a_slice_of_tpus_under_fsdp():
  """Each of 8 chips keeps an eighth of the state, and 8 of the 64 examples."""
  account = compiled('--target=v5e:2x4', '--config.train.layout=fsdp')
  assert account['compiles'] and account['fits'] and account['images_on_each_device'] == 8
  assert 2 * 2**16 <= account['argument_bytes'] <= 2 * 2**16 + 2**16
  assert account['sent_by_each_bytes'] >= 2 * 4 * 2**16 * 7 / 8
