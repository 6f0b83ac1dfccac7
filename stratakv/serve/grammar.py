"""Answers of a given form: llguidance says which tokens may come next."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import torch

from stratakv.errors import UserError
from stratakv.serve.gbnf import gbnf_to_lark
from stratakv.serve.json_schema import explained
from stratakv.serve.request import GrammarError, GrammarSpec

# Small models fill an answer with blank lines where they may
_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Makes matchers for one model's tokens. The tokenizer's table is built when the first grammar comes (about a second)."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.end_tokens = sorted(end_tokens)
        self._table: Any = None

    def unavailable(self) -> str | None:
        """Why no grammar can bind this model's tokens, in words, as far as can be told without the table; None: nothing known."""
        if importlib.util.find_spec("llguidance") is None:
            return "the package llguidance is not installed: pip install 'stratakv[serve]'"
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            return "this model's tokenizer is none of the tokenizers library, which llguidance reads"
        return None

    def matcher(self, spec: GrammarSpec) -> Matcher:
        """A matcher at the beginning of an answer; GrammarError where the grammar is wrong."""
        try:
            import llguidance
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise UserError(f"grammars need the package llguidance ({error}): pip install 'stratakv[serve]'") from error
        if self._table is None:
            try:
                end = self.end_tokens or None
                self._table = from_tokenizer(self.tokenizer, n_vocab=self.vocabulary, eos_token=end)
            except (ValueError, AttributeError) as error:
                raise UserError(f"this model's tokenizer can't be used with grammars: {error}") from error
        text = _llguidance_grammar(spec)
        problem = self._problem(text)
        if problem and spec.kind == "json_schema":
            problem = explained(json.loads(spec.text), lambda schema: self._problem(_schema_grammar(schema)))
        if problem:
            raise GrammarError(spec, problem.strip().splitlines()[0])
        return Matcher(llguidance.LLMatcher(self._table, text, log_level=0), self.vocabulary)

    def _problem(self, grammar: str) -> str:
        """What llguidance says against a grammar; empty: nothing."""
        import llguidance

        problem = str(llguidance.LLMatcher.validate_grammar(grammar, self._table))
        return "" if problem.startswith("WARNING") else problem


class Matcher:
    """The grammar's state after the tokens so far."""

    def __init__(self, inner: Any, vocabulary: int) -> None:
        self._inner, self._vocabulary = inner, vocabulary
        self._bits = np.zeros(-(-vocabulary // 32), dtype=np.int32)

    def mask(self) -> torch.Tensor:
        """Boolean [vocabulary]: tokens that may come next. ValueError when the grammar has failed."""
        self._inner.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        return torch.from_numpy(bits.astype(bool))

    def accept(self, token: int) -> None:
        """Go on by a token."""
        self._inner.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may come."""
        return bool(self._inner.is_stopped())

    def _check(self) -> None:
        if self._inner.is_error():
            raise ValueError(f"grammar: {self._inner.get_error().strip().splitlines()[0]}")


def _schema_grammar(schema: Any) -> str:
    import llguidance

    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_JSON))


def _llguidance_grammar(spec: GrammarSpec) -> str:
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        if spec.kind == "json_object":
            return _schema_grammar({"type": "object"})
        if spec.kind == "json_schema":
            return _schema_grammar(json.loads(spec.text))
        if spec.kind == "regex":
            return str(matcher.grammar_from_regex(spec.text))
        if spec.kind == "gbnf":
            return str(matcher.grammar_from_lark(gbnf_to_lark(spec.text)))
        return str(matcher.grammar_from_lark(spec.text))
    except Exception as error:  # each parser has its own; what it says is about the grammar
        raise GrammarError(spec, (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
