"""The optimiser of the VDM recipe: AdamW, linear warm-up, no decay where decay has no meaning."""
import jax
import ml_collections
import optax

from vdm_jax.typing import PyTree


def decay_mask(params: PyTree, official: bool = False) -> PyTree:
  """True where weight decay applies: kernels and embeddings of the network.

  Biases, norm scales and all of `params['schedule']` are exempt: pulling a noise schedule's end
  points towards zero is not regularisation.  `official` reproduces the mask of the published VDM
  code, whose only exemption that ever matches is a name ending in `bias`: it decays the group
  norms' scales and the schedule.
  """
  def decays(path, _):
    names = [entry.key for entry in path]
    if official:
      return not names[-1].endswith('bias')
    return names[0] != 'schedule' and names[-1] in ('kernel', 'embedding')
  return jax.tree_util.tree_map_with_path(decays, params)


def default_config() -> ml_collections.ConfigDict:
  """config.optimizer: the values of the official VDM configs."""
  return ml_collections.ConfigDict({
      'learning_rate': 2e-4,
      'warmup_steps': 100,   # linear, from 0
      'decay_steps': 0,      # cosine to 0 at this step; 0: constant
      'b1': 0.9,
      'b2': 0.99,
      'eps': 1e-8,
      'weight_decay': 0.01,  # decoupled
      'clip_norm': 0.0,      # of the global gradient; 0: none
      'official_decay_mask': False,  # see `decay_mask`
  })


def learning_rate(config) -> optax.Schedule:
  """Linear warm-up over `warmup_steps`, then constant, or a cosine to zero at `decay_steps`."""
  if not config.decay_steps:
    return optax.warmup_constant_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps,
                                            config.decay_steps)


def adamw(config) -> optax.GradientTransformation:
  """config.optimizer -> AdamW (Loshchilov and Hutter 2019); fields as in `default_config`."""
  mask = lambda params: decay_mask(params, config.official_decay_mask)
  tx = optax.adamw(learning_rate(config), b1=config.b1, b2=config.b2, eps=config.eps,
                   weight_decay=config.weight_decay, mask=mask)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx) if config.clip_norm else tx
