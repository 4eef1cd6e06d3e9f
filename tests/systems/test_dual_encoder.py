"""The noise-aware dual encoder: its loss in closed form, and the noise and texts that it reads."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax import inputs, random, schedules
from vdm_jax.data import tokenisers
from vdm_jax.errors import InputError
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.processes import GaussianProcess, diffuse, vp
from vdm_jax.systems.guided import dual_encoder
from vdm_jax.train import parallel, step
from vdm_jax.typing import Context

TOWER = TextTower(features=8, depth=1, attention_heads=2, levels=0, length=0, outputs=3,
                  gelu='exact', key_bias=False)
PROCESS = GaussianProcess(schedules.Linear(8.0, -8.0), vp)


class Linear(nn.Module):
  """Three features, linear in z and in the time."""

  @nn.compact
  def __call__(self, z, time):
    return nn.Dense(3)(jnp.concatenate([z.reshape(len(z), -1), time[:, None]], axis=-1))


def built(**fields):
  config = dual_encoder.default_config(TOWER, group=4)
  config.data.update(name='made', shape=(2, 2, 1), levels=5, text_length=6, batch_size=8,
                     fields=('image', 'caption'))
  config.update_from_flattened_dict(fields)
  return config, dual_encoder.experiment(config, net=Linear(), process=PROCESS,
                                         inputs=inputs.scaled(8.0, -8.0, 1.0))


@pytest.mark.long
def test_the_loss_of_orthogonal_pairs_and_of_equal_features():
  """Logits s on the diagonal and 0 elsewhere: ln(1 + (B - 1) e^-s).  All logits equal: ln B."""
  apart = jnp.eye(4)
  nats, right = dual_encoder.contrastive(apart, apart, 3.0, 4)
  np.testing.assert_allclose(nats, math.log1p(3 * math.exp(-3.0)), rtol=1e-5)
  np.testing.assert_array_equal(right, 1.0)
  same = jnp.tile(apart[:1], (4, 1))
  nats, right = dual_encoder.contrastive(same, same, 3.0, 4)
  np.testing.assert_allclose(nats, math.log(4.0), rtol=1e-5)
  np.testing.assert_array_equal(right, 1.0)  # equal texts are all right
  # All images have the first text's features: an image cannot tell, and a text sees no difference.
  nats, right = dual_encoder.contrastive(same, apart, 3.0, 4)
  want = 0.5 * (math.log(math.exp(3.0) + 3) - 3.0 * np.eye(4)[0] + math.log(4.0))
  np.testing.assert_allclose(nats, want, rtol=1e-5)
  np.testing.assert_array_equal(right, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.long
def test_examples_are_compared_within_their_group_alone():
  rows = jnp.concatenate([jnp.eye(2), jnp.eye(2)])
  nats, _ = dual_encoder.contrastive(rows, rows, 3.0, 2)
  np.testing.assert_allclose(nats, math.log1p(math.exp(-3.0)), rtol=1e-5)
  swapped = dual_encoder.contrastive(rows, rows[jnp.array([0, 1, 3, 2])], 3.0, 2)[0]
  np.testing.assert_allclose(swapped[:2], nats[:2])
  np.testing.assert_allclose(swapped[2:], math.log1p(math.exp(3.0)), rtol=1e-5)


@pytest.mark.long
def test_it_reads_noisy_images_at_their_levels_and_texts_up_to_their_ends():
  _, experiment = built()
  rng = np.random.default_rng(0)
  field = experiment.data.spec['caption']
  words = ['ab', 'c', '', 'abcdef', 'd', 'bc', 'e', 'fa']
  batch = {'image': jnp.asarray(rng.integers(0, 5, (8, 2, 2, 1)), jnp.uint8),
           'caption': jnp.asarray(tokenisers.of(field).encode(words))}
  t = (jnp.arange(8) + 0.5) / 8

  @jax.jit
  def run():
    params = experiment.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(0), 8)
    m, level = experiment.model(params), PROCESS(t)
    x = m.encode(batch['image'])
    z = diffuse(x, random.normal(random.stream(keys, 'eps'), x), level)
    tower = TextTower(**{**{f: getattr(TOWER, f) for f in (
        'features', 'depth', 'attention_heads', 'outputs', 'gelu', 'key_bias')},
                         'levels': 257, 'length': 6})
    ends = jnp.array([2, 1, 1, 6, 1, 2, 1, 2])  # of 'ab', ...; the empty text has a first position
    texts = tower.apply({'params': params['encoder']}, batch['caption'], ends).pooled
    dense = params['net']['Dense_0']
    images = jnp.concatenate([z.reshape(8, -1), t[:, None]], axis=1) @ dense['kernel'] + dense[
        'bias']
    return (experiment.loss(params, batch, Context(t, keys, jnp.int32(0))), images, texts,
            m.image(z, level), m.text(batch['caption']), m.scale)

  (nats, terms), images, texts, f, g, scale = run()
  unit = lambda u: np.asarray(u) / np.linalg.norm(u, axis=1, keepdims=True)
  np.testing.assert_allclose(f, unit(images), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(g, unit(texts), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-5)
  np.testing.assert_array_equal(nats, dual_encoder.contrastive(f, g, scale, 4)[0])
  assert terms.keys() == {'accuracy', *(f'accuracy_{i}' for i in (1, 2, 3, 4))}
  # Two of the eight times lie in each quarter.
  for i in range(4):
    np.testing.assert_allclose(np.mean(terms[f'accuracy_{i + 1}']),
                               np.mean(terms['accuracy'][2 * i:2 * i + 2]))


def test_the_scale_of_the_logits_is_at_most_100():
  _, experiment = built()
  params = {'net': {}, 'encoder': {}, 'scale': jnp.float32(9.0)}
  np.testing.assert_allclose(experiment.model(params).scale, 100.0, rtol=1e-5)


@pytest.mark.parametrize('group', [4, 8])
def test_groups_that_a_layout_would_cut_are_refused_before_a_step_is_compiled(group, monkeypatch):
  """A batch of 8 on 4 devices: pmap would compare 2 examples with each other."""
  _, experiment = built(**{'model.group': group})
  state = jax.eval_shape(lambda: step.init(experiment.init(jax.random.key(0)), experiment.tx,
                                           experiment.ema))
  state = jax.tree.map(lambda u: np.zeros(u.shape, u.dtype), state)
  batch = {name: np.asarray(u) for name, u in experiment.data.spec.zeros(8).items()}
  monkeypatch.setattr(jax.stages.Lowered, 'compile', None)
  layout = parallel.pmap_layout(experiment.update)
  placed = layout.put(state), layout.place(batch)
  with pytest.raises(InputError, match=f"group={group}: config.train.layout=pmap .*2 examples on "
                     "each are no whole .*layout to 'jit'"):
    layout.step(*placed, jax.random.key(0))


def test_what_does_not_fit_is_refused():
  for field, value, words in (('model.group', 3, 'does not divide'),
                              ('model.group', 1, 'needs others to be compared with'),
                              ('text.levels', 9, 'levels=257'), ('text.kind', 'bert', 'CLIP'),
                              ('data.fields', ('image',), "no field 'caption'")):
    with pytest.raises(InputError, match=words):
      built(**{field: value})
  _, experiment = built()
  with pytest.raises(TypeError, match='accumulate'):  # `loop` asks for the keyword, and refuses
    experiment.update(None, None, None, None, accumulate=2)
