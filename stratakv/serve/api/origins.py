"""Who may ask: the hosts that a server answers to, and the origins whose pages may use it."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stratakv.errors import UserError
from stratakv.serve.api.errors import ApiError
from stratakv.serve.api.settings import ServerSettings

# Pages and programs of this machine, as Ollama has them: none of these origins can be had by a page from elsewhere
LOCAL_ORIGINS = (
    r"https?://(localhost|([a-z0-9-]+\.)+localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?"
    r"|(app|file|tauri|vscode-webview|vscode-file)://.*"
)
# Names that the public DNS never holds: this machine, its network, and a container's host
_LOCAL_ENDS = (".localhost", ".local", ".internal")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]*")
_HOST = re.compile(r"\*|(\*\.)?[\w.-]+|\[[0-9a-f:]+\]", re.IGNORECASE)

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
SHOWN_HEADERS = ("Retry-After", "Warning")


def origin_pattern(settings: ServerSettings) -> str:
    """A regular expression of all origins that may ask: local ones, and those of --cors-origins."""
    given = [".*" if origin == "*" else re.escape(origin) for origin in settings.cors_origins]
    return f"(?i:{'|'.join([LOCAL_ORIGINS, *given])})"


def checked_origins(text: str) -> tuple[str, ...]:
    """--cors-origins; UserError for what is no origin."""
    origins = tuple(part.strip().rstrip("/").lower() for part in text.split(",") if part.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(f"--cors-origins {origin!r}: an origin is SCHEME://HOST[:PORT], or * for all")
    return origins


def checked_hosts(text: str) -> tuple[str, ...]:
    """--allowed-hosts; UserError for what is no host's name."""
    hosts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise UserError(
                f"--allowed-hosts {host!r}: names such as box.example or *.example without a port, or * for all"
            )
    return hosts


class Strangers:
    """ASGI middleware, before all others: refuses requests of pages that may not ask, and names that mean another server.

    A page from elsewhere could otherwise use a server that listens on the loopback address only: directly (its Origin tells), or
    after its own name was rebound to 127.0.0.1 (its Host tells).
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._origins = re.compile(origin_pattern(settings))
        self._hosts = settings.allowed_hosts
        self._checks_hosts = bool(settings.allowed_hosts) or (settings.loopback and not settings.api_keys)
        self._own_name = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            try:
                if origin is not None and _host(origin) != host and not self._origins.fullmatch(origin):
                    raise ApiError(
                        f"requests of pages from {origin[:100]!r} are not allowed: --cors-origins allows them",
                        status=403,
                    )
                if self._checks_hosts and not self._known(host):
                    raise ApiError(
                        f"host {host[:100]!r} is not allowed: the server answers to addresses, localhost, names that end in "
                        ".localhost, .local or .internal, and those of --allowed-hosts",
                        status=403,
                    )
            except ApiError as error:
                await error.response(scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _known(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:  # half of an IPv6 address
            return False
        if name in ("localhost", self._own_name) or name.endswith(_LOCAL_ENDS):
            return True
        if any(name == each or each == "*" or (each[:2] == "*." and name.endswith(each[1:])) for each in self._hosts):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host(origin: str) -> str | None:
    """An origin's host and port, None for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
