"""The common parts of the commands: flags, errors in one line, and the start and end of a command.

A command is a script with flags and a `main`, which `run` starts.  If a command has many flags,
both are in a module of `commands`.
"""
from vdm_jax.cli.configs import config, config_file, config_flag, config_name
from vdm_jax.cli.flags import (
    average,
    batch_size,
    config_data_dir,
    data_dir,
    integers,
    moved_data,
    numbers,
    of_run,
    overwrite,
    path,
    run_directory,
    seed,
    step,
    values,
)
from vdm_jax.cli.measuring import check_row, keep, keep_row, keep_rows, keep_table, measured, row
from vdm_jax.cli.messages import command, script, wrote
from vdm_jax.cli.running import run

__all__ = ['average', 'batch_size', 'check_row', 'command', 'config', 'config_data_dir',
           'config_file', 'config_flag', 'config_name', 'data_dir', 'integers', 'keep', 'keep_row',
           'keep_rows', 'keep_table', 'measured', 'moved_data', 'numbers', 'of_run', 'overwrite',
           'path', 'row', 'run', 'run_directory', 'script', 'seed', 'step', 'values', 'wrote']
