"""The process that decodes and computes, seen from both ends."""
