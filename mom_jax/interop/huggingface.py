"""Options of Hugging Face's configurations that have no effect on what a GPT-2 language model computes."""

from collections.abc import Mapping
from typing import Any

from mom_jax.fields import require

# Of the library: files, generation, training, heads that a language model does not have; and how GPT-2 rounds.
BOOKKEEPING = frozenset(
    """
    n_ctx n_special predict_special_tokens output_past xla_device reorder_and_upcast_attn use_cache summary_type
    summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout gradient_checkpointing
    architectures model_type transformers_version _name_or_path _commit_hash _attn_implementation
    _attn_implementation_autoset attn_implementation auto_map torch_dtype dtype bos_token_id eos_token_id
    pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix finetuning_task task_specific_params
    problem_type num_labels _num_labels id2label label2id return_dict output_hidden_states output_attentions
    torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward is_encoder_decoder is_decoder
    cross_attention_hidden_size tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens keys_to_ignore_at_inference
    """.split()  # noqa: SIM905
)


def named_architectures(options: Mapping[str, Any]) -> list[str]:
    """The classes that a configuration names, or none. Raises `ConfigError` for anything but a list of names."""
    names = options.get("architectures")
    good = names is None or (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names))
    require(good, "architectures", names, "must be a list of names")
    return list(names or ())
