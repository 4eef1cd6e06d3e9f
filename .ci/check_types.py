"""Runs pyright, and fails where a file has more errors than .ci/pyright_baseline.json allows.

The mathematics and the rooms on it are allowed none.  The rest may only improve: where a file has
fewer errors than its number, run this with --lower, which writes the lower numbers.
"""
import argparse
import collections
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / '.ci' / 'pyright_baseline.json'
WITHOUT_ERRORS = ('typing', 'values', 'random', 'units', 'schedules', 'processes', 'targets',
                  'inputs', 'denoisers', 'weightings', 'decoders', 'dequantisers', 'guidance',
                  'oracles', 'errors',
                  'samplers/', 'objectives/', 'likelihood/', 'ledger/', 'editing/')


def errors() -> dict[str, list[str]]:
  """{file: its errors} of what [tool.pyright] in pyproject.toml includes."""
  command = [sys.executable, '-m', 'pyright', '--outputjson', '--pythonpath', sys.executable]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  try:
    found = json.loads(done.stdout)['generalDiagnostics']
  except ValueError:
    sys.exit(f'pyright did not run: {done.stdout}{done.stderr}')
  out = collections.defaultdict(list)
  for one in found:
    if one['severity'] == 'error':
      file = Path(one['file']).relative_to(ROOT).as_posix()
      line, message = one['range']['start']['line'] + 1, one['message'].splitlines()[0]
      out[file].append(f'{file}:{line}: {message} ({one.get("rule", "syntax")})')
  return out


def compare(found: dict[str, list[str]], allowed: dict[str, int]) -> tuple[list[str], list[str]]:
  """(the errors of files that have more than allowed, the files that have fewer)."""
  more = [line for file, lines in sorted(found.items()) if len(lines) > allowed.get(file, 0)
          for line in [f'{file}: {len(lines)} errors, {allowed.get(file, 0)} allowed', *lines]]
  return more, [file for file, n in allowed.items() if len(found.get(file, [])) < n]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--lower', action='store_true', help='write the numbers that have fallen')
  lower = parser.parse_args().lower
  allowed = json.loads(BASELINE.read_text())
  strict = tuple(f'vdm_jax/{room}' for room in WITHOUT_ERRORS)
  if wrong := [file for file in allowed if file.startswith(strict)]:
    print(f'{BASELINE.name}: no errors are allowed in {", ".join(wrong)}')
    return 1
  found = errors()
  more, fewer = compare(found, allowed)
  if lower:
    least = {file: min(n, len(found.get(file, []))) for file, n in sorted(allowed.items())}
    kept = {file: n for file, n in least.items() if n}
    BASELINE.write_text(json.dumps(kept, indent=2) + '\n')
  elif fewer:
    print(f'Fewer type errors in {", ".join(fewer)}: run .ci/check_types.py --lower.')
  if more:
    print('\n'.join(more))
  total = sum(map(len, found.values()))
  print(f'pyright: {total} errors, {"more than before" if more else "none of them new"}.')
  return bool(more)


if __name__ == '__main__':
  sys.exit(main())
