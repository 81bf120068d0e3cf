//! Third-party adapters that tests read.

pub(crate) use crate::testing::shared;
