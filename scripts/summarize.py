"""What a config's network is made of: parameters, FLOP an image and activations, by block.

  python scripts/summarize.py --config=configs/cifar10/vdm.py [--json]

Needs neither data nor much time: nothing is run.
"""
import json

import cli
import rich.box
import rich.console
import rich.table
from absl import flags

from vdm_jax.benchmark import speed, summary

CONFIG = cli.config_flag()
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are: config.data.data_dir.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')


def main():
  config, file = CONFIG.value, flags.FLAGS['config'].config_filename
  if DATA_DIR.value:
    config.data.data_dir = DATA_DIR.value
  rows = summary.summary(speed.of_config(file.split(':')[0], config))
  total = summary.Row('together', *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
  if JSON.value:
    print(json.dumps({'config': file, 'blocks': [row._asdict() for row in rows],
                      'together': total._asdict()}, indent=2))
    return
  table = rich.table.Table(title=file, box=rich.box.SIMPLE_HEAD)
  for name in ('block', 'parameters', 'GFLOP an image', 'activations, MiB an image'):
    table.add_column(name, justify='left' if name == 'block' else 'right')
  for row in rows:
    table.add_row(*_cells(row), end_section=row is rows[-1])
  table.add_row(*_cells(total))
  rich.console.Console(width=max(100, rich.console.Console().width)).print(table)


def _cells(row: summary.Row) -> list[str]:
  """A block that the denoiser does not call has parameters alone."""
  work = [f'{row.flop / 1e9:.4g}', f'{row.activations / 2**20:.3g}'] if row.flop else ['-', '-']
  return [row.block, f'{row.parameters:,}', *work]


if __name__ == '__main__':
  cli.run(main, required={'config': 'configs/digits/vdm.py'}, alone=True)
