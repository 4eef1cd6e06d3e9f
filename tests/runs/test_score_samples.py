"""Scoring samples: what the command prints and writes, and what it refuses."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import special

from tests.support.images_run import by, make_run
from vdm_jax import measured, runs
from vdm_jax.errors import InputError
from vdm_jax.evaluation import features as features_lib
from vdm_jax.evaluation import frechet, kernel_distance, manifold, references, scores
from vdm_jax.evaluation.distances import polynomial
from vdm_jax.nn import inception as inception_network
from vdm_jax.published import inception as inception_weights
from vdm_jax.runs import scoring, workdir
from vdm_jax.train import metrics

ROOT = Path(__file__).parents[2]
SHAPE = (4, 4, 1)
LEVELS = 5


def images(n, seed, high=LEVELS):
  return np.random.default_rng(seed).integers(0, high, (n, *SHAPE)).astype(np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Samples, images to compare them with, and a data set of three textures."""
  out = tmp_path_factory.mktemp('scored')
  np.savez(out / 'samples.npz', images=images(80, 0))
  np.savez(out / 'data.npz', arr_0=images(90, 1))
  label, (row, column) = np.arange(260) % 3, np.indices(SHAPE[:2])
  textures = np.stack([row % 2, column % 2, (row + column) % 2])[..., None]
  noisy = (3 * textures[label] + images(260, 2, 2)).astype(np.uint8)
  np.savez(out / 'set.npz', x_train=noisy[:200], y_train=label[:200], x_test=noisy[200:],
           y_test=label[200:])
  return out


@pytest.fixture(scope='module')
def classifier(folder):
  file = ROOT / 'configs' / 'digits' / 'classifier.py'
  config = workdir.import_config(file).get_config()
  config.data.update(name=str(folder / 'set.npz'), validation=40, batch_size=16)
  config.model.update(channels=(16,), features=6)
  config.optimizer.update(learning_rate=0.03, warmup_steps=5, decay_steps=60)
  config.ema = {'ema': 0.8}
  config.train.update(steps=60, log_every=60, validate_every=60, checkpoint_every=60)
  runs.train(config, file, folder / 'classifier')
  return folder / 'classifier'


def score(folder, **options):
  return scoring.score(**{'samples': str(folder / 'samples.npz'),
                          'reference': str(folder / 'data.npz'), 'by': 'pixels',
                          'batch_size': 32, **options})


# ------------------------------------------------------------------ scores


def test_the_scores_are_those_of_the_features_however_they_are_batched(folder):
  found = score(folder)
  x, y = (u.reshape(len(u), -1).astype(np.float64) for u in (images(80, 0), images(90, 1)))
  assert (found.count, found.reference_count, found.dimensions, found.compared) == (80, 90, 16, 80)
  assert found.frechet == pytest.approx(frechet.distance(
      features_lib.statistics(x), features_lib.statistics(y)), rel=1e-9)
  data = y[features_lib.some(90, 80)]
  kernel = kernel_distance(x, data, polynomial)
  assert (found.kernel, found.kernel_error) == pytest.approx(kernel, rel=1e-9)
  assert (found.precision, found.recall) == manifold.precision_recall(data, x, 3)
  assert (found.density, found.coverage) == manifold.density_coverage(data, x, 5)
  assert found.warning == '' and found.frechet_infinity < found.frechet
  assert score(folder, batch_size=7) == found


def test_the_hash_is_of_the_content_of_the_reference(folder, tmp_path):
  found = score(folder, save_reference=str(tmp_path / 'reference.npz'))
  with np.load(tmp_path / 'reference.npz') as file:
    content = [file['count'].astype(np.int64), file['mean'], file['covariance'], file['features']]
  known = hashlib.sha256(b''.join(array.tobytes() for array in content)).hexdigest()
  assert found.reference_hash == known[:16]
  again = score(folder, reference=str(tmp_path / 'reference.npz'))
  assert again == found
  assert score(folder, samples='', save_reference=str(tmp_path / 'other.npz')) is None
  assert references.arrays(tmp_path / 'other.npz', '')['count'] == 90


def test_mu_and_sigma_of_other_code_serve_for_the_frechet_distance_alone(folder, tmp_path):
  y = images(90, 1).reshape(90, -1)
  np.savez(tmp_path / 'theirs.npz', mu=y.mean(axis=0), sigma=np.cov(y, rowvar=False))
  theirs, ours = score(folder, reference=str(tmp_path / 'theirs.npz')), score(folder)
  assert theirs.frechet == pytest.approx(ours.frechet, rel=1e-9)
  assert (theirs.reference_count, theirs.compared, theirs.kernel, theirs.recall) == (0, 0, None,
                                                                                    None)
  table = scores.table(theirs)
  assert 'no features' in table.caption and '-' in list(table.columns[1].cells)


def test_a_data_set_is_a_reference_by_its_splits_or_through_a_config(folder, tmp_path):
  data = f'{folder}/set.npz'
  assert score(folder, reference=f'{data}:test').reference_count == 60
  assert score(folder, reference=f'{data}:train').reference_count == 200
  config = tmp_path / 'mine.py'
  config.write_text(f'''
from vdm_jax.systems.variational import vdm

def get_config():
  config = vdm.default_config()
  config.data.update(name={data!r}, validation=40)
  return config

build = None
''')
  assert score(folder, reference=f'{config}').reference_count == 160
  assert score(folder, reference=f'{config}:validation').reference_count == 40


def test_the_data_of_a_config_that_have_moved_are_found_by_their_new_name(folder, tmp_path):
  config = tmp_path / 'moved.py'
  config.write_text(f'''
from tests.support import tiny_config
build = tiny_config.build


def get_config():
  config = tiny_config.get_config()
  config.data.update(name='{tmp_path}/gone.npz', validation=40)
  return config
''')
  with pytest.raises(InputError, match='gone.npz'):
    score(folder, reference=str(config))
  there = score(folder, reference=str(config), data_name=f'{folder}/set.npz')
  assert there.reference_count == 160  # of 200, 40 are held out


def test_too_few_samples_for_the_dimensions_are_warned_of(folder, tmp_path):
  np.savez(tmp_path / 'few.npz', images(10, 3))
  found = score(folder, samples=str(tmp_path / 'few.npz'))
  assert found.warning.startswith('10 samples for 16 dimensions') and found.frechet_infinity is None
  assert found.warning in scores.table(found).caption
  assert json.loads(scores.to_json(found))['frechet_infinity'] is None


# ------------------------------------------------------------ real numbers


def between(shift, dimensions):
  """E|x - y| of x ~ N(0, 1) and y ~ N(shift, 1) in so many dimensions."""
  length = special.gamma((dimensions + 1) / 2) / special.gamma(dimensions / 2)
  return 2.0 * length * special.hyp1f1(-0.5, dimensions / 2, -np.sum(np.square(shift)) / 4.0)


@pytest.mark.long
def test_sequences_of_real_numbers_are_at_the_known_distances_of_their_gaussians(tmp_path):
  rng, shift = np.random.default_rng(0), np.array([[0.8, 0.0], [0.0, -0.4], [0.2, 0.0]])
  x, y = rng.normal(size=(1500, 3, 2)) + shift, rng.normal(size=(2500, 3, 2))
  np.savez(tmp_path / 'samples.npz', images=x.astype(np.float32))
  np.save(tmp_path / 'data.npy', y.astype(np.float32))
  found = score(tmp_path, samples=str(tmp_path / 'samples.npz'),
                reference=f'{tmp_path}/data.npy:train', by='values', batch_size=500,
                save_reference=str(tmp_path / 'reference.npz'))
  assert (found.dimensions, found.reference_count, found.compared) == (6, 2083, 1500)
  energy = 2.0 * between(shift, 6) - 2.0 * between(0.0, 6)
  assert abs(found.energy - energy) < 4.0 * found.energy_error < energy
  sliced = np.sqrt(np.mean(np.square(shift)))  # |shift . u|^2 over directions u
  assert abs(found.sliced - sliced) < 4.0 * found.sliced_error < sliced
  # Of equal covariances, the squared distance of the means; the rest is the bias of few samples.
  assert found.frechet == pytest.approx(np.sum(np.square(shift)), abs=0.1)
  table = scores.table(found)
  cells = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
  assert cells['energy distance'] == f'{found.energy:.5g} ± {found.energy_error:.2g}'
  again = score(tmp_path, samples=str(tmp_path / 'samples.npz'), by='values', batch_size=500,
                reference=str(tmp_path / 'reference.npz'))
  assert again == found
  figures = scores.figures(found)
  assert figures['reached here'] == f'sliced Wasserstein {found.sliced:.3f} of 1,500 samples'


def test_real_numbers_and_images_are_not_compared(folder, tmp_path):
  np.savez(tmp_path / 'real.npz', images=np.zeros((30, *SHAPE), np.float32))
  np.save(tmp_path / 'real.npy', np.zeros((90, *SHAPE), np.float32))
  real = {'samples': str(tmp_path / 'real.npz'), 'reference': f'{tmp_path}/real.npy:train'}
  for options, message in (
      (real, "^features='pixels': the values of the reference are real numbers.*choose 'values'"),
      ({'by': 'values'}, "^features='values': the values of the reference are integers.*'pixels'"),
      (real | {'by': 'values', 'samples': f'{folder}/samples.npz'},
       "^features='values': the values of the samples are integers")):
    with pytest.raises(InputError, match=message):
      score(folder, **options)


# -------------------------------------------------------------- classifier


@pytest.mark.long
def test_a_classifier_learns_and_its_accuracy_is_a_metric(classifier):
  last = [record for record in metrics.read(classifier) if record['kind'] == 'test'][-1]
  assert last['accuracy'] > 0.95  # three classes: by chance 1/3
  assert last['loss'] < 0.3       # and log 3


@pytest.mark.long
def test_the_features_are_the_penultimate_layer_whatever_the_batch(classifier, folder):
  trained = workdir.load_trained(classifier)
  x = images(80, 0)
  found = scoring.extractor(f'classifier:{classifier}')
  read = lambda rows: x[rows]
  parts = [np.concatenate(list(features_lib.extract(found, read, 80, batch_size=size)))
           for size in (80, 12)]
  np.testing.assert_allclose(parts[0], parts[1], rtol=1e-5, atol=1e-5)
  assert parts[0].shape == (80, 6) and parts[0].min() >= 0.0  # after a relu
  layer = trained.params['net']['logits']
  logits = trained.experiment.model(trained.params).logits(x)
  np.testing.assert_allclose(parts[0] @ layer['kernel'] + layer['bias'], logits, rtol=1e-4,
                             atol=1e-4)


@pytest.mark.long
def test_samples_are_judged_by_a_classifier_and_drawn_of_a_run(classifier, folder):
  (folder / 'drawn').mkdir()
  run = make_run(folder / 'drawn', folder / 'set.npz', conditional=True)
  found = scoring.score(directory=str(run), method=by(2), count=12, batch_size=8,
                        reference=f'{folder}/set.npz:train', by=f'classifier:{classifier}')
  assert (found.count, found.dimensions, found.reference_count) == (12, 6, 200)
  assert found.checksum == features_lib.checksum(workdir.load_trained(classifier).params)
  assert 'sampler ancestral, steps 2' in found.samples
  assert json.loads((run / 'scores.json').read_text()) == pytest.approx(found._asdict())
  by_file = scoring.score(samples=str(run / 'scored_ancestral.npz'), batch_size=8,
                          reference=f'{folder}/set.npz:train', by=f'classifier:{classifier}')
  assert by_file == found
  with pytest.raises(InputError, match='this run made a Model, which .* has features'):
    scoring.extractor(f'classifier:{run}')


@pytest.mark.long
def test_statistics_of_other_features_are_refused(classifier, folder, tmp_path):
  path = str(tmp_path / 'reference.npz')
  score(folder, samples='', save_reference=path)
  with pytest.raises(InputError, match='of the features pixels .*save_reference'):
    score(folder, reference=path, by=f'classifier:{classifier}')


# --------------------------------------------------------------- inception


@pytest.fixture
def inception(monkeypatch, tmp_path):
  """A file of weights, for a stand-in of the network: the mean of each colour, times a weight."""
  class StandIn:

    def apply(self, variables, x):
      assert x.dtype == np.float32 and x.shape[-1] == 3
      return x.mean(axis=(1, 2)) * variables['params']['w']
  monkeypatch.setattr(inception_network, 'Inception', StandIn)
  monkeypatch.setattr(inception_weights, 'from_flat', lambda flat: {'w': flat['w']})
  np.savez(tmp_path / 'weights.npz', w=np.float32(2.0))
  return tmp_path / 'weights.npz'


def test_inception_sees_grey_images_as_colour_in_0_to_255(inception, folder):
  found = scoring.extractor(f'inception:{inception}')
  x = images(8, 0, 256)
  np.testing.assert_allclose(found.features(x), np.repeat(2 * x.mean(axis=(1, 2)), 3, axis=1),
                             rtol=1e-6)
  assert found.checksum == hashlib.sha256(inception.read_bytes()).hexdigest()
  assert found.name == 'inception:weights.npz'
  with pytest.raises(InputError, match='^reference: .* below 128, .* the features below 256'):
    score(folder, by=f'inception:{inception}')
  with pytest.raises(InputError, match=r'images \[H, W, 1 or 3\], not \[2\]'):
    found.features(np.zeros((8, 2), np.uint8))


def test_weights_that_are_not_there_or_not_inception_s_are_refused(tmp_path):
  with pytest.raises(InputError, match='no such file; give the usual weights, the pytorch-fid'):
    scoring.extractor('inception:nowhere.pth')
  np.savez(tmp_path / 'other.npz', w=np.zeros(3))
  with pytest.raises(InputError, match="^features='inception:.*other.npz': "):
    scoring.extractor(f'inception:{tmp_path}/other.npz')


# --------------------------------------------------------------- bad input


@pytest.mark.parametrize('options,message', [
    ({'samples': 'nowhere.npz'}, "^samples='nowhere.npz': there is no such file"),
    ({'reference': 'nowhere.npz'}, "^reference='nowhere.npz': there is no such file"),
    ({'reference': 'nonsense'}, "^reference='nonsense': .* is not a data set of TFDS"),
    ({'samples': ''}, '^samples: no images are to be scored; give samples or workdir'),
    ({'directory': 'run'}, '^samples=.*: workdir is given too'),
    ({'by': 'nonsense'}, "^features='nonsense': .*; choose pixels"),
    ({'by': 'classifier:nowhere'}, "nowhere': it holds no run"),
    ({'out': 'scores.txt'}, r"out='scores.txt': .* end in .json"),
    ({'save_reference': 'it.npy'}, "save_reference='it.npy': .* end in .npz"),
    ({'count': 5}, '^count=5: it must be at least 6'),
    ({'batch_size': 0}, '^batch_size=0: '),
])
def test_bad_flags_are_refused_by_name(folder, options, message):
  with pytest.raises(InputError, match=message):
    score(folder, **options)


@pytest.mark.parametrize('arrays,message', [
    ({'images': np.zeros((9, 5, 5, 1), np.uint8)}, r'shape \[5, 5, 1\], .* \[4, 4, 1\]'),
    ({'images': images(9, 0, 256)}, 'values are below 25[0-6], .* below'),
    ({'images': np.zeros((9, *SHAPE))}, 'real numbers, .* of integers; choose .values'),
    ({'images': np.full((9, *SHAPE), np.inf)}, 'images holds numbers that are not finite'),
    ({'images': np.zeros((9, *SHAPE), complex)}, 'images holds complex128 .*or real numbers'),
    ({'images': -np.ones((9, *SHAPE), np.int32)}, 'the value -1'),
    ({'images': np.zeros((0, *SHAPE), np.uint8)}, r'uint8 \[0, 4, 4, 1\]'),
    ({'a': images(9, 0), 'b': images(9, 0)}, 'holds the arrays a, b; give'),
    ({'images': images(5, 0)}, '5 examples are too few .* at least 6'),
])
def test_bad_samples_are_refused_with_the_reason(folder, tmp_path, arrays, message):
  np.savez(tmp_path / 'bad.npz', **arrays)
  with pytest.raises(InputError, match=f'^(samples|features).*{message}'):
    score(folder, samples=str(tmp_path / 'bad.npz'))


def test_samples_of_few_levels_are_not_compared_with_those_of_256(folder, tmp_path):
  np.savez(tmp_path / 'data.npz', images(50, 0, 256))
  with pytest.raises(InputError, match='^samples: .* below 5, .* the reference below 256'):
    score(folder, reference=str(tmp_path / 'data.npz'))


def test_a_damaged_file_and_statistics_of_the_wrong_size_are_refused(folder, tmp_path):
  (tmp_path / 'bad.npz').write_bytes(b'PK\3\4 no more')
  with pytest.raises(InputError, match='^samples=.*bad.npz.: it cannot be read'):
    score(folder, samples=str(tmp_path / 'bad.npz'))
  for mean, covariance, message in ((16, (16, 4), r'give a mean \[D\] and'),
                                     (9, (9, 9), 'a sample has 16 features, .* reference has 9')):
    np.savez(tmp_path / 'bad.npz', mu=np.zeros(mean), sigma=np.zeros(covariance))
    with pytest.raises(InputError, match=message):
      score(folder, reference=str(tmp_path / 'bad.npz'))


# ----------------------------------------------------------------- command


def command(*flags):
  return subprocess.run([sys.executable, 'scripts/score_samples.py', *flags], cwd=ROOT,
                        capture_output=True, text=True)


@pytest.mark.long
def test_the_command_prints_what_its_scores_depend_on(folder, tmp_path):
  flags = [f'--reference={folder}/data.npz', '--features=pixels']
  done = command(f'--samples={folder}/samples.npz', *flags, f'--out={tmp_path}/scores.json')
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'scores.json').read_text())
  assert found == pytest.approx(score(folder)._asdict())
  for shown in ('samples.npz', 'data.npz', '80', '90', found['reference_hash'], 'pixels',
                f'{found["frechet"]:.5g}', f'{found["coverage"]:.5g}', 'scores.json'):
    assert shown in done.stdout
  table = tmp_path / 'table.json'
  measured.write(table, measured.Measurement('', '', '', '', {}, ['images', 'what', 'Fréchet'], [
      ['80 samples', 'text', '']]))
  done = command(f'--samples={folder}/samples.npz', *flags, f'--measured={table}',
                 '--row=80 samples')
  assert done.returncode == 0, done.stderr
  [[_, text, frechet]] = measured.read(table).rows
  assert text == 'text' and frechet.startswith(f'{found["frechet"]:.2f}')
  done = command('--samples=nowhere.npz', *flags)
  assert done.returncode == 2 and done.stderr == (
      'error: --samples=nowhere.npz: there is no such file; give the path of an .npz.\n')


def test_a_checksum_tells_weights_apart():
  a = {'net': {'w': np.ones(3), 'b': np.zeros(2)}}
  assert features_lib.checksum(a) == features_lib.checksum(jax.tree.map(np.copy, a))
  assert features_lib.checksum(a) != features_lib.checksum({'net': {'w': np.ones(3),
                                                                    'b': np.zeros(2) + 1e-9}})
