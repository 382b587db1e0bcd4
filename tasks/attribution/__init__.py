"""Methods that say how much each training example taught a model about each query, through one interface."""
