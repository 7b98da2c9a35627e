"""One model on several devices of a node: what each rank owns, and how ranks talk."""
