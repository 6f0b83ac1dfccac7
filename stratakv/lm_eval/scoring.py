"""Log-likelihoods of continuations, read through the packed cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.lm_eval.reading import Reader
from stratakv.lm_eval.rows import Batch, batches, rows_of
from stratakv.measure.divergence import negative_log_likelihood, predictions
from stratakv.profile import Profile

Score = tuple[float, bool]


def score(
    loaded: LoadedModel,
    profile: Profile,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    longest: int,
    batch_size: int,
    done: Callable[[int, Score], None] = lambda index, score: None,
) -> list[Score]:
    """(log-likelihood in nats, whether greedy text would be the continuation) of each (context, continuation) of token ids.

    A context has tokens. longest: as in `rows_of`. batch_size: rows of a forward call, at most. done: called with each index and
    result as they come, in another order. UserError for a continuation that is too long, and for predictions that are not
    finite.
    """
    if (most := max((len(continuation) for _, continuation in pairs), default=0)) > longest:
        raise UserError(f"a continuation of {most} tokens: the model reads at most {longest}: give a larger max_length")
    reader = Reader(loaded, profile)
    scores: list[Score] = [(0.0, True)] * len(pairs)
    for batch in batches(rows_of(pairs, longest), batch_size, shared=reader.shares):
        try:
            _score_batch(reader, batch, scores)
        except FloatingPointError as error:
            raise UserError(f"profile {profile.name}: {error}; if dtype is not f32, try dtype=f32") from error
        for row in batch.rows:
            for index, _ in row.wanted:
                done(index, scores[index])
    return scores


def _score_batch(reader: Reader, batch: Batch, scores: list[Score]) -> None:
    """Add what each piece says of each continuation."""
    for at, logits in reader.read(batch):
        for row, of_row in zip(batch.rows, logits, strict=True):
            end = len(row.tokens)
            for index, ids in row.wanted:
                first, last = max(at, end - len(ids)), min(at + len(of_row), end)
                if first >= last:
                    continue
                targets = torch.tensor(ids, device=of_row.device)[first - end + len(ids) : last - end + len(ids)]
                found = predictions(of_row[first - at : last - at])
                total, greedy = scores[index]
                total -= float(np.sum(negative_log_likelihood(found, targets)))
                scores[index] = (total, greedy and bool((found.top == targets.cpu().numpy()).all()))
