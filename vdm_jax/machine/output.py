"""Output that never ends a command, even if its reader leaves or a letter cannot be shown."""
import codecs
import errno
import io
import unicodedata
from typing import TextIO

__all__ = ['lasting']

_SPELT = {'±': '+-', '─': '-', '━': '-', '│': '|', '┃': '|', '…': '...', '–': '-', '—': '-',
          '×': 'x', '≤': '<=', '≥': '>='}


def _spell(error: UnicodeError) -> tuple[str, int]:
  """Spells characters that a terminal cannot show with characters that it can show."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  plain = lambda u: unicodedata.normalize('NFKD', u).encode('ascii', 'ignore').decode() or '?'
  return ''.join(_SPELT.get(u) or plain(u)
                 for u in error.object[error.start:error.end]), error.end


codecs.register_error('spelt', _spell)


class _Lasting(io.FileIO):
  """A file that drops writes when nobody reads them, as after `| head` or on a closed terminal."""

  def write(self, data) -> int | None:
    try:
      return super().write(data)
    except OSError as error:
      if error.errno not in (errno.EPIPE, errno.EIO):
        raise
      return len(data)


def lasting(stream: TextIO, descriptor: int | None = None) -> io.TextIOWrapper:
  """A stream of text like `stream`, to the same place, whose reader may leave.

  Writes after the reader has left are dropped.  A character that the encoding lacks is spelt with
  characters that the encoding has.

  descriptor: the descriptor of the file to write to, by default the stream's.  It stays open.
  """
  raw = _Lasting(stream.fileno() if descriptor is None else descriptor, 'w', closefd=False)
  return io.TextIOWrapper(
      io.BufferedWriter(raw), encoding=stream.encoding, errors='spelt',
      line_buffering=getattr(stream, 'line_buffering', False),
      write_through=getattr(stream, 'write_through', False))
