//! Dense f64 arithmetic against what is written.
