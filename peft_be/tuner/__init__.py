from .config import BETokenConfig, active_config
from .layer import BETokenEmbedding
from .model import BETokenModel, check_adapter_name
from .registration import register_be_token
from .token_ids import find_unused_token_ids
from .untying import untie_output_embedding


__all__ = [
    "BETokenConfig",
    "BETokenEmbedding",
    "BETokenModel",
    "active_config",
    "check_adapter_name",
    "find_unused_token_ids",
    "untie_output_embedding",
]

register_be_token(BETokenConfig, BETokenModel)
