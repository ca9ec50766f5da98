"""How each PEFT method is computed: what is known to be exact; all else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from peft import PeftConfig

from cme_bench.adapters.registry import find
from cme_bench.adapters.row_task import chosen_task, why_no_task

Way = Literal["shared", "alone", "refused"]
"""shared: a token's update depends on that token alone, so prefixes, batches and a cache may be shared.
alone: every row is computed by itself, as PEFT computes it. refused: not computed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A way of computing, and the reason for it where it is not "shared".

    ``cached``: whether a row computed alone may go on from a cache of its own keys and values.
    """

    way: Way
    reason: str = ""
    cached: bool = True


SHARED = Verdict("shared")
_VIRTUAL = Verdict("alone", "an adapter adds virtual tokens")

_METHOD: dict[str, Verdict] = {
    "ADAPTION_PROMPT": Verdict("alone", "an adapter attends to a prompt of its own"),
    "CARTRIDGE": _VIRTUAL,
    "CPT": _VIRTUAL,
    "LILY": Verdict("alone", "an adapter averages its router over the whole batch"),
    "MULTITASK_PROMPT_TUNING": _VIRTUAL,
    "PREFIX_TUNING": _VIRTUAL,
    "PROMPT_TUNING": _VIRTUAL,
    "P_TUNING": _VIRTUAL,
    "SHADOW": Verdict("refused", "it runs a second network beside the base model"),
    "XLORA": Verdict("alone", "an adapter weighs its experts by a pass of the base model", cached=False),
}
"""Methods that are not computed the shared way."""

_FIELD: dict[str, Verdict] = {
    "alora_invocation_tokens": Verdict("alone", "an adapter acts from its invocation tokens on"),
    "arrow_config": Verdict("refused", "it routes among further adapters, which this folder does not hold"),
    "megatron_config": Verdict("refused", "it is made for layers of Megatron"),
    "sample_at_inference": Verdict("refused", "its answers are drawn at random"),
    "shadow_model": Verdict("refused", "it runs a second network beside the base model"),
    "use_qalora": Verdict("refused", "it is made for layers that GPTQ quantised"),
}
"""Fields of any method that, once set, change how it is computed."""

_COMMON = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "r target_modules exclude_modules modules_to_save layers_to_transform layers_pattern bias "
    "fan_in_fan_out init_weights".split()
)
_PROMPT = (
    "num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers "
    "prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs "
)
_LYCORIS = "rank_pattern alpha_pattern alpha rank_dropout module_dropout use_effective_conv2d "
_PROJECTED = "projection_prng_key save_projection "

_KNOWN: dict[str, str] = {
    "ADAMSS": "num_subspaces subspace_rank use_asa asa_target_subspaces init_warmup final_warmup "
    "mask_interval asa_importance_beta asa_uncertainty_beta asa_schedule_exponent use_dynamic_rank "
    "svd_threshold random_seed",
    "ADAPTION_PROMPT": "adapter_len adapter_layers",
    "BEFT": "",
    "BOFT": "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout",
    "C3A": "block_size block_size_pattern",
    "CARTRIDGE": _PROMPT + "num_frozen_tokens",
    "CPT": _PROMPT + "cpt_token_ids cpt_mask cpt_tokens_type_mask opt_weighted_loss_type "
    "opt_loss_decay_factor opt_projection_epsilon opt_projection_format_epsilon",
    "DEFT": "decomposition_method init_scale alpha para deft_dropout",
    "DELORA": "delora_lambda module_dropout rank_pattern lambda_pattern",
    "FOURIERFT": "n_frequency scaling random_loc_seed n_frequency_pattern",
    "FROD": _PROJECTED
    + "frod_dropout sparse_rate regularization_alpha progressbar runtime_offload_base_weight",
    "GLORA": "config_A_B config_C config_D_E",
    "GRALORA": "hybrid_r alpha gralora_dropout gralora_k",
    "HIRA": "hira_dropout rank_pattern",
    "HRA": "apply_GS",
    "IA3": "feedforward_modules init_ia3_weights",
    "LILY": "stride_A num_B scaling",
    "LN_TUNING": "",
    "LOHA": _LYCORIS,
    "LOKR": _LYCORIS + "decompose_both decompose_factor rank_dropout_scale",
    "MISS": "miss_dropout mini_r",
    "MULTITASK_PROMPT_TUNING": _PROMPT
    + "prompt_tuning_init_state_dict_path prompt_tuning_init_task num_ranks num_tasks",
    "OFT": "oft_block_size module_dropout coft eps block_share use_cayley_neumann num_cayley_neumann_terms",
    "OSF": "effective_rank rank_pattern target_svd_config",
    "PEANUT": "depth act_fn scaling",
    "POLY": "poly_type n_tasks n_skills n_splits",
    "PREFIX_TUNING": _PROMPT + "encoder_hidden_size prefix_projection",
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": "psoft_alpha psoft_dropout ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed "
    "psoft_orth psoft_mag_b psoft_mag_a use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps",
    "PVERA": _PROJECTED + "pvera_dropout d_initial sample_at_inference generator_seed",
    "P_TUNING": _PROMPT
    + "encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout",
    "RANDLORA": _PROJECTED + "sparse very_sparse randlora_dropout randlora_alpha",
    "ROAD": "variant group_size",
    "SHADOW": "shadow_alpha shadow_dropout shadow_model shadow_num_hidden_layers shadow_hidden_size "
    "shadow_num_attention_heads shadow_intermediate_size share_embeddings update_hidden_size "
    "auxiliary_loss_weight",
    "SHIRA": "mask_type random_seed",
    "SUPERTUNING": "sparsity select_top lora_alpha lora_dropout save_precomputed_indices",
    "TINYLORA": "u weight_tying projection_seed save_projection init_v_bound tinylora_dropout",
    "TRAINABLE_TOKENS": "token_indices",
    "UNILORA": "proj_seed theta_d_length unilora_dropout init_theta_d_bound save_indices",
    "VBLORA": "num_vectors vector_length topk save_only_topk_weights vblora_dropout "
    "init_vector_bank_bound init_logits_std",
    "VERA": _PROJECTED + "vera_dropout d_initial",
    "WAVEFT": "n_frequency scaling wavelet_family use_idwt random_loc_seed n_frequency_pattern "
    "proportional_parameters",
    "XLORA": "hidden_size adapters enable_softmax enable_softmax_topk layerwise_scalings xlora_depth "
    "xlora_size xlora_dropout_p use_trainable_adapters softmax_temperature top_k_lora scaling_pass_value "
    "global_scaling_weight",
}
"""By method of PEFT that is not registered here, the fields beside the common ones under which it was
compared with PEFT's own logits."""

HARMLESS = frozenset({"lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "merge_weights", "unsloth_version"})
"""Fields that other trainers or old versions write, of which PEFT knows nothing and which compute nothing."""


def known_fields(method: str) -> frozenset[str] | None:
    """Return the fields of a method that are known; None if the method is not."""
    entry = find(method)
    own = _KNOWN[method].split() if method in _KNOWN else None if entry is None else entry.compared
    return None if own is None else _COMMON | frozenset(own)


def method_verdict(method: str) -> Verdict:
    """Return how a method, named as in ``peft_type``, is computed while no field asks for another way."""
    entry = find(method)
    if entry is not None:
        return SHARED if entry.per_token else Verdict("alone", f"{entry.name} is not registered as per_token")
    if method not in _KNOWN:
        return Verdict("refused", "its answers were never compared with PEFT's own")
    return _METHOD.get(method, SHARED)


def verdict(config: PeftConfig, task: int | None = None) -> Verdict:
    """Return how the transformers engine computes an adapter; the reason names a field or the method.

    ``task``: the one of all rows, of an adapter of several tasks; default: what was chosen as it was loaded.
    """
    method = str(getattr(config.peft_type, "value", config.peft_type))
    found = method_verdict(method)
    if found.way == "refused":
        return Verdict("refused", f"method {method} cannot be computed: {found.reason}")
    if reason := why_no_task(config, chosen_task(config) if task is None else task):
        return Verdict("refused", f"method {method}: {reason}")
    known = known_fields(method) or frozenset()
    for name in _set_fields(config):
        asked = _FIELD.get(name, SHARED if name in known else None)
        if asked is None:
            return Verdict("refused", f"field {name!r} of {method} was never compared with PEFT")
        if asked.way == "refused":
            return Verdict("refused", f"field {name!r} of {method} cannot be computed: {asked.reason}")
        if asked.way == "alone":
            found = asked
    return found


def unknown_field(content: Mapping[str, Any], config_cls: type) -> str | None:
    """Return the first key that PEFT's config has no field for, unless it is empty or known as harmless."""
    names = {field.name for field in fields(config_cls)}
    for key, value in content.items():
        if key not in names | HARMLESS and value not in (None, False, "", [], {}):
            return key
    return None


def virtual_tokens(config: PeftConfig) -> int:
    """Return how many positions of the model an adapter takes for itself."""
    return int(getattr(config, "num_virtual_tokens", 0) or 0) if config.is_prompt_learning else 0


def _set_fields(config: PeftConfig) -> list[str]:
    """Return the names of the fields that do not have their default."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default and value not in (None, False, "", [], {}, ()):
            found.append(field.name)
    return found
