"""The study of edits: its tasks, its verdicts on edits that are known, and how it goes on."""
import jax
import numpy as np
import pytest

from tests.support import configs, shapes_config
from vdm_jax import data
from vdm_jax.data import shapes
from vdm_jax.editing import methods
from vdm_jax.errors import InputError
from vdm_jax.evaluation import shapes as judge
from vdm_jax.runs import editing as edits_of_runs
from vdm_jax.runs import workdir
from vdm_jax.studies import editing

PARAMS = jax.jit(shapes_config.build(shapes_config.get_config()).init)


@pytest.fixture(scope='module')
def of():
  config = shapes_config.get_config()
  return editing.tasks(data.Data(config.data).split('test').get(np.arange(80))['image'])


def test_a_task_exchanges_one_word_and_its_mask_by_hand_holds_all_that_changes(of):
  for i, (source, target) in enumerate(zip(of.sources, of.targets, strict=True)):
    apart = [a != b for a, b in zip(shapes.WORDS[source], shapes.WORDS[target], strict=True)]
    assert apart == [kind == of.kinds[i] for kind in range(4)]
  assert np.bincount(of.kinds).tolist() == 4 * [20]
  region = judge.to_change(of.originals, of.targets)
  masks = editing.painted(of)[..., 0]
  assert not (region & ~masks).any() and (masks.sum(axis=(1, 2)) > region.sum(axis=(1, 2))).any()
  np.testing.assert_array_equal(np.any(editing.ideal(of) != of.originals, axis=-1), region)


def test_the_ideal_edit_is_the_new_caption_where_the_shape_was(of):
  found = judge.name(editing.ideal(of))
  np.testing.assert_array_equal(found.captions, of.targets)
  np.testing.assert_array_equal(found.places, judge.name(of.originals).places)
  assert not found.distances.any()


def test_a_broken_shape_with_the_right_name_is_seen_in_the_distance(of):
  broken = editing.ideal(of)
  broken[:, 0, 0, 0] = np.where(broken[:, 0, 0, 0] < 128, 71, 184)  # a corner is of the ground
  away = np.abs(np.float64(broken) - editing.ideal(of))[:, 0, 0, 0] * 2 / 255
  found = editing.measure('broken', of, broken)
  assert found.judged.right.all() and (away > 0.3).all()
  np.testing.assert_allclose(found.judged.distances, away, rtol=1e-5)
  cells = {str(column.header): list(column.cells) for column in editing.table(of, [found]).columns}
  assert cells['distance to a picture'][0].startswith(f'{away.mean():.2f} ± ')


def test_the_second_row_of_the_picture_is_the_ideal_edit(of):
  figure = editing.picture(of, [editing.measure('one', of, of.originals)])
  rows = np.reshape(figure.axes, (-1, editing.SHOWN))
  assert [row[0].get_ylabel() for row in rows] == ['source', 'as asked', 'mask by hand', 'one']
  for place, asked in zip(rows[1], editing.ideal(of), strict=False):
    np.testing.assert_array_equal(place.images[0].get_array(), asked)


def test_ideal_edits_and_ideal_masks_have_the_best_verdicts_and_originals_the_worst(of):
  region = judge.to_change(of.originals, of.targets)[..., None]
  best = editing.measure('best', of, editing.ideal(of), region, found=True, sources=of.originals)
  worst = editing.measure('worst', of, of.originals, ~region, found=True)
  assert best.judged.right.all() and best.judged.in_place.all()
  assert (best.judged.same == 1.0).all() and (best.judged.difference == 0.0).all()
  assert (best.overlap == 1.0).all() and (best.back == 0.0).all()
  assert not worst.judged.right.any() and worst.judged.in_place.all()
  assert (worst.overlap == 0.0).all() and worst.back is None
  cells = [list(column.cells) for column in editing.table(of, [best, worst]).columns]
  assert [cell[0] for cell in cells[1:]] == [
      *6 * ['100 ± 0'], '0.00 ± 0.00', '100.0 ± 0.0', '0.0 ± 0.0', '1.00 ± 0.00', '0 ± 0',
      '0.0 ± 0.0']
  assert [cell[1] for cell in cells[1:6]] == 5 * ['0 ± 0'] and cells[-1][1] == ''


def test_the_standard_error_of_a_share_is_binomial(of):
  half = np.where((np.arange(80) // 4 % 2 == 0)[:, None, None, None], editing.ideal(of),
                  of.originals)
  cells = [list(column.cells) for column in editing.table(
      of, [editing.measure('half', of, half)]).columns]
  assert cells[1] == ['50 ± 6'] and cells[2] == ['50 ± 11']  # sqrt(1 / 4 n) of n = 80 and 20


@pytest.fixture
def run(monkeypatch):
  """A run with random weights, which is loaded without a directory."""
  config = shapes_config.get_config()
  made = workdir.Trained(shapes_config.build(config), config, PARAMS(jax.random.key(0)), 4, 'ema')
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: made)
  return made


@pytest.mark.long
def test_a_stopped_study_goes_on_with_the_batches_that_are_there(run, monkeypatch, tmp_path):
  made, few = [], {'SDEdit': methods.SDEdit(0.5)}
  usual = edits_of_runs.editor

  def counted(*args, **settings):
    make = usual(*args, **settings)
    return lambda request: made.append(request.numbers.tolist()) or make(request)
  monkeypatch.setattr(edits_of_runs, 'editor', counted)
  ask = lambda out, count=3: editing.study(tmp_path / 'run', tmp_path / out, count=count, steps=2,
                                           batch_size=2, methods=few)
  (first,), _ = ask('a.png')
  assert made == [[0, 1], [2, 2]]  # the last batch is filled up
  max((tmp_path / 'run' / 'edits').iterdir(), key=lambda part: part.stat().st_mtime_ns).unlink()
  (again,), _ = ask('b.png')
  assert made[2:] == [[2, 2]]
  np.testing.assert_array_equal(again.edits, first.edits)
  assert (tmp_path / 'b.png').stat().st_size < 200_000
  (more,), _ = ask('c.png', 4)  # the batch that was filled up does not stand for edit 3
  assert made[3:] == [[2, 3]]
  np.testing.assert_array_equal(more.edits[:3], first.edits)
  assert np.any(more.edits[3] != more.edits[2])
  with pytest.raises(InputError, match='^out=.*it is there already'):
    ask('a.png')


def test_methods_that_differ_in_one_setting_do_not_share_their_kept_edits(
    run, monkeypatch, tmp_path):
  """The settings of prompt-to-prompt are called weights too."""
  def editor(trained, method, **_):
    return lambda request: edits_of_runs.Edits(
        np.full_like(request.images, len(method.weights)), None, None, None)
  monkeypatch.setattr(edits_of_runs, 'editor', editor)
  two = {'plain': methods.PromptToPrompt(),
         'louder': methods.PromptToPrompt(weights=((methods.CHANGED, 2.0),))}
  measured, _ = editing.study(tmp_path / 'run', tmp_path / 'a.png', count=2, methods=two)
  assert [np.unique(row.edits).tolist() for row in measured] == [[0], [1]]


@pytest.mark.long
def test_every_method_edits_and_the_picture_shows_all_of_them(run, tmp_path):
  measured, table = editing.study(tmp_path / 'run', tmp_path / 'a.png', count=4, steps=8,
                                  batch_size=4)
  assert [row.name for row in measured] == list(editing.METHODS) == list(table.columns[0].cells)
  for row in measured:
    if row.masks is not None:
      kept = ~row.masks
      np.testing.assert_array_equal(row.edits[kept], measured_originals(run)[kept])
  assert (tmp_path / 'a.png').stat().st_size < 200_000


@pytest.mark.long
def test_a_model_that_is_told_the_part_to_keep_has_a_row_after_the_other_ways_to_inpaint(
    run, monkeypatch, tmp_path):
  module, config = configs.read('text/glide_shapes:inpainting')
  config.model.features = 16
  config.text.update(features=8, depth=1, outputs=64)
  experiment = module.build(config)
  told = workdir.Trained(experiment, config, jax.jit(experiment.init)(jax.random.key(0)), 4, 'ema')
  monkeypatch.setattr(workdir, 'load_trained', lambda place, **_: (
      told if place.name == 'told' else run))
  few = {'one': methods.Inpaint(), 'two': methods.SDEdit(0.5)}
  measured, table = editing.study(tmp_path / 'run', tmp_path / 'a.png', count=2, steps=2,
                                  batch_size=2, methods=few, inpainting=tmp_path / 'told')
  assert [row.name for row in measured] == ['one', editing.INPAINTER, 'two']
  assert list(table.columns[0].cells) == ['one', editing.INPAINTER, 'two']
  kept = ~measured[1].masks
  np.testing.assert_array_equal(measured[1].masks, measured[0].masks)
  np.testing.assert_array_equal(measured[1].edits[kept], measured_originals(run)[:2][kept])
  assert np.any(measured[1].edits != measured[0].edits)
  with pytest.raises(InputError, match='^inpainting=.*this model is not told a part of the image'):
    editing.study(tmp_path / 'run', tmp_path / 'b.png', count=2, methods=few,
                  inpainting=tmp_path / 'run')


def measured_originals(run):
  return run.experiment.data.split('test').get(np.arange(4))['image']


def test_data_that_no_judge_knows_are_refused(run, monkeypatch, tmp_path):
  config = run.config.copy_and_resolve_references()
  config.data.name = 'digits'
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: run._replace(config=config))
  with pytest.raises(InputError, match='its data are digits, which no judge knows'):
    editing.study(tmp_path / 'run', tmp_path / 'a.png')
  monkeypatch.setattr(workdir, 'load_trained', lambda *_, **__: run)
  with pytest.raises(InputError, match='count=9217: there are 9,216 test images'):
    editing.study(tmp_path / 'run', tmp_path / 'a.png', count=9217)
