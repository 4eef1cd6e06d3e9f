"""A model in a notebook: its samples and its bound, of Gaussian data, are known in closed form."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, samplers
from vdm_jax.data import Spec, conditions
from vdm_jax.data.fields import label
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.guidance import Guidance
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import edm, grids
from vdm_jax.samplers.dpm_solver import dpm_solver_multistep
from vdm_jax.samplers.drawing import draw
from vdm_jax.schedules import Cosine, Linear
from vdm_jax.typing import Estimate

MEAN, STD, HIGH, LOW = jnp.array([0.4, -0.2]), 0.5, 8.0, -12.0
same = lambda u: u
GAUSSIAN = Model(
    denoise=oracles.Gaussian(MEAN, STD), process=GaussianProcess(Linear(HIGH, LOW)),
    decoder=lambda data, z, level: jnp.zeros(len(z)), encode=same, decode=same,
    cond=lambda batch: None, shape=(2,))


@pytest.mark.long
def test_samples_of_an_exact_denoiser_have_the_moments_of_the_data():
  n = 20_000
  x = np.asarray(GAUSSIAN.sample(jax.random.key(0), n, steps=100))
  assert x.shape == (n, 2)
  assert (np.abs(x.mean(axis=0) - MEAN) < 4.0 * STD / np.sqrt(n)).all()
  # Those of z_0 / alpha, if its flow is solved: the data and what noise is left.
  variance = STD**2 + np.exp(-HIGH)
  assert (np.abs(x.var(axis=0) / variance - 1.0) < 4.0 * np.sqrt(2.0 / n)).all()


@pytest.mark.long
@pytest.mark.parametrize('sampler', [samplers.ancestral, samplers.ddim])
@pytest.mark.parametrize('grid', [None, grids.logsnr, np.array([1.0, 0.6, 0.3, 0.0])])
def test_they_are_the_samples_of_the_command_number_by_number(sampler, grid):
  pixels = Pixels(16)
  model = GAUSSIAN._replace(process=GaussianProcess(Cosine(HIGH, LOW)), decode=pixels.decode)
  times = (np.linspace(1.0, 0.0, 6) if grid is None else
           grid(model.process, 5) if callable(grid) else grid)
  batches = draw(lambda params: model, {}, sampler, times=times, start=0, stop=9, seed=3,
                 batch_size=4, cond=lambda numbers: {})
  found = model.sample(jax.random.key(3), 9, sampler=sampler, steps=5, grid=grid)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, np.concatenate([batch.data for batch in batches]))


def belief(z, level, which):
  """Data are N(label, STD^2); without a label, N(0, STD^2): what guidance moves is the mean."""
  return Estimate(*oracles.Gaussian(jnp.maximum(which, 0).astype(z.dtype)[:, None], STD)(z, level))


LABELLED = GAUSSIAN._replace(denoise=belief, cond=lambda batch: batch['label'],
                             conditions=conditions.of(Spec('', (label(4),)), ['label']),
                             null=lambda which: jnp.full_like(which, -1))


@pytest.mark.long
def test_labels_are_those_of_the_examples_and_guidance_moves_them_on():
  """Of equal widths the guided flow is that of the mean (1 + w) label: both scores are linear."""
  n, w = 4000, 1.5
  which = np.arange(n) % 3
  plain = LABELLED.sample(jax.random.key(0), n, label=which, steps=50)
  guided = LABELLED.sample(jax.random.key(0), n, label=which, steps=50, guidance=w)
  never = LABELLED.sample(jax.random.key(0), n, label=which, steps=50,
                          guidance=Guidance(w, 90.0, 91.0))
  np.testing.assert_allclose(never, plain, atol=1e-5)
  for k in range(3):
    error = STD / np.sqrt(n / 3)
    assert (np.abs(plain[which == k].mean(axis=0) - k) < 4.0 * error).all()
    assert (np.abs(guided[which == k].mean(axis=0) - (1.0 + w) * k) < 4.0 * error).all()
  one = LABELLED.sample(jax.random.key(0), 5, label=1, steps=50)
  np.testing.assert_allclose(one[1], plain[1], atol=1e-5)


@pytest.mark.long
def test_a_sampler_and_a_grid_go_by_their_names_in_the_catalogue():
  draw = lambda **options: np.asarray(GAUSSIAN.sample(jax.random.key(2), 4, **options))
  np.testing.assert_array_equal(draw(), draw(sampler=dpm_solver_multistep, steps=20))
  np.testing.assert_array_equal(draw(sampler='edm', steps=6),
                                draw(sampler=edm.edm, grid=grids.karras, steps=6))
  np.testing.assert_array_equal(draw(sampler='ddim', steps=6, grid='logsnr'),
                                draw(sampler=samplers.ddim, grid=grids.logsnr(GAUSSIAN.process, 6)))
  np.testing.assert_array_equal(draw(sampler=samplers.ddim, steps=6, grid='logsnr'),
                                draw(sampler='k_euler', steps=6, grid='logsnr'))


@pytest.mark.long
def test_the_same_call_again_compiles_nothing():
  traced = []

  def sampler(denoise, process):
    traced.append(1)
    return samplers.ddim(denoise, process)

  for seed in range(3):
    GAUSSIAN.sample(jax.random.key(seed), 4, sampler=sampler)
  assert len(traced) == 1
  GAUSSIAN._replace(denoise=oracles.Gaussian(0.0, 2.0)).sample(jax.random.key(0), 4,
                                                               sampler=sampler)
  assert len(traced) == 2


@pytest.mark.long
def test_the_bound_of_an_exact_denoiser_is_the_closed_form_within_its_error():
  """D/2 log((1 + s^2 SNR_0) / (1 + s^2 SNR_1)), and the divergence of the last latent."""
  n, model = 4000, GAUSSIAN._replace(denoise=oracles.Gaussian(0.0, STD))
  x = STD * jax.random.normal(jax.random.key(1), (n, 2))
  nats = model.nats({'image': x}, key=jax.random.key(2), draws=4)
  assert nats.shape == (n,)
  alpha2, sigma2 = 1.0 / (1.0 + np.exp(-LOW)), 1.0 / (1.0 + np.exp(LOW))
  exact = (np.log((1.0 + STD**2 * np.exp(HIGH)) / (1.0 + STD**2 * np.exp(LOW)))
           + alpha2 * STD**2 + sigma2 - 1.0 - np.log(sigma2))
  assert abs(nats.mean() - exact) < 4.0 * nats.std() / np.sqrt(n)


def test_what_changes_a_model_keeps_what_it_can():
  changed = GAUSSIAN._replace(denoise=oracles.Gaussian(), shape=(3,))
  assert type(changed) is Model and changed.sample(jax.random.key(0), 2).shape == (2, 3)


@pytest.mark.parametrize('call,message', [
    (lambda: GAUSSIAN.sample(jax.random.key(0)), 'n: it does not match keys'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, steps=0), 'steps=0'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, label=1), 'label=1: .* not conditioned'),
    (lambda: LABELLED.sample(jax.random.key(0), 2),
     'label: this model is conditioned on labels; give one'),
    (lambda: LABELLED.sample(jax.random.key(0), 2, label=[1, 2, 3]), 'label=.3,.: 2 examples'),
    (lambda: LABELLED._replace(null=None).sample(jax.random.key(0), 2, label=0, guidance=2.0),
     'guidance=2.0: .* not learned to do without a label'),
    (lambda: LABELLED._replace(clips=True).sample(jax.random.key(0), 2, label=0, guidance=2.0),
     'guidance=2.0: this model clips'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, sampler='eule'), 'did you mean euler'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, sampler='analytic_dpm'), 'variances that are'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, sampler='ancestral_learned'), 'has no head'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, sampler='rk45', steps=3), 'its own steps'),
    (lambda: GAUSSIAN.sample(jax.random.key(0), 2, grid=[0.0, 1.0]), 'grid must decrease'),
    (lambda: GAUSSIAN.nats({'image': jnp.zeros((1, 2))}, key=jax.random.key(0), draws=0),
     'draws=0'),
    (lambda: LABELLED.nats({'image': jnp.zeros((1, 2))}, key=jax.random.key(0)),
     "batch: this model is conditioned on labels, and the batch has none; add 'label'")])
def test_what_cannot_be_drawn_or_bounded_is_refused_in_one_line(call, message):
  with pytest.raises(InputError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
