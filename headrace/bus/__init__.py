"""Everything that gateway and router say to each other.

Requests go through the log (`log`, topics named by `topics`), answers go straight home over gRPC (`answers`), and
everyone announces itself on a compacted topic (`announcements`, carried by `control`). `protocols` has the seams; each
has the real carrier and an in-memory twin in `memory`, and both pass one contract suite. The messages are in `v1`,
generated from `protos/headrace/bus/v1`.

This package is the only user of Kafka clients: librdkafka in `log`, aiokafka in `control`. It imports
`headrace.runtime` and nothing else of ours. Start reading at `protocols`.
"""
