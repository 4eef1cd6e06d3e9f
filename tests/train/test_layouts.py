"""One device, jit with the batch or the state sharded as well, and pmap make the same steps.

With SGD: a gradient too large by the number of devices would hide behind Adam's normalisation.
"""
import jax
import numpy as np
import optax
import pytest

from tests.support import tiny_config
from vdm_jax.benchmark import timing
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib

STEPS = 5
ONE = jax.devices()[:1]


@pytest.fixture(scope='module')
def experiment():
  config = tiny_config.get_config()
  return tiny_config.build(config)._replace(tx=optax.sgd(0.02))


@pytest.fixture(scope='module')
def start(experiment):
  """Away from the initial state, where dropout, before layers that are zero, changes nothing."""
  params = experiment.init(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [u + 0.1 * jax.random.normal(k, u.shape) for u, k in zip(leaves, keys, strict=True)]
  params = jax.tree.unflatten(tree, leaves)
  return jax.device_get(step_lib.init(params, experiment.tx, experiment.ema))


def trained(experiment, start, make, devices, together=1, loss=None):
  """The state after STEPS steps, and the metrics of each: {name: [STEPS]}."""
  update = step_lib.make_step(loss or experiment.loss, experiment.tx, experiment.ema)
  layout = make(update, devices, steps=together)
  state, rows = layout.put(start), []
  for first in range(0, STEPS, together):
    batches = [experiment.data.batch(first + k) for k in range(together)]
    batch = batches[0] if together == 1 else jax.tree.map(lambda *u: np.stack(u), *batches)
    state, metrics = layout.step(state, layout.place(batch), jax.random.key(2))
    rows.append({name: np.ravel(value) for name, value in metrics.items()})
  metrics = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  return jax.device_get(layout.view(state)), metrics


@pytest.fixture(scope='module')
def reference(experiment, start):
  return trained(experiment, start, parallel.jit_layout, ONE)


def assert_close(one, other):
  state, metrics = one
  state2, metrics2 = other
  assert int(state.step) == int(state2.step) == STEPS
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=2e-6), state, state2)
  assert metrics.keys() == metrics2.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(value, metrics2[name], rtol=1e-4, atol=1e-6, err_msg=name)


CASES = {'jit': (parallel.jit_layout, None, 1), 'pmap': (parallel.pmap_layout, None, 1),
         'fsdp': (parallel.fsdp_layout, None, 1),
         'jit, five steps at once': (parallel.jit_layout, None, STEPS),
         'fsdp, five steps at once': (parallel.fsdp_layout, None, STEPS)}


@pytest.fixture(autouse=True)
def shard_everything(monkeypatch):
  """The tensors of the tiny network too."""
  monkeypatch.setattr(parallel, 'SMALLEST_SHARDED', 1)


@pytest.mark.parametrize('case', CASES)
def test_every_layout_makes_the_steps_of_one_device(experiment, start, reference, case):
  assert_close(trained(experiment, start, *CASES[case]), reference)


@pytest.mark.long
def test_the_reference_trains_with_dropout(experiment, start, reference):
  """What the comparison is worth: the parameters move, and dropout moves them elsewhere."""
  without = trained(experiment, start, parallel.jit_layout, ONE,
                    loss=lambda p, b, context: experiment.loss(p, b, context._replace(train=False)))
  kernel = lambda state: state.params['net']['dense_in']['kernel']
  moved = np.abs(kernel(reference[0]) - start.params['net']['dense_in']['kernel']).max()
  assert moved > 1e-3
  assert np.abs(kernel(reference[0]) - kernel(without[0])).max() > 0.01 * moved


MAKES = [parallel.jit_layout, parallel.fsdp_layout, parallel.pmap_layout]


@pytest.mark.parametrize('make', MAKES, ids=lambda make: make.__name__)
@pytest.mark.parametrize('devices', [ONE, None], ids=['one device', 'all'])
def test_a_copy_taken_of_the_state_survives_the_steps_that_reuse_its_memory(make, devices):
  layout = make(lambda state, batch, key, axis: (jax.tree.map(lambda u: u + 1, state), {}), devices)
  whole = {'a': np.arange(5000.0, dtype=np.float32), 'step': np.int32(0)}
  batch = layout.place({'row': np.arange(8)})
  state = layout.put(whole)
  copies = []
  for _ in range(4):
    state, _ = layout.step(state, batch, jax.random.key(0))
    copies.append(jax.device_get(layout.view(state)))
  for k, copy in enumerate(copies, 1):
    np.testing.assert_array_equal(copy['a'], whole['a'] + k)
    assert copy['step'] == k and copy['step'].shape == ()
    assert all(isinstance(u, np.ndarray) for u in copy.values())


@pytest.mark.parametrize('make', MAKES, ids=lambda make: make.__name__)
def test_a_layout_initialises_the_state_where_a_step_finds_it(experiment, make):
  layout = make(step_lib.make_step(experiment.loss, experiment.tx, experiment.ema))
  fresh = lambda key: step_lib.init(experiment.init(key), experiment.tx, experiment.ema)
  key = jax.random.key(3)
  want = jax.device_get(jax.jit(fresh)(key))
  made = layout.init(fresh, key)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6, atol=1e-7),
               jax.device_get(layout.view(made)), want)
  placed = layout.put(want)
  assert jax.tree.map(lambda u: u.sharding, made) == jax.tree.map(lambda u: u.sharding, placed)


@pytest.mark.long
@pytest.mark.parametrize('make', MAKES[:2], ids=lambda make: make.__name__)
def test_the_second_step_runs_the_program_of_the_first(experiment, start, make):
  """Its state comes back placed as it went in."""
  layout = make(step_lib.make_step(experiment.loss, experiment.tx, experiment.ema))
  state, compilations = layout.put(start), []
  for i in range(3):
    batch, key = layout.place(experiment.data.batch(i)), jax.random.key(2)
    with timing.events() as seen:
      state, _ = layout.step(state, batch, key)
    compilations.append(timing.compilations(seen))
  assert compilations[0] >= 1 and compilations[1:] == [0, 0]


@pytest.mark.parametrize('shape,devices,want', [
    ((3, 3, 128, 256), 8, (3, 8)), ((32, 3, 3, 128, 128), 512, (4, 128)), ((100, 300), 6, (1, 6)),
    ((257, 129), 4, (1, 1)), ((96, 128), 12, (0, 12)), ((), 8, (0, 1))], ids=str)
def test_a_tensor_is_sharded_along_the_dimension_that_most_devices_divide(shape, devices, want):
  dimension, parts = parallel.shards(shape, devices)
  assert parts == want[1]
  assert parts == 1 or dimension == want[0]


def test_norms_and_biases_stay_whole(monkeypatch):
  monkeypatch.undo()
  assert parallel.shards((32, 256), 8) == (0, 1)
  assert parallel.shards((128, 128), 8) == (1, 8)


@pytest.mark.parametrize('devices,parts', [(4, 4), (3, 3), (1, 1)])
def test_each_device_keeps_its_share_of_parameters_averages_and_moments(devices, parts):
  params = {'kernel': np.arange(12 * 20, dtype=np.float32).reshape(12, 20)}
  state = jax.device_get(step_lib.init(params, optax.adam(1e-3)))
  layout = parallel.fsdp_layout(None, jax.devices()[:devices])
  placed = layout.put(state)
  tensors = [u for u in jax.tree.leaves(placed) if u.ndim == 2]
  assert len(tensors) == 4  # parameters, average, two moments
  for u in tensors:
    sizes = {shard.data.size for shard in u.addressable_shards}
    assert sizes == {12 * 20 // parts} and len(u.addressable_shards) == devices
    np.testing.assert_array_equal(np.concatenate(  # each number stands on one device alone
        [np.ravel(shard.data) for shard in u.addressable_shards]).sum(), np.sum(u))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), state)
