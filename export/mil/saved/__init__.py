"""A saved Core ML package as plain data: programs, values, weight files, ports."""
