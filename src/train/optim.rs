//! AdamW, gradient clipping and the learning-rate schedule, on plain slices.
