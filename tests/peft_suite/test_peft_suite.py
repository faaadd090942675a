"""PEFT's own generic tests on `BETokenConfig`. Those that do not apply are skipped below, each with its reason."""

import pytest
from peft_upstream import load_test_module, retarget

from peft_be.tuner import BETokenConfig, BETokenEmbedding
from peft_be.tuner import model as be_token_model


try:
    common = load_test_module("testing_common")
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

config_tests = load_test_module("test_config")
custom = load_test_module("test_custom_models")
decoder = load_test_module("test_decoder_models")
feature_extraction = load_test_module("test_feature_extraction_models")


class IdentityEmbedding(BETokenEmbedding):
    """Starts with the rows that the table has at the same ids, for tests of methods that start as the identity."""

    def update_layer(self, adapter_name, config):
        super().update_layer(adapter_name, config)
        table = self.get_base_layer().weight.detach()
        for name, ids in (
            ("be_token_embedding", config.be_token_ids),
            ("be_token_ae_embedding", [config.ae_token_id]),
        ):
            if adapter_name in getattr(self, name):
                getattr(self, name)[adapter_name].weight.data.copy_(table[ids])


def trainable_tokens_like_config(target_modules, token_indices=(0,)):
    """Takes the arguments of `TrainableTokensConfig`, for which the tests build a model with an embedding."""
    return BETokenConfig(
        target_modules=target_modules, num_be_tokens=len(token_indices), be_token_ids=list(token_indices)
    )


# What the inputs of PEFT's tests contain: ids 1 and 2 for transformers models, 0 to 89 for custom models.
TRANSFORMERS_KWARGS = [
    {"num_be_tokens": 1, "be_token_ids": [1]},
    {"num_be_tokens": 2, "be_token_ids": [2, 1]},
    {"num_be_tokens": 0, "use_ae_token": True, "ae_token_id": 1},
]
CUSTOM_CASES = [
    (
        "three [BE]",
        "EmbConv1D",
        BETokenConfig,
        {"target_modules": "emb", "num_be_tokens": 3, "be_token_ids": [0, 1, 3]},
    ),
    (
        "[BE] and [AE]",
        "EmbConv1D",
        BETokenConfig,
        {
            "target_modules": ["emb"],
            "num_be_tokens": 2,
            "be_token_ids": [1, 3],
            "use_ae_token": True,
            "ae_token_id": 0,
            "save_ae_token": True,
        },
    ),
]

SAME_IDS = (
    "The test activates or merges two adapters with the same token ids, which is refused: an id has one row. See "
    "tests/tuner for adapters with the same and with different ids."
)
INACTIVE_ID = (
    "The input contains ids of an adapter that is not active, which raises an error by design (TrainableTokens reads "
    "the base embedding there). See tests/tuner."
)
NO_EMBEDDING = "The test builds a model without an embedding; PEFT skips TrainableTokens for the same reason."
NO_MODULES_TO_SAVE = (
    "The test needs modules_to_save, which BETokenConfig does not have (nor has TrainableTokensConfig)."
)
NO_LAYERS_TO_TRANSFORM = "The test needs layers_to_transform, which BETokenConfig does not have."
NEEDS_HUB = "The test loads adapters from the Hub, which need a network and belong to other methods."
EMBEDDING_LEARNS = (
    "The test asserts that the output of the input embedding requires no gradient. PEFT skips it for trainable tokens."
)
OTHER_METHODS = "The test is specific to other methods and skips itself for all others."

TestPeftConfig = retarget(
    config_tests.TestPeftConfig,
    values={"config_class, mandatory_kwargs": [(BETokenConfig, {})]},
    skips={
        "test_from_pretrained": NEEDS_HUB,
        "test_from_pretrained_cache_dir": NEEDS_HUB,
        "test_save_pretrained_with_runtime_config": NEEDS_HUB,
        "test_config_layers_to_transform_index_zero": NO_LAYERS_TO_TRANSFORM,
    },
)

# These tests give one input to two adapters, which must share its ids. An adapter that is added gets ids of its own otherwise,
# and shares those of another one by `assign_token_ids` only, which PEFT's tests do not know.
SHARED_IDS = {(be_token_model.BETokenModel, "_token_ids_of_others"): lambda self, adapter_name: set()}
MIXED_BATCHES = {(common, "LoraConfig"): BETokenConfig, (decoder, "LoraConfig"): BETokenConfig, **SHARED_IDS}
TestDecoderModels = retarget(
    decoder.TestDecoderModels,
    values={
        "model_id": ["tiny-llama", "tiny-qwen2", "tiny-gemma3", "tiny-opt"],
        "config_cls,config_kwargs": [(BETokenConfig, {"task_type": "CAUSAL_LM", **kw}) for kw in TRANSFORMERS_KWARGS],
    },
    skips={
        "test_prepare_for_training_parametrized": EMBEDDING_LEARNS,
        "test_merge_layers_multi": SAME_IDS,
        "test_adding_multiple_adapters_with_bias_raises": OTHER_METHODS,
        "test_prompt_learning_with_gradient_checkpointing": OTHER_METHODS,
        "test_prompt_tuning_text_prepare_for_training": OTHER_METHODS,
        "test_prompt_tuning_sample_vocab_prepare_for_training": OTHER_METHODS,
        "test_set_requires_grad_prompt_learning_raises": OTHER_METHODS,
        "test_training_decoders_layer_indexing": OTHER_METHODS,
        "test_training_prompt_learning_tasks": OTHER_METHODS,
        "test_weighted_combination_of_adapters": OTHER_METHODS,
    },
    patches={
        "test_mixed_adapter_batches": MIXED_BATCHES,
        "test_generate_with_mixed_adapter_batches": MIXED_BATCHES,
    },
)

TestPeftFeatureExtractionModel = retarget(
    feature_extraction.TestPeftFeatureExtractionModel,
    values={
        "model_id": ["tiny-bert"],
        "config_cls,config_kwargs": [
            (BETokenConfig, {"task_type": "FEATURE_EXTRACTION", **kw}) for kw in TRANSFORMERS_KWARGS
        ],
    },
    skips={
        "test_passing_input_embeds_works": OTHER_METHODS,
        "test_prepare_for_training_parametrized": EMBEDDING_LEARNS,
        "test_training_layer_indexing": OTHER_METHODS,
        "test_training_prompt_learning_tasks": OTHER_METHODS,
        "test_weighted_combination_of_adapters": OTHER_METHODS,
    },
)

STARTS_AS_IDENTITY = {(be_token_model, "BETokenEmbedding"): IdentityEmbedding}
TestPeftCustomModel = retarget(
    custom.TestPeftCustomModel,
    values={
        "test_name, model_id, config_cls, config_kwargs": CUSTOM_CASES,
        "config_cls": [BETokenConfig],
    },
    skips={
        "test_active_adapter": SAME_IDS,
        "test_adding_multiple_adapters_with_bias_raises": OTHER_METHODS,
        "test_disable_adapter_with_bias_warns": OTHER_METHODS,
        "test_multiple_active_adapters_with_different_modules_to_save_works": NO_MODULES_TO_SAVE,
        "test_multiple_active_adapters_with_overlapping_modules_to_save_raises": NO_MODULES_TO_SAVE,
        "test_multiple_active_adapters_with_same_modules_to_save_raises": NO_MODULES_TO_SAVE,
        "test_multiple_adapters_mixed_modules_to_save": NO_MODULES_TO_SAVE,
        "test_multiple_adapters_mixed_modules_to_save_order_switched": NO_MODULES_TO_SAVE,
        "test_set_adapter_non_overlapping_modules": NO_EMBEDDING,
        "test_set_adapter_non_overlapping_modules_to_save": NO_MODULES_TO_SAVE,
        "test_set_requires_grad": NO_EMBEDDING,
    },
    patches={
        "test_disable_adapters": STARTS_AS_IDENTITY,
        "test_disable_adapters_with_merging": STARTS_AS_IDENTITY,
        "test_delete_merged_adapter_only_rejects_the_merged_one": SHARED_IDS,
    },
)

TestMultipleActiveAdapters = retarget(
    custom.TestMultipleActiveAdapters,
    values={
        "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2": [
            (
                "different ids",
                "be_token",
                BETokenConfig,
                {"target_modules": "emb", "num_be_tokens": 3, "be_token_ids": [0, 1, 2]},
                {"target_modules": "emb", "num_be_tokens": 4, "be_token_ids": [3, 4, 5, 6]},
            )
        ]
    },
    skips={
        "test_multiple_active_adapters_forward": INACTIVE_ID,
        "test_merge_layers_multi": INACTIVE_ID,
    },
)
TestMultipleActiveAdapters.resolve_model_cls = lambda self, tuner_method: custom.ModelEmbConv1D()

TestRequiresGrad = retarget(
    custom.TestRequiresGrad,
    values={"config_cls": [trainable_tokens_like_config]},
    skips={"test_loading_model_with_modules_to_save_requires_grad_set_correctly": NO_MODULES_TO_SAVE},
    patches={
        "test_loading_model_requires_grad_set_correctly": {
            (custom, "TrainableTokensConfig"): trainable_tokens_like_config
        }
    },
)

MIXED_BATCH_TESTS = [
    "test_mixed_adapter_batches_mlp",
    "test_mixed_adapter_batches_length_mismatch_raises",
    "test_mixed_adapter_batches_training_mode_raises",
    "test_mixed_adapter_batches_disabled",
    "test_mixed_adapter_batches_merged_raises",
    "test_mixed_adapter_batches_lora_wrong_adapter_name_raises",
]
SAME_IDS_CONFIG = BETokenConfig(target_modules="emb", num_be_tokens=2, be_token_ids=[0, 45])
TestMixedAdapterBatches = retarget(
    custom.TestMixedAdapterBatches,
    values={
        "test_name, config0, config1": [("same ids", SAME_IDS_CONFIG, SAME_IDS_CONFIG)],
        "test_name, config": [("same ids", SAME_IDS_CONFIG)],
    },
    # The remaining ones vary the target layers, and there is one input embedding.
    only=MIXED_BATCH_TESTS,
    patches=dict.fromkeys(MIXED_BATCH_TESTS, {(custom, "MLP"): custom.ModelEmbConv1D, **SHARED_IDS}),
)

TestPeftFsdpStateDict = retarget(
    custom.TestPeftFsdpStateDict,
    values={"test_name, model_id, config_cls, config_kwargs": CUSTOM_CASES},
    skips={"test_save_load_roundtrip_fsdp_wrapped_learnable_bias": OTHER_METHODS},
)
