"""GET /metrics: Prometheus' text format, llama-server's names where it has them, ours for the cache."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.settings import Context
from stratakv.serve.request import EngineSnapshot

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def router(context: Context) -> APIRouter:
    """The endpoint over this engine."""
    routes = APIRouter(tags=["llama-server"])

    @routes.get("/metrics")
    async def metrics() -> PlainTextResponse:
        if not context.settings.metrics:
            raise ApiError("no metrics: start the server with --metrics", status=501)
        return PlainTextResponse(metrics_text(context.engine.snapshot()), media_type=_TYPE)

    return routes


def metrics_text(snapshot: EngineSnapshot) -> str:
    """All numbers of a snapshot."""
    c = snapshot.counters
    # name, kind, what it is, value(s)
    rows: list[tuple[str, str, str, float | dict[str, float]]] = [
        ("llamacpp:prompt_tokens_total", "counter", "prompt tokens computed", c.prompt_tokens),
        ("llamacpp:prompt_seconds_total", "counter", "seconds of computing prompts", c.prompt_seconds),
        ("llamacpp:tokens_predicted_total", "counter", "tokens generated", c.generated_tokens),
        ("llamacpp:tokens_predicted_seconds_total", "counter", "seconds of generating", c.decode_seconds),
        ("llamacpp:n_decode_total", "counter", "forward calls", c.steps),
        ("llamacpp:prompt_tokens_seconds", "gauge", "prompt tokens a second", _rate(c.prompt_tokens, c.prompt_seconds)),
        (
            "llamacpp:predicted_tokens_seconds",
            "gauge",
            "generated tokens a second",
            _rate(c.generated_tokens, c.decode_seconds),
        ),
        ("llamacpp:requests_processing", "gauge", "requests that run", snapshot.running),
        ("llamacpp:requests_deferred", "gauge", "requests that wait", snapshot.queued),
        ("stratakv_healthy", "gauge", "1: the model's loop runs", float(snapshot.healthy)),
        (
            "stratakv_requests_total",
            "counter",
            "requests by how they ended",
            {
                'outcome="finished"': c.finished,
                'outcome="cancelled"': c.cancelled,
                'outcome="failed"': c.failed,
                'outcome="refused"': c.refused,
            },
        ),
        ("stratakv_preemptions_total", "counter", "sequences whose pages were taken and computed again", c.preempted),
        ("stratakv_prompt_tokens_cached_total", "counter", "prompt tokens found in the cache", c.cached_tokens),
        (
            "stratakv_cache_pages",
            "gauge",
            f"pages of {snapshot.page_tokens} tokens",
            {
                'state="used"': snapshot.pages_used,
                'state="cached"': snapshot.pages_cached,
                'state="free"': snapshot.pages_free,
            },
        ),
        (
            "stratakv_cache_pages_by_kind",
            "gauge",
            "the same by kind: fine pages of spans, sealed ones, or whole layers without spans",
            {
                f'kind="{each.kind}",state="{state}"': count
                for each in snapshot.kinds
                for state, count in (("used", each.used), ("cached", each.cached), ("free", each.free))
            },
        ),
        ("stratakv_cache_bytes", "gauge", "bytes of all pages", snapshot.cache_bytes),
        ("stratakv_cache_used_bytes", "gauge", "bytes of pages in use", snapshot.used_bytes),
        (
            "stratakv_cache_bytes_per_token",
            "gauge",
            "bytes of a token in all layers, outside of spans",
            snapshot.bytes_per_token,
        ),
        (
            "stratakv_cache_span_pages",
            "gauge",
            "pages of a sequence in a finer type, the most of any layer: newest beside its own, and first",
            {
                'span="recent"': max((layer.recent for layer in snapshot.layers), default=0),
                'span="first"': max((layer.first for layer in snapshot.layers), default=0),
            },
        ),
        ("stratakv_tokens_per_second", "gauge", "generated in the last seconds", snapshot.tokens_per_second),
    ]
    lines = []
    for name, kind, text, value in rows:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        values = value if isinstance(value, dict) else {"": value}
        lines += [
            f"{name}{{{labels}}} {_number(number)}" if labels else f"{name} {_number(number)}"
            for labels, number in values.items()
        ]
    return "\n".join(lines) + "\n"


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"
