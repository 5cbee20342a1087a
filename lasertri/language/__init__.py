"""A language model's samples: how it is asked, as tokens, what it answered. May import `data`, `model`, `measure`."""
