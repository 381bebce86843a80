"""Plans for pods: what a compiled step is said to need, estimates, the search, and advice."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from cuda_compiler import environment as cuda_environment
from cuda_compiler import needs_cuda_compiler
from tpu_compiler import INSTALLED, ROOT, environment, needs_libtpu

from configs.paper_routing import large as paper_large
from mom_jax.analysis.chips import chip
from mom_jax.analysis.cost import busiest_share, train_flops_per_token
from mom_jax.analysis.hlo import Collective, HloCost
from mom_jax.fields import ConfigError
from mom_jax.sharding import AXES
from train.planning import advice, program, roofline
from train.planning.search import candidates
from train.planning.topology import devices_of

CONFIG = paper_large.get_config()
PHASE = CONFIG.phases[1]
V5E = chip("TPU v5 lite")
GIB = 2**30


def made(**fields):
    memory = program.Memory(GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB)
    values = {
        "mesh": dict(zip(AXES, (4, 64, 1, 1), strict=True)),
        "chips": 256,
        "device": V5E,
        "memory": memory,
        "flops": 0.7 * 197e12,
        "product_bytes": 0.5 * 0.8 * 819e9,
        "state_bytes": 0,
        "sent": {"all-gather": int(0.25 * 0.5 * 200e9)},
        "sent_in_loops": {},
        "uncounted": (),
        "compile_seconds": 1.0,
    }
    return program.Program(**(values | fields))


# Estimates.


def test_a_step_takes_the_longest_of_its_parts_or_their_sum():
    guess = roofline.estimate(CONFIG, PHASE, made())
    assert (guess.products, guess.memory, guess.communication) == pytest.approx((1.0, 0.5, 0.25))
    assert (guess.best, guess.worst) == pytest.approx((1.0, 1.75))
    assert guess.hours_best == pytest.approx(PHASE.steps / 3600)
    needed = train_flops_per_token(CONFIG.model, 1024) * 512 * 1024
    assert guess.mfu_best == pytest.approx(needed / (256 * 197e12))
    assert guess.mfu_worst == pytest.approx(guess.mfu_best / 1.75)


def test_servers_of_gpus_send_over_links_or_their_network_whichever_is_slower():
    h100 = chip("NVIDIA H100 80GB HBM3")
    sent = {"all-gather": int(0.5 * h100.link_bandwidth)}  # a second over half of the links
    inside, across = (
        roofline.estimate(CONFIG, PHASE, made(device=h100, sent=sent, sent_across=size)) for size in (0, int(80e9))
    )
    assert inside.communication == pytest.approx(1.0)
    assert across.communication == pytest.approx(80e9 / (0.8 * 50e9))


@pytest.mark.parametrize(
    ("groups", "want"),
    [
        ("{{0,1,2,3}}", 50),  # two of each server's share what leaves it
        ("[2,2]<=[4]", 0),  # within servers
        ("[2,2]<=[2,2]T(1,0)", 100),  # one of each server
        ("{}", 50),
    ],
)
def test_what_leaves_a_server(groups, want):
    collectives = (Collective("all-gather", 1, 0, (), (), 2, groups, 100, ""),)
    counted = HloCost(0, (), (), collectives)
    assert program._across(counted, [0, 0, 1, 1]) == want


def test_no_estimate_of_what_was_not_compiled():
    assert roofline.estimate(CONFIG, PHASE, made(flops=None, product_bytes=None)) is None


# Advice.


def too_big(parameters, optimizer, **mesh):
    memory = program.Memory(parameters, optimizer, None, 20 * GIB, 16 * GIB)
    sizes = dict.fromkeys(AXES, 1) | mesh
    return made(memory=memory, mesh=sizes, chips=math.prod(sizes.values()), flops=None)


def test_a_plan_that_fits_says_what_is_left():
    assert advice.verdict(CONFIG, PHASE, made()) == "fits: 8.0 GiB of 16.0 GiB are left"


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_to_change():
    text = advice.verdict(CONFIG, PHASE, too_big(GIB, 2 * GIB, data=4, fsdp=16))
    assert text.startswith("does not fit: 4.0 GiB too much; ")
    assert "--mesh.fsdp 64 --mesh.data 1" in text
    assert "--phases.1.optim.accumulation 2, up to 8" in text
    assert "--model.remat full" in text


def test_smaller_batches_do_not_help_where_the_state_alone_is_too_much():
    found = advice.remedies(CONFIG, PHASE, too_big(8 * GIB, 16 * GIB, fsdp=2))
    assert not any("accumulation" in remedy for remedy in found)
    assert not any("--mesh.fsdp" in remedy for remedy in found)
    assert found[-1].startswith("take more chips")


def test_what_xla_says_of_a_program_that_does_not_fit_is_understood():
    used, capacity = program.exceeded(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 23.51G of 15.75G hbm. Exceeded hbm capacity by 7.76G.\n\nTotal hbm usage >= 23.76G:",
        GIB,
    )
    assert (round(used / GIB, 2), round(capacity / GIB, 2)) == (23.51, 15.75)
    used, capacity = program.exceeded(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (83.89G) exceeds "
        "available HBM (15.75G).",
        GIB,
    )
    assert (round(used / GIB, 2), round(capacity / GIB, 2)) == (84.89, 15.75)
    assert program.exceeded("INTERNAL: something else", GIB) is None


def test_the_record_is_json_and_says_everything():
    plan = made()
    record = json.loads(json.dumps(advice.record(CONFIG, PHASE, plan, roofline.estimate(CONFIG, PHASE, plan))))
    assert record["fits"]
    assert record["estimate"]["chip_hours_worst"] == pytest.approx(256 * 1.75 * PHASE.steps / 3600)
    assert record["device"]["source"].startswith("https://")
    assert record["memory_bytes"]["peak"] == 8 * GIB
    failed = too_big(GIB, GIB)
    assert advice.record(CONFIG, PHASE, failed, None)["estimate"] is None


# The search.


def ranked(chips, **fields):
    config = dataclasses.replace(CONFIG, **fields)
    return candidates(config, PHASE, config.model, chips, V5E)


def test_the_search_tries_all_meshes_that_can_be():
    found = ranked(16)
    sizes = [tuple(c.mesh.sizes(16).values()) for c in found]
    assert len(set(sizes)) == len(sizes)
    assert all(math.prod(size) == 16 for size in sizes)
    # 20 heads: tensor is at most 4; d_model 1280 is divisible by every power of 2 up to 256.
    everything = {(d, f, m, t) for d in P for f in P for m in P for t in P if d * f * m * t == 16 and t <= 4}
    assert set(sizes) == everything


P = (1, 2, 4, 8, 16)


def test_meshes_that_fit_come_first_and_the_faster_before_the_slower():
    found = ranked(64)
    keys = [candidate.order(V5E) for candidate in found]
    assert keys == sorted(keys)
    assert found[0].memory <= V5E.memory_bytes


def test_dividing_the_state_needs_less_memory():
    memory = {tuple(c.mesh.sizes(16).values()): c.memory for c in ranked(16)}
    assert memory[1, 16, 1, 1] < memory[4, 4, 1, 1] < memory[16, 1, 1, 1]


def test_layers_outside_of_the_pool_send_tokens_along_tensor_too():
    def seconds(anchors):
        model = dataclasses.replace(CONFIG.model, num_bottom=anchors)
        return {tuple(c.mesh.sizes(4).values()): c.seconds for c in candidates(CONFIG, PHASE, model, 4, V5E)}

    few, many = seconds(1), seconds(9)
    extra = {mesh: many[mesh] - few[mesh] for mesh in few}
    # The same products everywhere. Three devices' tokens travel, around two sublayers, there and back, in three passes;
    # parameters that fsdp would gather are far less.
    tokens = 8 * 3 * 4 * 3 * (512 // 4 * 1024) * 1280 * 2 / (roofline.LINK_SHARE * V5E.link_bandwidth)
    assert 0.9 * tokens < extra[1, 1, 1, 4] - extra[1, 4, 1, 1] < tokens


def test_a_batch_that_does_not_divide_leaves_no_mesh():
    assert ranked(1024) == []


# Topologies.


@pytest.mark.parametrize("name", ["h100:", "h100:0", "h100:8x", "a100:x2", "h100:8x2x2", "h200"])
def test_what_is_no_topology_of_gpus_is_refused(name):
    with pytest.raises(ConfigError, match=r"^topology=.*: must be KIND:GPUS or KIND:GPUSxNODES, such as h100:8"):
        devices_of(name)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "4x4", "v5e:4x", "v5e 4x4", "b200:8"])
def test_what_is_no_topology_is_refused(name):
    with pytest.raises(ConfigError, match=r"^topology=.*: must be KIND:SHAPE, such as"):
        devices_of(name)


def plan(*arguments, code=0, **settings):
    command = [sys.executable, "-m", "train.plan", "--config", "configs/paper_routing/small.py", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment() | settings, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr[-4000:]
    return run


@pytest.mark.skipif(INSTALLED, reason="libtpu is installed")
def test_without_libtpu_it_says_so():
    run = plan("--topology", "v5e:4x4", code=2, PYTHONPATH=str(ROOT))
    assert run.stderr.startswith("error: libtpu is not installed")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology", "v9:2x2"], "error: topology='v9:2x2': must be KIND:SHAPE"),
        (["--topology", "v5e:2x2", "--mesh.fsdp", "8"], "error: mesh='data 1 x fsdp 8 x module 1 x tensor 1': is 8"),
        (["--topology", "v5e:2x2", "--phase", "more"], "error: phase='more': must be one of ['pretrain', 'mom']"),
        (["--topology", "v5e:2x2", "--data.batch-size", "6"], "error: data.batch_size=6: must be a multiple of the"),
        (["--topology", "v5e:4x4", "--search", "--data.batch-size", "3"], "error: topology='v5e:4x4': no mesh of 16"),
    ],
)
def test_wrong_input_is_one_line(flags, message):
    run = plan(*flags, code=2)
    assert run.stderr.startswith(message)
    assert len(run.stderr.splitlines()) == 1


def test_without_the_plugin_for_cuda_it_says_so():
    run = plan("--topology", "h100:8", code=2, PYTHONPATH=str(ROOT))
    assert run.stderr.startswith("error: JAX's plugin for CUDA is not installed: pip install")
    assert len(run.stderr.splitlines()) == 1


SMALL = "--model.num-bottom 1 --model.num-top 1 --model.num-steps 2 --model.vocab-size 4096 --data.vocab-size 4096"
SMALL += " --data.batch-size 8 --data.length 256 --model.num-attn-modules 4 --model.num-ffn-modules 4"


def test_the_choice_is_explained():
    def plan_of(mesh, seconds, fits=True):
        sizes = dict.fromkeys(AXES, 1) | mesh
        times = dict(zip(("products", "memory", "communication"), seconds, strict=True))
        estimate = times | {"step_best": max(seconds), "step_worst": sum(seconds)}
        return {"mesh": sizes, "fits": fits, "verdict": "fits: plenty", "estimate": estimate if fits else None}

    first, second, third = (
        plan_of({"module": 4}, (1, 0.5, 0.2)),
        plan_of({"fsdp": 4}, (1.1, 0.5, 0.9)),
        plan_of({}, (1, 1, 1), False),
    )
    text = advice.choice([first, second, third])
    assert text.startswith("data 1 x fsdp 1 x module 4 x tensor 1: 1,000 to 1,700 ms a step, and it fits: plenty; ")
    assert text.endswith(
        "the next, data 1 x fsdp 4 x module 1 x tensor 1, spends 700 ms more in communication "
        "(1,100 to 2,500 ms a step)"
    )
    assert advice.choice([first, third]).endswith("fits: plenty; no other that was compiled fits")
    assert advice.choice([third]) == "data 1 x fsdp 1 x module 1 x tensor 1, and it fits: plenty"


def test_the_device_with_the_most_modules_is_waited_for():
    assert busiest_share(CONFIG.model, 1) == 1
    assert busiest_share(CONFIG.model, 4) == pytest.approx(5 * 4 / 17)
    assert busiest_share(CONFIG.model.vanilla(), 4) == 1
    seconds = {candidate.mesh.module: candidate.seconds for candidate in ranked(16) if candidate.mesh.tensor == 1}
    assert seconds[16] > seconds[4]


@pytest.mark.slow
@needs_libtpu
def test_a_search_compiles_the_best_and_says_why():
    run = plan(*SMALL.split(), "--topology", "v5e:2x2", "--search", "--compile", "1", "--json")
    result = json.loads(run.stdout)
    [found] = result["plans"]
    assert {axis: found["mesh"][axis] for axis in ("fsdp", "module", "tensor")} == {
        axis: result["ranked"][0]["mesh"][axis] for axis in ("fsdp", "module", "tensor")
    }
    assert result["choice"].startswith("data ")
    assert "ms a step, and it fits: " in result["choice"]

    assert found["fits"]
    assert not found["not_counted"]
    memory = found["memory_bytes"]
    assert memory["peak"] >= memory["parameters"] + memory["optimizer"] + memory["activations"]
    # Two moments, and four counters or so.
    assert 0 <= memory["optimizer"] - 2 * memory["parameters"] < 100
    model = dataclasses.replace(
        paper_large.get_config().model, d_model=768, num_heads=12, num_chunks=1, vocab_size=4096, top_k=1, num_steps=2
    )
    needed = train_flops_per_token(model, 256) * 8 * 256 / 4
    # Attention's square, and what is made again.
    assert needed < found["flops"] < 1.4 * needed
    assert found["sent_bytes_in_loops"]["all-gather"] < found["sent_bytes"]["all-gather"]
    assert found["estimate"]["step_best"] <= found["estimate"]["step_worst"]


@pytest.mark.slow
@needs_cuda_compiler
def test_a_plan_for_gpus():
    path = cuda_environment()["PYTHONPATH"]
    run = plan(*SMALL.split(), "--topology", "a100:2x2", "--mesh.fsdp", "4", "--json", PYTHONPATH=path)
    [found] = json.loads(run.stdout)["plans"]
    assert found["fits"]
    assert not found["not_counted"]
    assert found["chips"] == 4
    assert found["flops"] > 0
    assert found["sent_bytes"]["all-gather"] > 0
    # Two servers of two: what leaves one goes over two adapters.
    share = found["sent_bytes_across_servers"] / sum(found["sent_bytes"].values())
    assert 0.4 < share <= 0.6
    assert found["estimate"]["chip_hours_best"] > 0


@pytest.mark.slow
@needs_libtpu
def test_a_plan_that_is_too_big_is_told_and_ends_with_3():
    flags = [*SMALL.split(), "--data.batch-size", "512", "--model.num-steps", "24", "--data.length", "1024"]
    run = plan(*flags, "--topology", "v5e:2x2", "--mesh.fsdp", "4", "--json", code=3)
    [found] = json.loads(run.stdout)["plans"]
    assert not found["fits"]
    assert "does not fit" in found["verdict"]
    assert "--phases.1.optim.accumulation 2" in found["verdict"]
