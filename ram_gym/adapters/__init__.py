"""Bridges to other libraries. Each is a module of its own, imported only by those who use that library."""
