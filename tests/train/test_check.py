"""What does not fit is refused in one line, before a run's directory is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.support import configs, tiny_config
from vdm_jax import random, runs, schedules
from vdm_jax.benchmark import speed, timing
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import layers
from vdm_jax.nn.blocks.layers import Dropout
from vdm_jax.nn.small import mlp
from vdm_jax.nn.transformers import dit, uvit
from vdm_jax.nn.unets import ddpm, ncsnpp, refinenet
from vdm_jax.nn.unets import vdm as vdm_unet
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import workdir
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.train import check, optimizer
from vdm_jax.train import step as step_lib


def config(**fields):
  c = tiny_config.get_config()
  c.update_from_flattened_dict(fields)
  return c


def rows(experiment):
  return experiment.data.split('train').get


def refused(experiment, c=None):
  """What `check.experiment` says of it."""
  with pytest.raises(InputError) as error:
    check.experiment(experiment, rows(experiment), c or config())
  return str(error.value)


def changed(change):
  """The tiny experiment with `change(model)` as its model, whose bound is the loss."""
  made = tiny_config.build(config())
  model = lambda params, keys=None: change(made.model(params, keys))
  return made._replace(model=model, loss=compose.bound_loss(model, (2,)))


def with_model(**parts):
  return changed(lambda model: model._replace(**parts))


class Wide(nn.Module):
  """Returns `channels` numbers whatever it is given."""
  channels: int

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    return nn.Dense(self.channels)(z)


# ------------------------------------------------------------------- shapes


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_a_network_of_another_number_of_channels_is_refused_though_one_would_broadcast(channels):
  made = vdm.experiment(config(), net=Wide(channels), schedule=schedules.LearnedLinear())
  said = refused(made)
  assert f'the network returns [3, {channels}] for an input of [3, 2]' in said


@pytest.mark.parametrize('name', ['x', 'eps'])
def test_a_denoiser_whose_estimate_broadcasts_is_refused(name):
  def change(model):
    def denoise(z, level, cond=None):
      estimate = model.denoise(z, level, cond)
      return estimate._replace(**{name: estimate.x[:, :1]})
    return model._replace(denoise=denoise)
  said = refused(changed(change))
  assert said.startswith(f'the {name} of the denoiser is [3, 1] where [3, 2] is wanted'), said


def test_a_decoder_that_does_not_sum_over_the_data_is_refused():
  said = refused(with_model(decoder=lambda data, z, level: z))
  assert said.startswith('the log-probability of the decoder is [3, 2] where [3] is wanted'), said


def test_an_encoding_of_another_shape_is_refused():
  said = refused(with_model(encode=lambda data: jnp.zeros((len(data), 2, 1))))
  assert said.startswith('what the model encodes the data as is [3, 2, 1] where [3, 2] is'), said
  said = refused(with_model(decode=lambda x: x[:1]))
  assert said.startswith('what the model decodes from that is [1, 2] where [3, 2] is'), said


def test_a_schedule_of_more_axes_than_times_is_refused_though_it_may_broadcast():
  """[B, B] for B times: with as many examples as coordinates it would pass for [B, D]."""
  def schedule(t):
    logsnr = 8.0 - 13.0 * jnp.asarray(t)
    return logsnr[:, None] + jnp.zeros(len(t)) if jnp.ndim(t) else logsnr
  said = refused(changed(lambda model: model._replace(process=GaussianProcess(schedule))))
  assert 'of the process at times [3] is [3, 3], which does not fit data of [3, 2]' in said, said


@pytest.mark.parametrize('wrong,said', [
    (lambda losses, terms: (losses[:, None], terms), 'the loss is [3, 1] where [3] is wanted'),
    (lambda losses, terms: (jnp.mean(losses), terms), 'the loss is [] where [3] is wanted'),
    (lambda losses, terms: (losses, {**terms, 'own': jnp.zeros(())}),
     "the term 'own' of the loss is [] where [3] is wanted")])
def test_an_objective_that_is_not_one_number_an_example_is_refused(wrong, said):
  made = tiny_config.build(config())
  got = refused(made._replace(loss=lambda *args: wrong(*made.loss(*args))))
  assert got.startswith(said), got


def test_a_loss_that_is_wrong_in_validation_alone_is_refused():
  made = tiny_config.build(config())

  def loss(params, batch, context):
    losses, terms = made.loss(params, batch, context)
    return losses if context.train else losses[:, None], terms
  assert refused(made._replace(loss=loss)).startswith('the loss in validation is [3, 1]')


def test_what_fits_passes_and_nothing_is_compiled():
  made = tiny_config.build(config())
  given = rows(made)
  with timing.events() as seen:
    check.experiment(made, given, config())
  assert timing.compilations(seen) == 0


@pytest.mark.long
@pytest.mark.parametrize('name,trained', [
    ('systems:mulan', False), ('systems:vae', True), ('digits/classifier', True),
    ('sequences/dpm2015', True), ('published/dit', False)])
def test_levels_for_each_pixel_latents_and_systems_without_a_denoiser_pass(name, trained):
  module, c = configs.read(name)
  made = module.build(c)

  def given(numbers):
    spec = made.data.spec
    batch = {'image': jax.ShapeDtypeStruct((len(numbers), *spec.shape), jnp.uint8)}
    return batch | ({'label': jax.ShapeDtypeStruct((len(numbers),), jnp.int32)}
                    if spec.classes else {})
  check.experiment(made, given, c, trained=trained)


def test_a_wrong_network_is_refused_before_the_directory_is_touched(tmp_path):
  file = tmp_path / 'wide.py'
  file.write_text(
      'from tests.support import tiny_config\nfrom test_check import Wide\n'
      'from vdm_jax import schedules\n'
      'from vdm_jax.systems.variational import vdm\nget_config = tiny_config.get_config\n'
      'def build(config):\n'
      '  return vdm.experiment(config, net=Wide(1), schedule=schedules.LearnedLinear())\n')
  with pytest.raises(InputError, match=r'the network returns \[3, 1\]'):
    runs.train(config(), file, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


# ----------------------------------------------------------- ranges of fields


@pytest.mark.parametrize('field,value', [
    ('optimizer.learning_rate', -1.0), ('optimizer.learning_rate', float('nan')),
    ('optimizer.learning_rate', float('inf')), ('optimizer.schedule_learning_rate', -1e-3),
    ('optimizer.warmup_steps', -1), ('optimizer.decay_steps', -5), ('optimizer.b1', 1.0),
    ('optimizer.b2', 2.0), ('optimizer.eps', -1e-8), ('optimizer.weight_decay', -0.1),
    ('optimizer.clip_norm', -1.0), ('ema.fast', 2.0), ('ema.fast', 1.0), ('ema.fast', -0.1),
    ('model.dropout', 1.5), ('model.dropout', -0.5), ('model.dropout', 1.0),
    ('data.workers', -1), ('data.memory_gb', -1.0),
    ('train.steps', 0)], ids=str)
def test_a_number_out_of_its_range_is_refused_by_its_field(tmp_path, field, value):
  with pytest.raises(InputError) as error:
    runs.train(config(**{field: value}), tiny_config.__file__, tmp_path / 'run')
  said = error.value.as_flag()
  assert f'config.{field}={value}: ' in said and '\n' not in said, said
  assert not (tmp_path / 'run').exists()


def test_the_ends_of_the_ranges_are_inside():
  given = optimizer.default_config()
  given.update(learning_rate=0.0, warmup_steps=0, decay_steps=0, b1=0.0, b2=0.0, eps=0.0,
               weight_decay=0.0, clip_norm=0.0)
  optimizer.adamw(given)
  step_lib.check_averages({'raw': 0.0})
  h, keys = jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
  np.testing.assert_array_equal(Dropout(0.0).apply({}, h, keys), h)


def test_a_negative_number_of_traced_steps_is_refused(tmp_path):
  with pytest.raises(InputError, match='^profile=-3: '):
    runs.train(config(), tiny_config.__file__, tmp_path / 'run', profile=-3)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('devices', [1, 8])
def test_a_batch_is_refused_from_a_gibibyte_on_each_device_on(devices):
  """2^28 numbers of float32 are 2^30 bytes."""
  most = devices * 2**28 // 64
  check.require_fits('batch', most, (8, 8, 1), devices)
  with pytest.raises(InputError, match=f'^batch={most + 1}: .* 64 numbers .*{most:,} at most'):
    check.require_fits('batch', most + 1, (8, 8, 1), devices)


@pytest.mark.parametrize('start', [
    lambda c, directory: runs.train(c, tiny_config.__file__, directory),
    lambda c, _: speed.of_config(tiny_config.__file__, c)])
def test_a_batch_that_cannot_be_held_is_refused(start, tmp_path):
  with pytest.raises(InputError, match='^config.data.batch_size=10000000000: .* 74.5 GiB before'):
    start(config(**{'data.batch_size': 10**10}), tmp_path / 'run')


def test_labels_for_a_network_without_are_refused_by_the_field_of_the_config():
  c = vdm.default_config(class_conditional=True)
  c.data.update(name='digits', validation=97)
  experiment = vdm.experiment(c, net=ncsnpp.NCSNpp(features=8, multipliers=(1, 1)))
  assert refused(experiment, c).startswith(
      'config.model.class_conditional=True: this network takes no labels; set it to False')


# ----------------------------------------------------------- networks and their data

IMAGES, ODD, POINTS = (8, 8, 1), (5, 7, 3), (2,)


@pytest.mark.parametrize('net,shape,said', [
    (vdm_unet.UNet(features=8, groups=4, blocks=1), POINTS,
     r'takes images .* the data has shape \[2\]'),
    (mlp.MLP(features=8), IMAGES, r'takes points .* the data has shape \[8, 8, 1\]'),
    (dit.DiT(features=8, attention_heads=2), POINTS, 'takes images'),
    (ddpm.UNet(features=8, groups=4), POINTS, 'takes images'),
    (ddpm.UNet(features=8, groups=4), ODD,
     '5 x 7 pixels cannot be halved 3 times; take .* multiples of 8 .*image_size=8 '),
    (ncsnpp.NCSNpp(features=8), ODD, '5 x 7 .* 3 times; .* multiples of 8 .*image_size=8 '),
    (refinenet.RefineNet(features=8), ODD, '5 x 7 .* 1 times; .* multiples of 2 .*image_size=4 '),
    (dit.DiT(features=8, attention_heads=2, patch=2), ODD,
     '^patch=2: images of 5 x 7 pixels cannot be cut .* multiples of 2 .*image_size=4 '),
    (uvit.UViT(features=8, attention_heads=2, patch=4), (6, 6, 3),
     '^patch=4: .* multiples of 4 .*image_size=8 '),
    (dit.DiT(features=8, attention_heads=0), IMAGES, '^attention_heads=0: '),
    (dit.DiT(features=8, attention_heads=2, patch=0), IMAGES, '^patch=0: '),
    (dit.DiT(features=8, attention_heads=2, depth=0), IMAGES, '^depth=0: it must be at least 1'),
    (uvit.UViT(features=8, attention_heads=0), IMAGES, '^attention_heads=0: '),
    (uvit.UViT(features=7, attention_heads=7), IMAGES, '^features=7: .* even number'),
    (vdm_unet.UNet(features=8, groups=0), IMAGES, '^groups=0: it does not divide 8 features'),
    (vdm_unet.UNet(features=0, groups=1), IMAGES, '^features=0: it must be at least 1'),
    (vdm_unet.UNet(features=8, groups=4, blocks=-1), IMAGES, '^blocks=-1: it must be at least 0'),
    (ddpm.UNet(features=8, groups=4, blocks=-1), IMAGES, '^blocks=-1: '),
    (ncsnpp.NCSNpp(features=8, blocks=-1), IMAGES, '^blocks=-1: '),
    (mlp.MLP(features=8, blocks=-1), POINTS, '^blocks=-1: '),
], ids=lambda u: type(u).__name__ if isinstance(u, nn.Module) else None)
def test_a_network_says_what_does_not_fit_and_which_sizes_do(net, shape, said):
  with pytest.raises(InputError, match=said) as error:
    jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.ones(1)))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('side,times,near', [(28, 3, 32), (5, 1, 4), (100, 4, 96), (3, 3, 8)])
def test_the_size_that_is_proposed_can_be_halved(side, times, near):
  z = lambda side: jnp.zeros((1, side, side, 1))
  layers.require_halvable(z(near), times)
  with pytest.raises(InputError, match=f'image_size={near} crops'):
    layers.require_halvable(z(side), times)


@pytest.mark.first(6)
@pytest.mark.parametrize('name,fields,said', [
    ('digits/vdm', {'data.name': 'swirl', 'data.augment': False}, 'takes images'),
    ('plane/spiral', {'data.name': 'digits', 'data.validation': 97}, 'takes points'),
    ('digits/vdm', {'model.blocks': -1}, 'config.model.blocks=-1: it must be at least 0'),
    ('plane/spiral', {'model.blocks': -1}, 'config.model.blocks=-1: it must be at least 0'),
    ('digits/networks:dit', {'model.patch': 3}, 'config.model.patch=3: images of 8 x 8 pixels'),
    ('systems:mulan', {'model.encoder_blocks': -1}, 'config.model.encoder_blocks=-1: '),
    ('systems:mulan', {'model.schedule_features': 0}, 'config.model.schedule_features=0: '),
    ('systems:vae', {'model.dropout': 1.5}, 'config.model.dropout=1.5: it must be a probability'),
], ids=str)
def test_a_config_names_its_field_before_anything_is_compiled(name, fields, said, tmp_path):
  file, (_, c) = configs.file(name), configs.read(name)
  c.update_from_flattened_dict(fields)
  random.key(c.seed)  # compiled once in a process, in a twentieth of a second
  with timing.events() as seen, pytest.raises(InputError, match=said):
    runs.train(c, file, tmp_path / 'run')
  assert timing.compilations(seen) == 0 and not (tmp_path / 'run').exists()


RISING = """
import jax.numpy as jnp
from tests.support import tiny_config
from vdm_jax.systems.variational import vdm
get_config = tiny_config.get_config
def build(config):
  schedule = lambda t: jnp.interp(t, jnp.array([0.0, 0.5, 0.75, 1.0]), jnp.array([8, -2.0, 1, -5]))
  return vdm.experiment(config, net=tiny_config.Net(8, 0.0), schedule=schedule)
"""


def test_a_fixed_schedule_that_rises_in_the_middle_is_refused_before_its_run_is_written(tmp_path):
  file = tmp_path / 'rising.py'
  file.write_text(RISING)
  with pytest.raises(InputError, match='the noise schedule: logsnr rises from -2 at t = 0.5 to 1 '):
    runs.train(config(), file, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


# ------------------------------------------------------------------ a start


START = """
from tests.support import tiny_config
get_config = tiny_config.get_config
def build(config):
  return tiny_config.build(config)._replace(needs_start='what it matches has to be learned first')
"""


@pytest.mark.long
def test_a_system_that_needs_a_start_is_refused_without_and_goes_on_without(tmp_path):
  file, first, run = tmp_path / 'needy.py', tmp_path / 'first', tmp_path / 'run'
  file.write_text(START)
  c = config(**{'train.steps': 1})
  with pytest.raises(InputError) as error:
    runs.train(c, file, run)
  assert error.value.as_flag() == ('--init_from: what it matches has to be learned first; name the '
                                   'workdir of the run that it starts from.')
  assert not run.exists()
  runs.train(c, tiny_config.__file__, first)
  runs.train(c, file, run, init_from=first)
  c.train.steps = 2
  runs.train(c, file, run)  # which has what it needs
  assert workdir.load_trained(run).step == 2
