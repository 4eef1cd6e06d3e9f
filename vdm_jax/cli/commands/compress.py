"""The flags of scripts/compress.py, and what it does with them."""
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vdm_jax import cli
from vdm_jax.codec.chain import VARIANCES
from vdm_jax.errors import InputError, require
from vdm_jax.runs import compressing

WORKDIR = cli.run_directory('The run whose model encodes.  decode: needed only if the run has '
                            'moved.')
OUT = cli.path('out', 'encode: the .vdmz file to write; decode: the folder to write.')
T = flags.DEFINE_integer('T', 50, 'Steps of the chain.  More steps take longer, and come closer to '
                         'the bound in continuous time.')
VARIANCE = flags.DEFINE_enum('variance', 'small', VARIANCES, 'Variance of each step.  analytic '
                             'needs half as many steps; to encode, it reads training images.')
LANES = flags.DEFINE_integer('lanes', 1, 'Images at a time.  Each lane borrows bits of its own.')
VERIFY = flags.DEFINE_bool('verify', False, 'Also decode the images, and compare them, before '
                           'the file is written.')
SEED = cli.seed('the bits that the stacks begin with')
OVERWRITE = cli.overwrite()
AVERAGE, STEP = cli.average(), cli.step()
DATA_DIR, DATA_NAME = cli.data_dir(), cli.moved_data()
ACTIONS = 'encode IMAGES, decode FILE.vdmz or info FILE.vdmz'


def main(words: Sequence[str]):
  action, what = words if len(words) == 2 else ('', '')
  if action == 'encode':
    _encode(what)
  elif action == 'decode':
    require(bool(OUT.value), 'out', None, 'it is missing', 'give a folder, as in --out=images')
    cli.wrote(*_few(compressing.decode(
        what, OUT.value, directory=WORKDIR.value or '',
        **cli.values(DATA_DIR, DATA_NAME, OVERWRITE))))
  elif action == 'info':
    for name, value in compressing.info(what).items():
      print(f'{name}: {value}')
  else:
    raise InputError(problem='no action is named', remedy=f'name one: {ACTIONS}')


def _few(paths: Sequence[Path]) -> list[str | Path]:
  return [*paths] if len(paths) < 4 else [f'{len(paths):,} pictures in {OUT.value}']


def _encode(images: str) -> None:
  for flag, example in ((WORKDIR, 'runs/digits'), (OUT, 'images.vdmz')):
    require(bool(flag.value), flag.name, None, 'it is missing', f'give it, as in --{flag.name}='
            f'{example}')
  report = compressing.encode(
      WORKDIR.value, images, OUT.value, steps=T.value,
      **cli.values(VARIANCE, LANES, VERIFY, SEED, OVERWRITE, AVERAGE, STEP, DATA_DIR, DATA_NAME))
  per_dim = report.bits_per_dim
  net = report.net * report.dimensions * report.count / 8.0
  print(f'{report.count:,} images, {report.size:,} bytes: '
        f'{per_dim(report.size):.3f} bits/dim')
  for name, size in (('header', report.header), ('initial', report.initial), ('net', net)):
    print(f'  {name:8s}{size:12,.0f} bytes {per_dim(size):8.3f} bits/dim')
  name = f'vlb@{T.value}{"" if VARIANCE.value == "small" else "/" + VARIANCE.value}'
  error = '' if report.count == 1 else f' +- {report.net_error:.4f}'
  print(f'net: {report.net:.4f}{error} bits/dim; {name} of these images: {report.bound:.4f} +- '
        f'{report.bound_error:.4f}')
  above = report.net - report.bound
  print(f'net - {name}: {above:+.4f} +- {report.above_error:.4f} bits/dim, image by image '
        f'({above / report.bound:+.1%})')
  if report.sheet:
    print('the same images as one lossless sheet: ' + ', '.join(
        f'{name} {"(not installed)" if value is None else f"{value:.3f}"}'
        for name, value in report.sheet.items()) + ' bits/dim')
  if per_dim(report.initial) > report.net:
    print('Most of this file is bits that the chain borrows at first.  Each lane pays them once: '
          'encode many images together.')
  print(f'{report.count / report.seconds:.1f} images/s, '
        f'{report.network_seconds / report.seconds:.0%} of the time in the network')
  cli.wrote(OUT.value, then=cli.command('compress.py', 'decode', OUT.value, out='decoded'))
