"""The state of a large run is computed in parts: no device ever holds the whole."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = '''
import json
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 64)
from vdm_jax import random
from vdm_jax.runs import workdir
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
config = workdir.open_config('configs/imagenet/vdm.py:64')
e = workdir.import_config('configs/imagenet/vdm.py').build(config)
layout = parallel.fsdp_layout(step_lib.update_of(e))
make = lambda key: step_lib.init(e.init(key), e.tx, e.ema, e.aux)
key = jax.eval_shape(lambda: random.key(0))
program = jax.jit(lambda key: layout.init(make, key)).lower(key).compile(
    compiler_options={'xla_backend_optimization_level': 0})
memory = program.memory_analysis()
state = jax.eval_shape(make, key)
print(json.dumps({
    'state': sum(u.size * u.dtype.itemsize for u in jax.tree.leaves(state)),
    'largest': max(u.size * u.dtype.itemsize for u in jax.tree.leaves(state)),
    'out': memory.output_size_in_bytes, 'temp': memory.temp_size_in_bytes}))
'''


@pytest.mark.long
def test_on_64_devices_each_initialises_its_own_64th_of_the_state_for_imagenet_64():
  """The compiled program is counted; nothing is run.  Norms and biases are on every device."""
  done = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['state'] > 2**31
  assert found['state'] / 64 <= found['out'] < 1.05 * found['state'] / 64
  # Not even one of its large tensors is whole on any device.
  assert found['temp'] < found['largest'] / 8
