"""From text to picture with any runtime: prompts, ports, the denoising loop, the reference."""
