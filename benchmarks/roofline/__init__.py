"""What bounds an adaptation on a GPU: a count of the work that the code does, with published costs of each unit."""
