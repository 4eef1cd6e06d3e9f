"""A model with a prior of its own is drawn from there, and has the likelihood of no other prior."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import codec, oracles, random, samplers, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.ledger import Options, families
from vdm_jax.likelihood import bounds, immse, ode, paths
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers.drawing import draw, draw_path
from vdm_jax.schedules import TableSchedule

STEPS, MEAN, STD = 100, 0.5, 0.3
# The first 100 steps of DDPM's chain: at the last one the data still show.
TABLE = TableSchedule.from_betas(schedules.linear_betas()).respaced(np.arange(STEPS + 1))
BAR = np.prod(1.0 - np.linspace(1e-4, 0.02, 1000)[:STEPS])
END = BAR**0.5 * MEAN, (BAR * STD**2 + 1.0 - BAR)**0.5


def exact(keys, like):
  return END[0] + END[1] * random.normal(random.stream(keys, 'z_1'), like)


same = lambda u: u
MODEL = Model(
    denoise=oracles.Gaussian(MEAN, STD), process=GaussianProcess(TABLE),
    decoder=lambda data, z, level: jnp.zeros(len(z)), encode=same, decode=same,
    cond=lambda batch: None, shape=(1,), prior=exact)


@pytest.mark.long
def test_a_truncated_chain_draws_the_data_from_its_prior_and_others_from_n_0_1():
  n = 10_000
  x = np.asarray(MODEL.sample(jax.random.key(0), n, sampler=samplers.ancestral, steps=STEPS))
  assert abs(x.mean() - MEAN) < 4 * STD / n**0.5
  # The chain of the smaller variance is a little narrow, as the whole one: 0.496110 of 0.5.
  assert abs(x.std() / STD - 1.0) < 4 / (2 * n)**0.5 + 0.02
  untruncated = MODEL._replace(prior=None).sample(jax.random.key(0), n, sampler=samplers.ancestral,
                                                  steps=STEPS)
  # E[x | z_1] is linear, so the mean is where the mean of N(0, 1) leads.
  gain = BAR**0.5 * STD**2 / END[1]**2
  assert abs(float(untruncated.mean()) - (MEAN - gain * END[0])) < 0.1 * gain * END[0]


def test_a_prior_of_the_model_s_own_is_at_the_end_of_its_process():
  sparse = np.array([0.9, 0.4, 0.0])
  with pytest.raises(InputError, match="^grid=0.9: .*the model's own prior is for t = 1"):
    MODEL.sample(jax.random.key(0), 2, sampler=samplers.ddim, grid=sparse)
  arguments = {'times': sparse, 'seed': 0, 'cond': lambda numbers: {}}
  with pytest.raises(InputError, match='^grid=0.9'):
    next(draw(lambda params: MODEL, {}, samplers.ddim, start=0, stop=2, batch_size=2, **arguments))
  with pytest.raises(InputError, match='^grid=0.9'):
    draw_path(lambda params: MODEL, {}, samplers.ddim, count=2, frames=(0,), **arguments)
  assert np.isfinite(MODEL._replace(prior=None).sample(
      jax.random.key(0), 2, sampler=samplers.ddim, grid=sparse)).all()


PIXELS = Pixels(4)
IMPLICIT = MODEL._replace(process=GaussianProcess(schedules.Linear(6.0, -1.0)),
                          encode=PIXELS.encode, decode=PIXELS.decode, decoder=PIXELS.log_prob)
BATCH = {'image': np.array([[0], [3]])}
KEYS = jax.random.split(jax.random.key(0), 2)
STUDENT = IMPLICIT._replace(prior=None, distilled=('ddim_to_x', 1))
REFUSED = {
    'nats': lambda m: m.nats(BATCH, key=jax.random.key(0)),
    'one draw': lambda m: bounds.one_draw(m, BATCH, jnp.full(2, 0.5), KEYS),
    'immse': lambda m: immse.estimator(None, 1)(m, BATCH, KEYS),
    'iw': lambda m: paths.importance_weighted(2, 3)(m, BATCH, KEYS),
    'ledger': lambda m: families.needs(families.parse(['ode']), Options(), m, BATCH)}


@pytest.mark.parametrize('what', REFUSED)
@pytest.mark.parametrize('model,says', [
    (IMPLICIT, 'draws z_1 by a network.* score the samples'),
    (STUDENT, 'was distilled for 1 step of the sampler ddim_to_x, and has no likelihood')],
    ids=['implicit prior', 'student'])
def test_an_implicit_prior_and_a_student_leave_no_likelihood(what, model, says):
  with pytest.raises(InputError, match=says) as error:
    REFUSED[what](model)
  assert '\n' not in str(error.value)


def test_a_student_has_neither_a_likelihood_of_its_flow_nor_a_code():
  with pytest.raises(InputError, match='was distilled .* and has no likelihood'):
    ode.estimator()(STUDENT, BATCH, KEYS)
  with pytest.raises(InputError, match='was distilled, and has no likelihood'):
    codec.chain(STUDENT, 4, 4)


def test_the_flow_and_the_codec_know_one_prior_alone():
  with pytest.raises(InputError, match='this model has a prior of its own'):
    ode.estimator()(IMPLICIT, BATCH, KEYS)
  with pytest.raises(InputError, match='has a prior of its own, so its chain cannot be coded'):
    codec.chain(IMPLICIT, 4, 4)


@pytest.mark.parametrize('field,says', [
    ({'no_likelihood': 'its latents have no density'}, 'the model has no likelihood, so its chain'),
    ({'data_space': False}, 'the model has x that are no pixels, so its chain')])
def test_latents_of_images_have_no_code(field, says):
  with pytest.raises(InputError, match=says):
    codec.chain(IMPLICIT._replace(prior=None, **field), 4, 4)


def test_an_explicit_prior_comes_with_a_bound_which_is_asked():
  explicit = IMPLICIT._replace(bound=lambda batch, t, keys, steps: (
      jnp.full(t.shape, 1.5 + steps), {'diffusion': jnp.full(t.shape, 1.5 + steps)}))
  np.testing.assert_allclose(explicit.nats(BATCH, key=jax.random.key(0), draws=2, steps=3), 4.5)
