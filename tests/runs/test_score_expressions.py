"""How many expressions a run draws: a model that is exact, and one that is always wrong."""
import types

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import conditions, expressions, tokenisers
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.machine import files
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import expressions as scoring
from vdm_jax.runs import workdir
from vdm_jax.schedules import Linear
from vdm_jax.typing import Estimate

PIXELS = Pixels(256)


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run whose model draws the picture of its expression, or that of another one."""
  config = data.default_config()
  config.update(name='expressions', tokeniser='words', validation=100)
  d = data.Data(config)
  texts = jnp.asarray(tokenisers.of(d.spec['caption']).encode(expressions.TEXTS))
  pictures = PIXELS.encode(jnp.asarray(expressions.images()))

  def model(params):
    def denoise(z, level, cond):
      number = jnp.argmax((cond[:, None] == texts).all(axis=-1), axis=1)
      x = pictures[(number + params['off']) % len(pictures)]
      level = level.expand(z)
      return Estimate(x, (z - level.alpha * x) / level.sigma)
    return Model(denoise, GaussianProcess(Linear(20.0, -8.0)), PIXELS.log_prob, PIXELS.encode,
                 PIXELS.decode, lambda batch: batch['caption'], (12, 24, 3), steps=3,
                 conditions=conditions.of(d.spec, ['caption']))

  def score(off, name='expressions', **options):
    made = types.SimpleNamespace(model=model, ema={}, data=d)
    of = types.SimpleNamespace(data=config.copy_and_resolve_references())
    of.data.name = name
    monkeypatch.setattr(workdir, 'load_trained', lambda *args, **_: workdir.Trained(
        made, of, {'off': np.int32(off)}, 1, 'raw'))
    return scoring.score_expressions(tmp_path, **options)
  return score


@pytest.mark.long
def test_a_model_that_knows_the_pictures_draws_all_of_them_and_its_files_are_not_replaced(
    run, tmp_path):
  found, out = run(0, count=20, batch_size=8)
  assert found.exact == (1.0, 0.0) and found.count == 20 and found.distance < 0.1
  assert {one.value for one in found.by_kind.values() if one} == {1.0}
  assert out == tmp_path / 'expressions.png' and out.exists()
  assert scoring.figures(found).keys() == set(scoring.NAMES)
  with pytest.raises(InputError, match='there already'):
    run(0, count=4)
  wrong, _ = run(1, count=20, batch_size=8, overwrite=True)
  assert wrong.exact == (0.0, 0.0)


class Interrupted(Exception):
  pass


@pytest.mark.long
def test_a_drawing_that_was_killed_goes_on_with_the_batches_that_it_kept(
    run, tmp_path, monkeypatch):
  save, draw, starts, written = files.save_npz, scoring.draw, [], []

  def failing(path, **arrays):
    if len(written) == 2:
      raise Interrupted
    written.append(path)
    save(path, **arrays)
  with monkeypatch.context() as patched, pytest.raises(Interrupted):
    patched.setattr(files, 'save_npz', failing)
    run(0, count=20, batch_size=8)
  monkeypatch.setattr(scoring, 'draw', lambda *args, **kw: starts.append(kw['start']) or draw(
      *args, **kw))
  found, _ = run(0, count=20, batch_size=8)
  assert starts == [16] and found.exact == (1.0, 0.0) and found.count == 20
  with np.load(tmp_path / 'expressions.npz') as file:
    assert file['images'].shape == (20, 12, 24, 3) and len(file['caption']) == 20
  run(0, count=20, overwrite=True)
  assert starts == [16]  # all are there
  run(0, count=20, overwrite=True, split='validation')
  assert starts == [16, 0]  # other expressions


def test_runs_of_other_data_are_refused(run):
  with pytest.raises(InputError, match='only samples of expressions'):
    run(0, name='shapes')
  with pytest.raises(InputError, match='split'):
    run(0, split='testing')


def test_samples_are_counted_by_their_kind():
  kinds = ['red disk', 'red disk in blue disk', 'red cross in blue disk', 'red disk above red disk']
  numbers = np.array([expressions.TEXTS.index(one) for one in kinds])
  images = expressions.images()[numbers].copy()
  images[2] = expressions.images()[numbers[1]]
  found = scoring.score(images, numbers)
  assert found.exact.value == 0.75 and found.distance == 0.0
  assert {kind: one and one.value for kind, one in found.by_kind.items()} == {
      'one object': 1.0, 'left of': None, 'above': 1.0, 'in': 0.5}
