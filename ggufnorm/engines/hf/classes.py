"""Which of Transformers' classes a checkpoint was made for."""

from __future__ import annotations

from typing import Any


def class_for(transformers: Any, config: Any, *, remote_code: bool, encoder_alone: bool) -> Any:
    """The class with predictions, where the checkpoint was made for them.

    Args:
        transformers: the package.
        config: of the checkpoint.
        remote_code: the checkpoint may bring its own classes.
        encoder_alone: of an encoder-decoder the encoder is asked for.
    """
    t = transformers
    names = getattr(config, "architectures", None) or ()
    made_for = " ".join(names)
    auto, kind = t.models.auto.modeling_auto, getattr(config, "model_type", "")
    if kind in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES and (
        "EncoderModel" in made_for or (encoder_alone and has_decoder(config))
    ):
        return t.AutoModelForTextEncoding
    predicts = "ForCausalLM" in made_for or "LMHead" in made_for
    if has_decoder(config):
        predicts |= "ForConditionalGeneration" in made_for
        known = kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return t.AutoModelForSeq2SeqLM if predicts and known else t.AutoModel
    if predicts and (kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or remote_code):
        return t.AutoModelForCausalLM
    of_images = kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if of_images and "ForConditionalGeneration" in made_for:
        return t.AutoModelForImageTextToText
    of_classes = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if of_classes and "ForImageClassification" in made_for:
        return t.AutoModelForImageClassification
    return t.AutoModel


def has_decoder(config: Any) -> bool:
    """Whether a config is that of an encoder-decoder, and not of its encoder alone."""
    made_for = " ".join(getattr(config, "architectures", None) or ())
    return bool(getattr(config, "is_encoder_decoder", False)) and "EncoderModel" not in made_for
