"""The edits of a run: limits that hold bit for bit, the picture, and input that is refused."""
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import shapes_config, untrained
from vdm_jax import guidance, random, samplers
from vdm_jax.data import shapes
from vdm_jax.editing import diffedit, methods, null_text
from vdm_jax.errors import InputError
from vdm_jax.runs import editing, workdir
from vdm_jax.typing import Estimate

ROOT = Path(__file__).parents[2]
SOURCES = ['a large red disk on grey', 'a small blue cross on white']
TARGETS = ['a large green disk on grey', 'a small blue square on white']
STEPS = 3
NUMBERS = np.arange(2)
LEFT = np.broadcast_to(np.arange(16) < 8, (2, 16, 16))[..., None]  # where a mask is white


def picture_of(caption, place=20):
  return shapes.images()[len(shapes.PLACES) * shapes.CAPTIONS.index(caption) + place]


IMAGES = np.stack([picture_of(caption) for caption in SOURCES])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The directory of a run whose weights are random."""
  return untrained.make_run(tmp_path_factory.mktemp('editing') / 'run', shapes_config)


@functools.cache
def trained(folder):
  return workdir.load_trained(folder)


def edits(run, method, sources=SOURCES, targets=TARGETS, images=IMAGES, masks=None, w=1.0):
  make = editing.editor(trained(run), method, guidance=w, steps=STEPS)
  return make(editing.Request(NUMBERS, images, sources, targets, masks))


@pytest.mark.long
def test_the_same_text_gives_the_source_bit_for_bit_and_another_text_does_not(run):
  make = editing.editor(trained(run), methods.PromptToPrompt(), guidance=1.0, steps=STEPS)
  same, other = (make(editing.Request(NUMBERS, IMAGES, SOURCES, texts))
                 for texts in (SOURCES, TARGETS))
  np.testing.assert_array_equal(same.images, same.sources)
  np.testing.assert_array_equal(other.sources, same.sources)
  assert np.any(other.images != other.sources, axis=(1, 2, 3)).all()


@pytest.mark.long
def test_without_shared_maps_the_edit_is_the_sample_of_the_target_from_the_inverted_image(run):
  found = edits(run, methods.PromptToPrompt(cross=0.0, own=0.0))
  experiment, params = trained(run).experiment, trained(run).params

  @jax.jit
  def alone(params):
    model = experiment.model(params)
    texts = [model.cond(model.conditions(NUMBERS, caption=one)) for one in (SOURCES, TARGETS)]
    source, target = (guidance.conditioned_on(model.denoise, lambda _, u=u: u) for u in texts)
    untold = guidance.conditioned_on(model.denoise, lambda _: model.null(texts[1]))
    times = np.linspace(1.0, 0.0, STEPS + 1)
    keys = random.per_example(random.key(0), NUMBERS)
    z = model.process(0.0).alpha * model.encode(IMAGES)
    start = null_text.invert(source, model.process, keys, z, times)[0]
    draw = lambda told: samplers.sample(samplers.ddim(guidance.classifier_free(
        told, untold, 1.0), model.process), keys, start, times) / model.process(0.0).alpha
    return model.decode(draw(target))
  # Two programs round differently, and a level is 2 / 256 wide.
  assert np.abs(np.int32(found.images) - np.int32(alone(params))).max() <= 1
  assert np.ptp(found.images) > 50


@pytest.mark.long
def test_a_blend_by_words_changes_nothing_or_all_at_the_ends_of_its_threshold(run):
  """No attention is above its largest, and all attention is above 0."""
  none, everything = (edits(run, methods.PromptToPrompt(blend=('on',), threshold=threshold))
                      for threshold in (1.0, 0.0))
  np.testing.assert_array_equal(none.images, none.sources)
  plain = edits(run, methods.PromptToPrompt())
  assert np.abs(np.int32(everything.images) - np.int32(plain.images)).max() <= 1
  assert np.any(everything.images != everything.sources, axis=(1, 2, 3)).all()


@pytest.mark.long
@pytest.mark.parametrize('method', [methods.Inpaint(), methods.Inpaint('repaint', 'ddim', 1, 2),
                                    methods.DiffEdit(ratio=1.0, noises=2)],
                         ids=['replacement', 'repaint', 'diffedit'])
def test_pixels_outside_the_mask_stay_bit_for_bit_and_those_inside_change(run, method):
  given = LEFT if isinstance(method, methods.Inpaint) else None
  found = edits(run, method, masks=given)
  outside = np.broadcast_to(~found.masks, IMAGES.shape)
  assert outside.any(axis=(1, 2, 3)).all()
  np.testing.assert_array_equal(found.images[outside], IMAGES[outside])
  changed = np.any(found.images != IMAGES, axis=-1, keepdims=True)
  assert (changed & found.masks).sum() > 0.9 * found.masks.sum()
  if given is not None:
    np.testing.assert_array_equal(found.masks, LEFT)


@pytest.mark.long
def test_an_edit_depends_on_its_number_and_not_on_the_others(run):
  make = editing.editor(trained(run), methods.SDEdit(0.5), guidance=0.0, steps=STEPS)
  ask = lambda numbers, rows: make(editing.Request(
      np.array(numbers), IMAGES[rows], [SOURCES[i] for i in rows], [TARGETS[i] for i in rows]))
  first, second = ask([4, 5], [0, 0]).images, ask([5, 6], [0, 1]).images
  assert np.abs(np.int32(first[1]) - second[0]).max() <= 1 and np.any(first[0] != first[1])


@pytest.mark.long
def test_null_text_inversion_brings_the_source_closer_to_the_image_under_guidance(run):
  lost = lambda found: np.abs(np.float64(found.sources) - IMAGES).mean()
  plain, tuned = (edits(run, method, w=3.0)
                  for method in (methods.PromptToPrompt(), methods.NullText(updates=10)))
  assert lost(tuned) < lost(plain)


@pytest.mark.long
def test_an_edit_is_a_picture_of_source_mask_and_edit_with_its_settings(run, tmp_path):
  mask = tmp_path / 'mask.png'
  Image.fromarray(np.uint8(255 * LEFT[0, ..., 0])).save(mask)
  out = tmp_path / 'a.png'
  result = editing.edit(run, out, methods.Inpaint(), TARGETS[0], image='data:test:3',
                        mask=str(mask), count=2, steps=STEPS, guidance=1.0)
  with Image.open(out) as shown:
    assert shown.text['method'] == 'Inpaint' and shown.text['target'] == TARGETS[0]
    pixels = np.asarray(shown.convert('RGB'))
  data = trained(run).experiment.data.split('test').get([3])
  row = np.concatenate([data['image'][0], 255 * np.repeat(LEFT[0], 3, -1), result.edits.images[1]],
                       axis=1)
  scale = pixels.shape[1] // (3 * 17 + 1)
  small = pixels[scale // 2::scale, scale // 2::scale][18:34]  # the second row of images
  np.testing.assert_array_equal(np.delete(small, [0, 17, 34, 51], axis=1), row)
  lines = editing.report(result)
  assert lines[0] == 'outside the mask 0 pixels changed' and len(lines) == 3
  assert all(line.startswith(f'edit {i}: a ') for i, line in enumerate(lines[1:]))
  with pytest.raises(InputError, match='^out=.*it is there already'):
    editing.edit(run, out, methods.SDEdit(), TARGETS[0], image='data:test:3')


@pytest.mark.long
@pytest.mark.parametrize('method, given, message', [
    ('sdedit', {'target': 'a large rad disk on grey'}, r"target=.* no word 'rad' \(near it: red"),
    ('sdedit', {'target': f'{TARGETS[0]} on white'}, 'target=.*8 words, and 6 are read'),
    ('diffedit', {'source': 'a hat'}, "source='a hat': .* no word 'hat'"),
    ('prompt_to_prompt', {'target': 'a green disk on grey'},
     'target=.*: it has 5 words, and the source has 6; .*--change=refine'),
    ('prompt_to_prompt', {'weights': (('blue', 2.0),)}, "weights='blue': the text is"),
    ('prompt_to_prompt', {'blend': ('cross',)}, "blend='cross': neither text has such a word"),
    ('prompt_to_prompt', {'count': 2}, 'count=2: this method draws no noise'),
    ('null_text', {'guidance': 0.0}, 'guidance=0.0: null_text tunes'),
    ('null_text', {'image': ''}, 'image: it is missing'),
    ('sdedit', {'guidance': -1.0}, 'guidance=-1.0: it is below 0'),
    ('sdedit', {'image': 'data:test'}, "image='data:test': there is no such file"),
    ('sdedit', {'image': 'data:tset:1'}, 'image=.*not of the form data:SPLIT:INDEX'),
    ('sdedit', {'image': 'data:test:9216'}, 'image=.*the split has 9,216 images'),
    ('sdedit', {'image': 'wide.png'}, 'image=.*16 x 20 pixels, and the model makes 16 x 16'),
    ('inpaint', {}, 'mask: it is missing'),
    ('inpaint', {'mask': 'black.png'}, 'mask=.*black everywhere'),
    ('inpaint', {'mask': 'wide.png'}, 'mask=.*16 x 20 pixels, and the image has 16 x 16'),
    ('inpaint', {'by': 'repant'}, "by='repant': did you mean repaint"),
    ('inpaint', {'jump': 2}, 'jump=2: only RePaint walks back'),
    ('prompt_to_prompt', {'threshold': 0.5}, 'threshold=0.5: .* leave it out, or give words'),
    ('inpaint', {'by': 'repaint', 'jump': 3, 'mask': 'left.png'}, 'jump=3: the grid has 3 steps'),
    ('diffedit', {'mask': 'black.png'}, 'mask=.*only inpaint reads it'),
    ('diffedit', {'visits': 3}, 'visits=3: diffedit does not read it; .*strength, noise'),
    ('diffedit', {'strength': 1.5}, 'strength=1.5: the time of noise'),
    ('diffedt', {}, "method='diffedt': did you mean diffedit"),
])
def test_bad_input_is_refused_in_one_line_before_anything_is_compiled(
    run, tmp_path, monkeypatch, method, given, message):
  Image.fromarray(np.full((16, 20, 3), 200, np.uint8)).save(tmp_path / 'wide.png')
  Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / 'black.png')
  Image.fromarray(np.uint8(255 * LEFT[0, ..., 0])).save(tmp_path / 'left.png')
  given = {name: str(tmp_path / u) if str(u).endswith('.png') else u for name, u in given.items()}
  named = {'image': 'data:test:0', 'target': TARGETS[0], 'source': SOURCES[0], 'steps': STEPS,
           'guidance': 1.0}
  own = set().union(*(make._fields for make in methods.METHODS.values()))
  numbers = {name: given.pop(name) for name in own & given.keys()}
  loaded = trained(run)
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: loaded)
  monkeypatch.setattr(jax.stages.Lowered, 'compile', None)
  monkeypatch.setattr(editing.pictures, 'save_png', None)
  with pytest.raises(InputError, match=message) as raised:
    editing.edit(run, tmp_path / 'a.png', methods.named(method, **numbers), **{**named, **given})
  assert '\n' not in str(raised.value)
  assert not (tmp_path / 'a.png').exists()


def test_a_model_without_a_text_or_without_attention_is_refused(run, monkeypatch):
  whole = trained(run)
  of = whole.experiment.model
  bare = whole._replace(experiment=whole.experiment._replace(
      model=lambda params: of(params)._replace(conditions=lambda numbers: {})))
  with pytest.raises(InputError, match='target: this model is told no text; name a run'):
    editing.editor(bare, methods.SDEdit())
  student = whole._replace(experiment=whole.experiment._replace(
      model=lambda params: of(params)._replace(distilled=('ddim_to_x', 1))))
  with pytest.raises(InputError, match='cannot be edited: it is a student'):
    editing.editor(student, methods.SDEdit())
  blind = whole._replace(experiment=whole.experiment._replace(
      model=lambda params: of(params)._replace(denoise=lambda z, level, cond: of(params).denoise(
          z, level, cond)._replace(x=z, eps=z))))
  monkeypatch.setattr(shapes_config.HeadsAttention, '__call__', lambda self, h, *_: h)
  with pytest.raises(InputError, match='method: this model cannot be edited by attention'):
    editing.editor(blind, methods.PromptToPrompt())


def told_the_known_part(run):
  """The run with a model that is told the known part, and estimates that the rest has its mean."""
  whole = trained(run)
  of = whole.experiment.model

  def model(params):
    m = of(params)

    def denoise(z, level, cond):
      known, mask = m.encode(cond['known']), cond['mask'].astype(float)
      mean = (known * mask).sum((1, 2, 3), keepdims=True) / (3 * mask.sum((1, 2, 3), keepdims=True))
      x, at = jnp.broadcast_to(mean, z.shape), level.expand(z)
      return Estimate(x, (z - at.alpha * x) / at.sigma)
    conditions = lambda numbers, caption=None, known=None, mask=None: {
        'caption': caption, 'known': known, 'mask': mask}
    return m._replace(denoise=denoise, conditions=conditions, cond=lambda batch: batch, null=None)
  return whole._replace(experiment=whole.experiment._replace(model=model))


def test_a_model_that_is_told_the_known_part_draws_the_rest_by_it(run):
  method = methods.Inpaint('model', 'ddim')
  make = editing.editor(told_the_known_part(run), method, steps=40)
  found = make(editing.Request(NUMBERS, IMAGES, SOURCES, TARGETS, LEFT))
  for edit, image in zip(found.images, IMAGES, strict=True):
    np.testing.assert_array_equal(edit[:, 8:], image[:, 8:])
    # The noise of the last level, exp(-5), is 0.86 of a level.
    off = edit[:, :8] - image[:, 8:].mean()
    assert abs(off.mean()) < 0.3 and 0.7 < off.std() < 1.1
  with pytest.raises(InputError, match="by='model': this model is not told a part of the image"):
    editing.editor(trained(run), method)


@pytest.mark.long
def test_an_empty_mask_of_diffedit_is_an_error_that_says_why_before_an_edit_is_made(
    run, tmp_path, monkeypatch):
  monkeypatch.setattr(diffedit, 'edit', None)  # not even traced
  with pytest.raises(InputError, match='ratio=40.*the mask of image 0 is empty: no pixel is above '
                                       '20 times the mean'):
    editing.edit(run, tmp_path / 'a.png', methods.DiffEdit(ratio=40.0, noises=2), TARGETS[0],
                 image='data:test:0', steps=STEPS, guidance=1.0, count=3, batch_size=2)
  assert not (tmp_path / 'a.png').exists()


@pytest.mark.long
def test_edits_of_diffedit_in_batches_are_those_of_one_batch(run, tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: trained(run))
  whole, parts = (editing.edit(
      run, tmp_path / f'{size}.png', methods.DiffEdit(ratio=1.0, noises=2), TARGETS[0],
      image='data:test:0', steps=STEPS, guidance=1.0, count=3, batch_size=size).edits
                  for size in (3, 2))
  np.testing.assert_allclose(parts.maps, whole.maps, rtol=1e-4)
  assert np.mean(parts.masks != whole.masks) < 0.01  # a pixel at the threshold may round
  same = np.broadcast_to(parts.masks == whole.masks, whole.images.shape)
  assert np.abs(np.int32(parts.images) - np.int32(whole.images))[same].max() <= 1
  assert any(np.any(whole.maps[0] != one) for one in whole.maps[1:])  # own noise


@pytest.mark.long
def test_the_command_names_the_flag(run, tmp_path):
  done = subprocess.run(
      [sys.executable, ROOT / 'scripts' / 'edit.py', f'--workdir={run}', '--image=data:test:0',
       f'--target={TARGETS[0]}', '--method=prompt_to_prompt', '--weights=red',
       f'--out={tmp_path / "a.png"}'], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 2
  assert done.stderr == ('error: --weights=red: it is not of the form WORD=C; write red=2, for '
                         'example.\n')
