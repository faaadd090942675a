from .config import BETokenConfig
from .layer import BETokenEmbedding
from .model import BETokenModel
from .registration import register_be_token
from .token_ids import find_unused_token_ids


__all__ = ["BETokenConfig", "BETokenEmbedding", "BETokenModel", "find_unused_token_ids"]

register_be_token(BETokenConfig, BETokenModel)
