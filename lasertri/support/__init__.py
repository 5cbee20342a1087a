"""What every folder uses and none is about: files, outputs, journals, checksums, clocks. May import `ops`."""
