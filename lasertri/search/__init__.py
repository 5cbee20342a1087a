"""One round: score the targets, choose, try the candidates, decide. May import `edit`, `language` and those before."""
