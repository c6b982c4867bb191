"""Networks that see the whole canvas at once: references for agents that must choose where to look."""
