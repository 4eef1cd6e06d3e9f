"""The commands hand their flags to functions of the library by name: the names are arguments."""
import ast
import importlib
import inspect
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).parents[2]


def handed_by_name(names, tree):
  """(function, names of its arguments) of every call with `**cli.values(...)`."""
  for call in ast.walk(tree):
    if not isinstance(call, ast.Call):
      continue
    handed = [keyword.arg for keyword in call.keywords if keyword.arg]
    values = [keyword.value for keyword in call.keywords if keyword.arg is None
              and ast.unparse(keyword.value).startswith('cli.values(')]
    if not values or ast.unparse(call.func).partition('.')[0] not in names:
      continue
    for argument in values[0].args:
      starred = isinstance(argument, ast.Starred)
      text = ast.unparse(argument.value if starred else argument)
      if text in names:  # or it is a local variable
        handed += [holder.name for holder in (names[text] if starred else [names[text]])]
    yield eval(ast.unparse(call.func), names), handed


def wrong():
  """What is handed under a name that the function does not have; to be asked once a process."""
  sys.path.insert(0, str(ROOT / 'scripts'))
  calls = 0
  commands = ROOT / 'vdm_jax' / 'cli' / 'commands'
  for path in sorted([*commands.glob('[a-z]*.py'), *(ROOT / 'scripts').glob('*.py')]):
    if 'cli.values' not in path.read_text():
      continue
    before = set(flags.FLAGS)
    names = (vars(importlib.import_module(f'vdm_jax.cli.commands.{path.stem}'))
             if path.parent == commands else runpy.run_path(str(path), run_name=path.stem))
    for function, handed in handed_by_name(dict(names), ast.parse(path.read_text())):
      calls += 1
      parameters = inspect.signature(function).parameters
      takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
      if missing := set() if takes_any else set(handed) - set(parameters):
        yield f'{path.name}: {function.__qualname__} has no {", ".join(sorted(missing))}'
    for name in set(flags.FLAGS) - before:  # another command has one of that name
      delattr(flags.FLAGS, name)
  if calls < 8:
    yield f'only {calls} calls were seen'


@pytest.mark.long
def test_flags_that_are_handed_by_name_are_arguments():
  """In a process of its own: a flag is defined when its command is first imported."""
  done = subprocess.run([sys.executable, __file__], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | {'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr
  assert not done.stdout, done.stdout


def test_a_name_that_is_none_is_noticed():
  flag = types.SimpleNamespace(name='steps')
  names = {'f': lambda a, *, seed: None, 'STEPS': flag, 'BOTH': (flag, flag), 'cli': None}
  tree = ast.parse('f(1, seed=2, **cli.values(STEPS, *BOTH, local))')
  assert list(handed_by_name(names, tree)) == [(names['f'], ['seed', 'steps', 'steps', 'steps'])]


if __name__ == '__main__':
  print('\n'.join(wrong()), end='')
