"""The work of programs whose FLOP and bytes are counted by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.benchmark import hlo, kernels
from vdm_jax.benchmark.kernels import Collective

# The stacking of a loop, fused as on a GPU: slice i of %all is read, and slice i of %out written.
LOOP = '''HloModule jit_step

%fused (q0: f32[10,1000], q1: f32[10,1000], q2: s32[]) -> (f32[10,1000], f32[1000]) {
  %q0 = f32[10,1000]{1,0} parameter(0)
  %q1 = f32[10,1000]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %rounded = bf16[10,1000]{1,0} convert(%q1)
  %slice = bf16[1,1000]{1,0} dynamic-slice(%rounded, %q2, %zero), dynamic_slice_sizes={1,1000}
  %row = f32[1,1000]{1,0} convert(%slice)
  %same = f32[10,1000]{1,0} bitcast(%q0)
  %new = f32[10,1000]{1,0} dynamic-update-slice(%same, %row, %q2, %zero)
  %flat = f32[1000]{0} bitcast(%row)
  ROOT %both = (f32[10,1000]{1,0}, f32[1000]{0}) tuple(%new, %flat)
}

%body (p: (s32[], f32[10,1000], f32[10,1000])) -> (s32[], f32[10,1000], f32[10,1000]) {
  %p = (s32[], f32[10,1000]{1,0}, f32[10,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %out = f32[10,1000]{1,0} get-tuple-element(%p), index=1
  %all = f32[10,1000]{1,0} get-tuple-element(%p), index=2
  %step = (f32[10,1000]{1,0}, f32[1000]{0}) fusion(%out, %all, %i), kind=kLoop, calls=%fused
  %stacked = f32[10,1000]{1,0} get-tuple-element(%step), index=0
  %h = f32[1000]{0} get-tuple-element(%step), index=1
  %doubled = f32[1000]{0} add(%h, %h)
  ROOT %again = (s32[], f32[10,1000]{1,0}, f32[10,1000]{1,0}) tuple(%i, %stacked, %all)
}

%condition (p: (s32[], f32[10,1000], f32[10,1000])) -> pred[] {
  %p = (s32[], f32[10,1000]{1,0}, f32[10,1000]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (p: (s32[], f32[10,1000], f32[10,1000])) -> f32[10,1000] {
  %p = (s32[], f32[10,1000]{1,0}, f32[10,1000]{1,0}) parameter(0)
  %loop = (s32[], f32[10,1000]{1,0}, f32[10,1000]{1,0}) while(%p), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %result = f32[10,1000]{1,0} get-tuple-element(%loop), index=1
}
'''  # noqa: E501


def entry(lines: str, more: str = '') -> kernels.Work:
  return kernels.work(hlo.parse(f'{more}\nENTRY %main () -> f32[] {{\n{lines}\n}}\n'))


def program(f, *args) -> kernels.Work:
  return kernels.work(hlo.parse(jax.jit(f).lower(*args).compile().as_text()))


def test_a_fusion_in_a_loop_moves_slices_as_often_as_the_loop_runs():
  """Ten times: the fusion reads a row and the index, and writes the row twice; the sum: 2 rows."""
  work = kernels.work(hlo.parse(LOOP))
  fusion, add = work.kernels
  assert (fusion.times, fusion.bytes) == (10, 4000 + 4 + 4000 + 4000)
  assert (add.times, add.bytes) == (10, 2 * 4000)
  assert work.bytes == 10 * 20004 and work.launches == 20 and work.unknown_loops == ()


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  work = kernels.work(hlo.parse(LOOP.replace('{"known_trip_count":{"n":"10"}}', '{}')))
  assert work.bytes == 20004 and work.unknown_loops == ('loop',)


def test_an_array_that_is_made_anew_is_written_whole():
  """The update of a sum is no update in place: 40,000 bytes are read twice and written."""
  for other in ('negate(%q0)', 'copy(%q0)'):
    made = LOOP.replace('bitcast(%q0)', other)
    assert kernels.work(hlo.parse(made)).kernels[0].bytes == 40000 + 4000 + 4 + 40000 + 4000


@pytest.mark.parametrize('groups,size', [
    ('{{0,1,2,3},{4,5,6,7}}', 4), ('[4,2]<=[8]', 2), ('[2,4]<=[4,2]T(1,0)', 4), ('{}', 0),
    ("mesh['a'=2,'b'=4] {'b'}", 4), ("mesh['a'=2,'b'=4] {'a', 'b'}", 8),
    ("mesh['a'=8] {'a':(1)2}", 2)])
def test_the_devices_that_take_part_in_a_collective_are_read_in_each_notation(groups, size):
  work = entry(f'''  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add''')
  assert work.collectives == (Collective('all-reduce', (32,), 1, size),)


@pytest.mark.parametrize('line,moved', [
    ('dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,1000}', 2 * 4000),
    ('slice(%x), slice={[0:1], [0:1000]}', 2 * 4000),
])
def test_a_slice_alone_reads_and_writes_itself(line, moved):
  work = entry(f'''  %x = f32[10,1000]{{1,0}} parameter(0)
  %i = s32[] parameter(1)
  ROOT %y = f32[1,1000]{{1,0}} {line}''')
  assert work.bytes == moved


def test_what_is_updated_in_place_moves_the_update_alone():
  work = entry('''  %x = f32[10,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[10,1000]{1,0} dynamic-update-slice(%x, %u, %i, %i)''')
  assert work.bytes == 2 * 4000


def test_names_of_memory_are_no_kernels_and_move_nothing():
  work = entry('''  %x = f32[1000]{0} parameter(0)
  %t = (f32[1000]{0}, f32[1000]{0}) tuple(%x, %x)
  %y = f32[1000]{0} get-tuple-element(%t), index=0
  ROOT %z = f32[10,100]{1,0} bitcast(%y)''')
  assert work.kernels == ()


def test_the_memory_of_the_core_is_not_the_main_memory_and_a_pair_is_one_kernel():
  """A TPU fetches 16 x 100 numbers, padded to 16 x 128, before a fusion reads them nearby."""
  work = entry('''  %x = bf16[16,100]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[16,100]{1,0:T(8,128)(2,1)S(1)}, bf16[16,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %near = bf16[16,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  ROOT %y = bf16[16,100]{1,0:T(8,128)(2,1)} add(%near, %near)''')  # noqa: E501
  assert [k.bytes for k in work.kernels] == [4096, 0, 4096] and work.launches == 2


def test_a_slice_that_is_fetched_beside_other_work_reads_itself():
  work = entry('''  %x = f32[32,8,128]{2,1,0:T(8,128)} parameter(0)
  %start = ((f32[32,8,128]{2,1,0:T(8,128)}), f32[4,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:4], [0:8], [0:128]}
  ROOT %near = f32[4,8,128]{2,1,0:T(8,128)S(1)} slice-done(%start)''')  # noqa: E501
  assert [(k.kind, k.bytes) for k in work.kernels] == [('slice', 4 * 4 * 8 * 128), ('slice', 0)]


CONVOLUTIONS = {
    '__cudnn$convForward': ('%x, %k', 'bf16[4,8,8,64]{3,2,1,0}'),
    '__cudnn$convBackwardInput': ('%y, %k', 'bf16[4,8,8,16]{3,2,1,0}'),
    '__cudnn$convBackwardFilter': ('%x, %y', 'bf16[64,3,3,16]{3,2,1,0}'),
}


@pytest.mark.parametrize('target', CONVOLUTIONS)
def test_a_convolution_of_cudnn_and_both_its_gradients_have_the_same_products(target):
  """3 taps along 8 pixels: 22 pairs inside the image, so 22^2 products for each pair of channels.

  Bytes: operands, result and the scratch memory of the library.
  """
  operands, result = CONVOLUTIONS[target]
  work = entry(f'''  %x = bf16[4,8,8,16]{{3,2,1,0}} parameter(0)
  %k = bf16[64,3,3,16]{{3,2,1,0}} parameter(1)
  %y = bf16[4,8,8,64]{{3,2,1,0}} parameter(2)
  ROOT %c = ({result}, u8[512]{{0}}) custom-call({operands}), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="{target}", backend_config={{"operation_queue_id":"0"}}''')  # noqa: E501
  assert work.flop == 2 * 4 * 16 * 64 * 22**2
  assert work.unknown_calls == {}
  assert work.bytes == 2 * (4 * 64 * 16 + 64 * 9 * 16 + 4 * 64 * 64) + 512


def test_a_matrix_product_of_cublas_is_known_and_other_calls_are_named():
  work = entry('''  %a = bf16[2,30,50]{2,1,0} parameter(0)
  %b = bf16[2,50,70]{2,1,0} parameter(1)
  %c = (bf16[2,30,70]{2,1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  ROOT %d = f32[] custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"''')  # noqa: E501
  assert work.flop == 2 * 2 * 30 * 50 * 70
  assert work.unknown_calls == {'__cudnn$fmhaSoftmax': 1}


def test_zeros_between_the_numbers_are_no_products():
  """The gradient of a convolution with stride 2.  The numbers lie at the places 0, 2, 4 and 6.

  Result i meets the places i - 1, i and i + 1.  So the results meet 1, 2, 1, 2, 1, 2, 1, 1 numbers.
  """
  work = entry('''  %x = f32[1,4,1]{2,1,0} parameter(0)
  %k = f32[3,1,1]{2,1,0} parameter(1)
  ROOT %y = f32[1,8,1]{2,1,0} convolution(%x, %k), window={size=3 pad=1_2 lhs_dilate=2}, dim_labels=b0f_0io->b0f''')  # noqa: E501
  assert work.flop == 2 * 11


def test_collectives_are_found_in_fusions_and_at_the_end_of_pairs():
  work = entry('''  %x = f32[8]{0} parameter(0)
  %both = f32[8]{0} fusion(%x), kind=kCustom, calls=%sum
  %start = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %part = f32[2]{0} reduce-scatter-done(%start)
  %wrapped = ((f32[2]{0}), f32[8]{0}, s32[]) async-start(%part), calls=%gather
  ROOT %whole = f32[8]{0} async-done(%wrapped), calls=%gather''', more='''
%sum (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %all = f32[8]{0} all-reduce(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%gather (b: f32[2]) -> f32[8] {
  %b = f32[2]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%b), replica_groups={}, dimensions={0}
}
''')  # noqa: E501
  assert list(work.collectives) == [
      Collective('all-reduce', (32,), 1, 4), Collective('reduce-scatter', (32,), 1, 4),
      Collective('all-gather', (32,), 1, 0)]
  assert {k.kind for k in work.kernels} == {'collective'}


def test_a_sum_of_which_a_tpu_keeps_a_slice_is_a_reduce_scatter():
  """Of the padded 192 x 64 numbers, a device keeps 192 x 8."""
  work = entry('''  %x = bf16[192,48]{0,1:T(8,128)(2,1)} parameter(0)
  ROOT %part = bf16[192,8]{0,1:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter''', more='''
%all-reduce-scatter (input: bf16[192,48]) -> bf16[192,8] {
  %input = bf16[192,48]{0,1:T(8,128)(2,1)} parameter(0)
  %zero = bf16[] constant(0)
  %pad = bf16[192,64]{0,1:T(8,128)(2,1)} pad(%input, %zero), padding=0_0x0_16
  %sum = bf16[192,64]{0,1:T(8,128)(2,1)} all-reduce(%pad), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %first = u32[] constant(0)
  %id = u32[] partition-id()
  %size = u32[] constant(8)
  %at = u32[]{:T(128)} multiply(%id, %size)
  ROOT %own = bf16[192,8]{0,1:T(8,128)(2,1)} dynamic-slice(%sum, %first, %at), dynamic_slice_sizes={192,8}
}
''')  # noqa: E501
  assert work.collectives == (Collective('reduce-scatter', (2 * 192 * 64,), 1, 8),)


def test_an_update_beside_other_work_moves_the_update_alone():
  work = entry('''  %x = f32[10,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %start = (f32[10,1000]{1,0}, u32[]) dynamic-update-slice-start(%x, %u, %i, %i)
  ROOT %y = f32[10,1000]{1,0} dynamic-update-slice-done(%start)''')
  assert [k.bytes for k in work.kernels] == [4000, 4000] and work.launches == 1


def test_a_collective_beside_the_work_of_several_fusions_is_one():
  """As on TPUs: two fusions make the collective of channel 7 together, one of them in a loop."""
  fused = lambda name, channel: f'''
%{name} (a: bf16[2]) -> bf16[8] {{
  %a = bf16[2]{{0}} parameter(0)
  ROOT %g = bf16[8]{{0}} all-gather(%a), channel_id={channel}, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
}}
'''  # noqa: E501
  loop = '''
%body (p: bf16[2]) -> bf16[2] {
  %p = bf16[2]{0} parameter(0)
  %second = bf16[8]{0} fusion(%p), kind=kCustom, calls=%two
  ROOT %same = bf16[2]{0} bitcast(%p)
}

%condition (p: bf16[2]) -> pred[] {
  %p = bf16[2]{0} parameter(0)
  ROOT %less = pred[] constant(true)
}
'''
  work = entry('''  %x = bf16[2]{0} parameter(0)
  %first = bf16[8]{0} fusion(%x), kind=kCustom, calls=%one
  %loop = bf16[2]{0} while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"32"}}
  ROOT %third = bf16[8]{0} fusion(%x), kind=kCustom, calls=%three''',  # noqa: E501
               fused('one', 7) + fused('two', 7) + fused('three', 8) + loop)
  assert work.collectives == (Collective('all-gather', (16,), 1, 4),) * 2


# ------------------------------------------------------- programs of this machine


def test_a_matrix_product_in_a_loop_is_counted_as_often_as_the_loop_runs():
  a = jnp.ones((64, 64))
  once = program(lambda a, b: a @ b, a, a)
  assert once.flop == 2 * 64**3
  many = program(lambda a, b: jax.lax.scan(lambda h, _: (h @ b, None), a, length=5)[0], a, a)
  assert many.flop == 5 * 2 * 64**3


def test_a_product_moves_its_operands_and_its_result():
  work = program(lambda a, b: a @ b, jnp.ones((256, 512)), jnp.ones((512, 128)))
  assert work.bytes == 4 * (256 * 512 + 512 * 128 + 256 * 128)


def test_a_chain_of_operations_on_numbers_is_one_kernel():
  work = program(lambda x: jnp.tanh(jnp.sin(x) * 2.0 + 1.0), jnp.ones((1000, 100)))
  assert work.launches == 1 and work.bytes == 2 * 4 * 100_000 and work.flop == 0


@pytest.mark.parametrize('stride', [1, 2])
def test_the_convolutions_of_a_gradient_are_counted_as_xla_counts_them(stride):
  """XLA's count of the program before it is compiled has only these products at this size."""
  def loss(x, k):
    y = jax.lax.conv_general_dilated(x, k, (stride, stride), 'SAME',
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jnp.vdot(y, y)
  args = jnp.ones((2, 12, 12, 32)), jnp.ones((3, 3, 32, 32))
  step = jax.jit(jax.grad(loss, (0, 1)))
  counted = step.lower(*args).cost_analysis()['flops']
  np.testing.assert_allclose(program(jax.grad(loss, (0, 1)), *args).flop, counted, rtol=0.01)


def test_stacking_in_a_loop_moves_rows_and_not_the_whole_stack():
  """50 rows of 4,000 bytes: a few rows each time, beside filling and copying the stack once."""
  def f(x):
    return jax.lax.scan(lambda h, _: (jnp.sin(h), h), x, length=50)[1]
  stack = 50 * 4000
  moved = program(f, jnp.ones(1000)).bytes
  assert 2 * stack <= moved <= 12 * stack < 50 * 2 * stack


# ---------------------------------------------------------------------- rooflines


def test_a_roofline_sums_the_longer_time_of_each_kernel():
  """At 10 FLOP/s and 5 bytes/s: 2 s and 1 s of one kernel, twice; no FLOP and 3 s of the other."""
  some = [kernels.Kernel('a', 'product', 2, 20.0, 5, ''),
          kernels.Kernel('b', 'add', 1, 0.0, 15, '')]
  roof = kernels.roofline(some, 10.0, 5.0)
  assert (roof.arithmetic, roof.memory, roof.summed, roof.longest) == (4.0, 5.0, 9.0, 7.0)
