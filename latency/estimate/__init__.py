"""What a picture will take, before anything is exported: costs of a graph, priced for a device."""
