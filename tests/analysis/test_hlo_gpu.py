"""Products of a GPU's program, and large arrays that its loops make, in short texts of the form that XLA writes."""

import pytest

from mom_jax.analysis import hlo

FMHA = (
    '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "64", "64"], "tuple_shapes": []}, '
    '"mask_type": "%s"'
)


def program(line, parameters):
    shapes = "\n".join(f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(parameters))
    names = ", ".join(f"%p{i}" for i in range(len(parameters)))
    return f"HloModule m\n\nENTRY %main () -> f32[] {{\n{shapes}\n  ROOT %r = {line.format(operands=names)}\n}}\n"


@pytest.mark.parametrize(
    ("line", "parameters", "flops"),
    [
        (
            '(f32[2,8,16]{{2,1,0}}, s8[64]{{0}}) custom-call({operands}), custom_call_target="__cublas$lt$matmul", '
            'backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{{"lhs_contracting_dimensions":["2"],'
            '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}}}}',
            ["bf16[2,8,32]{2,1,0}", "bf16[2,32,16]{2,1,0}"],
            2 * 2 * 8 * 16 * 32,
        ),
        (
            'bf16[256,48]{{1,0}} custom-call({operands}), custom_call_target="mosaic_gpu_v2", '
            'metadata={{op_name="jit(f)/while/body/grouped_product/body/mpmd_map"}}',
            ["s32[2]{0}", "s32[1]{0}", "bf16[256,32]{1,0}", "bf16[3,32,48]{2,1,0}"],
            2 * 256 * 32 * 48,
        ),
        (
            'bf16[256,32]{{1,0}} custom-call({operands}), custom_call_target="__gpu$xla.gpu.triton", '
            'metadata={{op_name="jit(f)/grouped_product_transposed/pallas_call"}}',
            ["s32[2]{0}", "s32[1]{0}", "bf16[256,48]{1,0}", "bf16[3,32,48]{2,1,0}"],
            2 * 256 * 32 * 48,
        ),
        (
            "(f32[3,32,48]{{2,1,0}}, f32[3,48]{{1,0}}) custom-call({operands}), "
            'custom_call_target="__gpu$xla.gpu.triton", metadata={{op_name="jit(f)/grouped_gradient/pallas_call"}}',
            [
                "s32[3]{0}",
                "s32[3]{0}",
                "bf16[256,32]{1,0}",
                "bf16[256,48]{1,0}",
                "f32[3,32,48]{2,1,0}",
                "f32[3,48]{1,0}",
            ],
            2 * 256 * 32 * 48,
        ),
        (
            'bf16[2,64,4,16]{{3,2,1,0}} custom-call({operands}), custom_call_target="__gpu$xla.gpu.triton", '
            'metadata={{op_name="jit(f)/attention/mha_forward/pallas_call"}}',
            ["bf16[2,64,4,16]{3,2,1,0}"] * 3,
            2 * 2 * 2 * 4 * 64 * 64 * 16 // 2,
        ),
        (
            "(bf16[2,64,4,16]{{3,2,1,0}}, bf16[2,64,4,16]{{3,2,1,0}}, bf16[2,64,4,16]{{3,2,1,0}}) "
            'custom-call({operands}), custom_call_target="__gpu$xla.gpu.triton", '
            'metadata={{op_name="jit(f)/attention/mha_backward/pallas_call"}}',
            ["bf16[2,64,4,16]{3,2,1,0}"] * 5,
            7 * 2 * 2 * 4 * 64 * 64 * 16 // 2,
        ),
    ],
)
def test_calls_are_counted_by_their_shapes(line, parameters, flops):
    counted = hlo.count(program(line, parameters))
    assert counted.kernel_flops == flops
    assert not counted.unknown_kernels


@pytest.mark.parametrize(
    ("target", "mask", "flops"),
    [
        ("__cudnn$fmhaSoftmax", "CAUSAL", 2 * 2 * 2 * 4 * 64 * 64 * 16 // 2),
        ("__cudnn$fmhaSoftmax", "NO_MASK", 2 * 2 * 2 * 4 * 64 * 64 * 16),
        ("__cudnn$fmhaSoftmaxBackward", "CAUSAL", 5 * 2 * 2 * 4 * 64 * 64 * 16 // 2),
    ],
)
def test_cudnns_attention(target, mask, flops):
    config = FMHA % mask
    line = f'bf16[2,4,64,16]{{{{3,1,2,0}}}} custom-call({{operands}}), custom_call_target="{target}", '
    line += f"backend_config={{{{{config.replace('{', '{{').replace('}', '}}')}}}}}"
    assert hlo.count(program(line, ["bf16[2,64,4,16]{3,2,1,0}"] * 3)).kernel_flops == flops


def test_a_kernel_that_is_not_known_is_named():
    line = 'f32[8,8]{{1,0}} custom-call({operands}), custom_call_target="mosaic_gpu_v2", '
    line += 'metadata={{op_name="jit(f)/other"}}'
    (unknown,) = hlo.count(program(line, ["f32[8,8]{1,0}"])).unknown_kernels
    assert unknown.name == "jit(f)/other"


LOOP = """HloModule m

%body (state: (s32[], f32[4,64])) -> (s32[], f32[4,64]) {
  %state = (s32[], f32[4,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %pool = f32[4,64]{1,0} get-tuple-element(%state), index=1
  %kept = f32[4,64]{1,0} custom-call(%pool), custom_call_target="k", output_to_operand_aliasing={{}: (0, {})}
  %cast = bf16[4,64]{1,0} convert(%kept), metadata={op_name="jit(f)/while/body/convert_element_type"}
  %small = f32[4,8]{1,0} slice(%kept), slice={[0:4], [0:8]}
  ROOT %next = (s32[], f32[4,64]{1,0}) tuple(%i, %kept)
}

%condition (state: (s32[], f32[4,64])) -> pred[] {
  %state.1 = (s32[], f32[4,64]{1,0}) parameter(0)
  ROOT %go = pred[] constant(false)
}

ENTRY %main (pool: f32[4,64]) -> f32[4,64] {
  %pool.1 = f32[4,64]{1,0} parameter(0)
  %outside = f32[4,64]{1,0} negate(%pool.1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,64]{1,0}) tuple(%zero, %outside)
  %loop = (s32[], f32[4,64]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_large_arrays_that_loops_make():
    """Not what is made outside, nor what is small, handed on, or changed in place."""
    assert hlo.large_in_loops(LOOP, 256) == [("convert", "bf16[4,64]", "jit(f)/while/body/convert_element_type")]
    assert len(hlo.large_in_loops(LOOP, 32)) == 2
    assert hlo.large_in_loops(LOOP, 257) == []


@pytest.mark.parametrize(
    ("groups", "want"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("{}", None),
    ],
)
def test_the_members_of_groups(groups, want):
    assert hlo.members(groups) == want
