"""In-memory twins of the bus's carriers, for tests: the same protocols, in one process, with faults on demand.

They pass the same contract suites as the real carriers. `requests` is the request log, `answers` the way home,
`announcements` the announcements topic.
"""
