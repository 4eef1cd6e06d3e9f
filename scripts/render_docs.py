"""Renders the generated parts of the docs: measured tables and the reference of the commands.

  python scripts/render_docs.py

Tables between marks come from docs/measured/*.json.  docs/reference/commands.md comes from the
scripts.
"""
import bootstrap

from vdm_jax import cli, measured
from vdm_jax.cli import reference
from vdm_jax.machine import files


def main():
  page = bootstrap.ROOT / 'docs' / 'reference' / 'commands.md'
  files.write_text(page, reference.markdown(reference.commands(bootstrap.ROOT / 'scripts')))
  cli.wrote(page, *measured.render(bootstrap.ROOT))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True)
