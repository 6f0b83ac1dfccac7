def cpu_features() -> list[str]:
    """Instruction sets that this CPU has and the system allows, found at run time."""

def compiler() -> str:
    """Name and version of the compiler that built this module."""
