"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
  """Bad input: the message names the flag or field and the remedy; scripts print it as one line."""


def require_at_least(flag: str, value: int | None, least: int = 1) -> None:
  """Raises InputError unless the value of `flag` is none, or at least this."""
  if value is not None and value < least:
    raise InputError(f'--{flag}={value}: it must be at least {least}.')
