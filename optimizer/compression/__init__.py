"""A recipe applied to a model: pruning, quantization, fine-tuning, and packed bits."""
