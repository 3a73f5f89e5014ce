"""Run a model on batches of pixels."""

from featurepress.backbones.base import RUNTIMES, Backbone, load_backbone, supports_bfloat16

__all__ = ["RUNTIMES", "Backbone", "load_backbone", "supports_bfloat16"]
