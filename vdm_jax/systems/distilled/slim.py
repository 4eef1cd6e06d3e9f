"""A small student of a DDPM chain, with gated wavelets and a loss on its teacher's spectrum.

Yang et al. (2023), `Diffusion Probabilistic Model Made Slim`; see `objectives.spectral` and
`nn.blocks.wavelets`.  The teacher is the network of the run that this run starts from.  Its
parameters lie beside the student's, and are not trained.  So a run needs its teacher's directory
only when it begins.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import data, denoisers, inputs, targets
from vdm_jax.decoders import Pixels
from vdm_jax.objectives import spectral
from vdm_jax.systems import compose
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.distilled import teachers
from vdm_jax.train import step
from vdm_jax.typing import Experiment
from vdm_jax.values import Bound


def default_config(**model) -> ml_collections.ConfigDict:
  return ddpm.unet_config(**{
      'spatial': 0.1, 'spectral': 0.1,  # factors of the two distances from the teacher
      'floor': 1.0,                     # of |F x|, the spectrum of a datum
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module,
               teacher: nn.Module | None = None) -> Experiment:
  """The student `net`, with the parameters params['student'] and its teacher's, params['net'].

  teacher: the teacher's network.  Default: the network of `chains.ddpm`.

  Raises InputError for a factor below 0, a floor that is not above 0, or learned variances.
  """
  m = config.model
  for name in ('spatial', 'spectral'):
    compose.require(config, name, m[name] >= 0.0, 'it is negative', 'give 0 or more')
  compose.require(config, 'floor', m.floor > 0.0, 'a weight would have no limit',
                  'give a number above 0')
  compose.require(config, 'variances', not m.variances, 'this loss does not train variances',
                  'set it to False')
  teacher = teacher or ddpm.unet(config)
  master = ddpm.experiment(config, net=teacher)
  chain = ddpm.table(config, Pixels(data.resolve(config.data).levels).to_ends)

  def taught(*args, steps, context):
    # The teacher as it was trained, and not clipped.
    its = denoisers.denoiser(Bound(context.aux, teacher), targets.eps, inputs.chain(chain))
    return spectral.distilled(*args, steps=steps, teacher=its, spatial=m.spatial,
                              spectral=m.spectral, floor=m.floor)

  student = ddpm.experiment(config, net=net, trained=taught)

  def init(key):
    return {**master.init(key), 'student': student.init(key)['net']}

  def loss(params, batch, context):
    own = {'net': params['student']}
    return student.loss(own, batch, context._replace(aux=params['net']))

  def model(params, keys=None):
    # The parameters of a teacher's run have no student: what it makes is asked of them before.
    return student.model({'net': params.get('student')}, keys)

  def check_teacher(made, params):
    teachers.require_same(master, made, params)

  players = {'student': step.Player(loss, student.tx, ('student',))}
  return student._replace(init=init, loss=loss, model=model, tx=step.optimisers(players),
                          update=step.players(players, student.ema),
                          needs_start='its teacher is the network of another run, which is trained',
                          teacher=check_teacher, adds=('student',))
