"""Renders what is generated in the docs: their measured tables, from docs/measured/*.json.

  python scripts/render_docs.py
"""
import bootstrap

from vdm_jax import cli, measured


def main():
  for path in measured.render(bootstrap.ROOT):
    cli.wrote(path)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True)
