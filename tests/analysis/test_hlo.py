"""FLOPs counted in HLO texts: of functions compiled here, and of excerpts of what libtpu 0.0.42 made for a v5e chip."""

import jax
import jax.numpy as jnp
import pytest

from mom_jax.analysis import hlo

ROWS, WIDTH, LAYERS = 32, 16, 7
ONE = 2 * ROWS * WIDTH * WIDTH  # FLOPs of x · w


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


X, W, STACK = shape(ROWS, WIDTH), shape(WIDTH, WIDTH), shape(LAYERS, WIDTH, WIDTH)


def layers(x: jax.Array, stack: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(jnp.matmul(x, w)), None), x, stack)[0]


def nested(x: jax.Array, stack: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, x: layers(x, stack), x)


def cond(flag: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    once = lambda x: jnp.matmul(x, w)  # noqa: E731
    return jax.lax.cond(flag, lambda x: jnp.tanh(once(x)), lambda x: once(jnp.tanh(once(x))), x)


def gradient(x: jax.Array, stack: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.grad(lambda x, stack: layers(x, stack).sum(), argnums=(0, 1))(x, stack)


def batched(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("bld,bmd->blm", a, b)


def until(limit: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, limit, lambda _, x: jnp.tanh(jnp.matmul(x, w)), x)


COMPILED = {
    "plain": (jnp.matmul, (X, W), ONE),
    "batched": (batched, (shape(5, 8, 16), shape(5, 24, 16)), 2 * 5 * 8 * 24 * 16),
    "scan": (layers, (X, STACK), LAYERS * ONE),
    "nested": (nested, (X, STACK), 3 * LAYERS * ONE),
    "cond": (cond, (jax.ShapeDtypeStruct((), jnp.bool_), X, W), 2 * ONE),
    "gradient": (gradient, (X, STACK), 3 * LAYERS * ONE),
}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_on_the_cpu(name):
    function, arguments, flops = COMPILED[name]
    counted = hlo.count(jax.jit(function).lower(*arguments).compile().as_text())
    assert counted == hlo.HloCost(flops, (), ())


@pytest.mark.usefixtures("optimised")
def test_trips_that_depend_on_data_are_reported():
    text = jax.jit(until).lower(jax.ShapeDtypeStruct((), jnp.int32), X, W).compile().as_text()
    counted = hlo.count(text)
    assert counted.flops == ONE
    assert len(counted.unknown_loops) == 1


@pytest.mark.parametrize(
    ("contract", "ragged", "group", "rhs", "flops"),
    [
        ((1, 1), 0, [0], shape(4, WIDTH, 24), 2 * ROWS * WIDTH * 24),
        ((0, 0), 0, [], shape(ROWS, 24), 2 * ROWS * WIDTH * 24),
    ],
    ids=["rows of groups", "sums over groups"],
)
def test_ragged_dot_counts_each_row_once(contract, ragged, group, rhs, flops):
    numbers = jax.lax.RaggedDotDimensionNumbers((((contract[0],), (contract[1],)), ((), ())), [ragged], group)

    def product(lhs, rhs, sizes):
        return jax.lax.ragged_dot_general(lhs, rhs, sizes, numbers)

    # Before optimisation: a CPU has no such instruction.
    lowered = jax.jit(product).trace(X, rhs, jax.ShapeDtypeStruct((4,), jnp.int32)).lower(lowering_platforms=("tpu",))
    text = lowered.as_text(dialect="hlo")
    assert " ragged-dot(" in text
    assert hlo.count(text).flops == flops


def test_another_text_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.count("HloModule nothing\n")


# A fori_loop of 3 around a scan of 7 over bf16 [8, 128] · [128, 128], abridged. The TPU compiler writes no trip counts
# and hands constants into loops, here the scan's length.
LOOPS = """HloModule jit__lambda, is_scheduled=true

FileNames
1 "/tmp/loops.py"

%fused (param_0.13: bf16[8,128], param_1.14: bf16[7,128,128], param_2.9: s32[]) -> bf16[8,128] {
  %param_0.13 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.14 = bf16[7,128,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %param_2.9 = s32[]{:T(128)S(6)} parameter(2)
  %constant.29 = s32[]{:T(128)} constant(0), metadata={op_name="jit(<lambda>)/while/body" stack_frame_id=9}
  %slice = bf16[1,128,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_1.14, %param_2.9, %constant.29, %constant.29)
  %bitcast.8 = bf16[128,128]{1,0:T(8,128)(2,1)} bitcast(%slice)
  %convolution.5 = bf16[8,128]{1,0:T(8,128)(2,1)} convolution(%param_0.13, %bitcast.8), dim_labels=bf_io->bf
  ROOT %tanh.4 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} tanh(%convolution.5)
}

%inner_body (wide.arg_tuple.1: (s32[], bf16[8,128], bf16[7,128,128], s32[])) -> (s32[], bf16[8,128], s32[]) {
  %constant.21 = s32[]{:T(128)} constant(1)
  %arg.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}, bf16[7,128,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %element.74 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %copy.2 = s32[]{:T(128)S(6)} copy(%element.74), backend_config={"flag_configs":[]}
  %add.5 = s32[]{:T(128)} add(%copy.2, %constant.21)
  %element.81 = s32[]{:T(128)} get-tuple-element(%arg.1), index=3
  %element.80 = bf16[7,128,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg.1), index=2
  %element.75 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg.1), index=1
  %fusion.13 = bf16[8,128]{1,0} fusion(%element.75, %element.80, %copy.2), kind=kOutput, calls=%fused
  ROOT %tuple.24 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) tuple(%add.5, %fusion.13, %element.80, %element.81)
}

%inner_test (wide.arg_tuple.4: (s32[], bf16[8,128], bf16[7,128,128], s32[])) -> pred[] {
  %arg.4 = (s32[]{:T(128)}, bf16[8,128]{1,0}, bf16[7,128,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %element.30 = s32[]{:T(128)} get-tuple-element(%arg.4), index=0
  %element.31 = s32[]{:T(128)} get-tuple-element(%arg.4), index=3
  ROOT %lt.0 = pred[]{:T(512)} compare(%element.30, %element.31), direction=LT
}

%outer_body (wide.arg_tuple.0: (s32[], bf16[8,128], bf16[7,128,128], s32[])) -> (s32[], bf16[8,128], s32[]) {
  %constant.13 = s32[]{:T(128)} constant(0)
  %constant.22 = s32[]{:T(128)} constant(1)
  %arg.0 = (s32[]{:T(128)}, bf16[8,128]{1,0}, bf16[7,128,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %copy.15 = s32[]{:T(128)} copy(%constant.13)
  %element.88 = s32[]{:T(128)} get-tuple-element(%arg.0), index=0
  %add.4 = s32[]{:T(128)} add(%element.88, %constant.22)
  %element.97 = s32[]{:T(128)} get-tuple-element(%arg.0), index=3
  %element.96 = bf16[7,128,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg.0), index=2
  %element.89 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%arg.0), index=1
  %tuple.22 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) tuple(%copy.15, %element.89, %element.96, %element.97)
  %while.11 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) while(%tuple.22), condition=%inner_test, body=%inner_body
  %element.95 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.11), index=1
  ROOT %tuple.27 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) tuple(%add.4, %element.95, %element.96, %element.97)
}

%outer_test (wide.arg_tuple.7: (s32[], bf16[8,128], bf16[7,128,128], s32[])) -> pred[] {
  %constant.25 = s32[]{:T(128)} constant(3)
  %arg.7 = (s32[]{:T(128)}, bf16[8,128]{1,0}, bf16[7,128,128]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %element.43 = s32[]{:T(128)} get-tuple-element(%arg.7), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%element.43, %constant.25), direction=LT
}

ENTRY %main.8 (x.1: bf16[8,128], ws.1: bf16[7,128,128]) -> bf16[8,128] {
  %constant.12 = s32[]{:T(128)} constant(0)
  %constant.7 = s32[]{:T(128)} constant(7)
  %ws.1 = bf16[7,128,128]{2,1,0:T(8,128)(2,1)} parameter(1), sharding={replicated}, metadata={op_name="ws"}
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}, metadata={op_name="x"}
  %start.1 = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x.1)
  %done.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%start.1)
  %start.7 = (s32[]{:T(128)}, s32[]{:T(128)}, u32[]{:S(2)}) copy-start(%constant.7)
  %done.7 = s32[]{:T(128)} copy-done(%start.7)
  %tuple.29 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) tuple(%constant.12, %done.1, %ws.1, %done.7)
  %while.10 = (s32[], bf16[8,128], bf16[7,128,128], s32[]) while(%tuple.29), condition=%outer_test, body=%outer_body
  ROOT %element.101 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.10), index=1
}
"""


def test_tpu_loops_without_trip_counts():
    assert hlo.count(LOOPS) == hlo.HloCost(3 * 7 * 2 * 8 * 128 * 128, (), ())


def test_a_written_trip_count_wins():
    text = LOOPS.replace("body=%outer_body", 'body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}')
    assert hlo.count(text).flops == 5 * 7 * 2 * 8 * 128 * 128


def test_kernels_in_loops_run_as_often():
    kernel = 'custom-call(%element.75), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/mine"}'
    plain = "fusion(%element.75, %element.80, %copy.2), kind=kOutput, calls=%fused"
    assert plain in LOOPS
    (call,) = hlo.count(LOOPS.replace(plain, kernel)).custom_calls
    assert (call.name, call.count) == ("jit(f)/mine", 3 * 7)


def entry(*instructions: str) -> str:
    return "\n".join(("HloModule excerpt", "", "ENTRY %main {", *(f"  {line}" for line in instructions), "}", ""))


def test_a_batched_product_is_a_dilated_convolution():
    # The gradient of ragged_dot's kernels [8, 256, 1024] over 2048 rows: eight times the products that are needed.
    masked = entry(
        "%fusion.2 = bf16[8,2048,256]{2,1,0:T(8,128)(2,1)} parameter(0)",
        "%fusion.3 = bf16[8,2048,1024]{2,1,0:T(8,128)(2,1)} parameter(1)",
        "ROOT %convolution-base-dilated = bf16[8,256,1024]{2,1,0:T(8,128)(2,1)} convolution(%fusion.2, %fusion.3), "
        "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0fb_0io->0bf",
    )
    assert hlo.count(masked).flops == 8 * 2 * 2048 * 256 * 1024


@pytest.mark.parametrize("groups", [1, 32])
def test_a_convolution_skips_its_padding(groups):
    convolution = entry(
        "%x = f32[2,16,16,128]{3,2,1,0} parameter(0)",
        f"%k = f32[3,3,{128 // groups},64]{{3,2,1,0}} parameter(1)",
        "ROOT %c = f32[2,16,16,64]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, "
        f"dim_labels=b01f_01io->b01f, feature_group_count={groups}",
    )
    assert hlo.count(convolution).flops == 2 * 2 * (128 // groups) * 64 * (3 * 16 - 2) ** 2


TILES = (
    "%n = s32[1]{0:T(128)} parameter(0)",
    "%ends = s32[9]{0:T(128)} parameter(1)",
    "%groups = s32[23]{0:T(128)S(1)} parameter(2)",
    "%tiles = s32[23]{0:T(128)S(1)} parameter(3)",
    "%x = bf16[2048,256]{1,0:T(8,128)(2,1)} parameter(4)",
    "%w = bf16[8,256,1024]{2,1,0:T(8,128)(2,1)} parameter(5)",
    "%dy = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(6)",
)
NEEDED = 2 * 2048 * 256 * 1024


@pytest.mark.parametrize(
    ("result", "operands", "name"),
    [
        ("bf16[2048,1024]", "%n, /*index=5*/%x, %w", "jit(f)/ragged_dot_general/ragged-dot-none"),
        ("bf16[2048,1024]", "%n, %x, %w", "jit(f)/jvp()/shard_map/jit(gmm)/pallas_call"),
        ("bf16[2048,256]", "%n, %dy, %w", "jit(f)/transpose(jvp())/jit(gmm)/pallas_call"),
        ("bf16[8,256,1024]", "%n, %x, %dy", "jit(f)/transpose(jvp())/jit(tgmm)/pallas_call"),
    ],
)
def test_grouped_kernels(result, operands, name):
    call = (
        f"ROOT %call.2 = {result}{{1,0}} custom-call(%n, %ends, %groups, %tiles, {operands}), "
        f'custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{}}}}, '
        f'metadata={{op_name="{name}" stack_frame_id=15}}'
    )
    counted = hlo.count(entry(*TILES, call))
    (kernel,) = counted.custom_calls
    assert (kernel.name, kernel.count, kernel.results) == (name, 1, (result,))
    assert (counted.flops, counted.kernel_flops, counted.unknown_kernels) == (0, NEEDED, ())
    # 16 tiles of 128 rows, and up to 7 that a second module visits.
    assert counted.most_kernel_flops == NEEDED * 23 // 16


def splash(phase: str, length: int, block: int, *, places: bool, fused: bool = False) -> hlo.HloCost:
    qkv = f"bf16[8,4,{length},64]{{3,2,1,0:T(8,128)(2,1)}}"
    suffix = "" if phase == "fwd" else f"_{phase}"
    sizes = f'{{\\"block_q{suffix}\\": {block}, \\"block_kv{suffix}\\": {block}, \\"use_fused_bwd_kernel\\": '
    # Such metadata is written over several lines.
    metadata = f'{{kernel_metadata={{\n"xprof_metadata":"{sizes}{str(fused).lower()}}}"\n}}}}'
    return hlo.count(
        entry(
            "%mask = s8[1,8,8]{2,1,0} parameter(0)",
            f"%q = {qkv} parameter(1)",
            f"%places = s32[{length},128]{{1,0:T(8,128)}} parameter(2)",
            f"ROOT %s.1 = {qkv} custom-call(%mask, %q, %q, /*index=3*/%q{', %places' * places}), "
            f'custom_call_target="tpu_custom_call", frontend_attributes={metadata}, '
            f'metadata={{op_name="jit(f)/splash_mha_{phase}_no_residuals/pallas_call"}}',
        )
    )


@pytest.mark.parametrize(("phase", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_splash_attention(phase, products):
    pairs = 8 * 4 * 1024 * 1024
    assert splash(phase, 1024, 128, places=False).kernel_flops == products * 2 * 64 * pairs
    # Of 8 x 8 blocks, 36 have something on or below the diagonal.
    assert splash(phase, 1024, 128, places=True).kernel_flops == products * 2 * 64 * pairs * 36 // 64
    assert splash(phase, 1024, 1024, places=True).kernel_flops == products * 2 * 64 * pairs


def test_splash_attention_with_one_kernel_for_all_gradients():
    assert splash("dkv", 256, 256, places=True, fused=True).kernel_flops == 5 * 2 * 64 * 8 * 4 * 256 * 256


def test_other_kernels_are_listed_as_unknown():
    rest = 'custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/mine"}'
    counted = hlo.count(
        entry(
            "%x = f32[8,128]{1,0} parameter(0)",
            f"%a = f32[8,128]{{1,0}} custom-call(%x), {rest}",
            f"%b = f32[8,128]{{1,0}} custom-call(%a), {rest}",
            'ROOT %c = f32[8,128]{1,0} custom-call(%b, %x), custom_call_target="ConcatBitcast", '
            'metadata={op_name="jit(gmm)/gather"}',
        )
    )
    mine = hlo.CustomCall("tpu_custom_call", "jit(f)/mine", ("f32[8,128]",), ("f32[8,128]",), 2, None, None)
    assert counted.custom_calls[0] == mine
    assert [call.target for call in counted.custom_calls] == ["tpu_custom_call", "ConcatBitcast"]
    assert counted.custom_calls[1].flops is None
    assert counted.unknown_kernels == (mine,)
