//! The command line: what can be said, not what it does.

mod audit;
mod base;
mod check;
mod cli;
mod combine;
mod convert;
mod extract;
mod foreign;
mod gguf;
mod merge;
mod method;
mod settings;
mod sign;
mod store;
mod texts;
mod tools;
mod train;
mod values;
mod verify;

pub(crate) use audit::{Audit, Plan};
pub(crate) use base::BaseNames;
pub(crate) use check::Check;
pub(crate) use cli::{Cli, Command};
pub(crate) use combine::Combine;
pub(crate) use convert::{Convert, Fit, PeftForm, PeftToTied, ProjectionRounding, TiedToPeft};
pub(crate) use extract::Extract;
pub(crate) use foreign::{MlxToTied, NemoToTied, TiedToMlx, ToTied};
pub(crate) use gguf::TiedToGguf;
pub(crate) use merge::{Blobs, Dequantise, Merge, Unmerge};
pub(crate) use method::ByMethod;
pub(crate) use sign::{Sign, VerifySignature};
pub(crate) use store::{
    Export, Fsck, Gc, Get, History, Import, Init, Limit, List, Publish, Pull, Push, Put, Quota, Rm,
    Serving, Stat, Store, SyncStore, Tag, WatchStore,
};
pub(crate) use texts::OnTexts;
pub(crate) use tools::{Demo, Devices, Inspect, Pack};
pub(crate) use train::{Eval, Generate, ModelSizes, Params, Running, Sweep, Train};
pub(crate) use verify::{Verify, VerifyAdapters, VerifyFile, VerifyLogits, VerifyMerged};
