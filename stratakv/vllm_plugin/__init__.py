"""vLLM with packed pages: each layer's K and V in a type of its own, below vLLM's block tables. Nothing without a profile."""


def register() -> None:
    """What vLLM calls in each of its processes (entry point `vllm.general_plugins`)."""
    from stratakv.vllm_plugin.patch import install

    install()
