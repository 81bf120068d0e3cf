//! Merging adapters into base weights: [`plan`], then [`execute`] or [`merge_in_place`]; for many
//! adapters on one base, each merged alone, [`plan_each`], then [`execute_each`].
//!
//! A plan is made from headers and factors alone: which base tensor each adapted module is, what
//! happens to it, which byte ranges of which shard are copied and which are merged. Executing it
//! copies the untouched ranges inside the kernel and streams the touched ones in blocks of rows
//! through [`crate::compute`], so memory stays flat and the bytes are the same for any number of
//! threads. The arithmetic is normative (spec §12) and is written down in [`crate::compute`].
//!
//! An output appears under its name only when it is complete. [`execute`] merges on a thread of its
//! own, ahead of the one that copies and writes; both use the global rayon pool.
//!
//! ```no_run
//! use std::path::Path;
//! use tlkit::format::NoBlobs;
//! use tlkit::merge::{Control, ExecOptions, MergeInput, PlanOptions, execute, plan};
//! use tlkit::safetensors::Checkpoint;
//!
//! # fn main() -> tlkit::Result<()> {
//! let base = Checkpoint::open("llama")?;
//! let mut style = MergeInput::open(Path::new("style.tl"), &base, &NoBlobs)?;
//! style.weight = 0.5;
//! let inputs = [style, MergeInput::open(Path::new("my-lora"), &base, &NoBlobs)?];
//!
//! // Everything that can be checked without reading a weight is checked here.
//! let plan = plan(&base, &inputs, &PlanOptions::default())?;
//! println!("{} bytes of disk", plan.summary().disk_needed);
//!
//! let out = Path::new("llama-styled");
//! let report = execute(&plan, out, &ExecOptions::default(), &Control::default())?;
//! println!("{} of {} elements changed", report.total.changed, report.total.elements);
//! # Ok(())
//! # }
//! ```
//!
//! From the request to the bytes, each file uses only those below it:
//!
//! | file | has |
//! |---|---|
//! | `execute`, `each`, `inplace`, `undo` | one output, many, the base itself and the way back |
//! | `output`, `other_files`, `finished` | an output until it has its name; what an earlier run left of it |
//! | `shard` | one shard of each output, copied and merged in one pass over the base's |
//! | `stream`, `tensor` | merged blocks of tensors, made ahead of the writing |
//! | `blended`, `task` | a tensor of a merge by a method; one adapter's update of it |
//! | `change`, `pieces`, `rows` | what is done to the rows of a tensor, to parts of them; the base's rows |
//! | `build`, `orient`, `untie`, `heads`, `vocabulary`, `tokenizer`, `layout`, `rewrite`, `read_base`, `by_method` | from adapters and base to a plan |
//! | `plan`, `summary`, `report` | what is going to be done, and what was |
//! | `quantised`, `dequantised` | a base whose weights are quantised |
//! | `request`, `method`, `files` | what the caller asks for; bytes between files |

mod adapted;
mod blended;
mod build;
mod by_method;
mod change;
mod dequantised;
mod device;
mod each;
mod execute;
mod experts;
mod files;
mod finished;
mod fit;
mod heads;
mod inplace;
mod joint;
mod layout;
mod method;
mod orient;
mod other_files;
mod output;
mod parts;
mod pieces;
mod plan;
mod quantised;
mod read_base;
mod region;
mod report;
mod request;
mod rewrite;
mod rows;
mod shard;
mod stream;
mod summary;
mod task;
mod tensor;
#[cfg(test)]
mod tests;
mod tokenizer;
mod trained;
mod undo;
mod untie;
mod vocabulary;

pub use crate::compute::Rounding;
pub use build::{plan, plan_dequantised};
pub use device::{Workload, open_device};
pub use each::{
    EachOutput, EachPlan, EachReport, EachSummary, EachTotals, OutputSummary, execute_each,
    plan_each,
};
pub use execute::execute;
pub use inplace::merge_in_place;
pub use method::{MergeMethod, MethodReport};
pub(crate) use other_files::{WrittenFile, written_files};
pub use plan::{Addition, MergePlan, Origin, RowReplacement, Segment, ShardPlan, TensorPlan};
pub use region::{Region, Span};
pub use report::{AdapterReport, MergeReport, TensorReport, Totals};
pub use request::{
    Control, ExecOptions, InPlaceOptions, MergeInput, PlanOptions, TiedPolicy, TokenizerFrom,
    UnmergeOptions,
};
pub(crate) use stream::{Merged, Merger};
pub use summary::{PlanSummary, ShardSummary};
pub(crate) use tensor::TensorMerge;
pub use undo::{UnmergeReport, unmerge, unmerge_with};
