"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
  """Bad input: the message names the flag or field and the remedy; scripts print it as one line."""
