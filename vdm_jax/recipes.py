"""Data, optimiser and length of a training run, by name.

A recipe changes these fields of any system's config and returns the config.  The other fields keep
the defaults of `data`, `train.optimizer` and `train.loop`.  These defaults are the settings of the
official VDM code for CIFAR-10.
"""
import ml_collections

__all__ = ['Config', 'IMAGES', 'captions', 'chorales', 'cifar10', 'digits', 'fine_tuning',
           'forecasts', 'imagenet', 'mnist', 'plane', 'plans', 'published', 'short', 'students',
           'texts']

Config = ml_collections.ConfigDict


def digits(config: Config, *, steps: int = 1500) -> Config:
  """Handwritten digits, 8x8 with 17 grey levels.  Training takes 2 or 3 minutes on 2 CPU cores."""
  config.data.update(name='digits', validation=97, batch_size=64)
  config.optimizer.update(learning_rate=6e-3, warmup_steps=100, decay_steps=steps)
  config.ema = {'ema': 0.99}  # 0.9999 would keep 86 % of the initial weights after 1,500 steps
  config.train.update(steps=steps, log_every=50, validate_every=500, checkpoint_every=500,
                      pictures_every=0, keep=2, splits=('validation', 'test'),
                      validation_repeats=8)
  return config


def plane(config: Config, name: str = 'swirl', *, steps: int = 3000) -> Config:
  """Points in the plane, 8 bits per coordinate.  Training takes about two minutes.

  name: a distribution of `data.formulas`.
  """
  config.data.update(name=name, validation=2000, batch_size=512)
  config.optimizer.update(learning_rate=2e-3, decay_steps=steps)
  config.ema = {'ema': 0.995}
  config.train.update(steps=steps, log_every=100, validate_every=500, checkpoint_every=1000,
                      pictures_every=1000, keep=2, validation_repeats=4)
  return config


def mnist(config: Config) -> Config:
  """MNIST, 28x28 with 256 grey levels."""
  config.data.update(name='mnist', validation=1000, batch_size=128)
  config.train.steps = 2_000_000
  return config


def cifar10(config: Config) -> Config:
  """CIFAR-10 as in Kingma et al. (2021): all 50,000 images, without augmentation."""
  config.data.update(name='cifar10', validation=1024, hold_out=False)
  return config


def imagenet(config: Config, size: int) -> Config:
  """TFDS's downsampled ImageNet, of 32 or 64 pixels."""
  config.data.update(name=f'downsampled_imagenet/{size}x{size}', shape=(size, size, 3), levels=256,
                     validation=1024, hold_out=False)
  return config


def published(config: Config) -> Config:
  """The settings that published image models share: all images, Adam, a long warm-up.

  Ho et al. (2020), section 4 and appendix B; Song et al. (2021), appendix H.
  """
  config.data.update(validation=1024, hold_out=False)
  config.optimizer.update(b2=0.999, warmup_steps=5000, weight_decay=0.0, clip_norm=1.0)
  return config


def short(config: Config, name: str, *, steps: int, learning_rate: float = 2e-3) -> Config:
  """A run of minutes on 2 CPU cores, on any images: small batches, a learning rate that falls to 0.

  name: the data's name, as in `config.data.name`.  The last 1,000 training images are held out.
  """
  config.data.update(name=name, validation=1000, batch_size=32)
  config.optimizer.update(learning_rate=learning_rate, warmup_steps=100, decay_steps=steps,
                          b2=0.999, weight_decay=0.0, clip_norm=1.0)
  config.ema = {'ema': 0.995}  # of some 200 steps
  config.train.update(steps=steps, log_every=50, validate_every=steps // 2,
                      checkpoint_every=steps // 4, pictures_every=0, keep=2)
  return config


def _minutes(config: Config, steps: int, *, validations: int, repeats: int = 1, share: int = 20,
             learning_rate: float = 2e-3, pictures_every: int = 0) -> Config:
  """A run of minutes whose rate falls to 0, and that is validated and kept some times.

  share: the warm-up, and what the average remembers, are this part of the run: 1 / share.
  """
  config.optimizer.update(learning_rate=learning_rate, warmup_steps=steps // share,
                          decay_steps=steps, clip_norm=1.0)
  config.ema = {'ema': 1.0 - share / steps}
  config.train.update(steps=steps, log_every=50, validate_every=steps // validations,
                      checkpoint_every=steps // validations, pictures_every=pictures_every,
                      keep=2, splits=('validation', 'test'), validation_repeats=repeats)
  return config


def captions(config: Config, name: str = 'shapes', *, steps: int = 1500) -> Config:
  """Small pictures and their texts, as words: some minutes on 2 CPU cores.

  name: the data's name, as in `config.data.name`.  The last 200 training images are held out.
  """
  config.data.update(name=name, tokeniser='words', validation=200, batch_size=64)
  return _minutes(config, steps, validations=3, share=10)


def texts(config: Config, name: str = 'shapes', *, steps: int = 6000) -> Config:
  """Small images drawn from texts: small batches and Muon, a quarter of an hour on 2 CPU cores.

  name: the data's name, as in `config.data.name`.  All training images are used.
  """
  config.data.update(name=name, tokeniser='words', hold_out=False, validation=1000, batch_size=16)
  config.optimizer.update(name='muon', b2=0.999, weight_decay=0.0)
  return _minutes(config, steps, learning_rate=4e-3, validations=4, share=12)


def forecasts(config: Config, name: str, *, steps: int = 5000) -> Config:
  """Windows of time series: batches of 32 and a learning rate that falls to 0, with weight decay.

  name: the file, as in `config.data.name`.  The last 336 training windows are held out.  Only the
  first of them overlap with windows of training, so their loss shows when a series that is short
  has been learned by heart: the checkpoint `best` is of before.
  """
  config.data.update(name=name, validation=336, batch_size=32)
  config.optimizer.b2 = 0.999
  return _minutes(config, steps, validations=10, repeats=4, pictures_every=steps)


def plans(config: Config, name: str, *, steps: int = 5000) -> Config:
  """Windows of episodes: batches of 64 and a learning rate that falls to 0.

  name: the file, as in `config.data.name`.  The last 2,000 training windows are held out, which are
  whole episodes but for a part of one.
  """
  config.data.update(name=name, validation=2000, batch_size=64)
  config.optimizer.update(b2=0.999, weight_decay=0.0)
  return _minutes(config, steps, learning_rate=3e-3, validations=5, pictures_every=steps)


def chorales(config: Config, name: str = 'chorales', *, steps: int = 2500) -> Config:
  """Windows of chorales: batches of 64 and a learning rate that falls to 0, with weight decay.

  name: as in `config.data.name`.  The last 200 training windows are held out: pieces of their own,
  but for one.
  """
  config.data.update(name=name, fields=('pitches',), shape=(32, 4, 1), levels=128, validation=200,
                     batch_size=64)
  config.optimizer.update(b2=0.99, weight_decay=0.05)
  return _minutes(config, steps, validations=6, repeats=4)


def fine_tuning(config: Config, *, steps: int = 300) -> Config:
  """A short run from trained weights, at a tenth of the learning rate that trained them."""
  config.optimizer.update(learning_rate=0.1 * config.optimizer.learning_rate, decay_steps=steps)
  config.ema = {'ema': 0.97}
  config.train.update(steps=steps, validate_every=steps // 2, checkpoint_every=steps // 2)
  return config


def students(config: Config, *, steps: int, learning_rate: float = 2e-3) -> Config:
  """A short distillation of trained weights.  The student is evaluated without an average."""
  config.optimizer.update(learning_rate=learning_rate, warmup_steps=0, decay_steps=0,
                          weight_decay=0.0, clip_norm=1.0)
  config.ema = {'student': 0.0}
  config.train.update(steps=steps, validate_every=steps, checkpoint_every=max(steps // 3, 1),
                      splits=('validation',), validation_repeats=2)
  return config


# Of data that any system of images may be trained on.
IMAGES = {'digits': digits, 'mnist': mnist, 'cifar10': cifar10}
