"""Otter models in vLLM: a plugin that vLLM finds by its entry points (docs/vllm.md).

=====================  ====================================================================
`registration`         What the entry point calls, and the versions of vLLM that it accepts
`checkpoint_config`    ``vllm serve CKPT``: how vLLM reads a checkpoint's configuration
`bases`                Which of vLLM's model classes can have a channel
`channel`, `layer`     The channel beside a model of vLLM's own, by hooks on its modules
`model`                That model's class with the channel and the signals' heads
`guidance`             What a request may ask for; `admission` refuses the rest
`sampler`              Guidance by signals that score all next tokens from one row
`candidates`           Guidance by ``value`` signals: k candidates in one forward pass
`scheduler`            Holds a request back until its candidates are scored
`worker`               Puts sampler and candidates into vLLM's worker
`rewards`              Requests and their rewards in Python
`http_rewards`         The same over HTTP: an ASGI middleware
=====================  ====================================================================
"""
