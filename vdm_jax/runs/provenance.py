"""The origin of a file: versions, commit, date and command, kept beside its numbers."""
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
  """The versions of vdm_jax and JAX, the commit, the date in UTC, and the command line.

  The commit is '' outside of a checkout, and ends in '-dirty' if files differ from it.
  """
  return {'vdm_jax': vdm_jax.__version__, 'commit': _commit(Path(__file__).parents[2]),
          'jax': importlib.metadata.version('jax'),
          'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
          'command': shlex.join(sys.argv)}


def changed(there: Mapping[str, str], now: Mapping[str, str]) -> str:
  """A clause that names both versions of the library, if they differ; '' if they do not.

  there: the provenance of a file.  now: today's.  The result is also '' if `there` is empty, as in
  files of older versions.
  """
  name = lambda of: f'{of["vdm_jax"]}' + (f' of commit {of["commit"]}' if of['commit'] else '')
  return f'vdm_jax {name(there)} there, {name(now)} now' if there and any(
      there[key] != now[key] for key in ('vdm_jax', 'commit')) else ''


def _commit(root: Path) -> str:
  """The commit of the checkout at `root`; '' if `root` is not the root of a checkout."""
  if not (root / '.git').exists():
    return ''
  try:
    return subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'], cwd=root,
        capture_output=True, text=True, check=True, timeout=20).stdout.strip()
  except (OSError, subprocess.SubprocessError):  # no git, or a checkout of somebody else's
    return ''
