from features import HELLO, MODEL, V1, report
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from shapes import Parcel, Size

model = OpenAILike(model=MODEL, api_base=V1, api_key="any", is_chat_model=True, is_function_calling_model=True,
                   temperature=0, max_tokens=120, max_retries=0, context_window=1024)  # fmt: skip
MESSAGES = [ChatMessage(role="user", content=HELLO)]


def send(size: Size) -> str:
    """Send a parcel of this size."""
    return "sent"


def chat() -> None:
    assert model.chat(MESSAGES).message.content


def stream() -> None:
    assert "".join(part.delta or "" for part in model.stream_chat(MESSAGES)) == model.chat(MESSAGES).message.content


def tool() -> None:
    made = model.chat_with_tools([FunctionTool.from_defaults(send)], user_msg=HELLO, tool_required=True)
    (call,) = model.get_tool_calls_from_response(made)
    Size.model_validate(call.tool_kwargs["size"])


def structured() -> None:
    made = model.structured_predict(Parcel, PromptTemplate(HELLO), llm_kwargs={"tool_choice": "required"})
    assert made.size.unit in ("cm", "m")


report({"chat": chat, "stream": stream, "tool": tool, "structured": structured})
