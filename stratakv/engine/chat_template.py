"""Messages as the text that a model was trained to continue: its own chat template, or the plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from stratakv.errors import UserError

# For base models, which have none: the plainest form that such models continue as a dialogue
FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def own_template(tokenizer: Any) -> str | None:
    """The chat template that a model brings, the default one of several."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), None)
    return own or None


def template_problem(tokenizer: Any) -> str | None:
    """Why a model's chat template does not compile, with the line; None: it does, or there is none."""
    template = own_template(tokenizer)
    if template is None:
        return None
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except Exception:  # it compiles, and refuses this conversation
        return None
    return None


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], template: str, /, **options: Any) -> str:
    """The text of messages. options: of the template, by any name. UserError where the template refuses them."""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **options)
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model's chat template refuses these messages: {reason}") from error
    return text
