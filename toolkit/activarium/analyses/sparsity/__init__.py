"""How few neurons work at a time, and how often."""
