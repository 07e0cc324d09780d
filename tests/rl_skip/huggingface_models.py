"""Small random models of many families, inputs for them, and the same models with layers physically deleted."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

DEPTH, WIDTH, VOCABULARY, ROWS = 5, 32, 60, 4
TEXT = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": VOCABULARY}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 12, "patch_size": 4}
SPEECH = TEXT | {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SEQUENCES = SPECIAL | {"d_model": WIDTH, "vocab_size": VOCABULARY, "decoder_start_token_id": 1}
BART = SEQUENCES | {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in (("attention_heads", 4), ("ffn_dim", 48))}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True}
UNTIED = {"tie_word_embeddings": False}  # tied to the embedding, a random model says one token over and over
GROUPED = TEXT | SPECIAL | {"num_key_value_heads": 2}

ONLY_EAGER = ("deberta-v2", "gemma2", "gptj")  # have no sdpa attention
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT | {"max_position_embeddings": 40}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": WIDTH, "n_layers": DEPTH, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY},
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", TEXT | {"embedding_size": 16}),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", TEXT | SPECIAL | {"local_attention": 4}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", TEXT | RELATIVE | {"max_position_embeddings": 32}),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VISION),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**VISION, "mlp_ratio": 2}),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", SPEECH),
    "wav2vec2-stable": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", SPEECH | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    "hubert": ("HubertForSequenceClassification", "HubertConfig", SPEECH),
    "whisper": (
        "WhisperForAudioClassification",
        "WhisperConfig",
        BART | {"encoder_layers": DEPTH, "decoder_layers": 2, "num_mel_bins": 8, "max_source_positions": 15},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        SEQUENCES | {"num_layers": DEPTH, "num_decoder_layers": DEPTH, "num_heads": 4, "d_kv": 8, "d_ff": 48},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART | {"encoder_layers": DEPTH, "decoder_layers": DEPTH}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        SPECIAL | UNTIED | {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 6}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 8, "sliding_window": 6}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        TEXT | SPECIAL | UNTIED | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT | SPECIAL),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", SPECIAL | {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "vocab_size": VOCABULARY, "rotary_dim": 4}),
}

CASES = [(family, attention) for family in FAMILIES for attention in ("sdpa", "eager") if attention == "eager" or family not in ONLY_EAGER]


def build(family: str, **options: Any) -> nn.Module:
    """The family's model with seeded weights, large enough that every layer matters."""
    model_class, config_class, config = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)._from_config(getattr(transformers, config_class)(**config), **options).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2.0)
    return model


def batch(model: nn.Module, rows: int = ROWS) -> dict[str, Tensor]:
    """Inputs of rows of differing lengths: padded on the left for decoders, else on the right; images have no padding."""
    torch.manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, 12, 12)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(rows, 8, 30)}
    if model.main_input_name == "input_values":
        samples = torch.tensor([200, 120, 160, 90])[:rows]
        mask = torch.arange(200) < samples.unsqueeze(1)
        return {"input_values": torch.randn(rows, 200) * mask, "attention_mask": mask.long()}
    lengths = torch.tensor([9, 4, 7, 6])[:rows]
    mask = torch.arange(9) < lengths.unsqueeze(1)
    if not model.config.is_encoder_decoder and model.can_generate():
        mask = mask.flip(1)
    ids = torch.randint(3, VOCABULARY, (rows, 9)) * mask
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    return inputs | {"decoder_input_ids": torch.randint(3, VOCABULARY, (rows, 5))} if model.config.is_encoder_decoder else inputs


def pruned(model: nn.Module, path: str, route: list[bool]) -> nn.Module:
    """A copy of the model from which the layers that the route leaves out are deleted."""
    copied = copy.deepcopy(model)
    layers, config = copied.get_submodule(path), copied.config
    kept = [layer for layer, runs in zip(layers, route, strict=True) if runs]
    types = getattr(config, "layer_types", None)
    parent, _, name = path.rpartition(".")
    setattr(copied.get_submodule(parent), name, nn.ModuleList(kept))
    config.num_hidden_layers = len(kept)
    if types is not None:
        config.layer_types = [kind for kind, runs in zip(types, route, strict=True) if runs]
    for i, layer in enumerate(kept):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = i
    return copied
