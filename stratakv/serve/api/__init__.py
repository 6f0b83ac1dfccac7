"""HTTP over the engine: OpenAI's, llama-server's and Ollama's endpoints, and the page's files."""
