"""The one kind of error that the user can mend."""
import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ['InputError', 'method_named', 'renamed', 'require', 'require_at_least',
           'require_choice']


class InputError(ValueError):
  """An error of bad input, with the field, its value, the problem and the remedy.

  Python shows the argument, `steps=0: it must be at least 1.`  The command line shows the flag,
  `--steps=0: ...`, through `as_flag`.

  Args:
    field: the name of an argument and its flag, or of a config's field ('config.model.groups').  If
      None, only the problem is shown.
    value: the value as the user gave it.  None is not shown.
    problem: a clause without a full stop.
    remedy: an imperative without a full stop.
  """

  def __init__(self, field: str | None = None, value: Any = None, problem: str = '',
               remedy: str = ''):
    super().__init__(field, value, problem, remedy)  # pickled by these
    self.field, self.value, self.problem, self.remedy = field, value, problem, remedy

  def __str__(self) -> str:
    return self._text('', repr)

  def as_flag(self) -> str:
    """The message with the field as a flag of the command line."""
    return self._text('--', _as_typed)

  def _text(self, prefix: str, show) -> str:
    what = f'{self.problem}; {self.remedy}' if self.remedy else self.problem
    if self.field is None:
      return what
    shown = '' if self.value is None else f'={show(self.value)}'
    return f'{prefix}{self.field}{shown}: {what.rstrip(".")}.'


def _as_typed(value: Any) -> str:
  return ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def require(holds: bool, field: str | None, value: Any, problem: str, remedy: str = '') -> None:
  """Raises InputError(field, value, ...) unless `holds`; a comparison with NaN never holds."""
  if not holds:
    raise InputError(field, value, problem, remedy)


def require_at_least(field: str, value: float | None, least: float = 1) -> None:
  """Raises InputError unless the value of `field` is None or at least `least`."""
  if value is not None and value < least:
    raise InputError(field, value, f'it must be at least {least}')


def require_choice(field: str, value: Any, choices) -> None:
  """Raises InputError, with the nearest of `choices`, unless `value` is one of them."""
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
  raise InputError(field, value, f'did you mean {near[0]}' if near else 'there is no such choice',
                   f'choose one of {", ".join(map(str, choices))}')


def method_named(methods: Mapping[str, Any], method: str, **fields: Any) -> Any:
  """methods[method] with these fields, after its own `check`.

  methods: classes of NamedTuple by name.

  Raises InputError: no such method; a field that the method does not have; a wrong value.
  """
  require_choice('method', method, methods)
  make = methods[method]
  for field, given in fields.items():
    require(field in make._fields, field, given, f'{method} does not read it',
            f'leave it out; it reads {", ".join(make._fields)}')
  made = make(**fields)
  made.check()
  return made


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
  """An InputError inside whose field is among `names` shows the name that the user gave.

  names: field -> the argument or the flag that set it.
  """
  try:
    yield
  except InputError as error:
    if error.field is None or error.field not in names:
      raise
    raise InputError(names[error.field], error.value, error.problem, error.remedy) from None
