"""One module per step of the schema, in order of their revisions. A step that was released never changes."""
