"""Decoding: generation over the states of the sublayers."""
