"""Reads a config file together with its neighbours, and imports them under names of their own.

A neighbour is a module or a package in the folder of the config file that the file imports, itself
or through another neighbour: `import parts`, `from parts.noise import curve`, `from . import
parts`.  Neighbours are found by reading the import statements anywhere in a file.  Computed imports
(`importlib.import_module`) and files other than Python are not found.

Every import of a config file makes new modules from the texts that were read, in a package of its
own.  So two config files may each have a neighbour `parts`, in one process and in any order.
`sys.path` is not changed, and no other code sees a module called `parts`.

The standard library, vdm_jax and installed packages are not neighbours, even if they lie beside the
config file.  Any other file there with the name of an installed package is refused, because the
import is ambiguous.
"""
import ast
import builtins
import difflib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from vdm_jax.errors import InputError
from vdm_jax.machine import files

__all__ = ['ConfigCode', 'MissingModule', 'build', 'get_config', 'own', 'read']


class ConfigCode(NamedTuple):
  """The text of a config file and of its neighbours."""
  path: Path                     # of the file
  text: str
  folder: Path                   # where its neighbours lie
  neighbours: Mapping[str, str]  # texts, by the path in `folder`: 'parts/noise.py'
  lost: str = ''                 # where they lay when a run began, if that is gone

  def module(self, required: Sequence[str] = ('get_config', 'build')) -> ModuleType:
    """A new module of the file, which defines the `required` names.

    Raises InputError if the module lacks one of these names, or imports a missing module.
    """
    package = f'config_{next(_NUMBERS)}'
    _SOURCES[package] = self
    module = importlib.import_module(f'{package}.{_LEAF}')
    for name in required:
      if not hasattr(module, name):
        raise InputError(problem=f'{self.path} has no `{name}`',
                         remedy='define get_config() and build(config), as a config file does')
    return module

  @property
  def digest(self) -> str:
    """A digest of all texts: eight hexadecimal digits."""
    return hashlib.sha256(repr((self.text, sorted(self.neighbours.items()))).encode()
                          ).hexdigest()[:8]

  def find(self, name: str) -> tuple[Path, str, bool] | None:
    """(path, text, whether it is a package) of the module `name` of this source."""
    if not name:
      return self.folder, '', True
    if name == _LEAF:
      return self.path, self.text, False
    stem = name.replace('.', '/')
    for file, is_package in ((f'{stem}/__init__.py', True), (f'{stem}.py', False)):
      if file in self.neighbours:
        return self.folder / file, self.neighbours[file], is_package
    if any(file.startswith(f'{stem}/') for file in self.neighbours):
      return self.folder / stem, '', True
    return None


class MissingModule(InputError, ModuleNotFoundError):
  """The error of a config file that imports a missing module.  A config may catch it."""


def read(path: str | Path, folder: str | Path | None = None, lost: str = '') -> ConfigCode:
  """The config file at `path`, with its neighbours in `folder`, by default the file's own folder.

  Raises InputError if there is no such file, if it is not Python, or if a neighbour has the name of
  an installed package.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError('config', str(path), 'no such config file')
  folder, text = Path(folder or path.absolute().parent), path.read_text()
  neighbours: dict[str, str] = {}
  waiting = [(path, name) for name in _imports(path, text, ())]
  while waiting:
    place, (name, relative) = waiting.pop()
    files = list(_files(folder, name))
    if files and not relative and _is_installed(place, name[0], folder / files[0]):
      continue
    for file in files:
      if file not in neighbours:
        neighbours[file] = (folder / file).read_text()
        waiting += [(folder / file, name) for name in _imports(
            folder / file, neighbours[file], Path(file).parent.parts)]
  return ConfigCode(path, text, folder, dict(sorted(neighbours.items())), lost)


def own(field: str, value: str, file: str, name: str) -> tuple[Any, ConfigCode]:
  """The object `name` of a user's Python file, and the source of the file.

  The file may import its neighbours, as a config file may.  field, value: the argument in which the
  user named the object, and its value FILE.py:NAME.

  Raises InputError if there is no such file or name, or if the file is not Python.
  """
  path = files.user_path(field, file)
  if not path.is_file():
    raise InputError(field, value, f'there is no file {file}',
                     'give one of your own, as FILE.py:NAME')
  try:
    source = read(path)
    module = source.module(())
  except InputError as error:
    raise InputError(field, value, error.problem, error.remedy) from None
  if not name or not hasattr(module, name):
    names = [known for known, value in vars(module).items()
             if not known.startswith('_') and not inspect.ismodule(value)]
    near = difflib.get_close_matches(name, names, n=1)
    raise InputError(field, value, f'{file} has no {name!r}', f'perhaps {near[0]!r} is meant'
                     if near else 'name what it defines, as FILE.py:NAME')
  return getattr(module, name), source


def get_config(module: ModuleType, name: str) -> ml_collections.ConfigDict:
  """The config of a config file's module.

  name: the config as the user named it, 'FILE.py' or 'FILE.py:VARIANT'.

  Raises InputError if the file has no such variant, or sets a field that does not exist.
  """
  file, colon, variant = name.partition(':')
  variants = getattr(module, 'VARIANTS', ())
  choose = f'choose one of {", ".join(variants)}' if variants else f'see {file}'
  parameters = inspect.signature(module.get_config).parameters.values()
  if colon and not parameters:
    raise InputError('config', name, 'this config has no variants', f'leave out :{variant}')
  if not colon and any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
                       for p in parameters):
    raise InputError('config', name, 'this config needs a variant',
                     f'write {file}:VARIANT; {choose}')
  try:
    return module.get_config(*[variant] if colon else [])
  except (AttributeError, KeyError) as error:
    if colon and error.args == (variant,):
      raise InputError('config', name, 'it has no such variant', choose) from None
    unknown = re.search(r'Key "(.+?)" does not exist and cannot be added', str(error))
    if not unknown:
      raise
    nearest = re.search(r'Did you mean "(.+?)"', str(error))
    raise InputError(
        'config', name, f'{_line(module, error)} sets the field {unknown[1]!r}, which does not '
        'exist', f'perhaps {nearest[1]!r} is meant' if nearest else 'give fields of its own '
        'to default_config: vdm.default_config(weight=0.1)') from None


def build(module: ModuleType, config: ml_collections.ConfigDict) -> Any:
  """The result of the `build` of a config file's module.

  Raises InputError if the config lacks a field that `build` reads, as in an older run, or if the
  library lacks a name that the file uses.
  """
  try:
    return module.build(config)
  except AttributeError as error:
    if isinstance(error.obj, ModuleType) and error.obj.__name__.startswith('vdm_jax'):
      raise InputError(
          'config', module.__file__, f'{error.obj.__name__} has no {error.name!r}, which '
          f'{_line(module, error)} uses', 'use the present name, or the version of vdm_jax '
          'that the config was written for') from error
    if not isinstance(error.obj, ml_collections.ConfigDict):
      raise
    raise InputError(
        'config', module.__file__, f'there is no field {error.name!r}, which '
        f'{_line(module, error)} needs', 'add it (for a run, to its config.json), or use the '
        'version of vdm_jax that the config was written for') from error


def _line(module: ModuleType, error: BaseException) -> str:
  """The line of the config file, or of a neighbour, that raised an error."""
  package, frame, place = module.__name__.partition('.')[0], error.__traceback__, 'it'
  while frame:
    if frame.tb_frame.f_globals.get('__name__', '').startswith(f'{package}.'):
      place = f'line {frame.tb_lineno} of {Path(frame.tb_frame.f_code.co_filename).name}'
    frame = frame.tb_next
  return place


def _imports(place: Path, text: str, package: tuple[str, ...]
             ) -> Iterator[tuple[tuple[str, ...], bool]]:
  """(dotted name, whether the import is relative) of every import in a module of `package`."""
  try:
    tree = ast.parse(text)
  except SyntaxError as error:
    raise InputError('config', str(place), f'line {error.lineno} is not Python: {error.msg}'
                     ) from None
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield tuple(alias.name.split('.')), False
    elif isinstance(node, ast.ImportFrom):
      base = package[:len(package) - node.level + 1] if node.level else ()
      base += tuple(node.module.split('.')) if node.module else ()
      for alias in node.names:
        yield (*base, alias.name), bool(node.level)


def _files(folder: Path, name: tuple[str, ...]) -> Iterator[str]:
  """The files in `folder` that an import of `name` runs.  The last part need not be a module."""
  at = Path()
  for part in name:
    if part == '*':
      yield from sorted(str(file.relative_to(folder)) for file in (folder / at).glob('*.py'))
    elif (folder / at / part / '__init__.py').is_file():
      yield str(at / part / '__init__.py')
    elif (folder / at / f'{part}.py').is_file():
      yield str(at / f'{part}.py')
      return
    elif not (folder / at / part).is_dir():
      return
    at /= part


def _is_installed(place: Path, name: str, file: Path) -> bool:
  """Whether `file` is the installed module `name`.  Raises InputError if both exist and differ."""
  if not _is_of_all(name):
    return False
  module = importlib.util.find_spec(name)
  if module.origin and Path(module.origin).exists() and file.samefile(module.origin):
    return True
  raise InputError(
      'config', str(place), f'it imports {name!r}, which is both {file} and an installed package '
      f'({module.origin})', 'rename that file, or move the config file elsewhere')


def _is_of_all(name: str) -> bool:
  if name in sys.stdlib_module_names or name == 'vdm_jax':
    return True
  return importlib.util.find_spec(name) is not None and name in _distributions()


_distributions = functools.cache(importlib.metadata.packages_distributions)  # half a second


# ------------------------------------------------------------------- importing

_LEAF = '__config__'                # the config file's own module, in the package of its import
_SOURCES: dict[str, ConfigCode] = {}  # by package
_NUMBERS = itertools.count()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds and makes the modules of the packages in `_SOURCES`, and no others."""

  @staticmethod
  def _source_of(name: str):
    package, _, inner = name.partition('.')
    return _SOURCES[package].find(inner) if package in _SOURCES else None

  def find_spec(self, fullname, path=None, target=None):
    if not (source := self._source_of(fullname)):
      return None
    file, _, is_package = source
    spec = importlib.util.spec_from_loader(fullname, self, origin=str(file), is_package=is_package)
    spec.has_location = True  # so that the module has a __file__
    return spec

  def exec_module(self, module):
    file, text, _ = self._source_of(module.__name__)
    package = module.__name__.partition('.')[0]
    module.__builtins__ = {**vars(builtins), '__import__': functools.partial(_import, package)}
    try:
      exec(compile(text, file, 'exec', dont_inherit=True), vars(module))
    except ImportError as error:
      if isinstance(error, InputError) or (error.name or '').partition('.')[0] != 'vdm_jax':
        raise
      raise _of_another_version(str(file), error) from None


sys.meta_path.append(_Finder())


def _of_another_version(file: str, error: ImportError) -> 'MissingModule':
  return MissingModule(
      'config', file, f'it was written for another version of vdm_jax ({error.msg})',
      'put the config of this version in its place, or use the version that it was written for')


def _import(package: str, name: str, globals=None, locals=None, fromlist=(), level=0):
  """`__import__` for the modules of `package`, which finds a neighbour by its plain name."""
  source, top = _SOURCES[package], name.partition('.')[0]
  own = (level == 0 and top not in sys.stdlib_module_names and top != 'vdm_jax'
         and source.find(top) is not None)
  try:
    if not own:
      return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f'{package}.{name}', globals, locals, fromlist)
    return module if fromlist else sys.modules[f'{package}.{top}']
  except ModuleNotFoundError as error:
    if (error.name or '').partition('.')[0] == 'vdm_jax':
      raise _of_another_version(str((globals or {}).get('__file__', source.path)), error) from None
    missing = (error.name or '').removeprefix(f'{package}.')
    if isinstance(error, MissingModule) or not level and missing.partition('.')[0] != top:
      raise
    lost = f' ({source.lost}, where the run began, is gone)' if source.lost else ''
    file = f'{missing.replace(".", "/")}.py'
    raised = MissingModule(
        'config', str((globals or {}).get('__file__', source.path)),
        f'it imports {missing!r}, which is neither installed nor in {source.folder}{lost}',
        f'put {file} into {source.folder}, or install it')
    raised.name = missing
    raise raised from None
