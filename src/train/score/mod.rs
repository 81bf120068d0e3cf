//! Scores of generated text against references, equal to the reference implementations.
