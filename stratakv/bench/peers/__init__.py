"""What we are measured beside: torch's attention, llama.cpp."""
