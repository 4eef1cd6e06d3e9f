"""The distance of samples from data whose law is known, beside its bounds, against the steps.

  python scripts/convergence.py --out=bounds.png --data=mixture --steps=10,30,100,300
  python scripts/convergence.py --out=run.png --workdir=runs/spiral --sampler=ancestral

The first command takes an exact denoiser, the second the network of a run of points in the plane,
and estimates its score term on held-out points too.  Both print the terms and the distances.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import convergence

flags.adopt_module_key_flags(convergence)

if __name__ == '__main__':
  cli.run(convergence.main, bootstrap.ROOT, required={'out': 'bounds.png'}, alone=True)
