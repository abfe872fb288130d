"""Text to picture, whoever computes the networks: prompts, ports, the step loop, the reference."""
