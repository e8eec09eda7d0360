"""The bodies of the Open Inference Protocol as pure functions: requests, answers, tensors."""
