"""The only code that touches the kernel: eBPF objects, devices, namespaces, counters. It knows nothing of networks."""
