"""The end of a phase: a longer evaluation, the exchange test, the routes of a fixed text, a sample."""

import dataclasses
from typing import Any

import jax

from mom_jax.analysis.explorer import explorer_data
from mom_jax.analysis.routes import capture
from mom_jax.config import ModelConfig
from mom_jax.generation import generate
from mom_jax.model import with_parameters
from train.config import Phase
from train.data.pipeline import validation_batches
from train.reporting.routes import write_routes
from train.reporting.sentences import describe_exchange, describe_routing
from train.steps.placement import whole_params
from train.steps.state import TrainState
from train.training import processes
from train.training.context import Context
from train.training.keeping.saving import Saver
from train.training.signs import SignWatch
from train.training.validation import exchange_test

PROMPT_TOKENS, SAMPLE_TOKENS = 12, 64
ROUTES_TOKENS = 2048  # of the text whose routes the report explores


def finish(context: Context, phase: Phase, state: TrainState, signs: SignWatch, saver: Saver) -> None:
    """The phase's last word: a longer evaluation, the exchange test, the routes of a fixed text, a sample.

    A signal that comes meanwhile ends it: everything is saved, and the same command begins the last word anew. Several
    processes, which would have to agree on the moment, come to the end of it first."""
    alone = jax.process_count() == 1

    def stopped() -> bool:
        if alone and context.stop.signal is not None:
            context.notify(f"{phase.name}: stopped in its last evaluation; the same command goes on with it")
            return True
        return False

    model = context.config.model_of(phase.name)
    evaluation = context.validate(phase, state, context.config.final_batches)
    evaluation.check(f"{phase.name}: after its last step")
    record = {"kind": "final", "phase": phase.name, "step": phase.steps, **evaluation.record()}
    context.notify(
        f"{phase.name}: validation loss {evaluation.loss:.4f} nats/token, perplexity {evaluation.perplexity:.2f} "
        f"per token, over {evaluation.tokens:,} tokens"
    )
    if stopped():
        return
    if evaluation.routers:
        data = context.config.data
        losses = exchange_test(state.params, model, context.prepared, data, step=phase.steps, mesh=context.mesh)
        record["exchanged"] = losses
        context.notify(describe_exchange(phase.name, losses))
        for side, summary in evaluation.routers.items():
            context.notify(f"{phase.name}: {describe_routing(side, summary, model.skip)}")
        if stopped():
            return
        _write_routes(context, phase, state, model)
    if stopped():
        return
    prompt, text = _sample(context, model, state)
    if text:
        record["prompt"], record["sample"] = prompt, text
        context.notify(f"{phase.name}: a sample, after {prompt!r}\n{text}")
    signs.judge(phase.steps, context.notify, last=record)
    context.log.write(record, offset=context.offsets[phase.name])
    saver.insist(context.log.flush)
    processes.wait_for_all(f"end of {phase.name}")  # for the sample; orbax would not wait as long


def _write_routes(context: Context, phase: Phase, state: TrainState, model: ModelConfig) -> None:
    """What the tokens of held-out windows chose, the same windows after each phase, for the report's explorer."""
    data = context.config.data
    some = dataclasses.replace(data, batch_size=max(1, ROUTES_TOKENS // data.length))
    text = validation_batches(context.prepared, some, limit=1)
    routes = capture(state.params, model, text, limit=ROUTES_TOKENS, mesh=context.mesh, step=phase.steps)
    if processes.is_first():
        context.guard()
        pieces = [context.prepared.tokenizer.piece(token) for token in routes.ids_T.tolist()]
        write_routes(context.run, phase.name, explorer_data(routes, pieces, model))


def _sample(context: Context, model: ModelConfig, state: TrainState) -> tuple[str, str]:
    """The start of the held-out text, and what the model makes of it; nothing where there is no room."""
    # On one device, as generation is; all take part in the copy.
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole_params(state.params, context.mesh))
    tokenizer = context.prepared.tokenizer
    prompt = context.prepared.validation[0].tokens[:PROMPT_TOKENS].tolist()
    count = min(SAMPLE_TOKENS, model.context_length - len(prompt))
    if count < 1 or not processes.is_first():
        return "", ""
    network = with_parameters(model.at_step(int(state.step)), params)
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": min(40, model.vocab_size), "eos_id": tokenizer.eos_id}
    [tokens] = generate(network, [prompt], count, **settings)
    start, whole = (
        tokenizer.decode([t for t in part if t < tokenizer.vocab_size]) for part in (prompt, [*prompt, *tokens])
    )
    return start, whole
