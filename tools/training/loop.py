"""The training loop: Muon for the hidden matrices, AdamW for the rest, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.recipes import Recipe
from training.text import windows


def new_model(recipe: Recipe, device: torch.device) -> PreTrainedModel:
    """A model from the recipe's seed; projections into the residual stream start at 1/sqrt(2 layers) of the default."""
    torch.manual_seed(recipe.seed)
    config = recipe.config()
    config._attn_implementation = "sdpa" if device.type == "cuda" else "eager"  # eager trains faster on a CPU
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.div_(math.sqrt(2 * recipe.layers))
    nn.Module.to(model, device)  # transformers' own `to` is not typed
    return model


def optimizers(model: nn.Module, recipe: Recipe) -> tuple[Optimizer, Optimizer]:
    """Muon (Jordan and others, 2024) for the matrices of the layers, AdamW for the embedding and the norms."""
    parameters = dict(model.named_parameters())
    hidden = [weight for name, weight in parameters.items() if weight.ndim == 2 and ".layers." in name]
    rest = [weight for name, weight in parameters.items() if not (weight.ndim == 2 and ".layers." in name)]
    return (
        Muon(hidden, lr=recipe.muon_lr, momentum=recipe.muon_momentum, weight_decay=recipe.muon_weight_decay),
        AdamW(rest, lr=recipe.adamw_lr, betas=recipe.adamw_betas, weight_decay=0.0),
    )


def train(
    recipe: Recipe,
    row: torch.Tensor,
    folder: Path,
    *,
    device: torch.device,
    stop_after: int | None = None,
    checkpoint_every: int = 100,
    report: Callable[[str], None] = print,
) -> tuple[PreTrainedModel, list[float]]:
    """Trains on the token ids `row` [tokens] and returns the model and the loss of every step, in nats a token.

    Goes on from `folder`/checkpoint.pt where there is one (ValueError when it is another recipe's), writes it every
    `checkpoint_every` steps and at the end, and ends early after `stop_after` steps in all.
    """
    model = new_model(recipe, device)
    model.train()
    muon, adamw = optimizers(model, recipe)
    checkpoint = folder / "checkpoint.pt"
    losses: list[float] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["recipe"] != as_json(recipe):
            raise ValueError(f"{checkpoint} belongs to another recipe: give another folder, or delete it to start anew")
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adamw.load_state_dict(state["adamw"])
        losses = state["losses"]
        report(f"goes on after step {len(losses)} of {recipe.steps}")

    last = min(recipe.steps, stop_after or recipe.steps)
    started, done_before = time.monotonic(), len(losses)
    for step in range(len(losses), last):
        phase = recipe.phase(step)
        for optimizer, peak in ((muon, recipe.muon_lr), (adamw, recipe.adamw_lr)):
            optimizer.param_groups[0]["lr"] = peak * recipe.rate(step)
        batch = windows(row, step, phase.batch, phase.tokens, recipe.seed).to(device)
        losses.append(update(model, batch, (muon, adamw), recipe.gradient_norm))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step + 1}: lower the learning rates")
        if (step + 1) % checkpoint_every == 0 or step + 1 == last:
            save_checkpoint(checkpoint, recipe, model, muon, adamw, losses)
            recent = losses[-checkpoint_every:]
            pace = (time.monotonic() - started) / (step + 1 - done_before)
            report(f"step {step + 1}/{recipe.steps}  loss {sum(recent) / len(recent):.4f}  {pace:.2f} s a step")
    return model, losses


def update(model: nn.Module, batch: torch.Tensor, both: tuple[Optimizer, Optimizer], gradient_norm: float) -> float:
    """One optimizer step on token ids [batch, tokens + 1], with bf16 autocast; returns the loss before it."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), gradient_norm)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_checkpoint(
    path: Path, recipe: Recipe, model: nn.Module, muon: Optimizer, adamw: Optimizer, losses: list[float]
) -> None:
    state = {
        "recipe": as_json(recipe),
        "model": model.state_dict(),
        "muon": muon.state_dict(),
        "adamw": adamw.state_dict(),
        "losses": losses,
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def as_json(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)
