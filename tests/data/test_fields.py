"""Named fields: the oracles are the arrays and texts that were written."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from vdm_jax import data, targets
from vdm_jax.data import augmentation, conditions, fields, pipeline, text, tokenisers
from vdm_jax.errors import InputError
from vdm_jax.schedules import Linear
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm

RNG = np.random.default_rng(0)
MOTION = RNG.standard_normal((12, 5, 2))
TOKENS = RNG.integers(0, 300, (12, 4))
TOKENS[3, 1] = 299


def make(**given):
  config = data.default_config()
  config.update(given)
  return data.Data(config)


def every(d, split):
  return d.split(split).get(np.arange(len(d.split(split))))


@pytest.fixture
def several(tmp_path):
  """An .npz of five fields of several kinds, of 12 examples."""
  path = tmp_path / 'several.npz'
  np.savez(path, motion=MOTION, tokens=TOKENS, labels=np.arange(12) % 3,
           speed=np.linspace(-1.0, 1.0, 12), caption=np.array(['ab', 'ç'] * 6), about=np.array('x'))
  return str(path)


def test_every_array_of_a_file_is_a_field_with_its_own_shape_type_and_levels(several):
  d = make(name=several)
  assert tuple(field[:4] for field in d.spec.fields) == (
      ('motion', (5, 2), 'float32', None), ('tokens', (4,), 'int32', 300),
      ('label', (), 'int32', 3), ('speed', (), 'float32', None), ('caption', (2,), 'int32', 257))
  assert (d.spec.shape, d.spec.classes, d.spec.x.name) == ((5, 2), 3, 'motion')
  train, rest = every(d, 'train'), np.arange(12) % 6 != 0
  assert {name: (u.dtype.name, u.shape[1:]) for name, u in train.items()} == {
      f.name: (f.dtype, f.shape) for f in d.spec.fields}
  np.testing.assert_array_equal(train['motion'], MOTION[rest].astype(np.float32))
  np.testing.assert_array_equal(train['tokens'], TOKENS[rest])
  np.testing.assert_array_equal(train['label'], (np.arange(12) % 3)[rest])
  assert text.decode(train['caption']) == [('ab', 'ç')[i % 2] for i in np.flatnonzero(rest)]
  assert 'motion' not in d.describe() and 'real numbers, 3 classes; tokens 4, 300' in d.describe()
  with pytest.raises(InputError, match="no field 'sound'; name one of its fields: motion, tokens"):
    d.spec['sound']


def test_fields_are_chosen_and_the_first_that_is_named_is_x(several):
  d = make(name=several, fields=('tokens', 'label'), batch_size=5)
  assert d.spec.names == ('tokens', 'label') and d.spec.levels == 300
  assert set(d.batch(0)) == {'tokens', 'label'}
  with pytest.raises(InputError, match="has no field 'sound'; choose one of motion, tokens, label"):
    make(name=several, fields=('motion', 'sound')).batch(0)
  with pytest.raises(InputError, match='first field, speed, has one number per example'):
    make(name=several, fields=('speed',)).batch(0)


@pytest.mark.long
def test_batches_of_several_fields_keep_each_example_together(several):
  """By RAM and by worker processes: the rows of all fields are those of one permutation."""
  given = {'name': several, 'batch_size': 6}
  small = make(**given)
  large = make(**given, memory_gb=0.0, workers=1)
  stream = large.stream(3)
  for step in (3, 4):
    batch, other = small.batch(step), next(stream)
    rows = [int(np.flatnonzero((MOTION.astype(np.float32) == u).all((1, 2)))[0])
            for u in batch['motion']]
    np.testing.assert_array_equal(batch['tokens'], TOKENS[rows])
    np.testing.assert_array_equal(batch['label'], np.array(rows) % 3)
    for name, values in batch.items():
      np.testing.assert_array_equal(other[name], values)
  stream.close()


def test_a_spec_survives_the_config_of_a_run_and_reads_no_data(several):
  spec = make(name=several).spec
  kept = json.loads(json.dumps({'name': 'gone.npz', **spec.to_config()}))
  tuples = lambda u: tuple(map(tuples, u)) if isinstance(u, list) else u
  d = make(**{name: tuples(value) for name, value in kept.items()})
  assert d.spec == data.Spec('gone.npz', spec.fields)
  with pytest.raises(InputError, match='holds real numbers, and this system needs integers'):
    fields.levels(d.spec, d.spec.x)


def test_a_config_of_before_the_fields_still_reads_its_file(tmp_path):
  """Then x was the image, whatever its array was called."""
  np.savez(tmp_path / 'x.npz', points=np.arange(12, dtype=np.uint8).reshape(6, 2))
  config = data.default_config()
  config.update(name=str(tmp_path / 'x.npz'), shape=(2,), levels=12)
  old = {name: value for name, value in config.items() if name not in (
      'fields', 'found', 'text_length', 'augmentation')}
  d = data.Data(type(config)(old))
  np.testing.assert_array_equal(every(d, 'test')['image'], [[0, 1]])
  assert d.spec.names == ('image',) and make(name=config.name).spec.names == ('points',)


@pytest.mark.parametrize('arrays, message', [
    ({'a': MOTION, 'b': MOTION[:5]}, 'b has 5 rows where a has 12'),
    ({'a': np.where(MOTION > 2, np.inf, MOTION)}, r'\[a\].: it holds numbers that are not finite'),
    ({'a': MOTION, 'b': -TOKENS}, 'number them from 0, or save numbers as float32'),
    ({'a_train': MOTION, 'b': MOTION}, 'it holds a_train and no a_test'),
    ({'about': np.array('x')}, 'no array of examples'),
    ({'a': MOTION[:, 0] + 1j}, 'it holds complex128; make it integers, floats or strings'),
])
def test_fields_with_a_fault_are_refused_in_one_line(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(InputError, match=message) as error:
    make(name=str(tmp_path / 'x.npz')).batch(0)
  assert '\n' not in str(error.value)


def test_levels_are_not_for_real_numbers(several):
  with pytest.raises(InputError, match='config.data.levels=8: motion of .* holds real numbers'):
    make(name=several, levels=8).batch(0)
  with pytest.raises(InputError, match='config.data.levels=8: .* holds real numbers'):
    make(name=several, levels=8, shape=(5, 2)).batch(0)


def test_splits_of_every_field_are_read_by_their_ends(tmp_path):
  np.savez(tmp_path / 'x.npz', y_train=np.arange(8) % 2, x_train=MOTION[:8], x_test=MOTION[8:],
           y_test=np.arange(4) % 2, caption_train=np.array(['a'] * 8), caption_test=['bcd'] * 4)
  d = make(name=str(tmp_path / 'x.npz'))
  assert d.spec.names == ('x', 'label', 'caption') and d.spec['caption'].shape == (3,)
  np.testing.assert_array_equal(every(d, 'test')['x'], MOTION[8:].astype(np.float32))
  assert text.decode(every(d, 'test')['caption']) == ['bcd'] * 4
  assert len(d.split('train')) == 8


# Text.


def test_text_is_its_bytes_and_is_cut_and_padded():
  tokens = text.encode(['é', 'abc', ''], 2)
  np.testing.assert_array_equal(tokens, [[0xc3 + 1, 0xa9 + 1], [98, 99], [0, 0]])
  assert text.decode(tokens) == ['é', 'ab', '']
  assert text.decode(text.encode(['aé'], 2)) == ['a']  # and no half of a character


# Pictures and what is said of them.


def pictures(root, names):
  for i, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), 200 + i, np.uint8)).save(root / name)


def test_captions_beside_pictures_are_a_field_of_text(tmp_path):
  names = [f'{i}.png' for i in range(7)]
  pictures(tmp_path, names)
  (tmp_path / 'captions.txt').write_text(
      ''.join(f'{name}\tnumber {i}\n' for i, name in reversed(list(enumerate(names)))))
  d = make(name=str(tmp_path))
  assert d.spec['caption'] == tokenisers.field('caption', tokenisers.Settings(length=8))
  assert text.decode(every(d, 'test')['caption']) == ['number 0', 'number 6']
  assert 'left out' not in d.describe() and 'captions.txt' in d.fingerprint()['parts']
  short = make(name=str(tmp_path), text_length=3)
  assert text.decode(every(short, 'test')['caption']) == ['num', 'num']
  lines = (tmp_path / 'captions.txt').read_text().replace('\n', '\r\n')
  (tmp_path / 'captions.txt').write_bytes(b'\xef\xbb\xbf' + lines.encode())  # as Windows writes it
  assert text.decode(every(make(name=str(tmp_path)), 'test')['caption']) == ['number 0', 'number 6']
  (tmp_path / 'captions.txt').write_bytes('0.png\tété\n'.encode('latin-1'))
  with pytest.raises(InputError, match='captions.txt.: it is not text in UTF-8'):
    make(name=str(tmp_path)).batch(0)
  (tmp_path / 'captions.txt').write_text('0.png number 0\n')
  with pytest.raises(InputError, match='line 1.: the line cannot be read; write file<TAB>caption'):
    make(name=str(tmp_path)).batch(0)
  (tmp_path / 'captions.txt').write_text('0.png\tnumber 0\n')
  with pytest.raises(InputError, match='captions.txt has no caption of 1.png'):
    make(name=str(tmp_path)).batch(0)


def test_words_of_captions_are_kept_with_a_run_and_merges_are_named_by_its_config(tmp_path):
  names = [f'{i}.png' for i in range(7)]
  pictures(tmp_path, names)
  (tmp_path / 'captions.txt').write_text(''.join(f'{name}\tNumber {i}!\n'
                                                 for i, name in enumerate(names)))
  config = data.default_config()
  config.update(name=str(tmp_path), tokeniser='words')
  spec = data.resolve(config)
  caption = spec['caption']
  assert caption.texts.words == ('!', *'0123456', 'number') and caption[1:4] == ((3,), 'int32', 10)
  np.testing.assert_array_equal(every(data.Data(config), 'test')['caption'],
                                [[9, 2, 1], [9, 8, 1]])
  config.update(spec.to_config())
  config.name = 'gone'
  kept = json.loads(json.dumps(config.to_dict()), object_hook=lambda u: {
      name: tuple(v) if isinstance(v, list) else v for name, v in u.items()})
  assert data.resolve(type(config)(kept)).fields == spec.fields
  # Older runs do not say that a field is a text.
  assert fields.from_config('old', (('who', (6,), 'int32', 257),)).x.texts == fields.Texts()
  told = data.default_config()
  told.update(shape=(8, 8, 3), levels=256, fields=('image', 'caption'), tokeniser='clip',
              merges='a.txt')
  one = data.resolve(told)
  assert one['caption'] == ('caption', (77,), 'int32', 49_408, ('clip', (), 'a.txt'))
  told.update(one.to_config())
  told.merges = 'b.txt'
  assert data.resolve(told)['caption'].texts.merges == 'b.txt'


def test_metadata_of_pictures_are_texts_integers_reals_and_vectors(tmp_path):
  names = [f'{split}/{i}.png' for split in ('train', 'test') for i in range(2)]
  pictures(tmp_path, names)
  for split in ('train', 'test'):
    (tmp_path / split / 'metadata.jsonl').write_text('\n'.join(json.dumps({
        'file_name': f'{i}.png', 'count': i, 'age': i + 0.5, 'place': [i, -1.0], 'label': i,
        'who': f'{split}{i}'}) for i in range(2)))
  d = make(name=str(tmp_path))
  assert tuple(field[:4] for field in d.spec.fields[1:]) == (
      ('count', (), 'int32', 2), ('age', (), 'float32', None), ('place', (2,), 'float32', None),
      ('label', (), 'int32', 2), ('who', (6,), 'int32', 257))
  assert d.spec.classes == 2
  test = every(d, 'test')
  np.testing.assert_array_equal(test['place'], [[0, -1], [1, -1]])
  np.testing.assert_array_equal(test['age'], [0.5, 1.5])
  assert text.decode(test['who']) == ['test0', 'test1']
  np.testing.assert_array_equal(test['image'][:, 0, 0, 0], [202, 203])


# Augmentation.


def test_an_augmentation_changes_its_field_alone_and_says_so(tmp_path):
  images = RNG.integers(0, 256, (60, 3, 4, 1)).astype(np.uint8)
  np.savez(tmp_path / 'x.npz', images=images, masks=images[..., 0], labels=np.arange(60))
  given = {'name': str(tmp_path / 'x.npz'), 'batch_size': 50}
  d = make(**given, augment=True, augmentation='flips')
  assert d.spec.fields[-1] == augmentation.FIELD
  batch, before = d.batch(0), make(**given).batch(0)
  flipped = batch['augmented'] == 1.0
  np.testing.assert_array_equal(batch['image'][flipped], before['image'][flipped][:, :, ::-1])
  np.testing.assert_array_equal(batch['image'][~flipped], before['image'][~flipped])
  for name in ('masks', 'label'):
    np.testing.assert_array_equal(batch[name], before[name])
  assert 10 < flipped.sum() < 40  # 1 - 1e-5 of the binomial
  with pytest.raises(InputError, match='config.data.augment=True: it turns images.*square'):
    make(**given, augment=True).batch(0)
  with pytest.raises(InputError, match="augmentation='turns': .*choose one of flips_and_turns"):
    make(**given, augment=True, augmentation='turns').batch(0)


# Conditions of samples.


SPEC = data.Spec('made', (
    fields.integers('image', (2, 2, 1), 9), fields.label(3),
    tokenisers.field('caption', tokenisers.Settings(length=5)),
    fields.reals('place', (2,)), augmentation.FIELD))


def test_conditions_are_labels_in_turn_zeros_and_what_is_given_in_turn():
  conditioning = conditions.of(SPEC, ['label', 'caption', 'place', 'augmented'])
  numbers = np.array([4, 5, 6])
  batch = conditioning(numbers)
  np.testing.assert_array_equal(batch['label'], [1, 2, 0])
  assert not any(batch[name].any() for name in ('caption', 'place', 'augmented'))
  batch = conditioning(numbers, label=2, caption=['one', 'two'], place=[0.5, 1.0])
  np.testing.assert_array_equal(batch['label'], [2, 2, 2])
  assert text.decode(batch['caption']) == ['one', 'two', 'one']
  np.testing.assert_array_equal(batch['place'], 3 * [[0.5, 1.0]])
  rows = conditioning(numbers, place=np.arange(8).reshape(4, 2))['place']
  np.testing.assert_array_equal(rows, [[0, 1], [2, 3], [4, 5]])
  assert {name: u.dtype.name for name, u in batch.items()} == {
      name: SPEC[name].dtype for name in batch}


def test_conditions_may_be_strings_as_a_command_has_them(tmp_path):
  told = conditions.of(SPEC, ['label', 'caption', 'place', 'augmented'])
  np.savez(tmp_path / 'rows.npz', place=np.arange(6.0).reshape(3, 2), caption=['one', 'two'])
  file, numbers = str(tmp_path / 'rows.npz'), np.arange(4)
  np.testing.assert_array_equal(told(numbers, place='0.5,-1e1')['place'], 4 * [[0.5, -10.0]])
  np.testing.assert_array_equal(told(numbers, place=['9,9', file])['place'],
                                [[9, 9], [0, 1], [2, 3], [4, 5]])
  captions = told(numbers, caption=['six', file])['caption']
  assert text.decode(captions) == ['six', 'one', 'two', 'six']
  np.testing.assert_array_equal(told(numbers, label=['2', '0'])['label'], [2, 0, 2, 0])
  for given, message in (
      ({'place': '1,2,3'}, "place='1,2,3': a value has 2 numbers, and these are 3"),
      ({'place': 'here'}, "place='here': these are not numbers; give numbers separated by commas"),
      ({'label': '0.5'}, "label='0.5': these are not integers"),
      ({'label': file}, "has no array 'label', only place, caption; rename one of them"),
      ({'place': 'none.npz'}, "place='none.npz': there is no such file")):
    with pytest.raises(InputError, match=message):
      told(numbers, **given)


@pytest.mark.parametrize('given, message', [
    ({'label': 3}, 'label=3: the classes are 0 .. 2'),
    ({'label': 0.5}, 'label=0.5: it must be an integer, 0 .. 2'),
    ({'place': 1.0}, r'the shape of a value is \(2,\)'),
    ({'place': [np.nan, 0]}, 'it is not finite'),
    ({'caption': 'longer'}, "caption='longer': it has 6 bytes, and 5 are read; shorten it"),
    ({'image': 0}, "image=0: this model is not conditioned on 'image'; leave it out, or give l"),
])
def test_conditions_that_do_not_fit_are_refused_by_field(given, message):
  with pytest.raises(InputError, match=message):
    conditions.of(SPEC, ['label', 'caption', 'place'])(np.arange(2), **given)


def test_pieces_in_memory_are_joined_for_every_field(several, monkeypatch):
  monkeypatch.setattr(pipeline, 'CHUNK', 3)
  d = make(name=several)
  np.testing.assert_array_equal(every(d, 'train')['tokens'], TOKENS[np.arange(12) % 6 != 0])


class OfCaption(nn.Module):
  """x_hat of each caption: 1 for a text that begins with 'w', -1 for all others."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    scale = self.param('scale', nn.initializers.ones, ())
    white = jnp.where(cond[:, 0] == ord('w') + 1, 1.0, -1.0)
    return jnp.broadcast_to(scale * white[:, None, None, None], z.shape)


@pytest.mark.long
def test_a_model_conditioned_on_captions_draws_what_each_says(tmp_path):
  np.savez(tmp_path / 'x.npz', images=np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2),
           caption=np.array(['white', 'dark'] * 6))
  config = vdm.default_config()
  config.data.name = str(tmp_path / 'x.npz')
  given = {'net': OfCaption(), 'schedule': Linear(8.0, -6.0), 'target': targets.x}
  made = compose.experiment(config, condition='caption', **given)
  params = made.init(jax.random.key(0))
  model = made.model(params)
  found = model.sample(jax.random.key(1), 4, steps=3, condition={'caption': ['dark', 'white']})
  np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 47, 0, 47])
  with pytest.raises(InputError, match='batch: this model is conditioned on caption'):
    model.nats({'image': np.zeros((1, 2, 2, 1))}, key=jax.random.key(2))
  with pytest.raises(InputError, match="no field 'sound'; name one of its fields: image, caption"):
    compose.experiment(config, condition='sound', **given)
