"""What came out: an object, text, a folder, a report. May import `search` and those before."""
