"""The suites, by what they need: unit and contract need no root; bpf, netns, e2e and fault make their own namespaces."""
