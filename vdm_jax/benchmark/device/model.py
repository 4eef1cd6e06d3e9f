"""The experiment of configs/cifar10/vdm.py, built without a config.

tests/benchmark/test_device.py compares it with the experiment of the config.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vdm_jax import denoisers, random, schedules, targets
from vdm_jax.benchmark import hlo, kernels
from vdm_jax.decoders import Pixels
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.model import Model
from vdm_jax.nn.unets.vdm import UNet
from vdm_jax.processes import GaussianProcess
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment, PyTree
from vdm_jax.units import bits_per_dim
from vdm_jax.values import Bound

SHAPE = (32, 32, 3)
LOGSNR_MAX, LOGSNR_MIN = 13.3, -5.0
LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 2e-4, 100, 0.01


class Size(NamedTuple):
  """The size of the network; by default the published one."""
  blocks: int = 32
  features: int = 128
  groups: int = 32


class Computed(NamedTuple):
  """How the network is computed; see `nn.unets.vdm.UNet`."""
  dtype: str = 'bfloat16'
  scan: bool = True
  remat: str = 'dots'
  weight_gradient: str = 'auto'
  attention: str = 'auto'


PUBLISHED, DEFAULT = Size(), Computed()
# The same numbers by a program without loops, in which work can be counted.
_WRITTEN_OUT = Computed('float32', scan=False, remat='none', weight_gradient='xla',
                        attention='xla')


def experiment(size: Size = PUBLISHED, how: Computed = DEFAULT, ema: float = 0.999) -> Experiment:
  """The bound of a VDM on images of 32 x 32 pixels, with its optimiser and without data.

  ema: the rate of the average, which is named 'ema'.  The config's 0.9999 is for longer trainings.
  """
  net = UNet(**size._asdict(), **{**how._asdict(), 'dtype': jnp.dtype(how.dtype)})
  schedule = schedules.LearnedLinear(LOGSNR_MAX, LOGSNR_MIN)
  coding = Pixels(256)

  def init(key):
    for_net, for_schedule = jax.random.split(key)
    return {'net': net.init(for_net, jnp.zeros((1, *SHAPE)), jnp.zeros(1), None)['params'],
            'schedule': schedule.init(for_schedule, jnp.zeros(1))['params']}

  def model(params, keys=None):
    return Model(
        denoise=denoisers.denoiser(Bound(params['net'], net, keys), targets.eps),
        process=GaussianProcess(Bound(params['schedule'], schedule)), decoder=coding.log_prob,
        encode=coding.encode, decode=coding.decode, cond=lambda batch: None, shape=SHAPE)

  def loss(params, batch, context):
    keys = random.stream(context.keys, 'dropout') if context.train else None
    nats, terms = one_draw(model(params, keys), batch, context.t, context.keys)
    bits = jax.tree.map(lambda u: bits_per_dim(u, SHAPE), {'bits_per_dim': nats, **terms})
    return bits['bits_per_dim'], bits

  return Experiment(init=init, loss=loss, model=model, data=None, tx=_optimiser(),
                    ema={'ema': ema})


def _optimiser() -> optax.GradientTransformation:
  """AdamW with a linear warm-up, as `train.optimizer.default_config` describes it."""
  def decays(path, _):
    names = [entry.key for entry in path]
    return names[0] != 'schedule' and names[-1] in ('kernel', 'embedding')
  rate = optax.join_schedules([optax.linear_schedule(0.0, LEARNING_RATE, WARM_UP),
                               optax.constant_schedule(LEARNING_RATE)], [WARM_UP])
  return optax.chain(
      optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8),
      optax.add_decayed_weights(
          WEIGHT_DECAY, lambda params: jax.tree_util.tree_map_with_path(decays, params)),
      optax.scale_by_learning_rate(rate))


class Training:
  """The state of a training, and the compiled step that changes it."""

  def __init__(self, e: Experiment, seed: int = 1):
    self.layout = parallel.jit_layout(step_lib.make_step(e.loss, e.tx, e.ema))
    init = jax.jit(lambda key: step_lib.init(e.init(key), e.tx, e.ema))
    for_init, self.key = jax.random.split(random.key(seed))
    self.shapes = jax.eval_shape(init, for_init)
    # The parameters and their average are one output of the program each, and share no memory.
    self.state = self.layout.put(init(for_init))

  def __call__(self, batch: PyTree) -> PyTree:
    """Makes a step with a placed batch; returns the metrics."""
    self.state, metrics = self.layout.step(self.state, batch, self.key)
    return metrics


def step_flop_per_image(size: Size, images: int = 8) -> float:
  """FLOP of the products of a training step, each computed once, for one image.

  images: the batch size of the program in which the products are counted.
  """
  e = experiment(size, _WRITTEN_OUT)
  update = step_lib.make_step(e.loss, e.tx, e.ema)
  state = jax.eval_shape(lambda key: step_lib.init(e.init(key), e.tx, e.ema), random.key(0))
  batch = {'image': jax.ShapeDtypeStruct((images, *SHAPE), jnp.uint8)}
  return _flop(lambda *args: update(*args, parallel.Axis()), state, batch) / images


def evaluation_flop_per_image(size: Size, images: int = 8) -> float:
  """FLOP of the products of one evaluation of the network, for one image."""
  e = experiment(size, _WRITTEN_OUT)

  def evaluate(params, z, key):
    m = e.model(params)
    return m.denoise(z, m.process(jnp.full(images, 0.5)), None)
  return _flop(evaluate, jax.eval_shape(e.init, random.key(0)),
               jax.ShapeDtypeStruct((images, *SHAPE), jnp.float32)) / images


def _flop(function: Callable, *args) -> float:
  lowered = jax.jit(function).lower(*args, jax.eval_shape(lambda: random.key(0)))
  program: Any = lowered.compiler_ir('hlo')
  return kernels.work(hlo.parse(program.as_hlo_text())).flop
