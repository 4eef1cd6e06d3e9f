"""Lists the parts of a config's network, by block: parameters, FLOP of an image, activations.

  python scripts/summarize.py --config=configs/cifar10/vdm.py [--json]

It needs no data and runs nothing.
"""
import bootstrap
import rich.console
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.benchmark import speed, summary

CONFIG = cli.config_flag()
DATA_DIR = cli.config_data_dir()
MEASURED, ROW = cli.measured(), cli.row()
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')


def main():
  cli.check_row(MEASURED.value, ROW.value, summary.COLUMNS[1:])
  rows = summary.summary(speed.of_config(cli.config_file(), cli.config()))
  table = summary.table(cli.config_name(), rows)
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, summary.figures(rows))
  else:
    cli.keep(MEASURED.value, cli.config_name(), measured.cells(table))
  if JSON.value:
    print(summary.as_json(cli.config_name(), rows))
  else:
    width = max(100, rich.console.Console().width)
    rich.console.Console(width=width).print(table)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'config': 'configs/digits/vdm.py'}, alone=True)
