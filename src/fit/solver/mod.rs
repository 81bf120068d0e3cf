//! The numbers of a fit: least squares over layers, its starts and its bounds. No files, no choices.

pub(super) mod algebra;
pub(super) mod basis;
pub(super) mod cores;
pub(super) mod descend;
pub(super) mod model;
pub(super) mod problem;
pub(super) mod scaled;
pub(super) mod solve;
pub(super) mod starts;
pub(super) mod untied;
pub(super) mod weighted;
