"""The rooms: one stage of the work each, pure modules and at most one `task.py`."""
