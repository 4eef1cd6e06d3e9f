"""Renders what is generated in the docs: their measured tables, from docs/measured/*.json.

  python scripts/render_docs.py
"""
import cli

from vdm_jax import measured


def main():
  for path in measured.render(cli.ROOT):
    cli.wrote(path)


if __name__ == '__main__':
  cli.run(main, alone=True)
