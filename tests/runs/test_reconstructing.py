"""The files of the measurements of an autoencoder, and what is refused before they are written."""
import ast
import json
import types
from pathlib import Path

import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.errors import InputError
from vdm_jax.runs import latents, reconstructing, workdir
from vdm_jax.systems.latent.autoencoder import Autoencoder

SPEC = data.Spec('small', (data.fields.integers('image', (4, 4, 1), 17),))


class Part:
  spec, version = SPEC, ''

  def __len__(self):
    return 6

  def sha256(self, field):
    return 'abc'


def found(count, repeats, **changes):
  """Measurements of `count` images, each a number."""
  numbers = np.arange(1.0, repeats * count + 1).reshape(repeats, count)
  names = 'nats', 'reconstruction', 'latent', 'psnr', 'l1', 'y', 'y_squared'
  return dict.fromkeys(names, numbers) | changes


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
  """`reconstructing.evaluate` of a run with the steps 2 and 4 that computes nothing."""
  (tmp_path / 'run' / 'checkpoints' / '4').mkdir(parents=True)
  measured, weights = {}, {'net': np.zeros(3)}
  model = Autoencoder(lambda x: (x, None), None, None, None, None, (4, 4, 1), (2, 2, 2), 17)

  def load(directory, *, average, step, **_):
    of = types.SimpleNamespace(model=lambda params: model, ema={'slow': 0.99, 'fast': 0.5},
                               data=types.SimpleNamespace(split=lambda name: Part()))
    return workdir.Trained(of, None, weights, 4 if step == 'latest' else step, average or 'slow')
  monkeypatch.setattr(workdir, 'load_trained', load)
  for of in (reconstructing, latents):
    monkeypatch.setattr(of, 'picture', lambda *args: np.zeros((2, 2, 3), np.uint8))
  monkeypatch.setattr(latents, 'draw', lambda *args, count, **_: np.ones((count, 2, 2, 2)))
  monkeypatch.setattr(
      reconstructing, 'over_images',
      lambda *args, count, repeats, **_: found(count, repeats, **measured))

  def run(changes=None, **options):
    measured.clear()
    measured.update(changes or {})
    return reconstructing.evaluate(tmp_path / 'run', **options)
  run.weights, run.place = weights, tmp_path / 'run'
  return run


def names(place):
  return sorted(path.name for path in place.glob('*.*'))


@pytest.mark.parametrize('options,ending', [
    ({}, ''), ({'examples': 6}, ''), ({'split': 'validation'}, '_validation'),
    ({'step': 2}, '_step2'), ({'average': 'raw'}, '_raw'), ({'average': 'slow'}, ''),
    ({'examples': 5, 'average': 'fast'}, '_fast_5_examples')])
def test_only_the_main_evaluation_replaces_the_main_files(evaluate, options, ending):
  evaluate(**options)
  assert names(evaluate.place) == [f'latents{ending}.png', f'reconstruction{ending}.json',
                                   f'reconstructions{ending}.png']


def test_fewer_draws_of_the_same_images_do_not_replace_more(evaluate):
  evaluate(repeats=3)
  with pytest.raises(InputError, match='overwrite=False: .* has 3 draws of each example; ask for'):
    evaluate(repeats=2)
  evaluate(repeats=2, overwrite=True)
  evaluate(repeats=2)
  evaluate(repeats=1, step=2)  # other weights
  assert json.loads((evaluate.place / 'reconstruction.json').read_text())['repeats'] == 2


def test_what_is_not_finite_is_refused_and_nothing_is_written(evaluate):
  nan = np.full((1, 6), np.nan)
  with pytest.raises(InputError, match='not finite for these examples: reconstruction'):
    evaluate({'reconstruction': nan})
  with pytest.raises(InputError, match='not finite for these examples: latent_mean, latent_std'):
    evaluate({'y': nan})
  evaluate.weights['net'][1] = np.inf
  with pytest.raises(InputError, match=r'step=4: these weights \(slow\) are not finite'):
    evaluate()
  assert not names(evaluate.place)


def test_latents_without_a_prior_have_no_bound(evaluate):
  """The networks of the tiny kind, whose nats are NaN."""
  nan = np.full((1, 6), np.nan)
  rows = evaluate({'nats': nan, 'latent': nan}).rows
  assert [row['name'] for row in rows] == ['reconstruction', 'psnr', 'l1', 'latent_mean',
                                           'latent_std']


def test_odds_of_levels_have_an_accuracy_and_no_distances(evaluate, monkeypatch):
  of = reconstructing.over_images

  def over_images(*args, **named):
    measured = of(*args, **named)
    share = {'accuracy': np.array([[1.0, 0.5, 1.0, 1.0, 0.5, 0.5]])}
    return {name: u for name, u in measured.items() if name not in ('psnr', 'l1')} | share
  monkeypatch.setattr(reconstructing, 'over_images', over_images)
  result = evaluate()
  assert [row['name'] for row in result.rows] == [
      'reconstruction', 'accuracy', 'latent_mean', 'latent_std']
  assert reconstructing.figures(result)['reached here'].startswith('accuracy 0.75')


def test_the_usage_of_a_codebook_is_drawn(evaluate, monkeypatch):
  load, drawn = workdir.load_trained, []

  def with_codebook(*args, **named):
    trained = load(*args, **named)
    model = trained.experiment.model({})._replace(index=lambda y: y, codebook=np.zeros((5, 2)))
    trained.experiment.model = lambda params: model
    return trained

  def picture(found, name, codebook):
    drawn.append((name, codebook.used, len(codebook.share), codebook.perplexity))
    return np.zeros((2, 2, 3), np.uint8)
  monkeypatch.setattr(workdir, 'load_trained', with_codebook)
  monkeypatch.setattr(latents, 'picture', picture)
  evaluate({'index': np.array([0, 0, 4, 4, 4, 0]).reshape(1, 6, 1, 1)})
  assert drawn == [('small, test', 2, 5, pytest.approx(2.0))]


def test_each_image_has_its_reconstruction_below_it():
  images = np.random.default_rng(0).integers(0, 17, (3, 4, 4, 1))

  class Few(Part):
    def __len__(self):
      return 3

    def get(self, rows):
      return {'image': images[rows]}

  inverted = types.SimpleNamespace(reconstruct=lambda images, keys: 16 - images)
  sheet = reconstructing.picture(types.SimpleNamespace(model=lambda params: inverted), {}, Few(), 0)
  scale = sheet.shape[1] // (3 * 5 + 1)
  grey = sheet[::scale, ::scale, 0]
  for i, image in enumerate(images[..., 0]):
    above, below = (grey[y:y + 4, 5 * i + 1:5 * i + 5] for y in (1, 6))
    np.testing.assert_array_equal(above, np.round(image * 255 / 16))
    np.testing.assert_array_equal(below, np.round((16 - image) * 255 / 16))


@pytest.mark.parametrize('made', ['_autoencoder', '_captioner'])
def test_every_flag_of_the_command_is_used_or_refused(made):
  """Read from the source: the import defines flags, which other commands have too."""
  source = (Path(reconstructing.__file__).parents[1] / 'cli' / 'commands' / 'evaluate.py')
  tree = ast.parse(source.read_text())
  flags = {name.id for one in tree.body if isinstance(one, ast.Assign)
           for name in ast.walk(one.targets[0]) if isinstance(name, ast.Name)}
  used = {name.id for one in tree.body if isinstance(one, ast.FunctionDef)
          and one.name == made for name in ast.walk(one) if isinstance(name, ast.Name)}
  assert {'PROBE', 'OVERWRITE'} <= flags and not flags - used
