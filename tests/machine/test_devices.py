"""What one process finds, all of them know: values and errors.  Here the processes are threads."""
import jax
import pytest

from tests.support import threads
from vdm_jax.errors import InputError
from vdm_jax.machine import devices


def fail(value):
  raise InputError('step', value, 'there is none', 'choose 2')


def test_all_have_the_value_of_the_first_alone(monkeypatch):
  value = (3, [1, 2, 3], 'x' * 1000)
  find = lambda: devices.broadcast_from_first(
      lambda: value if jax.process_index() == 0 else pytest.fail('another was asked'))
  assert threads.run(monkeypatch, find, find, find) == [value] * 3
  assert devices.broadcast_from_first(lambda: value) is value  # one process tells nobody


def test_all_end_with_the_error_of_the_first(monkeypatch):
  find = lambda: devices.broadcast_from_first(lambda: fail(jax.process_index()))
  errors = threads.run(monkeypatch, find, find)
  assert [type(error) for error in errors] == [InputError] * 2
  assert [str(error) for error in errors] == ['step=0: there is none; choose 2.'] * 2


def test_an_error_of_one_is_the_error_of_all(monkeypatch):
  def find(failing):
    return devices.on_all(
        lambda: (fail if jax.process_index() in failing else str)(jax.process_index()))

  for failing, out in (((), '012'), ((2,), 2), ((1, 2), 1)):
    got = threads.run(monkeypatch, *[lambda failing=failing: find(failing)] * 3)
    want = list(out) if not failing else [f'step={out}: there is none; choose 2.'] * 3
    assert list(map(str, got)) == want
