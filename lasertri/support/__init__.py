"""What every folder uses and none is about: files that appear whole, checksums, clocks. May import `ops`."""
