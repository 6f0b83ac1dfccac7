"""The model class that the harness calls: texts in, log-likelihoods and answers out, all through the packed cache."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from stratakv.engine.load import LoadedModel, load_model
from stratakv.errors import UserError
from stratakv.lm_eval.scoring import Score, score
from stratakv.lm_eval.writing import Prompt, prompt_of, write
from stratakv.profile import Profile, resolve

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_LONGEST = 2048  # where neither the model nor the user says how much it reads, as in the harness
_BATCH = 1
_AUTOMATIC_BATCH = 8


class PackedLM(TemplateLM):
    """A model and a profile.

    pretrained: a GGUF file, a directory, a hub name or "embedded", or a LoadedModel. profile: any text that `stratakv.resolve`
    takes, a file among them, or a Profile. batch_size: texts at once; "auto" is 8. max_length: tokens of a text at most, the
    model's context unless given; max_gen_toks: of an answer, where the task doesn't say. dtype: f32, bf16 or f16. exact: matrices
    of a GGUF file multiply in float32, as in `compare`. device: cpu or cuda, which the harness asks for where nothing is said;
    without a GPU it is the CPU. add_bos_token, prefix_token_id, enable_thinking, think_end_token, chat_template_args: as in the
    harness's own class `hf`. UserError for what can't be.
    """

    def __init__(
        self,
        pretrained: str | LoadedModel = "",
        profile: str | Profile = "f16",
        *,
        batch_size: int | str = _BATCH,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str = "f32",
        exact: bool = False,
        device: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(f"model_args {', '.join(sorted(unknown))}: not known here; {_KNOWN} are")
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self.loaded = pretrained if isinstance(pretrained, LoadedModel) else _load(pretrained, dtype, exact, device)
        geometry = self.loaded.geometry
        if isinstance(profile, str):
            profile = resolve(profile, geometry, fingerprint=self.loaded.fingerprint)
        self.profile = profile
        self.max_length = max_length or geometry.context or _LONGEST
        self.max_gen_toks = max_gen_toks
        self.tokenizer: Any = self.loaded.tokenizer
        self.think_end_token = think_end_token
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._template_arguments = {**(chat_template_args or {}), **thinking}
        self._add_bos, self._prefix = add_bos_token, prefix_token_id
        self._device = self.loaded.model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. UserError for a tokenizer that has none."""
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"{self.loaded.name} has neither a first token nor one that ends a text, and texts without a context are read "
                "after one: give prefix_token_id=N"
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is read after: BOS, or the end of text where there is none."""
        first = self._prefix if self._prefix is not None else self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its stored requests apart by."""
        return f"{self.loaded.name}-{self.loaded.fingerprint[:16]}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with BOS where the tokenizer adds it, and one where the text brings it along."""
        if add_special_tokens is None:
            add_special_tokens = self._add_bos
            if self.tokenizer.bos_token_id is not None and has_bos_prefix(string, self.tokenizer.bos_token):
                add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer(string, verbose=False, **options).input_ids
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model's prompt."""
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.loaded.name} has no chat template: leave --apply_chat_template out")
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._template_arguments,
        )
        return text

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, longer ones in windows of `max_length` tokens."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            own = [make_disjoint_window(pair) for pair in rolling]
            windows += own
            owners += [index] * len(own)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._score(windows, disable_tqdm), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each until one of its stop texts."""
        prompts = [self._prompt(*request.args) for request in requests]
        with _bar("Running generate_until requests", len(prompts), disable_tqdm) as bar:

            def done(index: int, text: str) -> None:
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
                bar.update()

            return write(self.loaded, self.profile, prompts, slots=self.batch_size, done=done)

    def get_model_info(self) -> dict[str, Any]:
        """What stands beside a result: the model, and what its cache stores."""
        return {
            "model_fingerprint": self.loaded.fingerprint,
            "model_dtype": str(self.loaded.model.dtype).removeprefix("torch."),
            "profile": self.profile.name,
            "profile_layers": [list(pair) for pair in self.profile.pairs],
            "profile_spans": [each.to_json() for each in self.profile.spans],
            "bits_per_value": self.profile.bpv,
            "bytes_per_token": self.profile.bytes_per_token,
        }

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Score]:
        """See TemplateLM: ((context, continuation), their token ids)."""

        def done(index: int, found: Score) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[index][0], found)

        pairs = [(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        return self._score(pairs, disable_tqdm, done)

    def _score(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        disable_tqdm: bool,
        done: Callable[[int, Score], None] = lambda index, found: None,
    ) -> list[Score]:
        with _bar("Running loglikelihood requests", len(pairs), disable_tqdm) as bar:

            def note(index: int, found: Score) -> None:
                done(index, found)
                bar.update()

            return score(
                self.loaded, self.profile, pairs, longest=self.max_length, batch_size=self.batch_size, done=note
            )

    def _prompt(self, context: str, gen_kwargs: dict[str, Any]) -> Prompt:
        return prompt_of(
            self.tok_encode(context) or [self.prefix_token_id],
            gen_kwargs,
            self.tokenizer,
            longest=self.max_length,
            most=self.max_gen_toks,
            think_end=self.think_end_token,
        )


_KNOWN = ", ".join(name for name in inspect.signature(PackedLM).parameters if name != "unknown")


def _load(source: str, dtype: str, exact: bool, device: str | None) -> LoadedModel:
    if not source:
        raise UserError("--model_args pretrained=MODEL is missing: a GGUF file, a directory, a hub name, or embedded")
    if dtype not in _DTYPES:
        raise UserError(f"dtype={dtype}: it must be {', '.join(_DTYPES)}")
    device = device or "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device {device}: it must be cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        _log.warning(
            "device %s, the harness's default, is not there: torch sees no GPU here, the model runs on the CPU", device
        )
        kind = device = "cpu"
    # what stays in a GGUF file's blocks runs on a CPU only
    loaded = load_model(source, dtype=_DTYPES[dtype], packed=kind == "cpu", exact=bool(exact))
    if kind == "cuda":
        loaded.model.to(device)  # type: ignore[arg-type]
    return loaded


def _batch_size(size: int | str, most: int | None) -> int:
    text = str(size)
    if text.startswith("auto"):
        return min(_AUTOMATIC_BATCH, most or _AUTOMATIC_BATCH)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"batch_size {size}: it must be 1 or more, or auto")
    return int(text)


def _bar(words: str, total: int, disabled: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=words, disable=disabled)
