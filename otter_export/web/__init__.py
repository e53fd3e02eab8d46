"""The server of ``otter-export serve`` (docs/serving.md): OpenAI's API and a page, on starlette."""
