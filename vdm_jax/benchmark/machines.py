"""Machines to compile for: TPU slices and GPUs that need not be here.

XLA's compilers for TPUs and GPUs run on any CPU.  They need a description of the devices.  libtpu
knows the TPUs by name.  For GPUs the description is written below.
"""
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from vdm_jax.benchmark import hardware
from vdm_jax.errors import InputError

__all__ = ['KNOWN', 'Machine', 'devices', 'machine', 'require_compiler']

_TPUS = {'v4': 'TPU v4', 'v5e': 'TPU v5e', 'v5p': 'TPU v5p', 'v6e': 'TPU v6e'}
_GPUS = {'h100': 'NVIDIA H100', 'h200': 'NVIDIA H200'}
KNOWN = ('h100', 'h200', 'h100xN and h200xN for N GPUs of one host', 'v4:AxBxC', 'v5e:AxB',
         'v5p:AxBxC', 'v6e:AxB')
_EXAMPLE = 'h200x8, v5e:2x4, v5p:4x4x4, v6e:16x16'


class Machine(NamedTuple):
  """Devices of one kind."""
  name: str
  kind: str             # a key of `hardware.PEAKS`
  count: int            # of devices

  @property
  def is_tpu(self) -> bool:
    return self.kind.startswith('TPU')

  @property
  def peak(self) -> hardware.Peak:
    return hardware.PEAKS[self.kind]

  @property
  def usable_bytes(self) -> int:
    """The bytes that a program may take on a device.

    The compiler for TPUs refuses what is too large.  On a GPU, CUDA, its libraries and gaps between
    arrays take a part, for which we leave a tenth.  JAX itself takes only three quarters of a GPU's
    memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
    """
    return self.peak.memory_bytes if self.is_tpu else self.peak.memory_bytes * 9 // 10


def machine(name: str) -> Machine:
  """The machine of that name.  Raises InputError if the name is unknown."""
  unknown = InputError('target', name, 'no such machine is known',
                       f'name one of {", ".join(KNOWN)} ({_EXAMPLE})')
  if gpu := re.fullmatch(r'(h\d+)(?:x(\d+))?', name):
    count = int(gpu[2] or 1)
    if gpu[1] not in _GPUS or not 1 <= count <= 8:
      raise unknown
    return Machine(name, _GPUS[gpu[1]], count)
  if tpu := re.fullmatch(r'(v\d\w?):(\d+)x(\d+)(?:x(\d+))?', name):
    kind, *sides = [u for u in tpu.groups() if u is not None]
    # A slice of v4 or v5p is a block in three dimensions.
    if kind not in _TPUS or len(sides) != (3 if kind in ('v4', 'v5p') else 2):
      raise unknown
    if count := math.prod(map(int, sides)):
      return Machine(name, _TPUS[kind], count)
  raise unknown


def devices(of: Machine) -> list[Any]:
  """Devices that programs can be compiled for, and that cannot run them.

  This process must compute on the CPU (`scaling.simulate`): else JAX looks for a GPU here.

  Raises InputError if the compiler is not installed, or if it knows no such slice.
  """
  require_compiler(of)
  if of.is_tpu:
    # Else libtpu asks the cloud which machine this is.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    arguments = _slice(of)
  else:
    arguments = {'target_config': _gpu(of), 'topology': f'1x1x{of.count}'}
  try:
    found = topologies.get_topology_desc(of.name, 'tpu' if of.is_tpu else 'cuda', **arguments)
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise InputError('target', of.name, f'the compiler does not take it ({_first(error)})',
                     'name another slice' if of.is_tpu else
                     f'pip install "jax[cuda13]=={jax.__version__}"') from None
  if len(found.devices) != of.count:
    raise InputError('target', of.name, f'the compiler makes {len(found.devices)} devices of it',
                     'name another slice')
  return list(found.devices)


def require_compiler(of: Machine) -> None:
  """Raises InputError unless the compiler for a machine is installed."""
  extra, module = ('tpu', 'libtpu') if of.is_tpu else ('cuda13', 'jax_cuda13_plugin')
  if importlib.util.find_spec(module) is None:
    raise InputError('target', of.name, f'the compiler for it is not installed ({module} is '
                     'missing)', f'pip install "jax[{extra}]=={jax.__version__}"')


def _slice(of: Machine) -> dict[str, Any]:
  """What libtpu must be told about a slice."""
  first, second, *_ = (int(side) for side in of.name.partition(':')[2].split('x'))
  # A host has 2 x 2 chips, or fewer in a slice that is narrower.
  out: dict[str, Any] = {
      'chips_per_host_bounds': (math.gcd(first, 2), math.gcd(second, 2), 1)}
  if of.kind == 'TPU v4':  # the two cores of a chip are one device
    out['chip_config_name'] = 'megacore'
  return out


def _first(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')


def _gpu(of: Machine) -> str:
  """The description of a Hopper GPU, as a text of XLA's GpuTargetConfigProto.

  The limits of threads, registers and shared memory are of compute capability 9.0 (NVIDIA, CUDA C++
  Programming Guide, table of technical specifications).  Cores, clock and L2 cache are of the SXM
  modules (NVIDIA, H100 white paper).  cuDNN's version is the oldest that JAX supports.
  """
  return f'''
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {227 * 1024}
  shared_memory_per_core: {228 * 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: {50 * 2**20}
  memory_bandwidth: {int(of.peak.bytes_per_second)}
  device_memory_size: {of.peak.memory_bytes}
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{of.kind}"
'''
