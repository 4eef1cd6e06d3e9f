"""Every config builds, and its update traces: eval_shape computes no number."""
import ast
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs, vgg
from vdm_jax import data, processes, random, recipes, schedules, weightings
from vdm_jax.data import brain, emoji, tokenisers
from vdm_jax.errors import InputError
from vdm_jax.processes import vp
from vdm_jax.published import lpips
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import score_sde, scoreflow
from vdm_jax.train import loop, parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context

# Kingma et al.'s networks: counted from the published code (without the schedule's parameters).
PUBLISHED = {'cifar10/vdm': 30_578_179, 'cifar10/augmented:open': 122_137_603,
             'cifar10/augmented:paper': 139_276_803, 'imagenet/vdm:32': 122_137_603,
             'imagenet/vdm:64': 237_603_843,
             # Counted from the public code of each, with its published settings.
             **{f'cifar10/flows:{name}': 61_804_419 for name in (
                 'flow_matching', 'rectified', 'reflow', 'distilled', 'curvature')},
             **{f'cifar10/distilled:{name}': 60_004_099 for name in (
                 'progressive_teacher', 'progressive')},
             **{f'cifar10/distilled:{name}': 55_733_891 for name in (
                 'consistency', 'consistency_training')},
             'cifar10/distilled:knowledge': 35_746_307,
             'cifar10/ddpm:published': 35_746_307, 'published/ddpm': 35_746_307,
             'published/adm': 52_546_438, 'published/edm': 55_733_891,
             'published/score_sde': 61_804_419, 'published/ncsnv2': 29_694_083,
             'published/dit': 674_834_720,
             'imagenet/dit:DiT-XL/2': 674_834_720, 'imagenet/dit:DiT-S/8': 33_142_016,
             'published/dit:DiT-XL-2-256x256,images': 674_834_720,
             'published/latent': 274_056_163,
             'published/latent:stable-diffusion-v1': 859_520_964,
             'published/autoencoder': 83_653_863,
             'published/glide': 385_030_726 - 76_695_808,  # less its text transformer
             'published/autoencoder:vq-f4': 55_322_782, 'published/autoencoder:taesd': 2_445_063}
# Of each kind of config one; the others are traced by the long tests.
EXAMPLES = {'digits/vdm', 'digits/classifier', 'plane/dpm2015'}
BOUND = {'bits_per_dim', 'reconstruction', 'latent', 'diffusion'}
REPORTED = {'digits/classifier': {'accuracy'}, 'mnist/classifier': {'accuracy'},
            'digits/noisy_classifier': {'accuracy'},
            **{f'text/dual_encoder:{name}': {'accuracy'}
               for name in ('shapes', 'held_out', 'emoji')},
            'published/noisy_clip': {'accuracy'},
            **dict.fromkeys(('systems:scheduled_sampling', 'text/markup:scheduled'),
                            {'eps_error'}),
            **dict.fromkeys(('text/captioner:teacher_forcing', 'text/captioner:scheduled'),
                            {'nats', 'accuracy'}),
            'text/captioner:imitation': {'nats', 'accuracy', 'divergence'},
            'plane/truncated:adversarial': {'denoiser_loss', 'generator_loss'},
            **dict.fromkeys(('applications/greensboro:chain', 'applications/greensboro:flow'),
                            {'eps_error'}),
            **dict.fromkeys(('applications/pendulum:unet', 'applications/pendulum:transformer'),
                            {'eps_error', 'action_error'}),
            'applications/chorales_latent:autoencoder': BOUND - {'diffusion'} | {'accuracy'},
            'applications/chorales_latent:latent': BOUND - {'bits_per_dim'} | {
                'encoding', 'eps_error'},
            'plane/truncated:gaussian': {'eps_error', 'latent'},
            # Of coupled noise the bound is not trained, but validated.
            **{f'{place}/flows:{name}': {'eps_error'} for place in ('plane', 'digits', 'cifar10')
               for name in ('minibatch_ot', 'reflow')},
            'digits/distilled:reflow': {'eps_error'},
            **{f'{place}/flows:curvature': {'velocity_error', 'divergence'}
               for place in ('plane', 'digits', 'cifar10')},
            **{f'{place}/flows:distilled': {'x_error'} for place in ('plane', 'digits', 'cifar10')},
            'plane/flows:between': {'velocity_error', 'noise_error'},
            'plane/flows:mean_flow': {'velocity_error'},
            **dict.fromkeys(('digits/distilled:progressive', 'digits/distilled:few_guided',
                             'plane/distilled:progressive', 'cifar10/distilled:progressive'),
                            {'x_error', 'student_steps'}),
            **dict.fromkeys(('digits/distilled:guided', 'digits/distilled:knowledge',
                             'digits/distilled:one_step', 'plane/distilled:knowledge',
                             'cifar10/distilled:knowledge'), {'x_error'}),
            **dict.fromkeys(('digits/distilled:consistency', 'plane/consistency:distillation',
                             'plane/consistency:training', 'plane/consistency:public',
                             'cifar10/distilled:consistency',
                             'cifar10/distilled:consistency_training'), {'x_error', 'levels'}),
            'digits/slim': {'student_eps_error', 'student_spatial', 'student_spectral'},
            # With a codebook, training does not compute the bound, which is one of the indices.
            'published/latent': {'eps_error'},
            'published/latent:stable-diffusion-v1': BOUND - {'bits_per_dim'} | {'encoding'},
            'published/dit:DiT-XL-2-256x256,images': BOUND - {'bits_per_dim'} | {'encoding'},
            **dict.fromkeys(('published/autoencoder', 'published/autoencoder:vq-f4'),
                            BOUND - {'diffusion'} | {'l1', 'psnr'}),
            **dict.fromkeys(('digits/latent:autoencoder', 'digits/latent:vq',
                             'text/latent_shapes:autoencoder'),
                            BOUND - {'diffusion'} | {'l1', 'psnr'}),
            'mnist/autoencoder_kl': {'autoencoder_psnr', 'discriminator_loss',
                                     'adversarial_weight'},
            **dict.fromkeys(('digits/latent:latent', 'mnist/latent', 'mnist/latent_dit',
                             'imagenet/dit:DiT-XL/2', 'imagenet/dit:DiT-S/8',
                             'text/latent_shapes:latent'),
                            BOUND - {'bits_per_dim'} | {'encoding'}),
            'systems:vae': BOUND - {'diffusion'}, 'systems:hvae': BOUND - {'diffusion'}}
EMOJI = data.Spec('emoji', (
    data.fields.integers('image', (emoji.SIDE, emoji.SIDE, 3), 256), data.fields.label(10),
    tokenisers.field('caption', tokenisers.Settings('words'), ['woman guard dark skin tone'])))


def built(name, tmp_path, **model):
  """(config, experiment, shapes of its parameters, of a batch of two) of a config by name."""
  module, config = configs.read(name)
  config.model.update({field: u for field, u in model.items() if field in config.model})
  config.data.data_dir = str(tmp_path)  # without the data, but for those that make themselves
  config.data.batch_size = 2
  if config.data.name in emoji.FILES:  # it takes a font to make them: the fields that they have
    config.data.update(EMOJI.to_config())
  if config.data.name == brain.NAME:  # it takes a package to make them
    config.data.update(shape=(brain.SIDE, brain.SIDE, 1), levels=256)
  if 'group' in config.model:
    config.model.group = 2
  experiment = module.build(config)
  batch = {name: jax.ShapeDtypeStruct(u.shape, u.dtype)
           for name, u in experiment.data.spec.zeros(2).items()}
  return config, experiment, jax.eval_shape(experiment.init, random.key(0)), batch


def of_loss(experiment, params, batch, reported):
  """The loss of a batch is one number an example, and so are its terms, traced by shapes alone."""
  def loss(params, batch):  # of which the averages, and a teacher, are the first parameters
    context = Context(jnp.array([0.2, 0.7]), random.per_example(random.key(0), jnp.arange(2)),
                      jnp.int32(0), dict.fromkeys(experiment.ema, params),
                      step_lib.first_aux(experiment.aux, params))
    return experiment.loss(params, batch, context)

  losses, terms = jax.eval_shape(loss, params, batch)
  assert losses.shape == (2,) and all(u.shape == (2,) for u in terms.values())
  assert terms.keys() >= reported


def sizes() -> dict[str, list[int]]:
  """{config: parameters of its network, and of its other parts if there are any} of the page."""
  page = (configs.FOLDER.parent / 'docs' / 'reference' / 'configs.md').read_text()
  table = page.partition('\n## Configs and their sizes\n')[2].partition('\n## ')[0]
  rows = re.findall(r'^\| `configs/([\w/]+)\.py(:[\w/-]+)?` \|[^|]*\|([^|]*)\|', table,
                    re.MULTILINE)
  numbers = lambda cell: [int(u.replace(',', '')) for u in re.findall(r'\d[\d,]+', cell)]
  return {(name + variant).replace(':NAME', ':vdm'): numbers(cell) for name, variant, cell in rows}


@pytest.mark.long
@pytest.mark.parametrize('name', sizes())
def test_the_size_of_a_network_on_the_page_of_configs_is_its_own(name, tmp_path):
  stated = sizes()[name]
  if name in PUBLISHED:  # the next test counts them
    assert stated == [PUBLISHED[name]]
    return
  params = built(name, tmp_path)[2]
  counts = {part: sum(math.prod(u.shape) for u in jax.tree.leaves(tree))
            for part, tree in params.items()}
  net = counts.pop('net')
  counts = {} if counts == {'schedule': 2} else counts  # the two ends of a VDM's
  assert stated == [net, *([sum(counts.values())] if counts else [])]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in EXAMPLES else pytest.mark.long)
    for name in configs.names()])
def test_a_config_builds_and_its_update_traces(name, tmp_path):
  config, experiment, params, batch = built(name, tmp_path)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params['net']))
  assert count == PUBLISHED.get(name, count)
  # Of latents, of which there are no data, and a network that was distilled from another.
  if name in ('published/dit', 'published/autoencoder:taesd'):
    with pytest.raises(InputError, match='latents|tiny'):
      experiment.loss(params, batch, None)
    return
  # Of many blocks, written out: the gradient of a step takes long.
  if name.startswith(('published/', 'cifar10/flows', 'cifar10/distilled')):
    of_loss(experiment, params, batch, REPORTED.get(name, BOUND))
    return
  of_update(config, experiment, params, batch, REPORTED.get(name, BOUND))


def of_update(config, experiment, params, batch, reported):
  """An update, with the config's optimiser and averages, keeps the shapes of the state."""
  state = jax.eval_shape(lambda p: step_lib.init(p, experiment.tx, experiment.ema, experiment.aux),
                         params)
  assert state.ema.keys() - {'target'} == dict(config.ema).keys()  # of a consistency model
  update = step_lib.update_of(experiment)
  after, metrics = jax.eval_shape(lambda *args: update(*args, parallel.Axis()), state, batch,
                                  jax.eval_shape(lambda: random.key(0)))
  alike = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
  assert all(jax.tree.leaves(alike))
  assert metrics['loss'].shape == ()
  assert metrics.keys() >= reported


@pytest.mark.long
@pytest.mark.parametrize('name', [
    name for name in configs.names() if name.startswith(('cifar10/flows', 'cifar10/distilled'))])
def test_the_update_of_a_published_recipe_traces_with_a_block_of_each_size(
    name, tmp_path, monkeypatch):
  configured = networks.configured
  monkeypatch.setattr(networks, 'configured', lambda net, config: configured(
      net.clone(blocks=1), config))
  config, experiment, params, batch = built(name, tmp_path)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params['net']))
  assert count < PUBLISHED[name]
  of_update(config, experiment, params, batch, REPORTED.get(name, BOUND))


WITH_LPIPS = ['cifar10/flows:distilled', 'cifar10/distilled:consistency_training']


@pytest.mark.first(1)
@pytest.mark.parametrize('name', WITH_LPIPS)
def test_a_recipe_with_lpips_asks_for_its_weights(name, tmp_path):
  with pytest.raises(InputError, match="config.model.metric='lpips': the weights of LPIPS are not"):
    built(name, tmp_path, metric='lpips')


@pytest.mark.long
@pytest.mark.parametrize('name', WITH_LPIPS)
def test_a_recipe_with_lpips_makes_a_step_whose_loss_is_linear_in_the_layers_of_lpips(
    name, tmp_path, monkeypatch):
  configured = networks.configured
  monkeypatch.setattr(networks, 'configured', lambda net, config: configured(
      net.clone(features=16, blocks=1), config))
  monkeypatch.setattr(lpips, 'distance', functools.partial(lpips.distance, size=32))  # not 224
  rng = np.random.default_rng(0)

  def step(files):
    _, experiment, *_ = built(name, tmp_path, metric='lpips', lpips=','.join(map(str, files)))
    noisy = lambda u: u + jnp.asarray(0.02 * rng.standard_normal(u.shape), u.dtype)
    params = jax.tree.map(noisy, experiment.init(random.key(0)))
    batch = experiment.data.spec.random(1)
    state = step_lib.init(params, experiment.tx, experiment.ema, experiment.aux)
    _, metrics = jax.jit(lambda state, batch: step_lib.update_of(experiment)(
        state, batch, random.key(1), parallel.Axis()))(state, batch)
    return np.array([metrics['loss'], metrics['grad_norm']])

  params, made = vgg.parameters(), []
  for scale in (1.0, 2.0):
    rng = np.random.default_rng(0)  # the same weights and the same image
    made.append(step(vgg.write(tmp_path, params, scale)))
  assert np.all(made[0] > 0.0)  # the gradient reaches the network
  np.testing.assert_allclose(made[1], 2.0 * made[0], rtol=1e-4)


@pytest.mark.first(1)
@pytest.mark.parametrize('data', ['cifar10', pytest.param('mnist', marks=pytest.mark.long)])
@pytest.mark.parametrize('system', configs.read('systems')[0].SYSTEMS)
def test_every_system_has_a_loss_of_every_data_set_of_images(system, data, tmp_path):
  _, experiment, params, batch = built(f'systems:{system},{data}', tmp_path, blocks=1, features=8,
                                       groups=4, encoder_blocks=1)
  assert batch['image'].shape[1:] == {'mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}[data]
  of_loss(experiment, params, batch, REPORTED.get(f'systems:{system}', BOUND))


@pytest.mark.long
@pytest.mark.parametrize('student,start', [
    ('digits/distilled:knowledge', 'digits/distilled:teacher'),
    ('digits/distilled:one_step', 'digits/distilled:reflow'),
    ('plane/distilled:knowledge', 'plane/distilled:teacher'),
    ('plane/flows:distilled', 'plane/flows:ot'), ('plane/flows:distilled', 'plane/flows:reflow')])
def test_a_student_of_pairs_may_start_from_the_run_that_its_config_names(student, start, tmp_path):
  _, of_start, *_ = built(start, tmp_path)
  _, experiment, *_ = built(student, tmp_path)
  params = of_start.init(random.key(0))
  experiment.teacher(of_start.model(params), params)


@pytest.mark.long
@pytest.mark.parametrize('student,start', [
    ('cifar10/distilled:knowledge', 'cifar10/ddpm'), ('cifar10/flows:reflow', 'cifar10/flows')])
def test_a_published_student_of_pairs_has_the_process_of_its_teacher(student, start, tmp_path):
  """Its network is too large to be evaluated here."""
  ours, theirs = (processes.compared_levels(built(name, tmp_path)[1].model({'net': {}}).process)
                  for name in (student, start))
  assert not processes.difference(ours, theirs, 'the student')


def test_images_may_be_flipped_and_the_network_not_told_which(tmp_path):
  _, experiment, params, _ = built('cifar10/ddpm:small', tmp_path)
  batch = experiment.data.spec.zeros(2)
  assert 'augmented' in batch and experiment.model(params).cond(batch) is None


def test_configs_import_the_package_and_no_neighbour():
  files = list(configs.FOLDER.rglob('*.py'))
  apart = {path.stem for path in files} | {'configs', 'scripts', 'tests'}
  for path in files:
    for node in ast.walk(ast.parse(path.read_text())):
      names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
               [node.module] if isinstance(node, ast.ImportFrom) else [])
      assert not {name.split('.')[0] for name in names} & apart, path


@pytest.mark.first(8)
@pytest.mark.parametrize('name,field,value', [
    *(('systems:' + name, 'timesteps', 10) for name in (
        'scoreflow', 'soft_truncation', 'resampled', 'idode_vp', 'idode_sp', 'scoreode',
        'learned_schedule', 'edm', 'simple')),
    ('systems:ncsn', 'timesteps', 1), ('systems:ncsn', 'sigma_min', 0.0),
    ('plane/energy', 'timesteps', 10), ('plane/matching', 'timesteps', 10),
    ('plane/matching', 'matching', 'none'),
    ('systems:p2', 'objective', 'iddpm'), ('sequences/dpm2015', 'activity', 1.0),
    ('digits/networks:dit', 'dropout', 0.1), ('systems:vdm', 'timesteps', -1),
    ('systems:iddpm_hybrid', 'timesteps', 0),
    ('systems:iddpm_vlb', 'timesteps', 0), ('systems:resampled', 'time_bins', 0),
    ('systems:resampled', 'losses_kept', 0), ('systems:dequantised', 'couplings', -1),
    ('systems:scoreflow', 't_min', 1.0), ('systems:soft_truncation', 'truncation_power', -1.0),
    ('systems:vdm', 'groups', 5), ('systems:diffenc', 'encoder_groups', 5),
    ('systems:mulan', 'encoder_groups', 0), ('cifar10/diffenc', 'encoder_groups', 7)])
def test_a_value_that_a_config_cannot_use_is_refused_by_its_name(name, field, value):
  module, config = configs.read(name)
  config.model[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}={value!r}: '):
    module.build(config)


@pytest.mark.parametrize('name', ['systems:idode', 'systems:vdm,cifar', 'plane/spiral:edm2',
                                  'imagenet/vdm:128', 'imagenet/dit:DiT-M/2',
                                  'published/ddpm:cifar10'])
def test_a_choice_that_a_config_does_not_offer_is_refused_with_those_it_has(name):
  with pytest.raises(InputError, match='choose one of'):
    configs.read(name)


def test_a_weighting_without_a_limit_at_the_data_is_refused_when_it_is_built():
  _, config = configs.read('systems:simple')
  with pytest.raises(InputError, match='grows without bound towards t = 0'):
    score_sde.experiment(config, net=None, schedule=schedules.BetaLinear(t_min=0.0), curve=vp,
                         weight=weightings.vlb)


def test_an_objective_that_asks_for_what_nobody_has_is_refused_when_it_is_built():
  module, config = configs.read('systems:vdm')
  def objective(denoise, process, x, t, keys, cond=None, *, teacher):
    raise AssertionError
  with pytest.raises(InputError, match="requires the keyword 'teacher'"):
    compose.experiment(config, net=None, schedule=schedules.Linear(), objective=objective)


@pytest.mark.long
@pytest.mark.parametrize('data', ['digits', 'swirl'])  # of 17 levels and of 256
def test_the_sde_of_scoreflow_starts_at_the_log_snr_of_the_data_s_levels(data):
  config = recipes.digits(scoreflow.default_config())
  config.data.name = data
  np.testing.assert_allclose(scoreflow.vp_sde(config)(jnp.zeros(())),
                             compose.end_points(config)[0], rtol=1e-4)
  config.model.t_min = 0.25
  assert scoreflow.vp_sde(config).t_min == 0.25


@pytest.mark.first(32)
@pytest.mark.parametrize('name', configs.names())
def test_a_configs_schedule_of_work_is_consistent(name):
  _, config = configs.read(name)
  loop.check(config)
  run, rates = config.train, dict(config.ema)
  # What the longest average still holds of the initial weights after the whole run.
  assert max(rates.values()) ** run.steps < 1e-3
  assert config.data.validation > 0
  assert config.optimizer.decay_steps in (0, run.steps)


@pytest.mark.parametrize('name', ['digits/distilled:progressive', 'digits/distilled:few_guided',
                                  'plane/distilled:progressive', 'cifar10/distilled:progressive'])
def test_each_halving_of_a_student_ends_in_a_checkpoint(name):
  _, config = configs.read(name)
  assert config.model.halving_updates % config.train.checkpoint_every == 0
