"""Docker's remote network driver and IPAM: linkspand as a plugin of dockerd."""
