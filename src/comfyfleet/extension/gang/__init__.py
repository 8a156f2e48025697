"""Forwards that several devices compute together, as nodes ask for them."""
