"""A model class for EleutherAI's lm-evaluation-harness, `--model stratakv`: every task runs through the packed cache.

To import this package is to register the model, as everywhere in the harness.
"""

import lm_eval.models  # noqa: F401, the harness fills its registry by itself only while nothing is in it
from lm_eval.api.registry import model_registry

from stratakv.lm_eval.model import PackedLM

__all__ = ["PackedLM"]

if "stratakv" not in model_registry:
    model_registry.register("stratakv", target=PackedLM)
