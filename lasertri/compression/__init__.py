"""A model made smaller: what its layers are given, which ranks a budget buys, factors. May import `search`, `edit`."""
