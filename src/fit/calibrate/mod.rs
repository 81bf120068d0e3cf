//! The closest tied adapter to a LoRA by what it does to a model on texts, rather than by its numbers.
//!
//! [`Calibration`] runs the model over the texts for the second moments of what its modules read (`moments`), fits
//! to the outputs by them (`outputs`), and compares that with the fit to the updates on texts held out.
//! The same for adapters that are coded (`coded`).

mod calibration;
mod coded;
mod moments;
mod options;
mod outputs;
mod report;

pub use calibration::Calibration;
pub use options::CalibrateOptions;
pub use report::{CalibrateReport, CodedTexts, Kept, Stage};
