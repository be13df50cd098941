"""Mixed traffic on one server that is stopped and killed now and then; `make soak`."""
