"""Purified accuracy and neighbours of runs whose model and classifier are exact or plain."""
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdm_jax import data, oracles, recipes, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.evaluation.robustness import Attack
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import neighbours, purifying, workdir
from vdm_jax.runs.workdir import Trained
from vdm_jax.samplers import catalogue
from vdm_jax.systems.guided import classifier
from vdm_jax.typing import Experiment, Model

PIXELS = Pixels(17)
PROCESS = GaussianProcess(schedules.Linear(10.0, -8.0))
CONFIG = recipes.digits(classifier.default_config())
DATA = data.Data(CONFIG.data)
TRAIN = DATA.split('train').get(np.arange(1200))
MEANS = np.stack([TRAIN['image'][TRAIN['label'] == c].mean(axis=0) for c in range(10)])
COUNT = 40
TEST = DATA.split('test').get(np.arange(COUNT))


def run(model, name='digits'):
  config = CONFIG.copy_and_resolve_references()
  experiment = Experiment(None, None, lambda params, keys=None: model, DATA, None, {})
  return Trained(experiment, config, {'w': np.zeros(1, np.float32)}, 1, 'ema')


def model_of(denoise, **more):
  return Model(denoise, PROCESS, PIXELS.log_prob, PIXELS.encode, PIXELS.decode, lambda batch: None,
               (8, 8, 1), **more)


def logits(levels):
  """The class with the nearest mean."""
  far = levels[:, None] - MEANS
  return -0.05 * jnp.sum(far**2, axis=(2, 3, 4))


CLASSES = oracles.Mixture(jnp.full(10, 0.1), 2.0 * (jnp.asarray(MEANS) + 0.5) / 17.0 - 1.0,
                          jnp.full(10, 0.35))
NEAREST = classifier.Classifier(logits, lambda images: images, (8, 8, 1), 17)
RUNS = {
    'classes': run(model_of(CLASSES)),
    'gaussian': run(model_of(oracles.Gaussian(-0.4, 0.5))),
    'nearest': run(NEAREST),
    'other': run(NEAREST._replace(levels=256)),
    'told': run(model_of(CLASSES, conditions=lambda numbers, **_: {'label': numbers})),
    'student': run(model_of(CLASSES, distilled=('ddim', 1))),
    'latents': run(model_of(CLASSES, data_space=False)),
}


@pytest.fixture(autouse=True)
def runs(monkeypatch):
  monkeypatch.setattr(workdir, 'load_trained',
                      lambda directory, **_: RUNS[str(directory).rpartition('/')[2]])


def purify(tmp_path, workdir='classes', out='a.png', **given):
  return purifying.purify(tmp_path / workdir, tmp_path / out, **{
      'classifier': 'nearest', 'count': COUNT, 'batch_size': 24, 'times': (0.3,),
      'method': catalogue.method('ancestral', 6), 'attack': Attack(0.15, steps=4, draws=2)} | given)


@pytest.mark.long
def test_the_table_shows_every_attack_within_its_ball_and_what_it_costs(tmp_path):
  (plain, purified), table = purify(tmp_path)
  clean = np.argmax(np.asarray(logits(TEST['image'].astype(float))), axis=-1) == TEST['label']
  np.testing.assert_array_equal(plain.right[0], clean)
  change = np.abs(plain.images[0] - TEST['image'])
  assert change.max() < 0.15 * 16 + 1e-3 and plain.images.min() > -1e-3
  assert plain.images.max() < 16 + 1e-3
  accuracy = purified.right.mean(axis=1)
  # A standard error is at most 0.08.
  assert clean.mean() > 0.8 and plain.right[1].mean() < clean.mean() - 0.3
  assert accuracy[0] > 0.7 and accuracy[2] < accuracy[0] - 0.2
  assert accuracy[3] <= accuracy[2] + 0.16
  for each in purified.images[2:]:
    assert np.abs(each - TEST['image']).max() < 0.15 * 16 + 1e-3
  cells = [list(column.cells) for column in table.columns]
  assert cells[0] == ['no purifier', '0.3'] and cells[1] == ['', '4.6']
  assert cells[2][0] == f'{100 * clean.mean():.0f} ± ' + (
      f'{100 * (clean.mean() * (1 - clean.mean()) / COUNT)**0.5:.0f}')
  assert cells[4][0] == cells[5][0] == ''
  # 4 steps of 2 draws through 6 steps.
  assert '96 evaluations' in table.caption and '48 vector' in table.caption
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.size[0] > 600


@pytest.mark.long
def test_a_stopped_command_goes_on_with_the_batches_that_are_there(tmp_path, monkeypatch):
  made, usual = [], purifying.files.save_npz
  monkeypatch.setattr(purifying.files, 'save_npz',
                      lambda file, **arrays: made.append(file) or usual(file, **arrays))
  (_, first), _ = purify(tmp_path, count=4, batch_size=4)
  assert len(made) == 2
  made[1].unlink()
  (_, again), _ = purify(tmp_path, out='b.png', count=4, batch_size=4)
  assert len(made) == 3
  np.testing.assert_array_equal(again.images, first.images)
  purify(tmp_path, out='c.png', count=4, batch_size=4)
  assert len(made) == 3
  purify(tmp_path, out='d.png', count=4, batch_size=4, attack=Attack(0.1, steps=4, draws=2))
  assert len(made) == 5


@pytest.mark.long
def test_neighbours_are_as_far_as_the_closed_form_says(tmp_path):
  """x' = m + k (x - m) + noise of variance s^2 (1 - k^2), for the given images."""
  found, table = neighbours.neighbours(
      tmp_path / 'gaussian', tmp_path / 'a.png', times=(0.4, 0.6), classifier='nearest', odd=3,
      count=COUNT, draws=4, batch_size=COUNT, method=catalogue.method('ancestral', 100))
  x = np.asarray(PIXELS.encode(TEST['image']))
  for each in found:
    level = PROCESS(each.t)
    k = float(level.alpha**2 * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2))
    want = (1 - k)**2 * np.mean((x + 0.4)**2) + 0.25 * (1 - k**2)
    square = np.mean((each.distances * 2 * 16 / 17)**2)
    assert abs(square / want - 1.0) < 4 * (2 / (64 * 4 * COUNT))**0.5 + 0.02
    assert each.images.shape == (4, COUNT, 8, 8, 1) and each.same.shape == (4, COUNT)
    odd, usual = (each.distances[(TEST['label'] == 3) == flag] for flag in (True, False))
    assert np.isclose(each.anomaly.value, np.mean(odd[:, None] > usual))
  assert found[0].distances.mean() < found[1].distances.mean()
  assert [column.header for column in table.columns][2:] == [
      'distance, of the range', 'class kept, per cent', 'AUROC of class 3']
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.size[0] > 100


@pytest.mark.long
def test_a_chosen_distance_has_the_time_of_gaussian_pixels(tmp_path):
  """Of Gaussian data they come out; the images are no such data, but near."""
  found, _ = neighbours.neighbours(
      tmp_path / 'gaussian', tmp_path / 'a.png', distances=(0.1, 0.2), count=COUNT, draws=1,
      batch_size=COUNT, method=catalogue.method('ancestral', 50))
  near, far = (np.sqrt(np.mean(each.distances**2)) for each in found)
  assert 0.07 < near < 0.13 and 0.14 < far < 0.27 and found[0].t < found[1].t


@pytest.mark.first(4)
@pytest.mark.parametrize('given, message', [
    ({'workdir': 'nearest'}, 'workdir=.*nearest.*a model that denoises is needed to bring images'),
    ({'workdir': 'told'}, 'workdir=.*cannot purify: it is told what an image shows; .*ddpm'),
    ({'workdir': 'student'}, 'workdir=.*it is a student of a single sampler'),
    ({'workdir': 'latents'}, 'workdir=.*it diffuses latents of an autoencoder'),
    ({'classifier': 'classes'}, "classifier='classes': this run made a Model, and no classifier"),
    ({'classifier': 'other'}, "classifier='other': it reads images .* of 256 levels"),
    ({'times': (0.1, 1.5)}, 'times=1.5: the time of noise is above 0, and at most 1'),
    ({'times': ()}, 'times: there are none'),
    ({'count': 301}, 'count=301: there are 300 test images'),
    ({'count': 0}, 'count=0: it must be at least 1'),
    ({'batch_size': 0}, 'batch_size=0: it must be at least 1'),
    ({'attack': Attack(0.0)}, 'radius=0.0: an attack needs'),
    ({'method': catalogue.method('adaptive_ode')}, "sampler='adaptive_ode': the way back needs"),
    ({'method': catalogue.method('analytic_dpm', 4)}, "sampler='analytic_dpm': the way back"),
    ({'out': 'a.jpg'}, 'out=.*a.jpg')])
def test_bad_input_is_refused_in_one_line_before_anything_is_compiled(
    tmp_path, monkeypatch, given, message):
  monkeypatch.setattr(purifying, '_programs', None)
  with pytest.raises(InputError, match=message):
    purify(tmp_path, **given)


@pytest.mark.first(2)
@pytest.mark.parametrize('given, message', [
    ({'times': (0.1,), 'distances': (0.1,)}, r'distances=\[0.1\]: times are given too'),
    ({'distances': (3.0,)}, 'distances=3.0: neighbours of these images have distances above 0'),
    ({'odd': 12}, 'odd=12: it is the class of 0 of the 40 images'),
    ({'draws': 0}, 'draws=0: it must be at least 1')])
def test_bad_input_of_neighbours_is_refused_in_one_line(tmp_path, monkeypatch, given, message):
  monkeypatch.setattr(neighbours, '_drawn', None)
  with pytest.raises(InputError, match=message):
    neighbours.neighbours(tmp_path / 'classes', tmp_path / 'a.png', **{'count': COUNT} | {
        **given, 'distances': list(given.get('distances', ()))})
