"""What distillation leaves of a teacher, method against method: ``python -m benchmarks.quality --help``."""
