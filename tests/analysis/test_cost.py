"""Costs against numbers worked out by hand and against published ones."""

import dataclasses
import math

import pytest

from mom_jax.analysis.cost import (
    forward_flops_by_part,
    forward_flops_per_token,
    parameter_count,
    train_flops_per_token,
    training_memory_bytes,
)
from mom_jax.config import ChoiceConfig, ModelConfig, RouterConfig

SMALL = ModelConfig(
    vocab_size=11,
    context_length=7,
    d_model=4,
    num_heads=2,
    d_ff=6,
    num_bottom=1,
    num_top=2,
    num_chunks=2,
    anchor_after_chunk=True,
    num_attn_modules=3,
    num_ffn_modules=2,
    num_steps=5,
    top_k=2,
    router=RouterConfig(dim=3),
)
# Worked by hand for D=4, F=6: attention 8 + (48 + 12) + (16 + 4); FFN 8 + (24 + 6) + (24 + 4).
ATTENTION, FFN = 88, 66
# R=3, C=4 (attention) and 3 (FFN): input 4·9 + 9, state 3·9 + 9, score 3·C + C.
GRU_ATTENTION, GRU_FFN = 45 + 36 + 16, 45 + 36 + 12

LARGE = ModelConfig(d_model=1280, num_heads=20, num_bottom=1, num_top=1, num_chunks=2)
GPT2_LARGE = dataclasses.replace(LARGE, num_chunks=0, num_bottom=36, num_top=0)
POOLS = {"num_attn_modules": 17, "num_ffn_modules": 17}


def test_parameters_of_a_small_model_by_hand():
    count = parameter_count(SMALL)
    assert count.embedding == 11 * 4 + 7 * 4
    assert count.anchors == 5 * (ATTENTION + FFN)
    assert count.modules == 2 * (3 * ATTENTION + 2 * FFN)
    assert count.routers == 2 * (GRU_ATTENTION + GRU_FFN)
    assert count.head == 8
    assert count.total == count.embedding + count.anchors + count.modules + count.routers + count.head
    per_step = 2 * ATTENTION + 2 * FFN + GRU_ATTENTION + GRU_FFN
    assert count.active == (44 + 4) + count.anchors + 10 * per_step + 8


@pytest.mark.parametrize(
    ("kind", "attention", "ffn"),
    [
        ("gru_dev", GRU_ATTENTION, GRU_FFN),
        ("gru_random", (48 + 12) + (36 + 12) + 16, (48 + 12) + (36 + 12) + 12),
        ("mlp", (12 + 3) + 16, (12 + 3) + 12),
    ],
)
def test_parameters_of_the_routers(kind, attention, ffn):
    config = dataclasses.replace(SMALL, router=RouterConfig(kind=kind, dim=3))
    assert parameter_count(config).routers == 2 * (attention + ffn)


def test_official_classes_change_the_score_layer_only():
    wider = dataclasses.replace(SMALL, router=RouterConfig(dim=3, classes="max"))
    assert parameter_count(wider).routers - parameter_count(SMALL).routers == 2 * (3 + 1)


def test_unrouted_sides_have_no_router_and_one_module_a_step():
    ordered = dataclasses.replace(SMALL, num_steps=3, attention=ChoiceConfig(choice="ordered"))
    count = parameter_count(ordered)
    assert count.routers == 2 * GRU_FFN
    assert count.active == 48 + count.anchors + 6 * (ATTENTION + 2 * FFN + GRU_FFN) + 8
    shared = dataclasses.replace(SMALL, num_ffn_modules=1)
    count = parameter_count(shared)
    assert count.routers == 2 * GRU_ATTENTION
    assert count.modules == 2 * (3 * ATTENTION + FFN)


def test_a_token_takes_no_more_modules_than_there_are():
    everything = dataclasses.replace(SMALL, top_k=3)
    per_step = 3 * ATTENTION + 2 * FFN + GRU_ATTENTION + GRU_FFN
    assert parameter_count(everything).active == 48 + 5 * (ATTENTION + FFN) + 10 * per_step + 8
    all_modules = dataclasses.replace(SMALL, router=RouterConfig(dim=3, all_modules=True))
    assert parameter_count(all_modules).active == parameter_count(everything).active
    skipping = dataclasses.replace(SMALL, num_ffn_modules=2, num_steps=2, ffn=ChoiceConfig(choice="ordered_or_skip"))
    per_step = 2 * ATTENTION + FFN + GRU_ATTENTION + GRU_FFN
    assert parameter_count(skipping).active == 48 + 5 * (ATTENTION + FFN) + 4 * per_step + 8


def test_classifier_has_a_head_without_bias():
    classifier = dataclasses.replace(SMALL, num_classes=3)
    assert parameter_count(classifier).head == 8 + 12
    assert parameter_count(classifier).active == parameter_count(SMALL).active - 44 + 4 + 12


def test_an_untied_head_is_a_second_table_of_tokens():
    untied = dataclasses.replace(SMALL, tie_embeddings=False)
    tied_count, count = parameter_count(SMALL), parameter_count(untied)
    assert (count.head, count.total) == (8 + 44, tied_count.total + 44)
    assert count.embedding == tied_count.embedding
    assert count.active == tied_count.active + 4  # besides the head, a row of the table
    assert forward_flops_per_token(untied, 6) == forward_flops_per_token(SMALL, 6)
    # A classifier has it too, unused.
    both = dataclasses.replace(untied, num_classes=3)
    assert parameter_count(both).total == count.total + 12
    assert parameter_count(both).active == parameter_count(dataclasses.replace(SMALL, num_classes=3)).active


@pytest.mark.parametrize(
    ("width", "heads", "layers", "parameters"),
    # Hugging Face's gpt2, gpt2-medium, gpt2-large: `model.num_parameters()`.
    [(768, 12, 12, 124_439_808), (1024, 16, 24, 354_823_168), (1280, 20, 36, 774_030_080)],
)
def test_plain_models_have_gpt2s_number_of_parameters(width, heads, layers, parameters):
    config = ModelConfig(d_model=width, num_heads=heads, num_bottom=layers, num_top=0, num_chunks=0)
    assert parameter_count(config).total == parameters
    assert parameter_count(config).routers == parameter_count(config).modules == 0


def test_vanilla_counterpart_has_the_same_parameters_without_routers():
    config = dataclasses.replace(LARGE, **POOLS, num_steps=24)
    count, plain = parameter_count(config), parameter_count(config.vanilla())
    assert count.total - count.routers == plain.total == parameter_count(GPT2_LARGE).total


def test_flops_of_a_small_model_by_hand():
    parts = forward_flops_by_part(SMALL, 6)
    matrices = {"attention": 2 * 4 * 16, "ffn": 2 * 2 * 24}
    assert parts["anchors"] == 5 * (matrices["attention"] + matrices["ffn"])
    assert parts["modules"] == 10 * 2 * (matrices["attention"] + matrices["ffn"])
    # 5 anchors and 10 steps; q·k and p·v; half of 6 tokens; one attention a step although K = 2.
    assert parts["scores"] == 15 * 2 * 2 * 4 * 3
    assert parts["routers"] == 10 * 2 * ((36 + 27 + 12) + (36 + 27 + 9))
    assert parts["head"] == 2 * 4 * 11
    assert forward_flops_per_token(SMALL, 6) == sum(parts.values())
    assert train_flops_per_token(SMALL, 6) == 3 * sum(parts.values())
    assert forward_flops_per_token(SMALL, 6, causal=False) - sum(parts.values()) == parts["scores"]


def test_modules_that_are_skipped_cost_nothing():
    full = forward_flops_per_token(SMALL, 6)
    fewer = forward_flops_per_token(SMALL, 6, attn_taken=1.5, ffn_taken=0.0)
    assert full - fewer == 10 * (0.5 * 2 * 4 * 16 + 2 * 2 * 2 * 24)
    assert train_flops_per_token(SMALL, 6, attn_taken=1.5, ffn_taken=0.0) == 3 * fewer


def test_narrow_modules_cost_their_width():
    fine = dataclasses.replace(SMALL, module_d_ff=2, num_ffn_modules=6, ffn=ChoiceConfig(top_k=3, scale=3.0))
    narrow = 8 + (8 + 2) + (8 + 4)
    count, whole = parameter_count(fine), parameter_count(dataclasses.replace(SMALL, top_k=1))
    assert count.modules == 2 * (3 * ATTENTION + 6 * narrow)
    assert count.anchors == whole.anchors == 5 * (ATTENTION + FFN)
    # Three thirds of an FFN are the FLOPs of one.
    parts = forward_flops_by_part(dataclasses.replace(fine, attention=ChoiceConfig(top_k=1)), 6)
    assert parts["modules"] == forward_flops_by_part(dataclasses.replace(SMALL, top_k=1), 6)["modules"]
    either = dataclasses.replace(fine, ffn=ChoiceConfig("ordered_or_skip", schedule=(0, 1, 1, 0, 0), top_k=4))
    assert forward_flops_by_part(either, 6) == forward_flops_by_part(either, 6, ffn_taken=3)


def test_queries_and_keys_cost_once_where_values_alone_are_routed():
    values = dataclasses.replace(SMALL, attention=ChoiceConfig(routes="values", schedule=(0, 1, 2, 1, 0)))
    assert parameter_count(values).total == parameter_count(SMALL).total
    assert parameter_count(SMALL).active - parameter_count(values).active == 10 * (2 * 16 + 8)
    saved = forward_flops_by_part(SMALL, 6)["modules"] - forward_flops_by_part(values, 6)["modules"]
    assert saved == 10 * 2 * 2 * 16
    none = forward_flops_by_part(values, 6, attn_taken=0, ffn_taken=0)
    assert none["modules"] == 10 * 2 * 2 * 16


def test_a_classifiers_head_runs_once_a_sequence():
    parts = forward_flops_by_part(dataclasses.replace(SMALL, num_classes=3), 6)
    assert parts["head"] == 2 * 4 * 3 / 6


def test_flops_agree_with_a_published_count():
    # PaLM (arXiv 2204.02311), appendix B: 6·N + 12·layers·D·length per token, N without embeddings but with the head.
    matrices = 36 * 12 * 1280**2 + 50257 * 1280
    want = 6 * matrices + 12 * 36 * 1280 * 1024
    assert train_flops_per_token(GPT2_LARGE, 1024, causal=False) == want


def test_worked_example_of_the_large_model():
    deep = dataclasses.replace(LARGE, **POOLS, top_k=1, num_steps=24)
    wide = dataclasses.replace(LARGE, **POOLS, top_k=3, num_steps=5)
    assert (deep.num_layers, deep.depth, wide.depth) == (36, 50, 12)
    assert deep.depth / 36 - 1 == pytest.approx(0.389, abs=5e-4)
    assert 1 - wide.depth / 36 == pytest.approx(2 / 3)

    def saved(causal: bool) -> float:
        parts = forward_flops_by_part(wide, 1024, causal=causal)
        return 1 - (sum(parts.values()) - parts["routers"]) / forward_flops_per_token(GPT2_LARGE, 1024, causal=causal)

    assert saved(causal=False) == pytest.approx(0.163, abs=5e-4)
    assert saved(causal=True) == pytest.approx(0.134, abs=5e-4)


def test_memory_of_parameters_and_optimizer_is_exact():
    memory = training_memory_bytes(SMALL, 2, 6)
    total = parameter_count(SMALL).total
    assert memory["parameters"] == memory["gradients"] == 4 * total
    assert memory["optimizer"] == 8 * total
    assert memory["logits"] == 2 * 4 * 12 * 11
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")


def test_activations_of_a_plain_layer_are_the_published_ones():
    shape = {"d_model": 64, "num_heads": 4, "num_bottom": 3, "num_top": 0, "num_chunks": 0}
    plain = ModelConfig(**shape, dtype="bfloat16", remat="none", attention_kernel="plain")
    memory = training_memory_bytes(plain, 2, 32)
    # arXiv 2205.05198, equation 2 without its 5·heads·length of dropout and unmasked scores: 2·(8·D + 2·F) = 32·D.
    assert memory["activations"] == 2 * 32 * 3 * (32 * 64 + 2 * 4 * 32)


def test_remat_and_half_precision_save_activations():
    by_policy = [
        training_memory_bytes(dataclasses.replace(SMALL, remat=remat), 2, 6)["activations"]
        for remat in ("none", "dots", "full")
    ]
    assert by_policy == sorted(by_policy, reverse=True)
    assert len(set(by_policy)) == 3
    # K modules keep K hidden layers, and the routers' float32 states do not shrink with the dtype.
    whole = dataclasses.replace(SMALL, remat="none")
    half = training_memory_bytes(dataclasses.replace(whole, dtype="bfloat16"), 2, 6)["activations"]
    assert by_policy[0] / 2 < half < by_policy[0]
    single = training_memory_bytes(dataclasses.replace(whole, top_k=1), 2, 6)["activations"]
    assert by_policy[0] - single == 12 * 4 * 10 * (2 * 4 + 4 + 2 * 6 + 4)


def test_a_loss_in_chunks_keeps_fewer_logits():
    assert training_memory_bytes(SMALL, 2, 6, logits_tokens=4)["logits"] == 8 * 4 * 11
    assert training_memory_bytes(SMALL, 2, 6, logits_tokens=99)["logits"] == 8 * 12 * 11


def test_a_capacity_and_a_prior_say_what_can_be_taken():
    never = -math.inf
    # Steps may take modules 0 and 1 with half of the tokens, module 2 with all, nothing, all three with half of them.
    rows = ((0, 0, never, 0), (never, never, 0, never), (never, never, never, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    attention = ChoiceConfig(capacity=0.5, prior=rows)
    config = dataclasses.replace(SMALL, attention=attention)
    taken = (2 * 0.5 + 1 + 0 + 2 * 0.5 + 2 * 0.5) / 5
    assert forward_flops_by_part(config, 7) == forward_flops_by_part(SMALL, 7, attn_taken=taken)
    saved = parameter_count(SMALL).active - parameter_count(config).active
    assert saved == round(10 * (2 - taken) * ATTENTION)
    half = dataclasses.replace(SMALL, ffn=ChoiceConfig(capacity=0.5))
    assert forward_flops_by_part(half, 7) == forward_flops_by_part(SMALL, 7, ffn_taken=1)


def test_a_schedule_costs_its_steps_and_has_its_modules():
    ordered = dataclasses.replace(SMALL, ffn=ChoiceConfig("ordered", schedule=(0, 1, 1, 0, 0)))
    count, free = parameter_count(ordered), parameter_count(SMALL)
    assert count.modules == free.modules
    assert count.routers == 2 * GRU_ATTENTION
    assert free.active - count.active == 10 * (FFN + GRU_FFN)
