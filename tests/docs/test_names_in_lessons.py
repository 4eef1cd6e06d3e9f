"""Beside tests/docs/test_pages.py: the table of papers, and the form of the lessons."""
import re
import runpy
from pathlib import Path

import pytest

from vdm_jax.samplers import catalogue

ROOT = Path(__file__).parents[2]
LEARN = ROOT / 'docs' / 'learn'
# The systems of the field's reading lists, by the words with which the table of papers begins.
SYSTEMS = """ELBO, VAE, Hierarchical VAE, Markovian hierarchical VAE, DPM, DDPM, DDIM, IDDPM, NCSN,
NCSNv2, VE SDE, VP SDE, sub-VP SDE, Predictor-corrector, Probability flow, ScoreFlow, Energies,
VDM, i-DODE, MuLAN, DiffEnc, ADM, Classifier guidance, Classifier-free guidance, GLIDE, Latent
diffusion, DiT, v-prediction, Progressive distillation, Guided distillation, Knowledge
distillation, Analytic-DPM, Extended-Analytic-DPM, DPM-Solver, DPM-Solver++, DEIS, Splitting,
Quasi-Taylor, Flow matching, Rectified flow, Reflow and one step, Minibatch OT, MeanFlow,
Stochastic interpolants, Consistency models, Minimising trajectory curvature, DiffC, UQDM,
Truncated DPM, Denoising MCMC, DPM made slim, Scheduled sampling, Boomerang, DiffusionMBIR,
Decision Diffuser, DreamFusion, Prompt-to-prompt, DiffEdit, Semantic diffusion guidance, TimeGrad,
DiffPure, Symbolic music diffusion, MCG, DPS, PiGDM, DiffPIR, TMPD, MMPS"""
# Lessons that are longer than the others, with their bounds.
LONG = {'ddpm_on_mnist': 360, 'from_elbo_to_flow': 260, 'from_1000_steps_to_one': 220}
NOT_LESSONS = ('README', 'papers', 'notation', 'from_elbo_to_flow')


def test_the_tests_configs_and_samplers_in_the_table_of_papers_exist():
  text = (LEARN / 'papers.md').read_text()
  files = set(re.findall(r'`((?:tests|configs)/[\w/]+\.py)', text))
  assert len(files) > 40
  assert not [file for file in files if not (ROOT / file).exists()]
  systems = runpy.run_path(str(ROOT / 'configs/systems.py'))['SYSTEMS']
  named = {name for cell in re.findall(r'`configs/systems\.py:[^|]*', text)
           for name in re.findall(r':(\w+)`', cell)}
  assert len(named) > 20 and named <= set(systems)
  samplers = set(re.findall(r'--sampler=(\w+)', text)) - {'NAME'}
  assert len(samplers) > 8 and samplers <= set(catalogue.SAMPLERS)


def rows_of_papers() -> list[list[str]]:
  """The cells of the table of papers, without the heads; 'the same' is the cell above."""
  rows = []
  for line in (LEARN / 'papers.md').read_text().splitlines():
    cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
    if not cells or cells[0] in ('paper', 'system') or set(cells[0]) == {'-'}:
      continue
    rows.append([above if cell == 'the same' else cell for cell, above in zip(
        cells, rows[-1] if rows and len(rows[-1]) == len(cells) else cells, strict=True)])
  return rows


def test_every_system_of_the_reading_lists_has_a_row_of_its_own():
  names = [row[0].partition(':')[0] for row in rows_of_papers()]
  systems = [' '.join(name.split()) for name in SYSTEMS.split(',')]
  assert not [name for name in systems if names.count(name) != 1]


@pytest.mark.parametrize('row', rows_of_papers(), ids=lambda row: row[0].partition(':')[0])
def test_a_paper_that_is_here_has_a_function_a_way_to_run_it_and_a_test(row):
  if 'not yet' in row[2:]:
    return
  _, changed, functions, way, tests = row
  assert changed and re.search(r'`(\w+\.)+\w+`', functions)
  assert re.search(r'`tests/[\w/]+\.py`', tests)
  assert re.search(r'`configs/[\w/]+\.py[:`]|from Python|`--\w+|`\w+\.py ', way)


@pytest.mark.parametrize('page', sorted(LEARN.glob('*.md')), ids=lambda page: page.stem)
def test_a_lesson_is_short_and_ends_in_a_config_to_train(page):
  text = page.read_text()
  if page.stem != 'papers':
    assert len(text.splitlines()) <= LONG.get(page.stem, 150)
  if page.stem not in NOT_LESSONS:
    commands = text if page.stem == 'ddpm_on_mnist' else re.split('^## ', text, flags=re.M)[-1]
    assert re.search(r'configs/[\w/]+\.py', commands)


@pytest.mark.parametrize('page', sorted(LEARN.glob('*.md')), ids=lambda page: page.stem)
def test_a_lesson_draws_the_pictures_that_it_shows(page):
  """By a block, or by a command where they are of a run; under the name of the picture."""
  text = page.read_text()
  drawn = [Path(name).name for name in re.findall(r"save(?:fig|_png)\('([^']+)'", text)]
  by_commands = [Path(name).name for name in re.findall(r'--(?:out|trace)=(\S+\.png)', text)]
  if 'evaluate.py --workdir=runs/mnist_kl' in text:  # of an autoencoder
    by_commands += ['reconstructions.png', 'latents.png']
  shown = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
  names = [Path(picture).name for picture in shown]
  assert drawn == [name for name in names if name not in by_commands]
  assert all((page.parent / picture).stat().st_size < 200_000 for picture in shown)
