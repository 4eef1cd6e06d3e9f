"""A short description of a run's data, small enough to be kept with the run.

A fingerprint is {'sha256', 'count', 'parts': {name: size or checksum}}.  The parts of a folder are
its files with their sizes.  The parts of an array file are its arrays with their checksums.  The
parts of a prepared data set are its splits with their counts.  With more than `LISTED` parts, no
part is listed, and a comparison gives only the two counts.
"""
import hashlib
import json
from collections.abc import Mapping
from typing import Any

LISTED = 10_000  # half a megabyte of names
NAMED = 3        # of each kind of change


def of(parts: Mapping[str, int | str]) -> dict[str, Any]:
  """The fingerprint of these parts, as JSON; their order does not matter."""
  text = json.dumps(parts, sort_keys=True)
  listed = {'parts': dict(parts)} if len(parts) <= LISTED else {}
  return {'sha256': hashlib.sha256(text.encode()).hexdigest(), 'count': len(parts), **listed}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """The differences in words: '2 added (a.png, b.png), 1 removed (c.png)'; '' without differences.
  """
  if old['sha256'] == new['sha256']:
    return ''
  if 'parts' not in old or 'parts' not in new:
    return f'{old["count"]:,} parts then and {new["count"]:,} now, not all the same'
  before, after = old['parts'], new['parts']
  kinds = {'added': after.keys() - before.keys(), 'removed': before.keys() - after.keys(),
           'changed': {name for name in before.keys() & after.keys()
                       if before[name] != after[name]}}
  return ', '.join(f'{len(names):,} {kind} ({_named(names)})' for kind, names in kinds.items()
                   if names)


def _named(names: set[str]) -> str:
  return ', '.join(sorted(names)[:NAMED]) + ', ...' * (len(names) > NAMED)
