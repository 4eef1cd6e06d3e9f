"""What made a file: versions, commit, date and command, kept beside its numbers."""
import datetime
import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import vdm_jax

__all__ = ['FORMAT', 'changed', 'provenance']

# `format` in a run's config.json and ledger.json.  It grows when an older version would misread
# what a newer one writes.  Files of before it was written have none.
FORMAT = 1


def provenance() -> dict[str, str]:
  """The versions of vdm_jax and JAX, the commit ('' outside of a checkout; '-dirty' where files
  differ from it), the date in UTC, and the command line."""
  return {'vdm_jax': vdm_jax.__version__, 'commit': _commit(Path(__file__).parents[2]),
          'jax': importlib.metadata.version('jax'),
          'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
          'command': shlex.join(sys.argv)}


def changed(there: Mapping[str, str], now: Mapping[str, str]) -> str:
  """How the library that made something differs from today's, in a clause; '' if it does not, or
  an older version did not say."""
  name = lambda of: f'{of["vdm_jax"]}' + (f' of commit {of["commit"]}' if of['commit'] else '')
  return f'vdm_jax {name(there)} there, {name(now)} now' if there and any(
      there[key] != now[key] for key in ('vdm_jax', 'commit')) else ''


def _commit(root: Path) -> str:
  """The commit of the checkout at `root`; an installed package may lie within another's."""
  if not (root / '.git').exists():
    return ''
  try:
    return subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'], cwd=root,
        capture_output=True, text=True, check=True, timeout=20).stdout.strip()
  except (OSError, subprocess.SubprocessError):  # no git, or a checkout of somebody else's
    return ''
