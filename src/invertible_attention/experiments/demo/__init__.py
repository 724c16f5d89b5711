"""A page to try invertible attention on one's own pictures, served on this machine only."""
