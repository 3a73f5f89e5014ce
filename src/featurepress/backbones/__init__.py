"""Run a model on batches of pixels."""

from featurepress.backbones.base import RUNTIMES, Backbone, bring_model, load_backbone, supports_bfloat16

__all__ = ["RUNTIMES", "Backbone", "bring_model", "load_backbone", "supports_bfloat16"]
