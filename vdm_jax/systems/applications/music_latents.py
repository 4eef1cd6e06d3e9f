"""Symbolic music by the latent route: an autoencoder of bars, and a chain of their latents.

Mittal, Engel, Hawthorne and Simon (2021).  The first stage makes one vector of each bar, and the
second is a diffusion model of the sequence of these vectors.  Both stages are those of latent
diffusion (`systems.latent`), with p(x | y) of odds of pitches in the place of a normal.

                          published                        here
  a latent is             2 bars of a melody, MusicVAE's   a bar of four voices, `BarAutoencoder`
  numbers of a latent     the most used of 512             all
  scale of latents        smallest and largest at -1, 1;   standard deviation 1, measured on
                          the published code measures      the first training batch, for
                          them on each set for itself,     all data
                          the evaluation set too
  latents in a sequence   32                               those of a window, 4
  chain                   1,000 steps, betas 1e-6 to 0.01  the same
  loss                    |eps - eps_hat|^2                the same
  the network reads       sqrt(alpha bar), which is drawn  the number of the step
                          between two steps
  network                 Transformer of 128 features, 8   DiT of 128 features, 8 heads; every
                          heads; noise enters after it     block reads the step
  x_hat                   clipped to [-1, 1]               as it is

The log-SNR of the published chain goes from 13.816 to -5.011.  With the autoencoder's odds, the
bound of the whole model is on -log P(notes), as that of the direct route (`music`) is.
"""
import ml_collections

from vdm_jax.data import Field
from vdm_jax.nn.autoencoders.bars import BarAutoencoder
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.systems import compose
from vdm_jax.systems.applications import music
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.latent import autoencoder as autoencoders
from vdm_jax.systems.latent import latent
from vdm_jax.typing import Experiment

__all__ = ['autoencoder', 'autoencoder_config', 'default_config', 'experiment']


def autoencoder_config(**model) -> ml_collections.ConfigDict:
  """The fields of an autoencoder of bars."""
  return compose.default_config(**{
      'steps': 8,             # of a bar, which becomes one latent
      'latent_channels': 32,  # numbers of a latent
      'features': 128,
      'depth': 2,
      'kl': 1.0,              # w_KL; 1: the bound itself
      'transpose': 0,         # most semitones by which training moves a window, up or down
  } | model)


def default_config(settings: ml_collections.ConfigDict | None = None, **model
                   ) -> ml_collections.ConfigDict:
  """The fields of the published chain of latents; settings: see `systems.latent.latent.add`."""
  own = autoencoder_config().model if settings is None else settings
  return latent.add(ddpm.default_config(**{
      'beta_ends': (1e-6, 0.01),
      'clip': False,
      'dropout': 0.0,
      'features': 128,
      'depth': 6,
      'attention_heads': 8,
      'scan': True,
      'remat': 'none',
      'transpose': 0,
  } | model), own)


def autoencoder(config: ml_collections.ConfigDict) -> Experiment:
  """The first stage, with the fields of `autoencoder_config`.

  Raises InputError for data that are no voices, for bars that do not fit the windows, for a
  transposition below 0, and as `systems.latent.autoencoder.of_levels` does.
  """
  x = music.voices(config)
  return autoencoders.of_levels(config, _network(x, config.model),
                                change=music.transposing(config, x))


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The second stage, with the fields of `default_config`.

  Raises InputError as `autoencoder` and `systems.chains.ddpm.experiment` do, and for windows that
  are encoded in advance and transposed.
  """
  m, x = config.model, music.voices(config)
  net = DiT(patch=1, features=m.features, depth=m.depth, attention_heads=m.attention_heads,
            scan=m.scan, remat=m.remat)
  compose.require(config, 'transpose', not (m.transpose and config.data.latents), 'the latents of '
                  'config.data.latents cannot be transposed', 'set one of the two to nothing')
  return latent.of(config, lambda inner: ddpm.experiment(inner, net=net),
                   autoencoder=_network(x, config.autoencoder.model),
                   change=music.transposing(config, x))


def _network(x: Field, settings: ml_collections.ConfigDict) -> BarAutoencoder:
  """The autoencoder of these settings for windows of the field `x`."""
  return BarAutoencoder(x.levels or 0, x.shape[1], settings.steps, settings.latent_channels,
                        settings.features, settings.depth)
