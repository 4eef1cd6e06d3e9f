"""The pages of the docs: their code runs, and what they name is there."""
import ast
import contextlib
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.support import names, pages, stand_in_config
from tests.support.pages import PAGES, ROOT
from vdm_jax import __version__, measured, recipes, runs
from vdm_jax.model import Model
from vdm_jax.runs import provenance, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems.variational import vdm

TEXTS = {name: path.read_text() for name, path in PAGES.items()}
MEASURED = measured.read_all(ROOT)
PACKAGE = ROOT / 'vdm_jax'
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or path.is_dir()}
ENDINGS = 'py|sh|json|jsonl|md|txt|png|toml|yml|npz|npy|csv|html'
OTHERS = ('flax', 'functools', 'jax', 'lax', 'numpy', 'optax')  # packages that pages name
# Flags of other programs that the pages speak of.
FOREIGN = ('--xla', '--gpu', '--ntasks', '--cpus', '--nodes', '--worker', '--zone', '--signal',
           '--time', '--strict', '--command')
every_page = pytest.mark.parametrize('name', TEXTS)


# ------------------------------------------------------------------------- code


# Pages whose code is run by a test of their own, which says more about it.
APART = {'README.md': 'test_readme.py',
         'docs/learn/from_elbo_to_flow.md': 'test_from_elbo_to_flow.py'}


def test_a_page_that_is_run_apart_is_run_by_its_test():
  for name, file in APART.items():
    assert f"pages.run(PAGES['{name}']" in (ROOT / 'tests' / 'docs' / file).read_text()


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name in TEXTS if '```python' in TEXTS[name]
                                  and name not in APART])
def test_the_code_of_a_page_runs_and_its_pairs_of_numbers_are_equal(name, tmp_path):
  pairs = pages.pairs(pages.run(TEXTS[name], tmp_path).printed)
  assert not [line for line, left, right in pairs if not pages.agree(left, right)]
  assert len(pairs) >= pages.promised(TEXTS[name])


# A run that a program loads, and the system of its stand-in.
RUNS = {'digits': 'vdm', 'mnist_ddpm': 'ddpm', 'small': 'ddpm'}
APART_PROGRAMS = {f'{name}, {i}': program for name, text in TEXTS.items()
                  for i, program in enumerate(pages.apart(text))}


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
  """A function of a system: the directory of a run of two steps.  Of a chain, x has 256 levels."""
  folder = tmp_path_factory.mktemp('stand_ins')

  @functools.cache
  def make(which):
    config = stand_in_config.get_config(which)
    config.data.data_dir = str(folder / 'data')
    if which == 'ddpm':
      config.data.name = str(folder / 'grey.npz')
      digits = load_digits().images[:120, ..., None]
      np.savez(config.data.name, images=(15 * digits).astype(np.uint8))
    runs.train(config, stand_in_config.__file__, folder / which)
    return folder / which

  return make


@pytest.mark.long
@pytest.mark.parametrize('name', APART_PROGRAMS)
def test_a_program_for_a_trained_run_runs_as_printed_and_writes_its_files(
    name, stand_in, tmp_path):
  program = APART_PROGRAMS[name]
  (tmp_path / 'runs').mkdir()
  for run in set(re.findall(r"'runs/(\w+)'", program)):
    (tmp_path / 'runs' / run).symlink_to(stand_in(RUNS[run]))
  done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True,
                        text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr
  promised = re.findall(r"'(\w+\.(?:png|npz))'", program)
  for file in promised:
    if file.endswith('.png'):
      with Image.open(tmp_path / file) as picture:
        written = np.asarray(picture)
    else:
      with np.load(tmp_path / file) as arrays:
        written = arrays['images']
    assert written.size > 1000 and len(np.unique(written)) > 10, file  # one colour has one
  there = {path.name for path in tmp_path.iterdir()} - {'runs'}
  assert there == set(promised)


def test_a_program_that_writes_pictures_of_a_trained_run_is_found():
  text = TEXTS['docs/learn/ddpm_on_mnist.md']
  assert [re.findall(r"'(runs/\w+|\w+\.png)'", program) for program in pages.apart(text)] == [
      ['runs/mnist_ddpm', 'ddpm_on_mnist_ddim.png'], ['runs/small', 'ddpm_on_cifar10_curves.png']]
  assert set(RUNS) == {run for program in APART_PROGRAMS.values()
                       for run in re.findall(r"'runs/(\w+)'", program)}


@every_page
def test_a_python_program_is_marked_so_that_it_is_run(name):
  assert pages.unclosed(TEXTS[name]) == 0
  assert pages.languages(TEXTS[name]) <= {'', 'python', 'py', 'console', 'bash'}
  assert not [block for block in pages.blocks(TEXTS[name], '') if is_python(block)]


def is_python(text: str) -> bool:
  try:
    ast.parse(text)
  except SyntaxError:
    return False
  return True


@pytest.mark.parametrize('left,right,equal', [
    ('0.1234567', '0.1234568', True), ('1.2345', '1.2346', True), ('1.2345', '1.2347', False),
    ('0.97', '0.98', False), ('1.5', '1.5', True), ('256', '257', False), ('0.5', '0.50', True),
    ('1e-07', '2e-07', False), ('nan', 'nan', False), ('True', 'True', True),
    ('False', 'True', False), ('True', '1', False), ('[0.1]', '0.1', False)])
def test_numbers_agree_to_the_digits_that_are_printed(left, right, equal):
  assert pages.agree(left, right) == equal


def test_blocks_share_a_namespace_and_a_block_with_a_name_is_a_file(tmp_path):
  page = ('```python\n# part.py\nx = 2\n```\n- a list:\n  ```python\n  import part\n  y = 1\n'
          '  ```\n```python\nprint("a sum:", part.x + y, 3)\nprint("x:", 1)\n'
          'print(f"{y}:", [y], True)\nprint("both:", "a", "b")\n```\n')
  assert pages.pairs(pages.run(page, tmp_path).printed) == [
      ('a sum: 3 3', '3', '3'), ('1: [1] True', '[1]', 'True')]
  assert pages.promised(page) == 4
  assert 'part' not in sys.modules and (tmp_path / 'part.py').exists()


# --------------------------------------------------------------------- commands


def test_every_form_in_which_a_page_starts_a_script_is_seen():
  page = ('```\npython scripts/train.py --config=a.py \\\n  --extend | tee log --not_ours\n'
          'both scripts/sample.py "${run[@]}" --count=3; wait --no\n```\n'
          "`evaluate.py --repeats=2` isn't `train.steps`, scripts/old.py [--markdown]\n"
          '```console\n$ .venv/bin/python scripts/gone.py --a  # --b\n```\n')
  assert pages.commands(page) == [
      ('train.py', ['--config=a.py', '--extend']),
      ('sample.py', ['${run @ }', '--count=3']), ('gone.py', ['--a']),
      ('evaluate.py', ['--repeats=2'])]


REFERENCE = '''
import json, pathlib
from vdm_jax.cli import processes, reference
commands = reference.commands(pathlib.Path('scripts'))
several = {flag.name: False for flag in processes.FLAGS}
print(json.dumps({'page': reference.markdown(commands), 'flags': {
    f'{name}.py': {**several, **{key: flag.boolean for key, flag in command.flags.items()}}
    for name, command in commands.items()}}))
'''


@functools.cache
def of_scripts() -> dict:
  """The page of the commands, and {script: {flag: whether it is yes or no}}, by one process."""
  done = subprocess.run([sys.executable, '-c', REFERENCE], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.long
def test_the_reference_of_the_commands_is_what_the_scripts_say():
  committed = (ROOT / 'docs' / 'reference' / 'commands.md').read_text()
  assert committed == of_scripts()['page'], 'run scripts/render_docs.py'


def named(argument: str) -> str:
  """The flag of an argument, '' of one that is none."""
  match = re.match(r'--?([a-zA-Z]\w*)', argument)
  return match[1] if match and argument.startswith('--') else ''


@pytest.mark.long
@pytest.mark.parametrize('text', [
    *(pytest.param(text, id=name) for name, text in TEXTS.items()),
    *(pytest.param(f'`{of.command}`', id=f'measured/{table}') for table, of in MEASURED.items())])
def test_a_command_is_a_script_with_the_flags_that_it_has(text):
  wrong = []
  for script, arguments in pages.commands(text):
    if script not in pages.SCRIPTS:
      wrong.append(f'{script}: no such script')
      continue
    known = of_scripts()['flags'].get(script, {})  # bootstrap.py has none
    negated = {f'no{flag}' for flag, boolean in known.items() if boolean}
    wrong += [f'{script} has no {argument}' for argument in arguments
              if (flag := named(argument)) and flag not in known.keys() | negated | {'help'}]
  assert not wrong


@pytest.mark.long
@every_page
def test_a_flag_in_the_prose_is_one_of_some_script(name):
  known = {flag for flags in of_scripts()['flags'].values() for flag in flags}
  wrong = [span for span in pages.spans(TEXTS[name])
           if (flag := named(span)) and flag not in known | {'help', 'helpfull'}
           and not span.startswith(FOREIGN)]
  assert not wrong


@functools.cache
def config_of(where: str):
  return workdir.open_config(where)


@functools.cache
def module_of(file: Path):
  return workdir.import_config(file)


def is_placeholder(text: str) -> bool:
  return bool(re.search(r'[A-Z]{2,}|\.\.\.|[$<]', text.removeprefix(str(ROOT))))


@every_page
def test_a_config_on_a_command_line_opens_and_has_the_fields_that_are_set(name, tmp_path):
  for file, source in pages.programs(TEXTS[name]).items():
    (tmp_path / file).write_text(source)
  for _, arguments in pages.commands(TEXTS[name]):
    chosen = [u.removeprefix('--config=') for u in arguments if u.startswith('--config=')]
    fields = [re.split('[.=]', u.removeprefix('--config.')) for u in arguments
              if u.startswith('--config.')]
    if not chosen:
      continue
    file, _, variant = chosen[0].partition(':')
    if is_placeholder(file) or file.startswith('runs/'):
      continue
    where = ROOT / file if (ROOT / file).exists() else tmp_path / file
    assert where.exists(), chosen[0]
    if is_placeholder(variant):
      continue
    config = config_of(f'{where}:{variant}' if variant else str(where))
    for first, second, *_ in fields:
      assert second in config[first], f'{chosen[0]} has no field {first}.{second}'


# ------------------------------------------------------------------------ names


@every_page
def test_a_link_leads_to_a_file_and_to_a_heading_in_it(name):
  wrong = []
  for target in re.findall(r'\]\(([^)\s]+)\)', re.sub('`[^`]*`', '', pages.prose(TEXTS[name]))):
    if re.match(r'\w+:', target):  # of the web
      continue
    file, _, anchor = target.partition('#')
    path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
    if not path.exists() or not path.is_relative_to(ROOT):
      wrong.append(f'{target}: no such file')
    elif anchor and anchor not in pages.slugs(path.read_text()):
      wrong.append(f'{target}: no such heading')
  assert not wrong


def test_every_picture_of_the_docs_is_shown_by_a_page():
  shown = {(PAGES[name].parent / target).resolve() for name, text in TEXTS.items()
           for target in re.findall(r'!\[[^]]*\]\(([^)\s]+)\)', text)}
  assert not [path for path in (ROOT / 'docs').rglob('*.png') if path not in shown]


@functools.cache
def fields_of_configs() -> set[str]:
  latent = module_of(ROOT / 'configs' / 'digits' / 'latent.py').get_config
  told = module_of(ROOT / 'configs' / 'published' / 'latent.py').get_config('stable-diffusion-v1')
  series = module_of(ROOT / 'configs' / 'applications' / 'greensboro.py').get_config()
  chosen = [recipes.digits(vdm.default_config()), latent('autoencoder'), latent('latent'), told,
            series]
  return {f'{room}.{field}' for config in chosen for room in config
          if hasattr(config[room], 'keys') for field in config[room]} | {
              'model.label_dropping', 'model.clip'} | {
                  f'data.{part}.{field}' for part in ('series', 'episodes')
                  for field in series.data[part]}


def imports(dotted: str) -> bool:
  """Whether `vdm_jax.a.b.c` is a module, or an attribute of one or of its classes."""
  parts = dotted.split('.')
  for i in range(len(parts), 0, -1):
    with contextlib.suppress(ModuleNotFoundError):
      found = importlib.import_module('.'.join(parts[:i]))
      try:
        functools.reduce(getattr, parts[i:], found)
      except AttributeError:
        return False
      return True
  return False


@functools.cache
def by_last_name() -> dict[str, list[str]]:
  return names.modules()


def is_field(dotted: str) -> bool:
  """Whether it is `config.ROOM` or `config.ROOM.FIELD` of some config."""
  first, _, field = dotted.partition('.')
  rooms = {known.partition('.')[0] for known in fields_of_configs()} | {'ema'}
  return first == 'config' and (field in rooms or field in fields_of_configs())


@every_page
def test_a_dotted_name_in_backticks_can_be_imported(name):
  wrong = []
  for span in pages.spans(TEXTS[name]):
    match = re.match(r'([A-Za-z_]\w*(?:\.\w+)+)', span)
    if not match or re.search(rf'\.({ENDINGS})\b', span) or '/' in match[1]:
      continue
    dotted, room = match[1], match[1].partition('.')[0]
    if room == 'vdm_jax':
      fine = imports(dotted)
    elif room in ROOMS:
      of_model = room == 'model' and hasattr(Model, dotted.split('.')[1])
      fine = of_model or dotted in fields_of_configs() or imports(f'vdm_jax.{dotted}')
    elif room in OTHERS:
      fine = imports(f'jax.{dotted}' if room == 'lax' else dotted)
    else:
      fine = is_field(dotted) or names.exists(dotted, by_last_name())
    if not fine:
      wrong.append(span)
  assert not wrong


@pytest.mark.parametrize('dotted,there', [
    ('edm.objective', True), ('edm.objectives', False), ('KarrasSigma', True),
    ('DiscretisedNormal.log_prob', True), ('Experiment.model', True), ('Experiment.models', False),
    ('nowhere.at_all', False)])
def test_a_name_that_is_not_there_is_told(dotted, there):
  assert names.exists(dotted, by_last_name()) == there
  assert is_field('config.model.dtype') and not is_field('config.model.detype')


@pytest.mark.first(43)
@every_page
def test_the_variants_of_configs_and_the_samplers_that_a_page_names_exist(name):
  folders = [ROOT, ROOT / 'configs', PAGES[name].parent]
  for file, variant in names.variants(TEXTS[name], folders):
    module_of(file).get_config(variant)  # an InputError for a variant that is not there
  for sampler in names.samplers(TEXTS[name]):
    catalogue.find(sampler)


def test_variants_and_samplers_are_seen_in_every_form():
  page = ('`configs/digits/flows.py:ot`, `:reflow`, `gone.py:a`, `:b`, `systems.py`, `x`, '
          '`:vdm,cifar10`, `systems.py:NAME`\n\n`--sampler=ddim`, `--sampler=my.py:mine`, `:c`\n'
          "```\n--samplers=heun,dpmpp_2m --sampler=NAME\nsampler='ddpm', sampler=mine\n```\n")
  folders = [ROOT, ROOT / 'configs']
  flows, systems = ROOT / 'configs/digits/flows.py', ROOT / 'configs/systems.py'
  assert names.variants(page, folders) == [
      (flows, 'ot'), (flows, 'reflow'), (systems, 'vdm,cifar10')]
  assert names.samplers(page) == ['ddim', 'heun', 'dpmpp_2m', 'ddpm']


@functools.cache
def files() -> set[Path]:
  listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, text=True,
                          capture_output=True, check=True).stdout
  return {Path(line) for line in listed.splitlines()}


@every_page
def test_a_file_in_backticks_is_there(name):
  """By its path from the checkout, the package, the configs or the page, or by its bare name."""
  own = pages.programs(TEXTS[name])
  folders = [ROOT, PACKAGE, ROOT / 'configs', PAGES[name].parent]
  wrong = []
  for span in pages.spans(TEXTS[name]):
    match = re.fullmatch(r'([\w*./-]+\.(?:py|sh|md|toml|yml))(?::[\w,./-]+)?', span)
    if not match or match[1] in own or re.match(r'(my|your|\./|runs/|[A-Z]{2,}/)', match[1]):
      continue
    path = match[1]
    if '/' in path:
      fine = any(any(folder.glob(path)) for folder in folders)
    else:
      fine = path in {file.name for file in files()} | {'config.py'}
    if not fine:
      wrong.append(span)
  assert not wrong


# ------------------------------------------------------------------------- form


def test_the_readme_is_short():
  lines = TEXTS['README.md'].splitlines()
  assert len(lines) < 200
  assert not [line for line in lines if len(line) > 100]


def test_the_citation_and_the_changelog_have_this_version_and_this_format_of_a_run():
  assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text()
  changelog = (ROOT / 'CHANGELOG.md').read_text()
  assert f'\n## {__version__}' in changelog and f'\n| {provenance.FORMAT} |' in changelog


@every_page
def test_a_line_of_prose_has_at_most_a_hundred_characters(name):
  """Tables, blocks and lines that are one link are as wide as they have to be."""
  wide = [line for line in pages.prose(TEXTS[name]).splitlines()
          if len(line) > 100 and not line.lstrip().startswith('|')
          and not re.fullmatch(r'\s*!?\[.*\]\(.*\)', line)]
  assert not wide


# ----------------------------------------------------------------------- tables


@every_page
def test_a_measured_table_is_what_its_file_renders_to(name):
  assert measured.fill(TEXTS[name], MEASURED) == TEXTS[name], 'run scripts/render_docs.py'


@every_page
def test_a_page_says_when_and_on_what_its_tables_were_measured(name):
  for table in measured.named(TEXTS[name]):
    of, words = MEASURED[table], ' '.join(pages.prose(TEXTS[name]).split())
    assert of.date in words, f'{table}: measured {of.date}'
    assert of.machine.partition(' (')[0] in words, f'{table}: on {of.machine}'
    assert all(f'{package} {version}' in words for package, version in of.versions.items()), table
