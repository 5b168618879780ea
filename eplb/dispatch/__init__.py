"""How an expert's tokens are shared out over its replicas."""
