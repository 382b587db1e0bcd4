"""Servers on loopback and what stands before them; work pools and deployments."""
