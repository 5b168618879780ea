"""Expert weights on a rank: storage, quantization, checkpoints, fingerprints."""
