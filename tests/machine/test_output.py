"""Output ends nothing: not when its reader leaves, and not for a letter that a terminal lacks."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('reader', ['of a pipe', 'of a terminal'])
@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_output_that_nobody_reads_ends_nothing(reader, stream, tmp_path):
  """The reader is gone, and there is more than a pipe holds."""
  reading, writing = os.pipe() if reader == 'of a pipe' else os.openpty()
  process = subprocess.Popen([sys.executable, '-c', f"""
import sys
from pathlib import Path
from vdm_jax.machine import output
sys.{stream} = output.lasting(sys.{stream})
for _ in range(3):
  print('x' * 10**6, file=sys.{stream}, flush=True)
print('the rest', file=sys.{stream})
Path(sys.argv[1]).write_text('whole')
""", str(tmp_path / 'made')], cwd=ROOT, **{stream: writing})
  os.close(writing)
  os.read(reading, 1)
  os.close(reading)
  assert process.wait(60) == 0
  assert (tmp_path / 'made').read_text() == 'whole'


def test_a_full_disk_is_an_error_as_ever():
  with open('/dev/full', 'w') as full:
    done = subprocess.run([sys.executable, '-c', """
import sys
from vdm_jax.machine import output
print('a', file=output.lasting(sys.stdout), flush=True)
"""], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
  assert done.returncode == 1 and 'No space left on device' in done.stderr
