"""Metrics: distances d(x, x_hat) of two examples, by which a student is trained.

A metric is a sum over the data: [B, ...], twice -> [B].
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.typing import Array
from vdm_jax.units import sum_over_data

Metric = Callable[[Array, Array], Array]


def l1(a: Array, b: Array) -> Array:
  """|a - b|, a sum over the data: [B, ...] -> [B]."""
  return sum_over_data(jnp.abs(a - b))


def l2(a: Array, b: Array) -> Array:
  """|a - b|^2, a sum over the data: [B, ...] -> [B]."""
  return sum_over_data(jnp.square(a - b))


METRICS = {'l1': l1, 'l2': l2}
