"""What every folder uses and none is about: files that appear whole, outputs, journals, checksums, clocks. May import `ops`."""
