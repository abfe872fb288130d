"""Code that several targets share: graph passes, palettes, patches of libraries, optional extras."""
