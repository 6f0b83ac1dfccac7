"""`stratakv serve`: a server for clients of OpenAI, Anthropic, llama-server and Ollama, and a page to watch the cache."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.cli.device_option import checked_device
from stratakv.cli.model_option import add_model_option
from stratakv.errors import UserError
from stratakv.files import check_directory

if TYPE_CHECKING:
    from fastapi import FastAPI

_EXTRA = ("fastapi", "uvicorn", "pydantic")
KEY_VARIABLE = "LLAMA_API_KEY"
# Products in 16 bits keep compiled code for each number of tokens: by default of 1,024 numbers, 0.2 MiB and more each
_ONEDNN = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_ON, _OFF = ("on", "1", "true", "enabled"), ("off", "0", "false", "disabled")


def add_parser(commands: Any) -> None:
    """Register the command."""
    from stratakv.cli.profile_options import add_profile_options

    line = "a server for clients of OpenAI, Anthropic, llama-server and Ollama, with a page to watch the cache"
    parser = commands.add_parser("serve", help=line, description=__doc__)
    add_model_option(parser, required=False)
    parser.add_argument("-a", "--alias", help="the model's name in answers (its own)")
    add_profile_options(parser)
    cache = parser.add_argument_group("cache and work")
    cache.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        metavar="N",
        help="tokens that all requests share, one may use all (0: the model's)",
    )
    cache.add_argument(
        "--cache-memory", metavar="SIZE", help="bytes of all pages, such as 2GiB; -c then limits one request"
    )
    cache.add_argument("-np", "--parallel", type=int, default=4, metavar="N", help="requests that run at once (4)")
    cache.add_argument("--queue", type=int, default=256, metavar="N", help="requests that wait, then 503 (256)")
    cache.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="tokens of prompts in a step (512)"
    )
    cache.add_argument(
        "-n", "--n-predict", type=int, default=-1, metavar="N", help="new tokens, if not asked (-1: no limit)"
    )
    cache.add_argument(
        "--deterministic",
        action="store_true",
        help="the same request gets the same answer in any company where torch attends too; steps with prompts may take longer",
    )
    cache.add_argument("-t", "--threads", type=int, metavar="N", help="threads of the CPU (torch's choice)")
    cache.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto: a GPU if -ngl asks for it (auto)")
    cache.add_argument(
        "-ngl", "--n-gpu-layers", default=None, metavar="N", help="0: the CPU; else the whole model on the GPU"
    )
    cache.add_argument(
        "--dtype", choices=["f32", "bf16", "f16"], default="f32", help="of weights and activations (f32)"
    )
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    http.add_argument("--port", type=int, default=8080, help="port to listen on, 0: any (8080)")
    http.add_argument("--api-key", metavar="KEY", help=f"key, or keys with commas, that requests need ({KEY_VARIABLE})")
    http.add_argument(
        "--cors-origins",
        metavar="LIST",
        help="pages that may ask beside this machine's: https://chat.example,..., or *",
    )
    http.add_argument(
        "--allowed-hosts",
        metavar="LIST",
        help="names that the server answers to beside local ones: box.example,..., or *",
    )
    http.add_argument("--slot-save-path", metavar="DIR", help="where slots are saved; without it they can't be")
    http.add_argument("--metrics", action="store_true", help="offer /metrics for Prometheus")
    http.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds for running requests at the end (30)"
    )
    same = parser.add_argument_group("taken for llama-server's sake")
    same.add_argument(
        "-fa", "--flash-attn", nargs="?", const="on", metavar="on|off|auto", help="attention is always fused"
    )
    same.add_argument("--jinja", action="store_true", help="chat templates are always read")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.model is None:
        return _list_models()
    _check(args)
    listener = _listen(args.host, args.port)  # a port in use is known before a model has been loaded
    try:
        app = _application(args)
        return _serve(app, listener, args)
    finally:
        listener.close()


def _list_models() -> int:
    from stratakv.engine.local_models import listed, local_models

    models = local_models()
    if models:
        print(f"-m takes a model; these are here:\n{listed(models)}", flush=True)
    where = (
        "name one of them" if models else "there is no GGUF file here or in the caches of llama.cpp, LM Studio, Ollama"
    )
    raise UserError(f"serve needs -m MODEL: {where}; or give a path, a hub name, or 'embedded'")


def _check(args: argparse.Namespace) -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'stratakv[serve]'")
    from stratakv.serve.api.origins import checked_hosts, checked_origins

    checks = [
        ("-np/--parallel", args.parallel, 1 <= args.parallel <= 1024, "1 to 1024"),
        ("-c/--ctx-size", args.ctx_size, args.ctx_size is None or args.ctx_size >= 0, "0 (the model's) or more"),
        ("-b/--batch-size", args.batch_size, args.batch_size >= 1, "1 or more"),
        ("-n/--n-predict", args.n_predict, args.n_predict >= 1 or args.n_predict == -1, "1 or more, or -1: no limit"),
        ("-t/--threads", args.threads, args.threads is None or 1 <= args.threads <= 1024, "1 to 1024"),
        ("--port", args.port, 0 <= args.port < 2**16, "0 to 65535"),
        ("--queue", args.queue, args.queue >= 0, "0 or more"),
        ("--grace", args.grace, 0 <= args.grace < 86400, "0 to 86400 seconds"),
        ("-ngl/--n-gpu-layers", args.n_gpu_layers, _is_layers(args.n_gpu_layers), "a number, all or auto"),
        ("-fa/--flash-attn", args.flash_attn, args.flash_attn in (None, *_ON, *_OFF, "auto"), "on, off or auto"),
        (
            "--api-key",
            repr(args.api_key),
            args.api_key is None or bool(_keys(args.api_key)),
            "a key, or several with commas",
        ),
    ]
    for name, value, good, allowed in checks:
        if not good:
            raise UserError(f"{name} {value}: it must be {allowed}")
    checked_origins(args.cors_origins or "")
    checked_hosts(args.allowed_hosts or "")
    if args.flash_attn in _OFF:
        _say(f"warning: -fa {args.flash_attn} is ignored, attention is always fused")
    if args.slot_save_path is not None:
        check_directory(args.slot_save_path, "--slot-save-path")


def _is_layers(given: str | None) -> bool:
    return given in (None, "all", "auto") or given.removeprefix("-").isdecimal()


def _keys(text: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; nobody can connect before the server listens on it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        remedy = (
            "--host takes an address of this machine"
            if error.errno == errno.EADDRNOTAVAIL
            else "--port chooses another"
        )
        raise UserError(f"can't listen on {host}:{port}: {error.strerror or error}; {remedy}") from error
    return listener


def _application(args: argparse.Namespace) -> FastAPI:
    """Table, memory, model, engine, application; every refusal comes before the weights are read, if it can."""
    for name in _ONEDNN:  # read at torch's first product
        os.environ.setdefault(name, "16")
    import torch

    from stratakv.cli.dtypes import torch_dtype
    from stratakv.cli.profile_options import profile_from_args
    from stratakv.cli.sizes import parse_memory
    from stratakv.engine.chat_template import template_problem
    from stratakv.engine.describe import describe_model
    from stratakv.engine.load import WEIGHTS_HEADROOM, free_memory, load_model
    from stratakv.engine.size import weights_size
    from stratakv.profile.table import format_table, show_table
    from stratakv.serve.api.app import create_app
    from stratakv.serve.api.origins import checked_hosts, checked_origins
    from stratakv.serve.api.settings import ServerSettings
    from stratakv.serve.capacity import affordable, capacity_line, plan_capacity, working_bytes
    from stratakv.serve.engine import Engine
    from stratakv.serve.request import Limits

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = _device(args)
    model = describe_model(args.model)
    profile, bare = (
        profile_from_args(args, model.geometry, model.fingerprint, literal=literal) for literal in (False, True)
    )
    profile.check_context(args.ctx_size or 0)
    dtype = torch_dtype(args.dtype)
    packed = device == "cpu"  # what stays in a GGUF file's blocks runs on a CPU only
    weights = int(weights_size(model, dtype.itemsize, packed=packed) * WEIGHTS_HEADROOM)
    free = free_memory() if device == "cpu" else torch.cuda.mem_get_info(device)[0]
    capacity_of = partial(
        plan_capacity,
        slots=args.parallel,
        chunk=args.batch_size,
        context=args.ctx_size,
        memory=None if args.cache_memory is None else parse_memory(args.cache_memory, "--cache-memory"),
        free=free - weights - working_bytes(model.config, slots=args.parallel, chunk=args.batch_size),
    )
    profile, capacity = affordable(profile, bare, capacity_of)
    profile.check_context(capacity.context)
    _say(format_table(show_table(profile, warnings=(*model.warnings, *capacity.notes))))
    _say(capacity_line(profile, capacity, args.parallel))
    loaded = load_model(args.model, dtype=dtype, device=device)
    for note in loaded.notes:
        _say(note)
    if problem := template_problem(loaded.tokenizer):
        _say(f"warning: the model's chat template does not compile ({problem}): chats get the plain one")
    limits = Limits(
        args.parallel,
        capacity.context,
        capacity.cache_bytes,
        args.batch_size,
        args.queue,
        deterministic=args.deterministic,
    )
    keys = _keys(os.environ.get(KEY_VARIABLE, "") if args.api_key is None else args.api_key)
    settings = ServerSettings(
        alias=args.alias or loaded.name,
        model_path=args.model,
        context=capacity.context,
        slots=args.parallel,
        parameters=model.values,
        n_predict=args.n_predict,
        api_keys=keys,
        slot_save_path=None if args.slot_save_path is None else Path(args.slot_save_path),
        metrics=args.metrics,
        loopback=_is_loopback(args.host),
        cors_origins=checked_origins(args.cors_origins or ""),
        allowed_hosts=checked_hosts(args.allowed_hosts or ""),
        grace_seconds=args.grace,
    )
    if "*" in settings.cors_origins and not keys:
        _say("warning: --cors-origins * without --api-key: every page that your browser opens can use this server")
    if not settings.loopback and not keys:
        _say(
            f"warning: --host {args.host} is reachable from other machines and there is no --api-key: anyone can use it"
        )
    engine = Engine(loaded, profile, limits)
    for loss in engine.lost:
        _say(f"warning: no {loss.feature}: {loss.why}")
    return create_app(engine, settings)


def _device(args: argparse.Namespace) -> str:
    """Where the model runs. -ngl of llama.cpp: 0 is the CPU; layers can't be divided here."""
    import torch

    there, device = torch.cuda.is_available(), str(args.device)
    if device == "auto":
        asked = args.n_gpu_layers not in (None, "0")
        if asked and not there:
            _say(f"warning: -ngl {args.n_gpu_layers} is ignored, torch sees no GPU here")
        return "cuda" if asked and there else "cpu"
    return checked_device(device, " or auto")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _serve(app: FastAPI, listener: socket.socket, args: argparse.Namespace) -> int:
    import uvicorn

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _say(f"listening on http://{shown}:{port}")

    # The end begins when a signal comes; uvicorn raises it once more when everything is done
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(args.grace)),
        h11_max_incomplete_event_size=64 * 2**10,
    )
    try:
        Server(config).run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code not in (0, None):
            raise
    _say("stopped")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
