"""Images to a lossy file and back from any prefix of it, and every refusal."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import images_run
from vdm_jax import runs
from vdm_jax.codec import channel, container
from vdm_jax.errors import InputError
from vdm_jax.runs import compressing, progressive, workdir

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('progressive')
  rng = np.random.default_rng(0)
  (folder / 'pictures').mkdir()
  for i in range(24):
    Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(folder / 'pictures' / f'{i}.png')
  (folder / 'few').mkdir()
  for i in range(3):
    (folder / 'few' / f'{i}.png').write_bytes((folder / 'pictures' / f'{i}.png').read_bytes())
  return folder


@pytest.fixture(scope='module')
def run(folder):
  """Its network sees noise at every level, about 0.9 z, so that the steps have few bits."""
  file = folder / 'tiny.py'
  text = images_run.CONFIG.replace('constant(0.2)', 'constant(0.9)')
  file.write_text(text.replace('NAME', f"{folder / 'pictures'}").replace('CONDITIONAL', 'False'))
  runs.train(workdir.open_config(str(file)), file, folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module', params=progressive.METHODS)
def encoded(folder, run, request):
  out = folder / f'{request.param}.vdmz'
  report = progressive.encode(run, folder / 'few', out, method=request.param, steps=3,
                              progress=False)
  return out, report, request.param


def pixels(folder, names=('0', '1', '2')):
  return np.stack([np.asarray(Image.open(folder / f'{name}.png')) for name in names]).astype(int)


@pytest.mark.long
def test_a_file_decodes_to_the_quality_that_it_states(folder, encoded, tmp_path):
  out, report, method = encoded
  decoded = progressive.decode(out, tmp_path / 'out')
  assert [path.name for path in decoded.paths] == ['0.png', '1.png', '2.png']
  assert decoded.level == 0
  reached = progressive.psnr(pixels(folder / 'few'), pixels(tmp_path / 'out'), 256)
  # z_0 has the log-SNR 6 of this process: a deviation of e^-3 in units in which white is 1.
  expected = -20.0 * np.log10(np.exp(-3.0) / 2.0)
  assert reached == pytest.approx(report.psnr, abs=0.05)
  assert reached == pytest.approx(expected, abs=2.5)
  info = compressing.info(out)
  assert info['kind'] == f'{method} (lossy)' and info['psnr'] == report.psnr
  assert report.size == out.stat().st_size == info['bytes']
  if method == 'diffc':
    assert report.ideal < 8.0 * (report.size - report.header)
    assert report.blocks == len(report.noise) > 0


@pytest.mark.long
def test_a_longer_prefix_is_a_nearer_image(folder, encoded, tmp_path):
  out, _, _ = encoded
  errors, levels = [], []
  for i, prefix in enumerate((0.45, 0.8, 1.0)):
    decoded = progressive.decode(out, tmp_path / str(i), prefix=prefix, finish='mean')
    errors.append(progressive.psnr(pixels(folder / 'few'), pixels(tmp_path / str(i)), 256))
    levels.append(decoded.level)
  assert levels == sorted(levels, reverse=True) and levels[0] > levels[-1] == 0
  assert errors == sorted(errors)
  with pytest.raises(InputError, match='prefix=1.5: it must be a share of the file'):
    progressive.decode(out, tmp_path / 'x', prefix=1.5)
  with pytest.raises(InputError, match='finish=.meen.: did you mean mean'):
    progressive.decode(out, tmp_path / 'x', finish='meen')
  assert not (tmp_path / 'x').exists()


@pytest.mark.long
def test_a_cut_or_changed_file_and_other_weights_are_refused(encoded, tmp_path):
  out, _, _ = encoded
  content = out.read_bytes()
  for name, bad in (('cut', content[:-5]), ('changed', content[:-3] + b'x' + content[-2:])):
    (tmp_path / f'{name}.vdmz').write_bytes(bad)
    with pytest.raises(InputError, match='damaged'):
      progressive.decode(tmp_path / f'{name}.vdmz', tmp_path / 'out')
  read = container.read(out)
  container.write(tmp_path / 'other.vdmz', read.header | {'weights': '0' * 16}, read.lanes)
  with pytest.raises(InputError, match='other weights than the weights of'):
    progressive.decode(tmp_path / 'other.vdmz', tmp_path / 'out')
  container.write(tmp_path / 'coder.vdmz', read.header | {'coder': '0' * 32}, read.lanes)
  with pytest.raises(InputError, match='this version of vdm_jax or of constriction codes oth'):
    progressive.decode(tmp_path / 'coder.vdmz', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.long
def test_a_file_of_diffc_is_refused_where_its_candidates_are_drawn_otherwise(
    encoded, tmp_path, monkeypatch):
  """The other candidates have the same signs and the same law, but other sizes."""
  out, _, method = encoded
  drawn = channel._candidates
  other = lambda *of: np.copysign(drawn(*of)[:, ::-1], drawn(*of))
  monkeypatch.setattr(channel, '_candidates', other)
  if method == 'diffc':
    with pytest.raises(InputError, match='^.*of vdm_jax or of constriction codes otherwise.*$'):
      progressive.decode(out, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
  else:  # it has no candidates
    assert progressive.decode(out, tmp_path / 'out').level == 0


def test_a_lossy_file_is_not_taken_for_a_lossless_one_nor_the_reverse(folder, run, encoded,
                                                                      tmp_path):
  out, _, method = encoded
  with pytest.raises(InputError, match=rf'it is lossy \({method}\)'):
    compressing.decode(out, tmp_path / 'out')
  read = container.read(out)
  lossless = {name: value for name, value in read.header.items() if name != 'kind'}
  container.write(tmp_path / 'x.vdmz', lossless, read.lanes)
  with pytest.raises(InputError, match='it is bits_back, which has no prefixes'):
    progressive.decode(tmp_path / 'x.vdmz', tmp_path / 'out')


def test_what_cannot_be_encoded_is_refused_and_leaves_no_file(folder, run, tmp_path):
  out = tmp_path / 'x.vdmz'
  np.savez(tmp_path / 'wide.npz', images=np.zeros((2, 4, 5, 1), np.uint8))
  for images, options, message in (
      (folder / 'few', {'steps': 21}, 'T=21: each step costs bits of its own'),
      (folder / 'few', {'seed': 1 << 32}, 'seed=4294967296: it is out of range'),
      (folder / 'few', {'method': 'difc'}, 'did you mean diffc'),
      (folder / 'few', {'method': 'uqdm', 'approximate': True}, 'only diffc searches'),
      (tmp_path / 'wide.npz', {'steps': 3}, r'their shape is \[4, 5, 1\]')):
    with pytest.raises(InputError, match=message):
      progressive.encode(run, images, out, progress=False, **options)
  with pytest.raises(InputError, match='T=21: each step costs bits of its own'):
    progressive.curve(run, folder / 'few', tmp_path / 'x.png', steps={'diffc': 21, 'uqdm': 4})
  assert not out.exists() and not (tmp_path / 'x.png').exists()


@pytest.mark.long
def test_the_curve_is_a_picture_whose_points_rise_with_the_rate(folder, run, tmp_path):
  curve = progressive.curve(run, folder / 'few', tmp_path / 'rd.png', trace=tmp_path / 'path.png',
                            progress=False, steps={'diffc': 3, 'uqdm': 2})
  for name in ('rd.png', 'path.png'):
    with Image.open(tmp_path / name) as picture:
      assert picture.size[0] > 100
  sent, ideal = curve.points['DiffC, flow'], curve.points['DiffC, flow, ideal channel']
  # A search has its price.  The first step sends less than a bit, and so may be cheap by chance.
  assert all(a[0] > b[0] for a, b in zip(sent[1:], ideal[1:], strict=True))
  assert sent[-1][1] > sent[0][1] + 10.0
  assert curve.path.shape == (5, 3, 4, 4, 1) and len(curve.rates) == 4
  assert {'JPEG'} < set(curve.points)


@pytest.mark.long
def test_the_command_says_that_a_file_is_lossy_and_how_biased_its_samples_are(folder, run,
                                                                              tmp_path):
  def compress(*arguments):
    done = subprocess.run([sys.executable, 'scripts/compress.py', *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr

  code, said, error = compress('encode', folder / 'few', f'--workdir={run}', '--T=2',
                               f'--out={tmp_path / "x.vdmz"}', '--method=diffc', '--approximate')
  assert code == 0, error
  for word in ('lossy: 3 images', 'PSNR', 'noise along the mean', 'approximate: '):
    assert word in said
  code, said, error = compress('decode', tmp_path / 'x.vdmz', '--prefix=0.9', '--finish=mean',
                               f'--out={tmp_path / "out"}')
  assert code == 0 and 'lossy: ' in said, error
  code, said, _ = compress('info', tmp_path / 'x.vdmz')
  assert code == 0 and 'kind: diffc (lossy)' in said
  code, _, error = compress('decode', tmp_path / 'x.vdmz', '--prefix=0',
                            f'--out={tmp_path / "no"}')
  assert code == 2 and '--prefix=0.0: it must be a share of the file' in error
