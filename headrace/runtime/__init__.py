"""How any Headrace process lives: settings, logs, start, health and stop.

Knows nothing of inference or Kafka, and imports nothing else of ours. Start reading at `lifecycle`.
"""
