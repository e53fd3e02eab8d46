"""Memory of KV caches, a device a file: host (numpy), torch, CUDA."""
