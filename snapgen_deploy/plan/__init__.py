"""The plan of an export: width, targets, precisions, kernel forms, picture sizes."""
