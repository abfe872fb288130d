"""ExecuTorch: `.pte` programs for the XNNPACK, Core ML and Vulkan delegates."""
