"""Proof for an unlearned agent: metrics, and a certificate that anybody can check."""
