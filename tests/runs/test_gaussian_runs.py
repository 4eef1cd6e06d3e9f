"""Real data of any shape through the commands, by runs whose density is known in closed form."""
import numpy as np
import pytest
from PIL import Image

from tests.support import gaussian_config, untrained
from tests.support.images_run import by
from tests.support.markup import Page
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import evaluating, reporting, scoring

COUNT = 96  # test examples


def make_run(folder, law, scale=1.0):
  """A run of the exact denoiser times `scale`, with its file of data."""
  np.savez(folder / 'data.npz', x_train=gaussian_config.draw(law, 64),
           x_test=gaussian_config.draw(law, COUNT, 1))
  config = gaussian_config.get_config(law)
  config.data.name = str(folder / 'data.npz')
  config.model.scale = scale
  return untrained.make_run(folder / 'run', gaussian_config, config)


@pytest.fixture(scope='module')
def exact(tmp_path_factory):
  """Runs of the exact denoiser, by the law of their data."""
  return {law: make_run(tmp_path_factory.mktemp(law), law) for law in gaussian_config.SHAPES}


def truth(law):
  """-log p of each test example, in nats, in closed form: [COUNT]."""
  x = gaussian_config.draw(law, COUNT, 1).reshape(COUNT, -1).astype(np.float64)
  c = gaussian_config.covariance(law)
  return 0.5 * (np.einsum('ni,ij,nj->n', x, np.linalg.inv(c), x)
                + np.linalg.slogdet(2.0 * np.pi * c)[1])


def gaps(law, scale=1.0):
  """What the expectation of each row is above that of -log p, in nats, over the data: (vlb, ode).

  With l the eigenvalues of the covariance, s the SNR at t = 0 and r at t = 1, the row ode is the
  cross entropy with z_0 / alpha_0 of the variances l + 1 / s.  In the row vlb, E|eps|^2 is the sum
  of 1 / (1 + snr l) for the best estimate eps, so that `scale` times it has (1 - scale)^2 of it
  more error.
  """
  values = np.linalg.eigvalsh(gaussian_config.covariance(law))
  high, low = gaussian_config.ENDS
  s, r = np.exp(high), np.exp(low)
  entropy = 0.5 * np.log(2.0 * np.pi * np.e * values)
  ratio = np.log1p(s * values) - np.log1p(r * values)
  reconstruction = 0.5 * np.log(2.0 * np.pi * np.e / s)
  alpha, sigma = r / (1.0 + r), 1.0 / (1.0 + r)
  latent = 0.5 * (alpha * values + sigma - 1.0 - np.log(sigma))
  diffusion = 0.5 * ratio + 0.5 * (1.0 - scale)**2 * (high - low - ratio)
  return (np.sum(reconstruction + latent + diffusion - entropy),
          0.5 * np.sum(np.log1p(1.0 / (s * values))))


def nats(directory, estimate, dimensions):
  """Of each example, [COUNT]."""
  with np.load(directory / 'bits.npz') as bits:
    return bits[f'{estimate}/total'].mean(axis=0) * dimensions * np.log(2.0)


def agree(differences, expected):
  """Whether the mean is as expected, to four of its standard errors."""
  error = differences.std(ddof=1) / len(differences)**0.5
  return abs(differences.mean() - expected) < 4.0 * error


@pytest.mark.long
@pytest.mark.parametrize('law', gaussian_config.SHAPES)
def test_the_flow_of_an_exact_denoiser_has_the_density_of_the_data_and_the_bound_is_tight(
    exact, law):
  ledger = runs.evaluate(exact[law], estimates=['ode'], times=16, probe='exact')
  shape = gaussian_config.SHAPES[law]
  assert [(row['estimate'], row['dequantiser']) for row in ledger.rows] == [
      ('vlb', None), ('ode', None)]
  bound, flow = (nats(exact[law], name, np.prod(shape)) - truth(law) for name in ('vlb', 'ode'))
  assert agree(bound, gaps(law)[0]) and agree(flow, gaps(law)[1])
  assert flow.std(ddof=1) < 0.05  # nats: each example has its own density, not the mean alone
  assert max(map(abs, gaps(law))) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize('law', gaussian_config.SHAPES)
def test_the_page_of_such_a_run_is_in_nats_and_has_its_pictures(exact, law, monkeypatch):
  directory, warned = exact[law], []
  monkeypatch.setattr(evaluating.logging, 'warning',
                      lambda text, *values: warned.append(text % values))
  runs.evaluate(directory, times=16, overwrite=True)
  runs.sample(directory, directory / 'samples.png', method=by(2), count=4)
  assert not [text for text in warned if 'was not drawn' in text]
  reporting.write(directory)
  page = Page((directory / 'report.html').read_text())
  assert 'could not be made' not in page.text and 'is not there' not in page.text
  assert 'bits/dim' not in page.text and len(page.images) == 3
  with np.load(directory / 'bits.npz') as bits:
    mean = bits['vlb/total'].mean() * np.log(2.0)
  dimensions = np.prod(gaussian_config.SHAPES[law])
  assert f'{dimensions * mean:.4f}' in page.text and f'({mean:.4f} nats/dim)' in page.text


@pytest.mark.long
def test_samples_of_an_exact_denoiser_are_scored_beside_the_held_out_sequences(exact):
  directory = exact['sequences']
  found = scoring.score(directory=str(directory), method=by(100), count=200, batch_size=200,
                        reference=f'{directory.parent}/data.npz:test', by='values')
  assert (found.count, found.reference_count, found.dimensions) == (200, COUNT, 10)
  assert abs(found.energy) < 4.0 * found.energy_error
  np.savez(directory.parent / 'wrong.npz', images=2.5 * gaussian_config.draw('sequences', 200, 2))
  wrong = scoring.score(samples=str(directory.parent / 'wrong.npz'), by='values',
                        reference=f'{directory.parent}/data.npz:test')
  assert wrong.energy > 4.0 * wrong.energy_error and wrong.sliced > found.sliced


@pytest.mark.long
def test_of_a_wrong_denoiser_the_bound_is_above_the_density_of_the_data(tmp_path):
  directory = make_run(tmp_path, 'sequences', scale=0.8)
  runs.evaluate(directory, times=16)
  excess = nats(directory, 'vlb', 10) - truth('sequences')
  assert excess.mean() > 4.0 * excess.std(ddof=1) / COUNT**0.5
  assert agree(excess, gaps('sequences', scale=0.8)[0])


@pytest.mark.long
def test_volumes_are_trained_and_sampled_and_shown(tmp_path):
  np.save(tmp_path / 'data.npy', gaussian_config.draw('volumes', 64))
  config = gaussian_config.get_config('volumes')
  config.data.name = str(tmp_path / 'data.npy')
  runs.train(config, gaussian_config.__file__, tmp_path / 'run')
  with Image.open(tmp_path / 'run' / 'samples' / 'step_2.png') as picture:
    across, down = 3 * 3 + 1, 8 * 3 + 1  # three slices of 2 x 2 in each of eight rows
    assert picture.size[0] / picture.size[1] == pytest.approx(across / down)
  runs.sample(tmp_path / 'run', tmp_path / 'a.npz', method=by(100), count=400, batch_size=400)
  with np.load(tmp_path / 'a.npz') as drawn:
    x = drawn['images']
  assert x.shape == (400, 3, 2, 2, 1) and x.dtype == np.float32
  # The variances of the data are 1, and those of 400 samples have the error sqrt(2 / 400).
  assert np.abs(x.var(axis=0) - 1.0).max() < 4.0 * (2.0 / 400)**0.5


@pytest.mark.first(1)
@pytest.mark.parametrize('law', ['sequences', 'volumes'])
def test_samples_as_a_table_have_a_row_each_and_are_read_back_as_they_were(exact, law, tmp_path):
  options = {'method': by(2), 'count': 5, 'batch_size': 4}
  runs.sample(exact[law], tmp_path / 'a.npz', **options)
  runs.sample(exact[law], tmp_path / 'a.csv', **options)
  with np.load(tmp_path / 'a.npz') as drawn:
    x = drawn['images']
  names = (tmp_path / 'a.csv').read_text().splitlines()[0].split(',')
  rows = np.loadtxt(tmp_path / 'a.csv', np.float32, delimiter=',', skiprows=1)
  np.testing.assert_array_equal(rows.reshape(x.shape), x)
  place = names.index('x_1_1' if law == 'sequences' else 'x_2_1_0_0')
  np.testing.assert_array_equal(rows[:, place],
                                x[:, 1, 1] if law == 'sequences' else x[:, 2, 1, 0, 0])
  assert [path.name for path in sorted(tmp_path.iterdir())] == ['a.csv', 'a.npz']  # no parts
  with pytest.raises(InputError, match='a.csv.: it is there already'):
    runs.sample(exact[law], tmp_path / 'a.csv', **options)
