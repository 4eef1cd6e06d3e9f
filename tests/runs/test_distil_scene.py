"""Scenes by a run's model: they stop and go on, they show what was told, bad input is refused."""
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import commands, exact_shapes_config, shapes_config, untrained
from vdm_jax import measured
from vdm_jax.data import shapes
from vdm_jax.errors import InputError
from vdm_jax.machine import files
from vdm_jax.runs import scenes

ROOT = Path(__file__).parents[2]
TOLD = ['0=a large red disk on white', '90=a large red cross on white']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The directory of a run whose weights are random."""
  return untrained.make_run(tmp_path_factory.mktemp('scenes') / 'run', shapes_config)


@pytest.fixture(scope='module')
def exact(tmp_path_factory):
  """The directory of a run whose model is exact: it knows all pictures and their captions."""
  return untrained.make_run(tmp_path_factory.mktemp('exact_scenes') / 'run', exact_shapes_config)


def distil(run, out, views=TOLD, **options):
  return scenes.distil(run, out, [scenes.view(text) for text in views], **{
      'steps': 5, 'batch_size': 2, 'guidance': 1.0, 'frames': 4, **options})


@pytest.mark.long
def test_a_stopped_scene_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
  monkeypatch.setattr(scenes, 'CHUNK', 2)
  whole = distil(run, tmp_path / 'a.png', jitter=5.0)
  names = ('a.png', 'a.npz')
  bits = [(tmp_path / name).read_bytes() for name in names]
  for name in names:
    (tmp_path / name).unlink()
  save, written = files.save_npz, []

  def stopping(path, **arrays):
    save(path, **arrays)
    written.append(path)
    if len(written) == 2:
      raise KeyboardInterrupt
  monkeypatch.setattr(files, 'save_npz', stopping)
  with pytest.raises(KeyboardInterrupt):
    distil(run, tmp_path / 'a.png', jitter=5.0)
  assert not any((tmp_path / name).exists() for name in names)
  written.append(None)  # no more stops
  again = distil(run, tmp_path / 'a.png', jitter=5.0)
  assert len(written) == 5  # one more state, and the scene
  assert [(tmp_path / name).read_bytes() for name in names] == bits
  np.testing.assert_array_equal(again.errors, whole.errors)
  assert not (tmp_path / 'a.png.parts').exists()
  # What was written is the scene that was made.
  with np.load(tmp_path / 'a.npz') as arrays:
    np.testing.assert_array_equal(arrays['theta/density'], whole.theta['density'])
    assert arrays['x'].shape == (4, 16, 16, 3)
  with Image.open(tmp_path / 'a.png') as shown:
    assert shown.text['guidance'] == '1.0' and TOLD[0].partition('=')[2] in shown.text['views']
  assert whole.evaluations == 5 * 2 * 2
  # Both are told at angles of the turntable.
  np.testing.assert_array_equal(whole.turntable[:2], whole.shown)


def done(parts):
  """The steps of the state that is kept there; 0 if there is none."""
  for file in parts.glob('[!.]*.npz'):  # a save that was cut short has a dot
    with np.load(file) as state:
      return int(state[f'{len(state.files) - 2}'])
  return 0


@pytest.mark.long
def test_a_command_that_is_killed_goes_on_to_the_same_bytes(run, tmp_path):
  """800 steps, so that it is still at work when SIGKILL comes after the first state."""
  steps = 800
  command = lambda name: ['scripts/distil_scene.py', f'--workdir={run}', '--batch_size=2',
                          f'--out={tmp_path / name}.png', f'--steps={steps}', '--frames=4',
                          '--jitter=5', *(f'--view={text}' for text in TOLD)]
  parts = tmp_path / 'killed.png.parts'
  process, = commands.start(*command('killed'), count=1, devices=1)
  commands.wait_for(lambda: done(parts), [process])
  commands.interrupt([process], 0, signal.SIGKILL)
  process.output.result()
  assert process.process.returncode == -signal.SIGKILL
  kept = done(parts)
  assert 0 < kept < steps
  assert [path.name for path in tmp_path.iterdir()] == [parts.name]
  said = commands.succeed(*command('killed'), count=1, devices=1)
  assert f'{kept}/{steps} [' in said and f' 0/{steps} [' not in said
  said = commands.succeed(*command('whole'), count=1, devices=1)
  assert f' 0/{steps} [' in said
  for ending in ('png', 'npz'):
    assert ((tmp_path / f'killed.{ending}').read_bytes()
            == (tmp_path / f'whole.{ending}').read_bytes())
  assert not parts.exists()


@pytest.mark.long
@pytest.mark.parametrize('scene', ['image', 'mlp'])
def test_a_picture_shows_its_caption(exact, tmp_path, scene):
  """With guidance the colours of an exact model are too strong, and its shapes are in one place."""
  text = 'a large blue cross on grey'
  result = distil(exact, tmp_path / 'a.png', [text], scene=scene, steps=400, batch_size=4,
                  rate=0.02)
  assert [row[2] for row in scenes.verdicts(result)[1:]] == [text]
  *_, ends, judged = scenes.report(result)
  assert ', as told; ' in judged
  figures = scenes.figures(result)
  assert (tuple(figures), figures['shown']) == (scenes.FIGURES, text)
  assert f'x is from {figures["least x"]} to {figures["largest x"]};' in ends
  assert f'; {figures["distance"]} from that picture' in judged
  assert result.turntable.shape == (1, 16, 16, 3)


@pytest.mark.long
def test_a_scene_shows_another_picture_from_another_side(exact, tmp_path):
  result = distil(exact, tmp_path / 'a.png', guidance=0.0, steps=400, batch_size=4)
  assert [row[2] for row in scenes.verdicts(result)[1:]] == [
      text.partition('=')[2] for text in TOLD]


def test_views_are_read_from_texts():
  assert scenes.view('90=a b') == (90.0, 'a b') and scenes.view(' a b ') == (0.0, 'a b')
  assert scenes.view('-30.5= a') == (-30.5, 'a')


@pytest.mark.parametrize('text,problem', [
    ('front=a', "'front' is not a number"), ('0=', 'it has no text'), ('nan=a', 'not finite')])
def test_views_that_are_none_are_refused(text, problem):
  with pytest.raises(InputError, match=problem):
    scenes.view(text)


@pytest.mark.long
@pytest.mark.parametrize('options,problem', [
    ({'views': []}, '^view'), ({'views': [TOLD[0], '360=a large red disk on grey']}, 'same side'),
    ({'scene': 'image'}, 'looks the same from every side'), ({'scene': 'mesh'}, "^scene='mesh'"),
    ({'views': ['0=a large pink disk on white']}, '^view'), ({'batch_size': 1}, '^batch_size'),
    ({'steps': 0}, '^steps'), ({'guidance': -1.0}, '^guidance'), ({'rate': 0.0}, '^rate'),
    ({'first': 0.9, 'last': 0.1}, '^first'), ({'jitter': -1.0}, '^jitter'),
    ({'frames': 0}, '^frames')])
def test_bad_input_is_refused_before_anything_is_compiled(run, tmp_path, monkeypatch, options,
                                                          problem):
  monkeypatch.setattr(scenes, '_optimised', None)
  with pytest.raises(InputError, match=problem):
    distil(run, tmp_path / 'a.png', **options)
  with pytest.raises(InputError, match="must end in .png"):
    distil(run, tmp_path / 'a.npz')


@pytest.mark.long
def test_the_command_says_what_is_wrong_in_one_line_and_what_it_made(run, tmp_path):
  def command(*flags):
    return subprocess.run([sys.executable, 'scripts/distil_scene.py', f'--workdir={run}',
                           f'--out={tmp_path}/a.png', *flags], cwd=ROOT, capture_output=True,
                          text=True)
  wrong = command('--view=0=a large pink disk on white')
  assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1
  assert '--view' in wrong.stderr and 'pink' in wrong.stderr
  table = shutil.copy(ROOT / 'docs' / 'measured' / 'saturation.json', tmp_path)
  flags = f'--view={TOLD[0]}', '--steps=3', '--batch_size=1', f'--measured={table}'
  wrong = command(*flags, '--row=none')
  assert wrong.returncode == 2 and 'none' in wrong.stderr
  done = command(*flags, '--row=3')
  assert done.returncode == 0, done.stderr
  old, new = (measured.read(file).rows for file in (ROOT / 'docs/measured/saturation.json', table))
  assert [row[0] for row, other in zip(new, old, strict=True) if row != other] == ['3']
  assert any(caption in done.stdout for caption in shapes.CAPTIONS)
  assert (tmp_path / 'a.npz').exists() and (tmp_path / 'a.png').exists()
