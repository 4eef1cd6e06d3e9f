"""The device of the measurements, and the rated speed and memory of devices."""
import os
from pathlib import Path
from typing import NamedTuple

import jax


class Peak(NamedTuple):
  """The figures of one device, with which shares of a peak are stated."""
  flop_per_second: float    # dense, in bfloat16
  bytes_per_second: float   # of the main memory
  memory_bytes: int         # of the main memory
  source: str


_HOPPER = '790e12 FLOP/s: a rate that we set, which large matrix products reach; the data sheet '\
          'of the SXM module states 989e12; memory and bandwidth: NVIDIA, data sheet of the '
_GIB = 2**30
# By `device_kind`; the longest name that it begins with counts.  The GPUs are the SXM modules.  The
# compiler for TPUs has the GB of Google's pages as GiB.
PEAKS = {
    'NVIDIA H100': Peak(790e12, 3.35e12, 80 * 10**9, f'{_HOPPER}H100 SXM'),
    'NVIDIA H200': Peak(790e12, 4.8e12, 141 * 10**9, f'{_HOPPER}H200 SXM'),
    'TPU v4': Peak(275e12, 1.2e12, 32 * _GIB, 'Google Cloud, TPU v4'),
    'TPU v5': Peak(459e12, 2.765e12, 95 * _GIB, 'Google Cloud, TPU v5p'),      # as JAX calls v5p
    'TPU v5p': Peak(459e12, 2.765e12, 95 * _GIB, 'Google Cloud, TPU v5p'),
    'TPU v5 lite': Peak(197e12, 0.819e12, 16 * _GIB, 'Google Cloud, TPU v5e'),
    'TPU v5e': Peak(197e12, 0.819e12, 16 * _GIB, 'Google Cloud, TPU v5e'),
    'TPU v6 lite': Peak(918e12, 1.6e12, 32 * _GIB, 'Google Cloud, TPU v6e'),
    'TPU v6e': Peak(918e12, 1.6e12, 32 * _GIB, 'Google Cloud, TPU v6e'),
}

_SLOWER = ('PCIe', 'NVL')  # boards with the same chips and other rates


def peak(kind: str) -> Peak | None:
  """The stated peak of a device of that kind; None for a CPU, or for an unknown device."""
  if kind.endswith(_SLOWER):
    return None
  names = [name for name in PEAKS if kind.startswith(name)]
  return PEAKS[max(names, key=len)] if names else None


def device_name() -> str:
  """The kind of the first device; for a CPU, its model and the cores that this process may use."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return device.device_kind
  # Not every system says which it lets a process use.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return f'{cores} CPU core{"s" if cores != 1 else ""} ({_cpu_model()})'


def _cpu_model() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')),
              'CPU')
