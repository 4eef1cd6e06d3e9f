"""Models that are told a part of the image, trained on data whose regions are erased."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import decoders, random, schedules
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.systems import compose
from vdm_jax.systems.guided import inpainting
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Context

N = 4000


@pytest.mark.long
def test_a_rectangle_is_erased_or_all_outside_of_one_or_everything():
  keys = random.per_example(random.key(0), jnp.arange(N))
  known = np.asarray(jax.jit(lambda keys: inpainting.erased(keys, 6, 9))(keys))[..., 0]
  assert known.shape == (N, 6, 9) and set(np.unique(known)) == {0, 1}

  def is_rectangle(region):
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    if not rows.size:
      return False
    return region.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
  nothing = known.sum(axis=(1, 2)) == 0
  outside = np.array([is_rectangle(one) for one in known])        # erased outside of it
  inside = np.array([is_rectangle(1 - one) for one in known])     # a rectangle is erased
  assert (nothing | outside | inside).all()
  # The rectangle is the whole image if its ends are the first and the last row and column, which
  # has the probability (2 / 6^2) (2 / 9^2).
  whole = 4 / 54**2
  rest = 1.0 - inpainting.ALL - inpainting.OUTSIDE
  share = inpainting.ALL + rest * whole
  assert abs(nothing.mean() - share) < 4 * (share * (1 - share) / N)**0.5
  # A pixel of the middle is in a rectangle with the probability P(row) P(column), where a row of n
  # is between two uniform rows with 1 - (r / n)^2 - ((n - 1 - r) / n)^2.
  between = lambda r, n: 1.0 - (r / n)**2 - ((n - 1 - r) / n)**2
  within = between(2, 6) * between(4, 9)
  share = inpainting.OUTSIDE * within + rest * (1.0 - within)
  assert abs(known[:, 2, 4].mean() - share) < 4 * (share * (1 - share) / N)**0.5


class Told(nn.Module):
  """y = z known + mask, from -1 to 1: what the network is told, number by number."""

  def __call__(self, z, time, cond=None, keys=None):
    return z * jnp.asarray(cond['known'], jnp.float32) + jnp.asarray(cond['mask'], jnp.float32)


@pytest.mark.long
def test_a_network_of_patches_reads_the_part_as_patches_and_other_conditions_as_they_are():
  rng = np.random.default_rng(0)
  z, known = rng.normal(size=(2, 2, 4, 6, 3)).astype(np.float32)
  mask = rng.integers(0, 2, (2, 4, 6, 1))
  seen = []

  class Watching(Told):
    def __call__(self, z, time, cond=None, keys=None):
      seen.append({name: u.shape for name, u in cond.items()})
      return super().__call__(z, time, cond, keys)
  cond = {'known': known, 'mask': mask, 'low_res': z[:, ::2, ::2]}
  y = Patched(Watching(), 2).apply({}, z, np.zeros(2), cond)
  np.testing.assert_allclose(y, z * known + mask, rtol=1e-6)
  assert seen == [{'known': (2, 2, 3, 12), 'mask': (2, 2, 3, 12), 'low_res': (2, 2, 3, 3)}]


@pytest.mark.long
def test_training_is_told_the_image_and_a_mask_and_estimates_are_exact_where_it_is_known():
  config = vdm.default_config()
  config.data.update(name='made', shape=(4, 6, 1), levels=256)

  def objective(denoise, process, x, t, keys, cond):
    same = jnp.all(cond['known'] == jnp.arange(24).reshape(4, 6, 1), axis=(1, 2, 3))
    return jnp.zeros(len(x)), {'same': 24.0 * same,
                               'known': jnp.sum(cond['mask'], axis=(1, 2, 3), dtype=jnp.float32)}
  one = inpainting.trained(config, lambda inner: compose.experiment(
      inner, net=Told(), schedule=schedules.Linear(8.0, -8.0), objective=objective,
      condition=None, beside=('known', 'mask')))
  image = jnp.broadcast_to(jnp.arange(24, dtype=jnp.uint8).reshape(4, 6, 1), (64, 4, 6, 1))
  context = Context(jnp.full(64, 0.5), random.per_example(random.key(0), jnp.arange(64)),
                    jnp.int32(0))
  _, terms = jax.jit(lambda: one.loss({'net': {}}, {'image': image}, context))()
  np.testing.assert_array_equal(terms['same'], 1.0)
  want = inpainting.erased(context.keys, 4, 6).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(terms['known'], want, rtol=1e-5)
  assert 0.0 < np.mean(want) < 1.0
  model = one.model({'net': {}})
  batch = model.conditions(np.arange(2), known=np.asarray(image[:2]),
                           mask=np.broadcast_to(np.arange(6)[:, None] < 2, (4, 6, 1)).astype(int))
  x = model.denoise(jnp.ones((2, 4, 6, 1)), model.process(jnp.full(2, 0.5)), model.cond(batch)).x
  own = decoders.Pixels(256).encode(image[:2])
  np.testing.assert_allclose(x[:, :, :2], own[:, :, :2], rtol=1e-5, atol=1e-6)
  assert np.abs(x - own)[:, :, 2:].min() > 1e-3
  # Without a mask nothing is known.
  assert not model.cond({'image': image})['mask'].any()
