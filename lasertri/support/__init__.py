"""What every folder uses and none is about: files that appear whole, outputs, checksums, clocks. May import `ops`."""
