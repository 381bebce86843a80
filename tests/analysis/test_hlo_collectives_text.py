"""Collectives counted in HLO texts that are written here, after what libtpu 0.0.42 makes for a v5e and a TPU7x."""

import math

import pytest

from mom_jax.analysis import hlo


def module(*blocks, partitions=8):
    """An HLO text of computations, the last of which is the entry; a block is a header and instructions."""
    header = f"HloModule excerpt, is_scheduled=true, num_partitions={partitions}\n"
    written = ["\n".join((f"{head} {{", *(f"  {line}" for line in lines), "}")) for head, *lines in blocks]
    return "\n\n".join((header, *written[:-1], f"ENTRY {written[-1]}\n"))


X, Y = "bf16[64,128]{1,0:T(8,128)(2,1)}", "bf16[256,128]{1,0:T(8,128)(2,1)S(1)}"
CONTEXT = "u32[]{:S(2)}, u32[]{:S(2)}"
GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true"
ADD = (
    "%add (a: bf16[], b: bf16[]) -> bf16[]",
    "%a = bf16[] parameter(0)",
    "%b = bf16[] parameter(1)",
    "ROOT %sum = bf16[] add(%a, %b)",
)
MOVED = 2 * 64 * 128  # bytes of X


@pytest.mark.parametrize(
    ("start", "attributes", "result", "moved"),
    [
        (f"({X}, {Y}) all-gather-start", f"{GROUPS}, dimensions={{0}}", Y, 3 * MOVED),
        (f"{X} all-reduce-start", f"{GROUPS}, to_apply=%add", X, 2 * MOVED * 3 // 4),
        (f"(({Y}), {X}, {CONTEXT}) reduce-scatter-start", f"{GROUPS}, to_apply=%add", X, MOVED * 3 // 4),
        (f"(({X}), {X}, /*index=2*/{CONTEXT}) all-to-all-start", f"{GROUPS}, dimensions={{0}}", X, MOVED * 3 // 4),
        (f"({X}, {X}, {CONTEXT}) collective-permute-start", "source_target_pairs={{0,1},{1,2},{2,3}}", X, MOVED),
        (f"(({X}), {X}) collective-broadcast-start", GROUPS, X, MOVED),
    ],
)
def test_an_asynchronous_collective_counts_where_it_starts(start, attributes, result, moved):
    opcode = start.split()[-1].removesuffix("-start")
    entry = (
        "%main",
        f"%x = {X} parameter(0)",
        f'%started = {start}(%x), channel_id=1, {attributes}, metadata={{op_name="jit(f)/{opcode}"}}',
        f'ROOT %done = {result} {opcode}-done(%started), metadata={{op_name="jit(f)/{opcode}"}}',
    )
    (one,) = hlo.count(module(ADD, entry)).collectives
    assert (one.kind, one.count, one.group_size, one.bytes, one.op_name) == (opcode, 1, 4, moved, f"jit(f)/{opcode}")
    assert (one.operands, one.results) == (("bf16[64,128]",), (result.split("{")[0],))


def test_several_operands_at_a_time():
    entry = (
        "%main",
        f"%x = {X} parameter(0)",
        "%z = f32[32]{0:T(256)} parameter(1)",
        f"%started = (({X}, f32[32]), ({Y}, /*index=1*/f32[128]{{0:T(256)}})) all-gather-start(%x, %z), channel_id=1, "
        f"{GROUPS}, dimensions={{0}}",
        f"%done = ({Y}, f32[128]) all-gather-done(%started)",
        f"ROOT %sums = ({X}, f32[32]) all-reduce(%x, %z), channel_id=2, {GROUPS}, to_apply=%add",
    )
    gather, reduce = hlo.count(module(ADD, entry)).collectives
    assert gather.operands == reduce.operands == reduce.results == ("bf16[64,128]", "f32[32]")
    assert gather.results == ("bf16[256,128]", "f32[128]")
    assert (gather.bytes, reduce.bytes) == (3 * (MOVED + 128), 2 * (MOVED + 128) * 3 // 4)


@pytest.mark.parametrize("opcode", ["async", "call"])
def test_a_wrapped_collective_counts_once(opcode):
    # On the SparseCore a collective is a computation of its own, which may lack the name that its caller has.
    inner = (
        f"%wrapped (x: {X}, t: token[]) -> {Y}",
        f"%x = {X} parameter(0)",
        "%t = token[] parameter(1)",
        f"ROOT %gathered = {Y} all-gather(%x), channel_id=1, {GROUPS}, dimensions={{0}}, "
        'backend_config={"device_type":"DEVICE_TYPE_SPARSECORE"}',
    )
    calls = "to_apply" if opcode == "call" else "calls"
    entry = (
        "%main",
        f"%x = {X} parameter(0)",
        "%t = token[] after-all()",
        f'%started = (({X}, token[]), {Y}, {CONTEXT}) {opcode}-start(%x, %t), async_execution_thread="sparsecore", '
        f'{calls}=%wrapped, metadata={{op_name="jit(f)/all_gather" stack_frame_id=3}}',
        f"%going = (({X}, token[]), {Y}, {CONTEXT}) {opcode}-update(%started), {calls}=%wrapped",
        f"ROOT %done = {Y} {opcode}-done(%going), {calls}=%wrapped",
    )
    text = module(inner, entry)
    groups = "{{0,1,2,3},{4,5,6,7}}"
    shapes = ("bf16[64,128]",), ("bf16[256,128]",)
    want = hlo.Collective("all-gather", 1, 0, *shapes, 4, groups, 3 * MOVED, "jit(f)/all_gather")
    assert hlo.count(text).collectives == (want,)


def test_an_asynchronous_collective_fusion_counts_once():
    # The fusions that start a collective, compute meanwhile, and wait for it: each has a copy of it.
    flags = "S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}"
    state = f"({X}, {Y[:-5]}{flags})"
    gather = (
        f'all-gather(%p), channel_id=3, {GROUPS}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}, '
        'metadata={op_name="jit(f)/all_gather"}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}'
    )
    start = (
        f"%fused_computation.26 (p: {X}) -> {state}",
        f"%p = {X} parameter(0)",
        f"%gather.15 = {Y} {gather}",
        f'ROOT %call.2 = {state} custom-call(%gather.15), custom_call_target="AsyncCollectiveStart"',
    )
    step = (
        f"%async_collective_fusion.75 (p: {X}, q: {Y}, m: {X}) -> ({Y}, {Y})",
        f"%p = {X} parameter(0)",
        f"%q = {Y} parameter(1)",
        f"%m = {X} parameter(2)",
        f"%gather.17 = {Y} {gather}",
        "%product = bf16[64,64]{1,0} convolution(%m, %m), dim_labels=bf_oi->bf",
        f"ROOT %results = (bf16[64,64], {Y}) tuple(%product, %gather.17)",
    )
    done = (
        f"%fused_computation.28 (p: {X}, q: {Y}) -> {Y}",
        f"%p = {X} parameter(0)",
        f"%q = {Y} parameter(1)",
        f"%gather.19 = {Y} {gather}",
        f'ROOT %call.4 = {Y} custom-call(%p, %q, %gather.19), custom_call_target="AsyncCollectiveDone"',
    )
    entry = (
        "%main",
        f"%x = {X} parameter(0)",
        f"%started = {state} fusion(%x), kind=kCustom, calls=%fused_computation.26",
        f"%q = {Y} get-tuple-element(%started), index=1",
        f"%going = (bf16[64,64], {Y}) fusion(%x, %q, %x), kind=kOutput, calls=%async_collective_fusion.75",
        f"%next = {Y} get-tuple-element(%going), index=1",
        f"ROOT %done = {Y} fusion(%x, %next), kind=kCustom, calls=%fused_computation.28",
    )
    counted = hlo.count(module(start, step, done, entry))
    assert [(one.kind, one.count, one.bytes) for one in counted.collectives] == [("all-gather", 1, 3 * MOVED)]
    assert counted.flops == 2 * 64 * 64 * 128


SLICED = "%mine = bf16[64,128]{1,0} dynamic-slice(%seen, %at, %zero), dynamic_slice_sizes={64,128}"


@pytest.mark.parametrize(
    ("called", "use", "kind"),
    [
        ("fusion", SLICED, "reduce-scatter"),
        ("fusion", f"%mine = {Y} negate(%seen)", "all-reduce"),
        ("call", SLICED, "all-reduce"),
    ],
    ids=["slices in a fusion", "all of it", "slices of what has been sent"],
)
def test_a_fused_all_reduce_of_which_slices_are_used_is_a_reduce_scatter(called, use, kind):
    inner = (
        f"%all-reduce-scatter.clone.1 (input.5: {Y}) -> {X}",
        f"%input.5 = {Y} parameter(0)",
        "%at = s32[] parameter(1)",
        "%zero = s32[] constant(0)",
        f"%sum = {Y} all-reduce(%input.5), channel_id=4, {GROUPS}, to_apply=%add",
        f"%seen = {Y} bitcast(%sum)",
        f"ROOT {use}",
    )
    calls = "kind=kCustom, calls" if called == "fusion" else "to_apply"
    entry = (
        "%main",
        f"%x = {Y} parameter(0)",
        "%i = s32[] parameter(1)",
        f"ROOT %part = {X} {called}(%x, %i), {calls}=%all-reduce-scatter.clone.1",
    )
    (one,) = hlo.count(module(ADD, inner, entry)).collectives
    rounds, result = (1, "bf16[64,128]") if kind == "reduce-scatter" else (2, "bf16[256,128]")
    assert (one.kind, one.bytes, one.results) == (kind, rounds * 3 * MOVED, (result,))


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups={{0,1,2},{3}}", 3),
        ("replica_groups={{0},{1}}", 1),
        ("replica_groups={}", 8),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=[1,8]<=[8]", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_groups(attributes, size):
    entry = (
        "%main",
        f"%x = {X} parameter(0)",
        f"ROOT %sum = {X} all-reduce(%x), channel_id=1, {attributes}, use_global_device_ids=true, to_apply=%add",
    )
    (one,) = hlo.count(module(ADD, entry)).collectives
    assert (one.group_size, one.groups) == (size, attributes.partition("=")[2])
    assert one.bytes == math.ceil(2 * MOVED * (size - 1) / size)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("channel_id=1, replica_groups={{0}}, ", 8),
        ("channel_id=1, replica_groups={{0}}, use_global_device_ids=true, ", 1),
        ("replica_groups={{0}}, ", 1),
        ("replica_groups={}, ", 1),
    ],
)
def test_groups_of_replicas_that_have_partitions(attributes, size):
    entry = ("%main", f"%x = {X} parameter(0)", f"ROOT %sum = {X} all-reduce(%x), {attributes}to_apply=%add")
    (one,) = hlo.count(module(ADD, entry)).collectives
    assert one.group_size == size


@pytest.mark.parametrize(
    ("pairs", "size", "moved"),
    [("{{0,1},{1,0},{2,3}}", 2, MOVED), ("{{3,2},{0,1},{1,2}}", 4, MOVED), ("{{0,0},{1,1}}", 1, 0), ("{}", 1, 0)],
)
def test_groups_of_a_permute(pairs, size, moved):
    permute = f"ROOT %p = {X} collective-permute(%x), channel_id=1, source_target_pairs={pairs}"
    (one,) = hlo.count(module(("%main", f"%x = {X} parameter(0)", permute))).collectives
    assert (one.group_size, one.bytes, one.groups) == (size, moved, pairs)


def test_groups_that_are_not_understood_are_an_error():
    gather = f"ROOT %p = {Y} all-gather(%x), channel_id=1, replica_groups=ring(8), dimensions={{0}}"
    with pytest.raises(ValueError, match="groups of p are not understood"):
        hlo.count(module(("%main", f"%x = {X} parameter(0)", gather)))


@pytest.mark.parametrize(
    ("kind", "bits"), [("pred", 8), ("s4", 4), ("f8e4m3fn", 8), ("bf16", 16), ("u32", 32), ("c64", 64), ("f64", 64)]
)
def test_bytes_by_element_type(kind, bits):
    permute = f"ROOT %p = {kind}[3,40] collective-permute(%x), source_target_pairs={{{{0,1}}}}"
    (one,) = hlo.count(module(("%main", f"%x = {kind}[3,40] parameter(0)", permute))).collectives
    assert one.bytes == 120 * bits // 8


def test_a_ragged_exchange_counts_its_data_only():
    vector = "s32[4]{0:T(128)}"
    exchange = (
        f"ROOT %p = {X} ragged-all-to-all(%x, %out, %n, %n, /*index=4*/%n, %n), channel_id=1, "
        "replica_groups={{0,1,2,3}}"
    )
    lines = f"%x = {X} parameter(0)", f"%out = {Y} parameter(1)", f"%n = {vector} parameter(2)"
    (one,) = hlo.count(module(("%main", *lines, exchange))).collectives
    assert one.bytes == MOVED * 3 // 4
    assert len(one.operands) == 6
