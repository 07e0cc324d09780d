"""Small random models of the families of transformers, inputs for them, and the same models with layers physically deleted."""

import copy
import inspect
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.finding import layers_config
from rl_skip.attached.library import require

__all__ = ["DEPTH", "FAMILIES", "ROWS", "batch", "build", "without_layers"]

DEPTH, WIDTH, HEADS, VOCABULARY, ROWS, TOKENS, IMAGE = 4, 32, 4, 60, 4, 9, 12
SIZES: tuple[tuple[Any, str], ...] = (
    (WIDTH, "hidden_size d_model n_embd dim emb_dim embed_dim"),
    (DEPTH, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (HEADS, "num_encoder_attention_heads num_decoder_attention_heads"),
    (48, "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim moe_intermediate_size shared_expert_intermediate_size n_inner"),
    (WIDTH // HEADS, "head_dim d_kv"),
    (2, "num_key_value_heads num_experts_per_tok num_feat_extract_layers"),
    (4, "num_experts num_local_experts n_routed_experts patch_size num_conv_pos_embedding_groups"),
    (VOCABULARY, "vocab_size"),
    (64, "max_position_embeddings n_positions max_source_positions max_target_positions"),
    (0, "pad_token_id"),
    (1, "bos_token_id decoder_start_token_id"),
    (2, "eos_token_id"),
    (IMAGE, "image_size"),
    (6, "sliding_window"),
    ((16, 16), "conv_dim"),
    ((5, 2), "conv_stride"),
    ((10, 3), "conv_kernel"),
    (16, "num_conv_pos_embeddings"),
    (8, "num_mel_bins"),
    (0.0, "layerdrop encoder_layerdrop decoder_layerdrop"),
)
"""What configurations call the sizes of a model, and the sizes of a small one."""
SMALL = {name: value for value, names in SIZES for name in names.split()}

MLA = {"num_key_value_heads": HEADS, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
VIDEO = {"crop_size": IMAGE, "frames_per_clip": 4}

Family = tuple[str, dict[str, Any]]
"""The path of the layers ("auto" where `attach` finds them), and what the configuration has besides the small sizes."""
PLAIN = """
BertModel RobertaModel XLMRobertaModel XLMRobertaXLModel CamembertModel DistilBertModel ElectraModel ErnieModel ModernBertModel DebertaModel
DebertaV2Model AlbertModel MPNetModel RemBertModel RoFormerModel NystromformerModel FNetModel MegatronBertModel LongformerModel BigBirdModel
ConvBertModel MobileBertModel EsmModel LayoutLMModel LiltModel MarkupLMModel MraModel YosoModel Data2VecTextModel RobertaPreLayerNormModel
RoCBertModel SplinterModel FunnelModel BertGenerationEncoder NomicBertModel EuroBertModel XLMModel FlaubertModel JinaEmbeddingsV3Model
GPT2LMHeadModel GPTNeoXForCausalLM GPTBigCodeForCausalLM OPTForCausalLM XGLMForCausalLM BloomForCausalLM FalconForCausalLM MptForCausalLM
LlamaForCausalLM MistralForCausalLM MixtralForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM GemmaForCausalLM
Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM CohereForCausalLM Cohere2ForCausalLM
OlmoForCausalLM Olmo2ForCausalLM OlmoeForCausalLM GraniteForCausalLM GraniteMoeForCausalLM PersimmonForCausalLM NemotronForCausalLM
GlmForCausalLM Glm4ForCausalLM RecurrentGemmaForCausalLM RwkvForCausalLM SmolLM3ForCausalLM Ernie4_5ForCausalLM GptOssForCausalLM Lfm2ForCausalLM
HeliumForCausalLM Exaone4ForCausalLM XLNetLMHeadModel BioGptForCausalLM ApertusForCausalLM ArceeForCausalLM DiffLlamaForCausalLM TrOCRForCausalLM
T5EncoderModel MT5ForConditionalGeneration BartForConditionalGeneration MBartForConditionalGeneration ViTModel DeiTModel BeitModel
Data2VecVisionModel Dinov2Model Dinov2WithRegistersModel DINOv3ViTModel IJepaModel ViTMAEModel ViTMSNModel VitDetModel ConvNextModel ResNetModel
PoolFormerModel SiglipVisionModel CLIPVisionModel CLIPTextModel FlavaImageModel ViltModel VisualBertModel DPTModel ImageGPTModel
PixtralVisionModel Aimv2VisionModel Wav2Vec2Model HubertModel WavLMModel UniSpeechModel UniSpeechSatModel Data2VecAudioModel SEWModel SEWDModel
Wav2Vec2ConformerModel
"""
"""Families whose layers `attach` finds, and which need the small sizes alone."""
FAMILIES: dict[str, Family] = {name: ("auto", {}) for name in PLAIN.split()} | {
    "SqueezeBertModel": ("auto", {"embedding_size": WIDTH}),
    "IBertModel": ("encoder.layer", {}),
    "LukeModel": ("auto", {"entity_vocab_size": 8}),
    "CanineModel": ("encoder.layer", {"num_hash_buckets": 64}),
    "XmodModel": ("auto", {"default_language": "en_XX"}),
    "GPTNeoForCausalLM": ("auto", {"attention_types": [[["global", "local"], 2]]}),
    "GPTJForCausalLM": ("auto", {"rotary_dim": 4}),
    "GPTNeoXJapaneseForCausalLM": ("gpt_neox_japanese.layers", {}),
    "CodeGenForCausalLM": ("auto", {"rotary_dim": 4}),
    "OpenAIGPTLMHeadModel": ("transformer.h", {}),
    "JambaForCausalLM": ("auto", {"attn_layer_period": 2, "attn_layer_offset": 0, "mamba_d_state": 8, "use_mamba_kernels": False}),
    "MambaForCausalLM": ("auto", {"conv_kernel": 4, "state_size": 8}),
    "Mamba2ForCausalLM": ("auto", {"conv_kernel": 4, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    "BambaForCausalLM": ("auto", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [0, 2]}),
    "FalconH1ForCausalLM": ("auto", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8}),
    "DeepseekV2ForCausalLM": ("auto", MLA),
    "DeepseekV3ForCausalLM": ("auto", MLA | {"n_group": 2, "topk_group": 1}),
    "CTRLLMHeadModel": ("transformer.h", {}),
    "T5ForConditionalGeneration": ("decoder.block", {}),
    "UMT5ForConditionalGeneration": ("encoder.block", {}),
    "LongT5ForConditionalGeneration": ("encoder.block", {"local_radius": 4}),
    "SwitchTransformersForConditionalGeneration": ("encoder.block", {"num_sparse_encoder_layers": 2, "expert_capacity": 64}),
    "PegasusForConditionalGeneration": ("model.encoder.layers", {}),
    "MarianMTModel": ("model.encoder.layers", {}),
    "BlenderbotForConditionalGeneration": ("model.encoder.layers", {}),
    "LEDForConditionalGeneration": ("led.encoder.layers", {"attention_window": 4}),
    "M2M100ForConditionalGeneration": ("model.encoder.layers", {}),
    "PLBartForConditionalGeneration": ("model.encoder.layers", {}),
    "ProphetNetForConditionalGeneration": ("prophetnet.encoder.layers", {}),
    "WhisperForAudioClassification": ("auto", {"max_source_positions": 15}),
    "Speech2TextForConditionalGeneration": ("model.encoder.layers", {"input_feat_per_channel": 8, "conv_channels": 16}),
    "YolosModel": ("auto", {"image_size": [IMAGE, IMAGE]}),
    "SwinModel": ("auto", {"embed_dim": 8, "num_heads": [1, 2, 2, 4], "num_attention_heads": None, "num_hidden_layers": None}),
    "PvtModel": ("auto", {"num_attention_heads": None}),
    "TimesformerModel": ("auto", {"num_frames": 2}),
    "VivitModel": ("auto", {"num_frames": 4, "tubelet_size": [2, 4, 4]}),
    "VideoMAEModel": ("auto", {"num_frames": 4}),
    "VJEPA2Model": ("encoder.layer", VIDEO | {"pred_hidden_size": WIDTH, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1}),
    "SegformerModel": ("auto", {"num_attention_heads": None}),
    "HieraModel": ("auto", {"image_size": None, "patch_size": None, "num_heads": None}),
    "SiglipModel": ("vision_model.encoder.layers", {"text_config": {"projection_size": WIDTH}, "vision_config": {}}),
    "CLIPModel": ("text_model.encoder.layers", {"text_config": {}, "vision_config": {}, "projection_dim": 16}),
    "CLIPForImageClassification": ("auto", {"text_config": {}, "vision_config": {}}),
    "SiglipForImageClassification": ("auto", {"text_config": {}, "vision_config": {}}),
    "ASTModel": ("auto", {"max_length": 30, "frequency_stride": 4, "time_stride": 4}),
    "Qwen2VLForConditionalGeneration": ("model.language_model.layers", {"text_config": MROPE, "vision_config": {"depth": 1}}),
    "Wav2Vec2BertModel": ("auto", {"feature_projection_input_dim": 8}),
    "SpeechT5ForSpeechToText": ("speecht5.encoder.wrapped_encoder.layers", {}),
    "FSMTForConditionalGeneration": ("model.encoder.layers", {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]}),
}
"""By the class of the model."""
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ASTModel": {"input_values": (30, 8)},
    "CLIPModel": {"pixel_values": (3, IMAGE, IMAGE)},
    "SiglipModel": {"pixel_values": (3, IMAGE, IMAGE)},
    "Speech2TextForConditionalGeneration": {"input_features": (30, 8)},
    "TimesformerModel": {"pixel_values": (2, 3, IMAGE, IMAGE)},
    "VJEPA2Model": {"pixel_values_videos": (4, 3, IMAGE, IMAGE)},
    "ViTMAEModel": {"pixel_values": (3, IMAGE, IMAGE), "noise": (9,)},
    "VideoMAEModel": {"pixel_values": (4, 3, IMAGE, IMAGE)},
    "ViltModel": {"pixel_values": (3, IMAGE, IMAGE)},
    "VivitModel": {"pixel_values": (4, 3, IMAGE, IMAGE)},
    "Wav2Vec2BertModel": {"input_features": (30, 8)},
    "WhisperForAudioClassification": {"input_features": (8, 30)},
}
"""The shapes of a row's inputs, of models that take others than those of their kind, or more."""


def build(family: str, **options: Any) -> nn.Module:
    """The family's model with seeded weights, large enough that every layer matters."""
    model_class = getattr(require(), family)
    _, own = FAMILIES[family]
    torch.manual_seed(0)
    model: nn.Module = model_class._from_config(small_config(model_class.config_class, own), **options).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2.0)
    return model


def small_config(config_class: Any, own: dict[str, Any]) -> Any:
    """A configuration of the class with the small sizes, and what is `own` to a family; parts that have configurations are small too."""
    known = config_class().to_dict().keys() | inspect.signature(config_class).parameters.keys() | getattr(config_class, "attribute_map", {}).keys()
    parts = {name: small_config(kind, own.get(name, {})).to_dict() for name, kind in getattr(config_class, "sub_configs", {}).items() if name in own}
    given = {name: value for name, value in own.items() if value is not None}  # None: as the class has it
    return config_class(**{name: value for name, value in SMALL.items() if name in known and name not in own} | given | parts)


def batch(model: Any, rows: int = ROWS) -> dict[str, Tensor]:
    """Inputs of rows of differing lengths: padded on the left for decoders, else on the right; images have no padding."""
    torch.manual_seed(1)
    config = model.config
    inputs = {name: torch.randn(rows, *shape) for name, shape in SHAPES.get(type(model).__name__, {}).items()}
    decoder = {"decoder_input_ids": torch.randint(3, VOCABULARY, (rows, 5))} if config.is_encoder_decoder else {}
    if model.main_input_name in inputs:
        return inputs if "Classification" in type(model).__name__ else inputs | decoder
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, IMAGE, IMAGE)}
    if model.main_input_name == "input_values":
        samples = torch.tensor([200, 120, 160, 90])[:rows]
        mask = torch.arange(200) < samples.unsqueeze(1)
        return {"input_values": torch.randn(rows, 200) * mask, "attention_mask": mask.long(), **decoder}
    lengths = torch.tensor([TOKENS, 4, 7, 6])[:rows]
    mask = torch.arange(TOKENS) < lengths.unsqueeze(1)
    if not config.is_encoder_decoder and model.can_generate():
        mask = mask.flip(1)
    ids = torch.randint(3, VOCABULARY, (rows, TOKENS)) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), **inputs, **decoder}


def without_layers(model: nn.Module, path: str, route: list[bool]) -> nn.Module:
    """A copy of the model from which the layers that the route leaves out are deleted."""
    copied = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    holder, listed = copied.get_submodule(parent), copied.get_submodule(path)
    assert isinstance(listed, nn.ModuleList)
    kept = [layer for layer, runs in zip(listed, route, strict=True) if runs]
    setattr(holder, name, nn.ModuleList(kept))
    config = layers_config(copied, path)
    kinds = {types: getattr(config, types, None) for types in ("layer_types", "layers_block_type", "mlp_layer_types", "attention_layers")}
    with suppress(NotImplementedError):  # where depths of an encoder and a decoder are told apart
        config.num_hidden_layers = len(kept)
    for types, of_all in kinds.items():
        if isinstance(of_all, list):
            own = {types: [kind for kind, runs in zip(of_all, route, strict=True) if runs]}
            config.__class__ = type("Cut", (type(config),), own)  # some configurations derive them from the number of the layer
            vars(config).pop(types, None)
    for i, layer in enumerate(kept):
        for part in layer.modules():
            for name in ("layer_idx", "layer_id"):
                if name in vars(part):
                    setattr(part, name, i)
    return copied
