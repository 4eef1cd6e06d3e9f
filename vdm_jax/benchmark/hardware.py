"""The device of the measurements, and its rated speed."""
import os
from pathlib import Path
from typing import NamedTuple

import jax


class Peak(NamedTuple):
  """The stated peak of one device, in dense bfloat16 floating-point operations per second."""
  flop_per_second: float
  source: str


# By `device_kind`; the longest name that it begins with counts.
PEAKS = {
    'NVIDIA H200': Peak(790e12, 'the figure that our tables use; the data sheet of the SXM module '
                                'states 989e12'),
    'TPU v4': Peak(275e12, 'Google Cloud, TPU v4'),
    'TPU v5': Peak(459e12, 'Google Cloud, TPU v5p'),      # as JAX calls v5p
    'TPU v5p': Peak(459e12, 'Google Cloud, TPU v5p'),
    'TPU v5 lite': Peak(197e12, 'Google Cloud, TPU v5e'),
    'TPU v5e': Peak(197e12, 'Google Cloud, TPU v5e'),
}


def peak(kind: str) -> Peak | None:
  """The stated peak of a device of that kind; None for a CPU, or for an unknown device."""
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
