"""Where a model's positions end, and where they hang on how long its text is."""

from __future__ import annotations

from typing import Any

from stratakv.errors import UserError

# Tables of positions, by transformers' names of the modules: GPT-2 and its like, OPT, and others
_TABLES = ("wpe", "embed_positions", "position_embeddings")


def learned_positions(model: Any) -> int | None:
    """How many positions a model has learned, and can't go beyond; None where it computes them."""
    said = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _TABLES and hasattr(module, "num_embeddings"):
            learned = int(module.num_embeddings) - int(getattr(module, "offset", 0))
            if learned == said:  # and no table of an encoder beside the text
                return learned
    return None


def check_positions(name: str, learned: int | None, tokens: int, what: str) -> None:
    """UserError where so many tokens need positions that the model hasn't learned. what: has them, in words."""
    if learned is not None and tokens > learned:
        raise UserError(
            f"{what} {tokens:,} tokens, {name} has learned {learned:,} positions and has no others: give fewer"
        )


def rope_border(config: Any) -> int | None:
    """Tokens beyond which a text is turned by other frequencies as a whole (LongRoPE); None where that is never so.

    transformers decides for all positions of a call at once, by the largest.
    """
    borders = [
        each.get("original_max_position_embeddings") for each in _ropes(config) if each["rope_type"] == "longrope"
    ]
    return min((int(border) for border in borders if border), default=None)


def grows_with_text(config: Any) -> bool:
    """Whether the frequencies of RoPE change with each token more ("dynamic")."""
    return any("dynamic" in each["rope_type"] for each in _ropes(config))


def _ropes(config: Any) -> list[dict[str, Any]]:
    """A text config's settings of RoPE, of each kind of layers where they differ."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [each for each in (found, *found.values()) if isinstance(each, dict) and each.get("rope_type")]


def forget_text(model: Any) -> None:
    """Let RoPE whose frequencies grow with a text begin with the next call anew: they are the last text's else."""
    for rotary in model.modules():
        if not hasattr(rotary, "original_max_seq_len"):
            continue
        for name, original in list(rotary.named_buffers(recurse=False)):
            prefix, found, _ = name.partition("original_inv_freq")
            if found:
                rotary.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
                setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
