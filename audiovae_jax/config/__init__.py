"""From a config to objects: reading and checking keys, dotted names, and what they build."""
