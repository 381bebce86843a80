"""Benchmarks that fine-tune a model: GLUE and XSUM."""
