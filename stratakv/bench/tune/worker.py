"""One model whose gradients are taken, behind a pipe, so that its peak memory is its own: JSON lines in, JSON lines out.

Requests: {"do": "load", "model", "threads"}: {"name", "layers", "weight_bytes"}; {"do": "gradients", "contexts", "context",
"draws"}: {"seconds", "cpu_seconds", "passes", "types"}, of contexts of random tokens.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from stratakv.bench.worker import answer_requests
from stratakv.engine.attention import use
from stratakv.engine.describe import describe_model
from stratakv.engine.load import LoadedModel, load_weights
from stratakv.tune.gradient import gradient_damage, passes_of
from stratakv.tune.types import allowed_types


class _Session:
    loaded: LoadedModel

    def load(self, model: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        description = describe_model(model)
        weights = load_weights(description)
        self.loaded = LoadedModel(
            use(weights.model), None, description.name, description.fingerprint, description.geometry, weights.nbytes
        )
        layers = len(description.geometry.layers)
        return {"name": description.name, "layers": layers, "weight_bytes": weights.nbytes}

    def gradients(self, contexts: int, context: int, draws: int) -> dict[str, Any]:
        """The damage of all types that the model can store."""
        types = allowed_types(self.loaded.geometry, None)
        embedding: Any = self.loaded.model.get_input_embeddings()
        drawn = torch.Generator().manual_seed(0)
        ids = torch.randint(embedding.num_embeddings, (contexts, context), generator=drawn)
        began, used = time.perf_counter(), time.process_time()
        for seed, each in enumerate(ids):
            gradient_damage(self.loaded, each, types, draws, seed)
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
        return {**spent, "passes": contexts * passes_of(draws), "types": len(types)}


if __name__ == "__main__":
    answer_requests(_Session())
