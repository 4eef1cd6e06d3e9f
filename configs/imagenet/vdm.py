"""ImageNet at 32x32 and 64x64, as Kingma et al. (2021).

  python scripts/train.py --config=configs/imagenet/vdm.py:32 --workdir=DIR --data_dir=DIR
  python scripts/train.py --config=configs/imagenet/vdm.py:64 --workdir=DIR --data_dir=DIR

                   32             64
  parameters       122,137,603    237,603,843
  to reach         3.72           3.40        bits/dim, old version of the data (table 1)

What a step computes and needs: docs/performance.md.
Data: TFDS's downsampled_imagenet.  It has two versions: old (49,999 validation images, no longer
distributed) and new (50,000).  At 32x32, the bits/dim of one model differ by about 0.26 between the
versions; the ledger says which version was read.  On the new version, a VDM that predicts v reaches
about 3.46 bits/dim at 32x32 (VDMv, the baseline of DiffEnc, Nielsen et al. 2024).
Hardware and time: 10 M steps; planned for a TPU pod slice or 8 GPUs.  Not run to its end here.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config(size: str = '32') -> ml_collections.ConfigDict:
  require_choice('config', size, ('32', '64'))
  fields = {'features': 256, 'blocks': 64 if size == '64' else 32}
  return recipes.imagenet(vdm.default_config(**fields), int(size))


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config)
