"""Attacks on servers that these tests start, only on loopback, each with a verdict. `make abuse` runs them at their full size."""
