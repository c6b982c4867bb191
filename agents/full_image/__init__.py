"""Networks that see the whole canvas at once: references for agents that choose where to look."""
