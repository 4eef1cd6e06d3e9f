"""The reader of programs on lines written by hand, in the form of each of XLA's compilers."""
import jax
import jax.numpy as jnp
import pytest

from vdm_jax.benchmark import hlo

TPU = '''HloModule jit_step, is_scheduled=true

%fused.1 (param_0.1: bf16[16,100]) -> bf16[16,100] {
  %param_0.1 = bf16[16,100]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %double = bf16[16,100]{1,0:T(8,128)(2,1)} add(bf16[16,100]{1,0:T(8,128)(2,1)} %param_0.1, bf16[16,100]{1,0:T(8,128)(2,1)} %param_0.1)
}

ENTRY %main.7 (p: bf16[16,100]) -> (bf16[16,100], pred[3]) {
  %p = bf16[16,100]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="state[\\'a\\']"}
  %yes = pred[3]{0} constant({true, false, true})
  %fusion.1 = bf16[16,100]{1,0:T(8,128)(2,1)S(1)} fusion(%p), kind=kLoop, calls=%fused.1, metadata={op_name="jit(step)/body=%not_this" source_file="a.py"}, backend_config={"flag_configs":[]}
  ROOT %tuple = (bf16[16,100]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0}) tuple(%fusion.1, /*index=1*/%yes)
}
'''  # noqa: E501


def test_types_have_numbers_bits_a_layout_a_tile_and_a_memory():
  one, = hlo.arrays('bf16[16,100]{0,1:T(8,128)(2,1)S(1)}')
  assert one == hlo.Array(16, (16, 100), 1, (0, 1), (8, 128))
  assert hlo.arrays('(f32[2,3]{1,0}, pred[], s4[10]{0}, token[])') == (
      hlo.Array(32, (2, 3), 0, (1, 0)), hlo.Array(8, ()), hlo.Array(4, (10,), 0, (0,)),
      hlo.Array(0, ()))
  assert [u.bytes for u in hlo.arrays('(f32[2,3]{1,0}, pred[], s4[10]{0}, token[])')] == [
      24, 1, 5, 0]


def test_an_array_in_tiles_takes_the_padding_of_the_last_ones():
  """100 of 128 and 13 of 16, along the fastest dimension and the next; else no padding."""
  stored = lambda types: hlo.arrays(types)[0].stored
  assert stored('bf16[7,13,100]{2,1,0:T(8,128)(2,1)}') == 2 * 7 * 16 * 128
  assert stored('f32[100,13]{0,1:T(8,128)}') == 4 * 128 * 16
  assert stored('f32[100,13]{1,0}') == 4 * 1300
  assert stored('f32[]{:T(128)}') == 4


def test_a_program_has_computations_with_their_instructions():
  program = hlo.parse(TPU)
  assert program.entry.name == 'main.7' and set(program.computations) == {'fused.1', 'main.7'}
  fusion = program.entry.instructions['fusion.1']
  assert (fusion.opcode, fusion.operands) == ('fusion', ('p',))
  assert fusion.called == [('calls', 'fused.1')]  # and not what the name of the source looks like
  assert fusion.attribute('kind') == 'kLoop' and fusion.source == 'jit(step)/body=%not_this'
  assert program.entry.root.operands == ('fusion.1', 'yes')
  assert program.computations['fused.1'].root.operands == ('param_0.1', 'param_0.1')
  assert program.entry.instructions['yes'].operands == ('{true, false, true}',)


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no entry'):
    hlo.parse('module @jit_f { }')


def test_the_window_of_a_convolution_has_a_part_for_each_dimension():
  one = hlo.parse('''
ENTRY %main (a: f32[1,8,8,2], b: f32[3,5,2,4]) -> f32[1,4,8,4] {
  %a = f32[1,8,8,2]{3,2,1,0} parameter(0)
  %b = f32[3,5,2,4]{3,2,1,0} parameter(1)
  ROOT %c = f32[1,4,8,4]{3,2,1,0} convolution(%a, %b), window={size=3x5 stride=2x1 pad=0_1x2_2 rhs_dilate=1x3}, dim_labels=b01f_01io->b01f
}
''').entry.root  # noqa: E501
  assert one.windows == (hlo.Window(3, 2, 0, 1, 1), hlo.Window(5, 1, 2, 1, 3))
  assert one.attribute('dim_labels') == 'b01f_01io->b01f'


COUNTER = '''
%condition (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(17)
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %step = s32[]{:T(128)} constant(3)
  %next = s32[]{:T(128)} add(%i.1, %step)
  %x = f32[4]{0:T(128)} get-tuple-element(%p.1), index=1
  ROOT %again = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%next, %x)
}

ENTRY %main (x.1: f32[4]) -> (s32[], f32[4]) {
  %x.1 = f32[4]{0:T(128)} parameter(0)
  %first = s32[]{:T(128)} constant(2)
  %copy = s32[]{:T(128)} copy(%first)
  %start = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%copy, %x.1)
  ROOT %loop = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%start), condition=%condition, body=%body
}
'''


def trips(text: str) -> int | None:
  program = hlo.parse(text)
  return hlo.trips(program, program.entry, program.entry.root)


def test_the_length_of_a_loop_follows_from_its_counter():
  """The counter is 2, 5, 8, 11 and 14 in the body, and 17 ends the loop."""
  assert trips(COUNTER) == 5
  assert trips(COUNTER.replace('constant(17)', 'constant(18)')) == 6
  assert trips(COUNTER.replace('constant(17)', 'constant(1)')) == 0


@pytest.mark.parametrize('old,new', [
    ('direction=LT', 'direction=NE'), ('add(%i.1, %step)', 'multiply(%i.1, %step)'),
    ('%copy = s32[]{:T(128)} copy(%first)', '%copy = s32[] rng(%first)'),
    ('constant(17)', 'parameter(1)')])
def test_the_length_of_any_other_loop_is_not_known(old, new):
  assert trips(COUNTER.replace(old, new)) is None


def test_a_program_of_this_machine_is_read_with_the_length_of_its_loop():
  def f(x):
    return jax.lax.scan(lambda h, _: (jnp.sin(h), None), x, length=7)[0]
  text = jax.jit(f).lower(jnp.ones(1000)).compile().as_text()
  program = hlo.parse(text)
  loops = [(c, one) for c in program.computations.values() for one in c.instructions.values()
           if one.opcode == 'while']
  assert [hlo.trips(program, c, one) for c, one in loops] == [7]
  assert dict(loops[0][1].called).keys() == {'body', 'condition'}
