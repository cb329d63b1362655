"""What gateway and router share and neither owns.

`headrace.bus` is everything that the two processes say to each other, `headrace.runtime` is how any of our processes
lives (settings, start, health, stop) and knows nothing of inference, `headrace.local` runs the whole system on one
machine, `headrace.cli` is the command line. Imports go one way: `gateway | router -> headrace.bus -> headrace.runtime`.
"""
