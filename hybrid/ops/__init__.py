"""Array functions that the sublayers are made of: no parameters, no configs, no state but what is passed in.

`linear`, `scan`, `short_conv`, `fftconv` and `attention` hold one operator each. A file keeps a naive reference beside
its fast forms and a table of the forms by name; tests/ops holds every form to the reference in float64, forward and
gradient. The modules import jax, so that a file which must answer without it imports them inside its functions.
"""
