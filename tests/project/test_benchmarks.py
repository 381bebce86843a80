"""The benchmarks run, at toy sizes, and print what they promise; what they measure is not tested here."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from benchmarks import decoding, kernels, one_device, scaling, step
from benchmarks.measuring import reference, timing
from mom_jax import dispatch
from mom_jax.config import ModelConfig

STEP_KEYS = (
    "mom_k1_over_hf_sdpa",
    "mom_k2_over_hf_sdpa",
    "mom_k3_over_hf_sdpa",
    "mom_k1_over_vanilla",
    "vanilla_over_hf_sdpa",
)
SCALING_KEYS = (
    "n32_over_n8",
    "half_skip_over_none",
    "h32_over_h4_compile",
    "h32_over_h4_program",
    "temp_memory_over_vanilla",
)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_gpt2", lambda *args: None)


def printed(capsys, program, *flags):
    """The one JSON line that the program prints with these flags."""
    program.main(["--small", "--json", "--rounds", "1", *flags])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["small"] is True
    assert result["rounds"] == 1
    assert result["versions"]["jax"] == jax.__version__
    return result


def positive(value):
    return math.isfinite(value) and value > 0


@pytest.mark.slow
def test_step_prints_one_line_with_its_ratios(capsys, monkeypatch, without_torch):
    monkeypatch.setattr(step, "TOP_KS", (1,))  # compiling is what takes time
    result = printed(capsys, step)
    assert {key: result[key] for key in STEP_KEYS if key != "mom_k1_over_vanilla"} == dict.fromkeys(
        set(STEP_KEYS) - {"mom_k1_over_vanilla"}
    )
    assert positive(result["mom_k1_over_vanilla"])
    assert 1 < result["flops_ratio_k1_taken"] < result["flops_ratio_k1"]  # some choices are SKIP
    over = result["mom_k1_over_vanilla"] / result["flops_ratio_k1"]
    assert result["mom_k1_over_vanilla_over_flops"] == pytest.approx(over)
    assert set(result["seconds"]) == set(result["temp_bytes"]) == {"vanilla", "mom_k1"}
    assert all(0 <= share < 1 for share in result["skip_share"]["mom_k1"].values())


def test_scaling_runs_the_parts_that_are_asked_for(capsys):
    result = printed(capsys, scaling, "--only", "memory,skip")
    asked = {"half_skip_over_none", "temp_memory_over_vanilla"}
    assert {key for key in SCALING_KEYS if result[key] is not None} == asked
    assert math.isfinite(result["half_skip_over_none"])
    assert positive(result["temp_memory_over_vanilla"])
    shares = {name: point["share"] for name, point in result["skip"].items()}
    assert shares["none"] == {"attention": 0, "ffn": 0}
    assert shares["all"] == {"attention": 1, "ffn": 1}
    assert all(abs(share - 0.5) < 0.02 for share in shares["half"].values())


def test_kernels_compares_backends_that_run_here(capsys):
    names = {"dense", *(name for name in dispatch.BACKENDS if not kernels.measurable(name))}
    result = printed(capsys, kernels, "--backends", ",".join(names))
    assert len(result["cases"]) == len(kernels.ROUTINGS) * len(kernels.DIRECTIONS)
    for case in result["cases"]:
        assert positive(case["matmul_seconds"])
        assert all(positive(case[name]) if kernels.measurable(name) else case[name] is None for name in names)


@pytest.mark.slow
def test_decoding_prints_ratios_and_the_weights_that_a_step_reads(capsys, monkeypatch):
    monkeypatch.setattr(decoding, "hugging_face", lambda *args: None)
    result = printed(capsys, decoding, "--batch", "1,4")
    assert all(positive(result[f"mom_k1_over_vanilla_b{batch}"]) for batch in (1, 4))
    assert result["vanilla_over_hf_b1"] is None
    rows = result["decoding"]
    assert set(rows) == {"vanilla b1", "mom_k1 b1", "vanilla b4", "mom_k1 b4"}
    assert all(positive(value) for row in rows.values() for value in row.values())
    # Every row reads all of a vanilla model, and what it chose of a MoM.
    read = {name: row["weight_bytes_per_step"] for name, row in rows.items()}
    assert read["vanilla b1"] == read["vanilla b4"] < read["mom_k1 b1"] < read["mom_k1 b4"]


def test_output_to_read(capsys):
    kernels.main(["--small", "--rounds", "1", "--backends", "dense"])
    text = capsys.readouterr().out
    assert "half_skip" in text
    assert "small" in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize("program", [step, scaling, kernels, decoding], ids=lambda program: program.__name__)
@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--rounds", "x"], ["--jso"], ["extra"]], ids=" ".join)
def test_wrong_flags_exit_with_2(program, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("program", "flags"),
    [(step, ["--remat", "none,all"]), (scaling, ["--only", "n,x"]), (kernels, ["--backends", "cuda"])],
)
def test_unknown_names_exit_with_2(program, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(flags)
    assert stop.value.code == 2
    assert "there are" in capsys.readouterr().err


def test_the_reference_is_the_issue_s():
    config = reference.config(top_k=2)
    assert (config.vocab_size, config.context_length, config.d_model, config.num_heads) == (8192, 256, 256, 8)
    assert (config.inner_width, config.num_attn_modules, config.num_ffn_modules, config.num_steps) == (1024, 8, 8, 8)
    assert (config.num_bottom, config.num_chunks, config.num_top, config.anchor_after_chunk) == (1, 1, 1, False)
    assert (config.router.kind, config.router.dim, config.router.temperature, config.skip) == ("gru", 256, 0.2, True)
    assert (config.weights("ffn"), config.top_k, config.dtype) == ("renormalised", 2, "float32")
    assert config.balance.weight > 0
    assert config.vanilla().num_layers == config.vanilla().depth == 10
    assert reference.tokens(reference.FULL).shape == (8, 256)


def test_the_other_shape_is_gpt2_small_s():
    size = step.SHAPES["gpt2_small"]
    config = reference.config(size, top_k=3)
    assert (config.vocab_size, config.d_model, config.num_heads, config.router.dim) == (50257, 768, 12, 256)
    assert (config.num_attn_modules, config.num_ffn_modules, config.num_steps) == (10, 10, 10)
    assert config.vanilla().num_layers == 12
    assert reference.tokens(size).shape == (2, 512)
    assert step.SHAPES["reference"] == reference.FULL


def test_skips_are_no_flops():
    config = reference.config(top_k=2)
    every, half, none = (
        reference.train_flops(config, reference.FULL, {"attention": share, "ffn": share}) for share in (0.0, 0.5, 1.0)
    )
    assert every == reference.train_flops(config, reference.FULL)
    assert every - half == pytest.approx(half - none)
    assert every > half > none > 0


def test_remat_policies_are_the_configuration_s():
    for remat in step.REMATS:
        ModelConfig(remat=remat)
    assert "none" in step.REMATS


def test_interleaving_calls_everything_once_a_round():
    order = []
    seconds = timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [order[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({names[0] for names in rounds}) > 1


def test_nothing_to_time():
    assert timing.interleaved({}, 3) == {}


def test_slow_calls_drop_out():
    seconds = timing.interleaved({"a": lambda: None, "b": lambda: sum(range(10_000))}, 5, limit=1e-5)
    assert len(seconds["b"]) == 1
    assert timing.ratio(seconds, "b", "a") > 0


def test_ratios_are_medians_of_the_rounds():
    seconds = {"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}
    assert timing.ratio(seconds, "a", "b") == 2
    assert timing.ratio(seconds, "a", "c") is None
    assert timing.medians(seconds) == {"a": 4.0, "b": 2.0}
    assert timing.quartiles([1.0, 2.0, 3.0]) == [1.5, 2.5]


@pytest.mark.parametrize("top_k", [1, 2])
def test_routings_of_the_kernels(top_k):
    index = {routing: kernels.routing_choices(routing, 512, 8, top_k) for routing in kernels.ROUTINGS}
    assert all(choices.shape == (512, top_k) for choices in index.values())
    counts = {routing: np.bincount(choices.ravel(), minlength=9) for routing, choices in index.items()}
    assert counts["half_skip"][8] == 512 * top_k // 2
    assert counts["uniform"][8] == counts["skewed"][8] == 0
    assert counts["skewed"].max() > 1.5 * counts["uniform"].max()
    if top_k == 2:
        assert (index["uniform"][:, 0] != index["uniform"][:, 1]).all()


@pytest.mark.slow
def test_kernels_with_all_backends(capsys):
    result = printed(capsys, kernels)
    assert all(
        positive(case[name]) for case in result["cases"] for name in dispatch.BACKENDS if kernels.measurable(name)
    )
    assert set(result["over_matmul"]) == set(dispatch.BACKENDS)


@pytest.mark.slow
def test_scaling_over_sizes_and_its_compilations(capsys, monkeypatch):
    monkeypatch.setattr(scaling, "COMPILATIONS", 1)
    result = printed(capsys, scaling, "--only", "n,l,compile")  # d, k and h are made as they are
    assert all(positive(result[key]) for key in ("n32_over_n8", "h32_over_h4_compile", "h32_over_h4_program"))
    assert list(result["n"]) == ["n8", "n16", "n32"]
    assert all(point["over_vanilla"] > 0 for point in result["l"].values())


@pytest.mark.slow
def test_step_with_pytorch_and_remat(capsys):
    pytest.importorskip("torch", reason="needs the [torch] extra")
    pytest.importorskip("transformers", reason="needs the [torch] extra")
    result = printed(capsys, step, "--remat", "dots")
    assert all(positive(result[key]) for key in STEP_KEYS)
    assert set(result["remat"]) == {f"{m} {r}" for m in ("vanilla", "mom_k1", "mom_k2") for r in ("none", "dots")}


@pytest.mark.slow
def test_pytorch_and_ours_start_from_the_same_loss():
    pytest.importorskip("torch", reason="needs the [torch] extra")
    pytest.importorskip("transformers", reason="needs the [torch] extra")
    config = reference.config(reference.SMALL).vanilla()
    call = reference.torch_gpt2(reference.SMALL, config.num_layers)
    (loss, _), _ = reference.prepare(config, reference.SMALL).call()
    assert call is not None
    assert float(call()) == pytest.approx(float(loss), rel=0.05)
    assert float(loss) == pytest.approx(math.log(reference.SMALL.vocabulary), rel=0.05)


def test_what_decoding_holds():
    config = reference.config(top_k=2)
    ours, vanilla = (one_device.inference(model) for model in (config, config.vanilla()))
    size = one_device.BATCH * one_device.LENGTH * 2 * 256 * 4  # keys and values of a layer, float32
    assert 0 <= vanilla["cache_bytes"] - 10 * size < 10_000  # and which slots are taken
    assert ours["cache_bytes"] == vanilla["cache_bytes"]  # of 8 modules in 8 steps
    assert vanilla["weight_bytes"] < ours["weight_bytes"] < 1.2 * vanilla["weight_bytes"]  # which has routers


@pytest.mark.slow
def test_what_logging_the_analysis_costs(tmp_path):
    import tiny

    from benchmarks import analysis
    from train.config import AnalysisConfig

    result = analysis.measure(tiny.config(tmp_path, analysis=AnalysisConfig(every=4, tokens=64)), rounds=2)
    assert {name: phase["records"] for name, phase in result["phases"].items()} == {"pretrain": 3, "mom": 3}
    phases = result["phases"].values()
    compiled = sum(3 * p["record"] for p in phases) / sum(6 * p["step"] for p in phases)
    assert result["share_compiled"] == pytest.approx(compiled)
    assert result["seconds"] == pytest.approx(sum(2 * p["record"] + p["first_record"] for p in phases))


def test_what_checksums_cost(tmp_path):
    import tiny

    from benchmarks.reliability import checksums

    config = tiny.config(tmp_path)
    result = checksums.measure(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=0)), 2)
    assert result["bytes"] > 50_000
    assert 0 < result["seal"] < 60
    assert result["step"] == result["seal"] / config.checkpoint.every
    assert result["gib"] == result["seal"] / result["bytes"] * 2**30


@pytest.mark.slow
def test_a_long_run_stays_as_it_began():
    """In small: what a step leaves behind would show in threads and files at once, in memory by and by."""
    from benchmarks.reliability import long_run

    result = long_run.measure(150)
    early, late = result["early"], result["late"]
    assert late["threads"] <= early["threads"] + 8  # pools of threads fill up at first
    assert late["files"] <= early["files"] + 2  # while a checkpoint is written
    assert late["rss_mib"] < early["rss_mib"] + 40
    assert result["checkpoints"] <= 3
