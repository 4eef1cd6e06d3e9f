"""The flags and the `main` of scripts/compress.py."""
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vdm_jax import cli
from vdm_jax.codec import container
from vdm_jax.codec.chain import VARIANCES
from vdm_jax.codec.kernels import FINISHES
from vdm_jax.errors import InputError, require
from vdm_jax.machine import files
from vdm_jax.runs import compressing, progressive

WORKDIR = cli.run_directory('The run whose model encodes.  decode: needed only if the run has '
                            'moved.')
OUT = cli.path('out', 'encode: the .vdmz file to write; decode: the folder to write; curve: the '
               '.png to write.')
METHOD = flags.DEFINE_enum('method', container.LOSSLESS, [container.LOSSLESS, *progressive.METHODS],
                           'encode: bits_back is lossless.  diffc and uqdm are lossy, and an image '
                           'can be decoded from the first part of their payload: see --prefix.')
T = flags.DEFINE_integer('T', None, 'Steps of the chain.  Default: 50 for bits_back, 20 for diffc, '
                         '4 for uqdm.  More steps bring bits_back closer to the bound in '
                         'continuous time.  diffc and uqdm take at most 20.  curve: the steps of '
                         'diffc.')
APPROXIMATE = flags.DEFINE_bool('approximate', False, 'diffc: a cheaper file, whose samples are '
                                'biased.  The bias is printed.')
PREFIX = flags.DEFINE_float('prefix', 1.0, 'decode: the share of a lossy file that is read, from '
                            'its start.  The file itself must be whole.')
FINISH = flags.DEFINE_enum('finish', 'flow', FINISHES, 'decode: how a prefix becomes images.  '
                           'flow: along the probability flow.  ancestral: by ancestral sampling.  '
                           'mean: by the mean, which is blurred and has the least squared error.')
TRACE = cli.path('trace', 'curve: a .png of the first eight images as their bytes arrive.')
VARIANCE = flags.DEFINE_enum('variance', 'small', VARIANCES, 'The variance of each step.  analytic '
                             'needs half as many steps; to encode, it reads training images.')
LANES = flags.DEFINE_integer('lanes', 1, 'Lanes: images that are coded at a time.  Each lane '
                             'borrows its own initial bits.')
VERIFY = flags.DEFINE_bool('verify', False, 'Also decode the images, and compare them, before '
                           'the file is written.')
SEED = cli.seed('the bits that the stacks begin with')
OVERWRITE = cli.overwrite()
AVERAGE, STEP = cli.average(), cli.step()
DATA_DIR, DATA_NAME = cli.data_dir(), cli.moved_data()
ACTIONS = 'encode IMAGES, decode FILE.vdmz, info FILE.vdmz or curve IMAGES'


def main(words: Sequence[str]):
  try:
    _main(words)
  except InputError as error:
    if error.field not in ('images', 'file'):  # which are paths here, and no flags
      raise
    raise InputError(None, None, f'{error.value or words[1]}: {error.problem}',
                     error.remedy) from None


def _main(words: Sequence[str]):
  require(len(words) < 3, None, None, f'{len(words) - 1} paths are given, but only one is read',
          f'name one, as in {ACTIONS}; put several pictures into one folder')
  action, what = words if len(words) == 2 else ('', '')
  if action == 'encode':
    _needed((WORKDIR, 'runs/digits'), (OUT, 'images.vdmz'))
    if METHOD.value == container.LOSSLESS:
      _refused('lossless encoding', APPROXIMATE, PREFIX, FINISH, TRACE)
      _encode(what)
    else:
      _refused(f'encoding by {METHOD.value}', VARIANCE, LANES, VERIFY, PREFIX, FINISH, TRACE)
      _encode_lossy(what)
  elif action == 'decode':
    _needed((OUT, 'images'))
    _refused('decode', METHOD, T, APPROXIMATE, VARIANCE, LANES, VERIFY, TRACE, SEED, AVERAGE, STEP)
    _decode(what)
  elif action == 'curve':
    _needed((WORKDIR, 'runs/digits'), (OUT, 'rate_distortion.png'))
    _refused('curve', METHOD, APPROXIMATE, VARIANCE, LANES, VERIFY, PREFIX, FINISH)
    steps = progressive.STEPS | ({} if T.value is None else {'diffc': T.value})
    progressive.curve(WORKDIR.value, what, OUT.value, steps=steps,
                      **cli.values(TRACE, SEED, OVERWRITE, AVERAGE, STEP, DATA_DIR, DATA_NAME))
    cli.wrote(OUT.value, *([TRACE.value] if TRACE.value else []))
  elif action == 'info':
    for name, value in compressing.info(what).items():
      print(f'{name}: {value:.4f}' if isinstance(value, float) else f'{name}: {value}')
  else:
    raise InputError(problem='no action is named', remedy=f'name one: {ACTIONS}')


def _images(count: int) -> str:
  return '1 image' if count == 1 else f'{count:,} images'


def _few(paths: Sequence[Path]) -> list[str | Path]:
  return [*paths] if len(paths) < 4 else [f'{len(paths):,} pictures in {OUT.value}']


def _needed(*holders: tuple[flags.FlagHolder, str]) -> None:
  for flag, example in holders:
    require(bool(flag.value), flag.name, None, 'it is missing', f'give it, as in --{flag.name}='
            f'{example}')


def _refused(action: str, *holders: flags.FlagHolder) -> None:
  for flag in holders:
    require(not flag.present, flag.name, flag.value, f'{action} does not read it', 'leave it out')


def _decode(file: str) -> None:
  where = {'directory': WORKDIR.value or '', **cli.values(DATA_DIR, DATA_NAME, OVERWRITE)}
  if container.read(files.user_path('file', file)).kind == container.LOSSLESS:
    _refused('decoding a lossless file', PREFIX, FINISH)
    cli.wrote(*_few(compressing.decode(file, OUT.value, **where)))
    return
  decoded = progressive.decode(file, OUT.value, **cli.values(PREFIX, FINISH), **where)
  print(f'lossy: {decoded.size:,} bytes of the payload, level {decoded.level} of '
        f'{decoded.steps}, finished by {FINISH.value}')
  cli.wrote(*_few(decoded.paths))


def _encode_lossy(images: str) -> None:
  report = progressive.encode(
      WORKDIR.value, images, OUT.value, steps=T.value,
      **cli.values(METHOD, APPROXIMATE, SEED, OVERWRITE, AVERAGE, STEP, DATA_DIR, DATA_NAME))
  per_dim = report.bits_per_dim
  print(f'lossy: {_images(report.count)}, {report.size:,} bytes: {per_dim(report.size):.3f} '
        f'bits/dim, PSNR {report.psnr:.2f} dB')
  parts: list[tuple[str, float]] = [('header', report.header),
                                    ('payload', report.size - report.header)]
  if report.blocks:
    parts.append(('ideal', report.ideal / 8.0))
  for name, size in parts:
    print(f'  {name:8s}{size:12,.0f} bytes {per_dim(size):8.3f} bits/dim')
  if report.blocks:
    excess = (8.0 * (report.size - report.header) - report.ideal) / report.blocks
    error = report.noise.std() / report.blocks**0.5
    print(f'{report.blocks:,} blocks of {report.ideal / report.blocks:.2f} bits; each costs '
          f'{excess:.2f} bits more')
    print(f'noise along the mean: {report.noise.mean():+.3f} +- {error:.3f}, variance '
          f'{report.noise.var():.3f}; exact samples have 0 and 1')
    if report.large and not APPROXIMATE.value:
      print(f'{report.large:,} of {report.blocks:,} blocks hold more than 4 bits: approximate')
    if APPROXIMATE.value:
      print('approximate: too few candidates for samples of the posterior; they are biased towards '
            'the prediction by the noise above')
  print(f'{report.count / report.seconds:.2f} images/s')
  cli.wrote(OUT.value, then=cli.command('compress.py', 'decode', OUT.value, out='decoded',
                                        prefix='0.5'))


def _encode(images: str) -> None:
  steps = 50 if T.value is None else T.value
  report = compressing.encode(
      WORKDIR.value, images, OUT.value, steps=steps,
      **cli.values(VARIANCE, LANES, VERIFY, SEED, OVERWRITE, AVERAGE, STEP, DATA_DIR, DATA_NAME))
  per_dim = report.bits_per_dim
  net = report.net * report.dimensions * report.count / 8.0
  print(f'{_images(report.count)}, {report.size:,} bytes: {per_dim(report.size):.3f} bits/dim')
  parts: list[tuple[str, float]] = [('header', report.header), ('initial', report.initial),
                                    ('net', net)]
  rounding = report.size - sum(size for _, size in parts)  # each lane ends in a whole word
  parts.append(('rounding', max(rounding, 0.0)))
  for name, size in parts:
    print(f'  {name:8s}{size:12,.0f} bytes {per_dim(size):8.3f} bits/dim')
  name = f'vlb@{steps}{"" if VARIANCE.value == "small" else "/" + VARIANCE.value}'
  error = '' if report.count == 1 else f' +- {report.net_error:.4f}'
  print(f'net: {report.net:.4f}{error} bits/dim; {name} of these images: {report.bound:.4f} +- '
        f'{report.bound_error:.4f}')
  if report.count == 1:
    print('The net bits of one image are one draw: only their mean over images meets the bound.')
  else:
    above = report.net - report.bound
    print(f'net - {name}: {above:+.4f} +- {report.above_error:.4f} bits/dim '
          f'({above / report.bound:+.1%}), compared image by image')
  if report.sheet:
    print('the same images as one lossless sheet: ' + ', '.join(
        f'{name} {"(not installed)" if value is None else f"{value:.3f}"}'
        for name, value in report.sheet.items()) + ' bits/dim')
    png = report.sheet['PNG']
    if png is not None and png < per_dim(report.size):
      print('This file is larger than the PNG of these images: header and initial bits are paid '
            'once for a file, and few images share them.')
  if per_dim(report.initial) > report.net:
    print('Most of this file is bits that the chain borrows at first.  Each lane pays them once: '
          'encode many images together.')
  print(f'{report.count / report.seconds:.1f} images/s, '
        f'{report.network_seconds / report.seconds:.0%} of the time in the network')
  cli.wrote(OUT.value, then=cli.command('compress.py', 'decode', OUT.value, out='decoded'))
