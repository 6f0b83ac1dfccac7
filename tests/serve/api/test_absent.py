"""What clients ask for and is not there: 501 and one sentence, in the family's form."""

from __future__ import annotations

import httpx
import pytest


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/embeddings", "has no embeddings"),
        ("/api/embed", "has no embeddings"),
        ("/api/embeddings", "has no embeddings"),
        ("/infill", "does not fill in the middle"),
        ("/rerank", "does not rank"),
        ("/v1/rerank", "does not rank"),
        ("/api/pull", "none can be fetched"),
    ],
)
def test_what_is_not_there(server, path, says):
    answer = httpx.post(f"{server.url}{path}", json={"input": "x", "model": "m"})
    error = answer.json()["error"]
    assert answer.status_code == 501 and says in (error if path.startswith("/api/") else error["message"])
    assert path.startswith("/api/") or error["type"] == "not_supported_error"


def test_places_that_nobody_knows_are_still_404(server):
    assert httpx.post(f"{server.url}/v1/nothing", json={}).status_code == 404
