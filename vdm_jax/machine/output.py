"""What a command prints ends nothing: no reader that leaves, and no letter that is missing."""
import codecs
import errno
import io
import unicodedata
from typing import TextIO

__all__ = ['lasting']

_SPELT = {'±': '+-', '─': '-', '━': '-', '│': '|', '┃': '|', '…': '...', '–': '-', '—': '-',
          '×': 'x', '≤': '<=', '≥': '>='}


def _spell(error: UnicodeError) -> tuple[str, int]:
  """What a terminal cannot show, in letters that it can."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  plain = lambda u: unicodedata.normalize('NFKD', u).encode('ascii', 'ignore').decode() or '?'
  return ''.join(_SPELT.get(u) or plain(u)
                 for u in error.object[error.start:error.end]), error.end


codecs.register_error('spelt', _spell)


class _Lasting(io.FileIO):
  """Drops what nobody reads any more, as after `| head`, or on a terminal that is gone."""

  def write(self, data) -> int | None:
    try:
      return super().write(data)
    except OSError as error:
      if error.errno not in (errno.EPIPE, errno.EIO):
        raise
      return len(data)


def lasting(stream: TextIO, descriptor: int | None = None) -> io.TextIOWrapper:
  """A stream of text like `stream`, to the same place, whose reader may leave.

  From then on writes go nowhere.  A letter that the encoding has not is spelt in letters
  that it has.

  descriptor: of the file to write to, by default the one of `stream`; it stays open.
  """
  raw = _Lasting(stream.fileno() if descriptor is None else descriptor, 'w', closefd=False)
  return io.TextIOWrapper(
      io.BufferedWriter(raw), encoding=stream.encoding, errors='spelt',
      line_buffering=getattr(stream, 'line_buffering', False),
      write_through=getattr(stream, 'write_through', False))
