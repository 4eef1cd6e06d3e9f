"""-log p(data) from the error of the denoiser alone, against a Gaussian whose integral is known.

d/dsnr I(x; z) = 1/2 E|x - x_hat|^2 (Guo, Shamai and Verdu 2005).  For each image, the divergence of
a model has the same relation (Kong, Brekelmans and Ver Steeg 2023, Information-theoretic
diffusion).  Let G be a Gaussian with the data's moments, G_t its marginals and eps_G its estimate.
Then

  KL(q(z_0 | x) || p_0) = KL(q(z_0 | x) || G_0) - KL(q(z_1 | x) || G_1) + KL(q(z_1 | x) || p_1)
                          + 1/2 int (|eps - eps_hat|^2 - |eps - eps_G|^2) (-dlogsnr).

The divergences have closed forms.  Only the *difference* of two errors with the same noise is
drawn; it vanishes for Gaussian data.  The expectation equals the expectation of the continuous-time
bound.  With its own draws, this is a second estimate of the bound, where the two ends of the
schedule enter separately from its slope.  (With the draws of the bound, the network would cancel in
the difference of the two estimates.)  For nearly Gaussian data the variance is much smaller than
the bound's; for other data it is about the same.
"""
import jax.numpy as jnp

from vdm_jax.likelihood.bounds import draw_times, require_default_bound
from vdm_jax.likelihood.gaussian import Moments
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.objectives import vlb, weighted_diffusion


def estimator(moments: Moments, times: int) -> Estimator:
  """The estimate from `times` = K draws per image, as a dict.

  Returns {'nats', 'reconstruction', 'latent', 'reference', 'difference', 'evaluations'}, [n] each.
  reference: the two divergences of G; difference: the integral.  The draws equal the draws of
  `bounds.at_times` for the same keys.  Any Gaussian serves: only the variance depends on it.
    Raises InputError if the model brings its own bound.
  """
  def estimate(model, batch, keys):
    require_default_bound(model, 'I-MMSE')
    x = model.encode(batch[model.field])
    ends = model.process(jnp.array([0.0, 1.0])).logsnr
    reference = moments.divergence(x, ends[0]) - moments.divergence(x, ends[1])
    batch, t, each = draw_times(batch, keys, times)
    x = model.encode(batch[model.field])
    _, terms = vlb.continuous(model.denoise, model.process, x, t, each, model.cond(batch),
                              data=batch[model.field], decoder=model.decoder)
    linear, _ = weighted_diffusion(moments, model.process, x, t, each)  # the same noise
    by_image = lambda u: u.reshape(-1, times).mean(axis=1)
    terms = {'reconstruction': by_image(terms['reconstruction']),
             'latent': by_image(terms['latent']), 'reference': reference,
             'difference': by_image(terms['diffusion'] - linear)}
    return {'nats': sum(terms.values()), **terms, 'evaluations': jnp.full(len(keys), times)}
  return estimate
