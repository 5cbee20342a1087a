"""The five tables of Compress to Impress (arXiv 2510.20800), run again and set beside the published figures."""
