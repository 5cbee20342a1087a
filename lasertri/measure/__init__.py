"""What is measured of any samples, and how sure it is. May import `support`."""
