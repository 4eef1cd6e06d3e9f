"""Prompt-to-prompt against recordings of the public code, but for its fault."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, schedules
from vdm_jax.editing import attention, methods
from vdm_jax.editing import prompt_to_prompt as p2p
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers import sample
from vdm_jax.typing import Estimate

LENGTH, STEPS = 77, 10
KEYS = jax.random.split(jax.random.key(0), 2)
PROCESS = GaussianProcess(schedules.Cosine(8.0, -6.0))


@functools.cache
def case(name):
  """The recording of a case, its two prompts as ours, and its settings."""
  data = {key.removeprefix(f'{name}/'): array
          for key, array in recordings.shared('prompt_to_prompt').items()
          if key.startswith(f'{name}/')}
  texts, tokens = (json.loads(str(data[key])) for key in ('prompts', 'tokens'))
  return data, [parsed(*both) for both in zip(texts, tokens, strict=True)], json.loads(
      str(data['config']))


def parsed(text, tokens):
  """Words are cut after every fifth letter, between a start and an end."""
  rest = iter(tokens[1:-1])
  return p2p.prompt(text, lambda word: [next(rest) for _ in range(-(-len(word) // 5))],
                    tokens[:1], tokens[-1:])


def words_of(name):
  data, (source, target), config = case(name)
  shares = config['cross_replace_steps']
  shares = dict(shares) if isinstance(shares, dict) else {'default_': [0.0, shares]}
  assert all(start == 0.0 for start, _ in shares.values())
  cross = shares.pop('default_')[1]
  make = p2p.refine if 'refine' in config['kind'] else p2p.replace
  words = make(source, target, LENGTH, cross, {word: end for word, (_, end) in shares.items()})
  return p2p.reweight(words, target, dict(config['equalizer'] or {}))


def edited(words, config, maps, step, told):
  """Our edit of recorded maps [prompts x heads, positions, read], in a step of the grid."""
  maps = jnp.asarray(maps, jnp.float32).reshape(2, config['heads'], *maps.shape[1:])
  layer = attention.Layer(('layer',), told)
  level = PROCESS(1.0 - step / STEPS)
  change = p2p.edit(p2p.stack([words]), config['self_replace_steps'], config['pixels'])
  return np.asarray(change(maps, layer, level, None)).reshape(-1, *maps.shape[2:])


CASES = ['replace', 'refine', 'reweight', 'refine_reweight']


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_edits_repeat_the_public_code(name):
  data, _, config = case(name)
  words = words_of(name)
  for step in (0, 5, 9):
    got = edited(words, config, data['in/cross'], step, LENGTH)
    np.testing.assert_allclose(got, data[f'cross/step{step}'], rtol=0, atol=1e-6)
    got = edited(words, config, data['in/self'], step, 0)
    np.testing.assert_array_equal(got, data[f'self/step{step}'])


@pytest.mark.parametrize('name', [*CASES, 'replace_split'])
def test_words_are_edited_in_the_same_steps_as_in_the_public_code(name):
  data, _, config = case(name)
  words = p2p.stack([words_of(name)])
  for step in range(STEPS):
    begun = p2p._begun(PROCESS(jnp.float32(1.0 - step / STEPS)), 1, words.until)
    np.testing.assert_array_equal(begun, data['cross_alpha'][step])
  first, last = data['self_steps']
  assert first == 0 and last == int(config['self_replace_steps'] * STEPS)


def test_the_matrices_of_words_are_those_of_the_public_code():
  np.testing.assert_array_equal(words_of('replace').matrix, case('replace')[0]['mapper'][0])
  data, words = case('refine')[0], words_of('refine')
  np.testing.assert_array_equal(words.aligned, data['alphas'][0])
  reads = np.flatnonzero(data['alphas'][0])
  np.testing.assert_array_equal(np.argmax(words.matrix, axis=0)[reads], data['mapper'][0][reads])
  np.testing.assert_array_equal(np.sum(words.matrix, axis=0), data['alphas'][0])
  for name in ('reweight', 'refine_reweight'):
    np.testing.assert_array_equal(words_of(name).weight, case(name)[0]['equalizer'][0])


def test_tokens_after_an_exchange_of_unequal_lengths_read_themselves():
  """`squar e` becomes `disk`.  The public code reads `on`, `grass` and the end from the column of
  the same number, which is the token before each of them; its end reads `grass`."""
  data, (source, target), config = case('replace_split')
  words = words_of('replace_split')
  theirs, ours = data['mapper'][0], np.asarray(words.matrix)
  before = target.columns('disk')[-1] + 1
  np.testing.assert_array_equal(ours[:, :before], theirs[:, :before])
  pairs = [(source.columns(word)[0], target.columns(word)[0]) for word in ('on', 'grass')]
  pairs += [(len(source.ids()) - 1, len(target.ids()) - 1)]
  for i, j in pairs:
    assert (i, ours[:, j].sum(), ours[i, j]) == (j + 1, 1.0, 1.0)
    assert theirs[:, j].sum() == theirs[j, j] == 1.0  # the fault
  # Beside the source's end there is padding of the target, which keeps its own map.  Their very
  # last column is empty: so far is the fault carried.
  assert words.aligned[len(target.ids())] == 0.0
  np.testing.assert_array_equal(ours[:, 8:-1], theirs[:, 8:-1])
  assert (ours[:, -1].sum(), theirs[:, -1].sum()) == (1.0, 0.0)

  maps = data['in/cross'].astype(np.float32).reshape(2, 2, -1, LENGTH)
  got = edited(words, config, data['in/cross'], 0, LENGTH).reshape(maps.shape)
  recorded = data['cross/step0'].reshape(maps.shape)
  same = [*range(before), *range(8, LENGTH - 1)]
  np.testing.assert_allclose(got[..., same], recorded[..., same], atol=1e-6)
  for i, j in pairs:
    np.testing.assert_array_equal(got[1, ..., j], maps[0, ..., i])
    assert np.abs(got[1, ..., j] - recorded[1, ..., j]).max() > 1e-3


def test_words_that_become_more_tokens_share_their_map():
  source, target = (p2p.prompt(text, list, 'S', 'E') for text in ('a b', 'a xyz'))
  words = p2p.replace(source, target, 8)
  np.testing.assert_allclose(words.matrix[2, 2:5], 1 / 3)
  assert [tuple(map(int, pair)) for pair in np.argwhere(np.asarray(words.matrix) == 1.0)] == [
      (0, 0), (1, 1), (3, 5), (6, 6), (7, 7)]
  np.testing.assert_array_equal(words.aligned, 1.0)


@pytest.mark.parametrize('source,target,want', [
    ('abc', 'axbc', [0, -1, 1, 2]),
    ('abc', 'xyz', [-1, -1, -1]),
    ('abcd', 'ad', [0, 3]),
    ('', 'ab', [-1, -1]),
])
def test_symbols_are_aligned_in_order(source, target, want):
  assert p2p.align(source, target) == want


letters = lambda text: p2p.prompt(text, lambda word: [ord(one) for one in word], [0], [1])


@pytest.mark.parametrize('source,target,want', [
    ('a red disk', 'a blue disk', (['red'], ['blue'])),
    ('a disk', 'a big red disk', ([], ['big', 'red'])),
    ('a disk', 'a disk', ([], [])),
])
def test_the_words_that_changed_are_those_that_one_text_lacks(source, target, want):
  assert p2p.changed(letters(source), letters(target)) == want


def test_the_words_that_changed_are_weighted_and_blended_by_as_if_each_pair_named_them():
  changed = methods.PromptToPrompt(weights=((methods.CHANGED, 2.0),), blend=(methods.CHANGED,))
  for texts, words in ((('a red disk', 'a blue disk'), ('red', 'blue')),
                       (('a red disk', 'a red cross'), ('disk', 'cross'))):
    named = changed._replace(weights=((words[1], 2.0),), blend=words)
    pair = [letters(text) for text in texts]
    jax.tree.map(np.testing.assert_array_equal, methods.aligned(changed, *pair, 16),
                 methods.aligned(named, *pair, 16))
    columns = methods.blending(changed, *pair, 16)
    np.testing.assert_array_equal(columns, methods.blending(named, *pair, 16))
    assert [np.flatnonzero(row).tolist() for row in columns] == [
        text.columns(word) for text, word in zip(pair, words, strict=True)]
  same = [letters('a red disk')] * 2
  with pytest.raises(InputError, match="^weights='@changed': the target has no word that the sou"):
    methods.aligned(changed, *same, 16)
  with pytest.raises(InputError, match="^blend='@changed': neither text has"):
    methods.blending(changed, *same, 16)
  more = letters('a red disk'), letters('a very red disk')
  for pair, lacking in ((more, 'source'), (more[::-1], 'target')):
    with pytest.raises(InputError, match=f'the {lacking} has none of these words: no word of it'):
      methods.blending(changed, *pair, 16)
    columns = methods.blending(changed._replace(blend=(methods.CHANGED, 'disk')), *pair, 16)
    assert columns.any(axis=1).all()


def test_a_refined_exchange_of_one_word_reads_all_maps_of_the_source_but_that_of_the_new_word():
  pair = [letters(text) for text in ('a red disk', 'a tan disk')]
  refined, replaced = (make(*pair, 12) for make in (p2p.refine, p2p.replace))
  new = np.isin(np.arange(12), pair[1].columns('tan'))
  np.testing.assert_array_equal(refined.aligned, ~new)
  np.testing.assert_array_equal(replaced.aligned, 1.0)
  np.testing.assert_array_equal(refined.matrix[:, ~new], replaced.matrix[:, ~new])


@pytest.mark.long
def test_a_local_blend_repeats_the_public_code():
  data = {key.removeprefix('blend/'): array
          for key, array in recordings.shared('prompt_to_prompt').items()}
  config = json.loads(str(data['config']))
  last = lambda u: jnp.asarray(np.moveaxis(u, 1, -1))
  x, out = last(data['in/x']), last(data['out'])
  # The recorded maps are those of the words alone: one column.
  maps = data['in/word_maps'].reshape(2, config['maps'], config['heads'], -1, 1)
  read = p2p.word_maps(jnp.ones((2, 1)), 16)
  each = read({f'{i}/told': jnp.asarray(maps[:, i]) for i in range(config['maps'])})
  inside = p2p.blend_mask(each, x, config['threshold'])
  np.testing.assert_allclose(np.where(inside[0], x[1], x[0]), out[1], atol=1e-6)
  np.testing.assert_array_equal(x[0], out[0])
  assert 0.0 < np.mean(inside) < 1.0


@pytest.mark.long
def test_a_blended_target_is_its_source_where_no_word_of_either_looks():
  """Two flows of known end; the source's map is in the first columns, the target's in the next."""
  source, target = oracles.Gaussian(1.0, 0.5), oracles.Gaussian(-1.0, 0.25)
  maps = jnp.zeros((2, 8, 8)).at[0, :, 0].set(2.0).at[1, :, 3].set(0.5)

  def denoise(z, level, cond=None):
    each = [d(z[i:i + 1], level) for i, d in enumerate((source, target))]
    both = Estimate(*(jnp.concatenate(u) for u in ([e.x for e in each],
                                                           [e.eps for e in each])))
    return both._replace(extra={'attention': maps})

  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
  z = jnp.full((2, 8, 8, 1), 0.7)
  x = sample(p2p.local_blend(denoise, process, size=8), KEYS, z, np.linspace(1.0, 0.0, 201))
  # Noise z becomes mean + std z, up to the error of 200 steps.
  np.testing.assert_allclose(x[0], 1.0 + 0.5 * 0.7, atol=0.02)
  changed = np.isin(np.arange(8), [0, 1, 2, 3, 4])
  np.testing.assert_allclose(x[1][:, changed], -1.0 + 0.25 * 0.7, atol=0.02)
  np.testing.assert_array_equal(x[1][:, ~changed], x[0][:, ~changed])


def test_wrong_texts_and_batches_are_refused():
  a, b = (p2p.prompt(text, list) for text in ('a red square', 'a square'))
  with pytest.raises(InputError, match='2 words.*one for one, or add words by --change=refine'):
    p2p.replace(a, b, 16)
  with pytest.raises(InputError, match='10 and 7 tokens'):
    p2p.refine(a, b, 8)
  with pytest.raises(InputError, match='word=.blue.: the text is "a square"'):
    p2p.refine(a, b, 16, by_word={'blue': 0.5})
  with pytest.raises(InputError, match='from 0 to 1'):
    p2p.refine(a, b, 16, cross=1.5)
  words = p2p.stack([p2p.refine(a, b, 16)])
  change, level = p2p.edit(words), PROCESS(0.9)
  with pytest.raises(InputError, match='1 pairs, and the batch has 4'):
    change(jnp.ones((4, 1, 4, 16)), attention.Layer((), 16), level, None)
  with pytest.raises(InputError, match='of 16 tokens, and the network reads 12'):
    change(jnp.ones((2, 1, 4, 12)), attention.Layer((), 12), level, None)
  with pytest.raises(InputError, match='no layer attends to tokens from 16 x 16'):
    p2p.word_maps(jnp.ones((2, 4)))({'a/told': jnp.ones((2, 1, 64, 4))})
  with pytest.raises(InputError, match='no attention maps'):
    sample(p2p.local_blend(oracles.Gaussian(), PROCESS), KEYS,
           jnp.ones((2, 4, 4, 1)), np.linspace(1.0, 0.0, 3))
