"""The project's configs by name: 'digits/vdm', 'systems:mulan,cifar10'."""
from pathlib import Path

from vdm_jax.runs import workdir

FOLDER = Path(__file__).parents[2] / 'configs'


def file(name: str) -> Path:
  return FOLDER / f'{name.partition(":")[0]}.py'


def read(name: str):
  """(module, config) of a name."""
  _, _, variant = name.partition(':')
  module = workdir.import_config(file(name))
  return module, module.get_config(*[variant] if variant else [])


def names() -> list[str]:
  """Every config, and every choice that one offers: those of systems.py on the digits."""
  files = [str(path.relative_to(FOLDER).with_suffix('')) for path in sorted(FOLDER.rglob('*.py'))]
  offered = {
      'systems': [f':{name}' for name in workdir.import_config(file('systems')).SYSTEMS],
      'digits/networks': [':ddpm', ':adm', ':dit', ':cfg'],
      'digits/latent': [':autoencoder', ':vq', ':latent'],
      'plane/flows': [f':{name}' for name in workdir.import_config(file('plane/flows')).SYSTEMS],
      'digits/flows': [f':{name}' for name in workdir.import_config(file('digits/flows')).SYSTEMS],
      'cifar10/flows': [
          f':{name}' for name in workdir.import_config(file('cifar10/flows')).SYSTEMS],
      'plane/spiral': [':vdm', ':vp', ':subvp', ':ve', ':edm'],
      'text/glide_shapes': [':shapes', ':held_out', ':inpainting'],
      'text/cascade_shapes': [':base', ':upsampler'],
      'text/emoji': [':new_names', ':held_out'],
      'sequences/motion': [':orbits', ':oscillations'],
      'plane/truncated': [':adversarial', ':gaussian'],
      'plane/matching': [':sliced', ':implicit'],
      'digits/distilled': [
          f':{name}' for name in workdir.import_config(file('digits/distilled')).FIELDS],
      'plane/distilled': [':teacher', ':progressive', ':knowledge'],
      'plane/consistency': [':distillation', ':training', ':public'],
      'cifar10/distilled': [':progressive_teacher', ':progressive', ':knowledge', ':consistency',
                            ':consistency_training'],
      'cifar10/augmented': [':open', ':paper'], 'cifar10/ddpm': [':published', ':small'],
      'imagenet/vdm': [':32', ':64'], 'imagenet/dit': [':DiT-XL/2', ':DiT-S/8'],
      'applications/greensboro': [':chain', ':flow'],
      'applications/chorales': [':eighths', ':quarters'],
      'applications/chorales_latent': [':autoencoder', ':latent'],
      'applications/ct_slices': [':ellipses', ':brain'],
      'applications/pendulum': [':unet', ':transformer'],
      'text/markup': [':teacher_forced', ':scheduled'],
      'text/latent_shapes': [':autoencoder', ':latent'],
      'text/captioner': [':teacher_forcing', ':scheduled', ':imitation'],
      'text/dual_encoder': [
          f':{name}' for name in workdir.import_config(file('text/dual_encoder')).DATA],
      'published/dit': ['', ':DiT-XL-2-256x256,images'],
      'published/latent': ['', ':stable-diffusion-v1'],
      'published/autoencoder': ['', ':vq-f4', ':taesd']}
  return [name + variant for name in files for variant in offered.get(name, [''])]
