"""The end terms of the bound in closed form, for a fixed schedule: in float64, on the host.

Each term depends only on the data and on one end of the schedule, not on the network.  If a
measured term is off by more than its standard error, the schedule, the decoder or the coding has a
bug.
"""
import numpy as np


def reconstruction(levels: int, logsnr_max: float) -> tuple[np.ndarray, np.ndarray]:
  """Mean and variance over the noise of -log p(level | z_0), of the decoder of `Pixels`, for each
  level: [levels] in nats, [levels] in nats^2.

  It is computed by quadrature.  z_0 = x + e^(-logsnr_max / 2) eps up to the factor alpha, and each
  x is the centre of a bin of width 2 / levels.  The variance is the variance of one draw.  If
  errors of the decoder are rare, draws without an error show no spread, so the variance cannot be
  measured.
  """
  centres = (2.0 * np.arange(levels) + 1.0) / levels - 1.0
  distance = (centres[:, None] - centres) * np.exp(0.5 * logsnr_max)  # in units of the noise
  mean, square = np.zeros((2, levels))
  # The trapezoidal rule, whose error is below rounding where the step is a fraction of all scales.
  eps, h = np.linspace(-9.0, 9.0, 721, retstep=True)
  for e, weight in zip(eps, np.exp(-0.5 * eps * eps) * h / np.sqrt(2.0 * np.pi), strict=True):
    nll = np.log(np.exp(-distance * (0.5 * distance + e)).sum(axis=1))
    mean += weight * nll
    square += weight * nll**2
  return mean, square - mean**2


def latent(x: np.ndarray, logsnr_min: float) -> np.ndarray:
  """KL(N(alpha x, sigma^2) || N(0, 1)) in nats, [N].  x: [N, ...]."""
  signal, noise = 1.0 / (1.0 + np.exp(-logsnr_min)), 1.0 / (1.0 + np.exp(logsnr_min))
  each = 0.5 * (signal * np.square(np.asarray(x, np.float64)) + noise - 1.0 - np.log(noise))
  return each.reshape(len(each), -1).sum(axis=1)


def end_terms(images: np.ndarray, table: np.ndarray, logsnr_min: float) -> dict[str, np.ndarray]:
  """{'reconstruction', 'latent'} of `images`, integers [N, ...], in nats, [N] each.

  table: the mean of `reconstruction` for each level, [levels].
  """
  return {'reconstruction': table[images].reshape(len(images), -1).sum(axis=1),
          'latent': latent((2.0 * images + 1.0) / len(table) - 1.0, logsnr_min)}
