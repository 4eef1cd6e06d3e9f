"""Errors of a user's input are values: a field, what it was, what is wrong, what to do."""
import ast
import inspect
from pathlib import Path

import ml_collections
import pytest

from vdm_jax import errors
from vdm_jax.cli import messages
from vdm_jax.errors import InputError
from vdm_jax.systems import compose

ROOT = Path(__file__).parents[2]
PARAMETERS = {name: tuple(inspect.signature(call).parameters) for name, call in [
    ('InputError', InputError), ('require', errors.require),
    ('require_at_least', errors.require_at_least), ('require_choice', errors.require_choice)]}


def begins_with_a_flag(node):
  """Whether a text in the source, of f-strings the first words too, begins with --."""
  if isinstance(node, ast.BinOp):
    return begins_with_a_flag(node.left)
  if isinstance(node, ast.JoinedStr):
    return bool(node.values) and begins_with_a_flag(node.values[0])
  return isinstance(node, ast.Constant) and str(node.value).startswith('--')


def faults(source):
  """The lines of a source whose errors name a flag as their field, or have no problem."""
  for call in ast.walk(ast.parse(source)):
    called = getattr(call, 'func', None)
    name = getattr(called, 'id', getattr(called, 'attr', None))
    if name not in PARAMETERS or any(isinstance(u, ast.Starred) for u in call.args):
      continue
    given = dict(zip(PARAMETERS[name], call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords}
    if (name == 'InputError' and 'problem' not in given
        or any(begins_with_a_flag(u) for u in given.values())):
      yield call.lineno


@pytest.mark.long
def test_no_message_is_one_sentence_or_begins_with_a_flag():
  found = [f'{path.relative_to(ROOT)}:{line}' for room in ('vdm_jax', 'configs', 'scripts')
           for path in sorted((ROOT / room).rglob('*.py')) for line in faults(path.read_text())]
  assert not found
  for wrong in ("InputError('--a=1: it is none')", "InputError('a sentence')",
                "InputError(f'--{a}', 1, 'none')", "require(False, '--a', 1, 'none')",
                "InputError('a', 1, '--b is given')"):
    assert list(faults(wrong)), wrong


@pytest.mark.parametrize('call,python,command', [
    (lambda: errors.require_at_least('steps', 0), 'steps=0: it must be at least 1.',
     '--steps=0: it must be at least 1.'),
    (lambda: errors.require_choice('layout', 'jitt', ('jit', 'fsdp')),
     "layout='jitt': did you mean jit; choose one of jit, fsdp.",
     '--layout=jitt: did you mean jit; choose one of jit, fsdp.'),
    (lambda: compose.require(ml_collections.ConfigDict({'model': {'sizes': (8, 16)}}), 'sizes',
                             False, 'they differ', 'give one'),
     'config.model.sizes=(8, 16): they differ; give one.',
     '--config.model.sizes=8,16: they differ; give one.'),
    (lambda: errors.require(False, 'workdir', None, 'it is missing'), 'workdir: it is missing.',
     '--workdir: it is missing.'),
    (lambda: errors.require(False, None, None, 'it is damaged', 'make it anew'),
     'it is damaged; make it anew', 'it is damaged; make it anew')])
def test_the_command_line_shows_the_flag_where_python_shows_the_argument(
    call, python, command, monkeypatch, capsys):
  with pytest.raises(InputError) as error:
    call()
  assert str(error.value) == python
  ended = []
  monkeypatch.setattr(messages.distributed, 'leave', ended.append)
  messages.fail(error.value)
  assert capsys.readouterr().err == f'error: {command}\n' and ended == [2]
