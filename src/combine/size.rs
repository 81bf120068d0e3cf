//! How large a combination may become: a file of a few kilobytes must not order hundreds of gigabytes.

use super::classes::Class;
use super::input::CombineInput;
use super::join::has_common_v;
use crate::error::{Code, Error, Result};

/// Bytes that a result may always take.
const ALWAYS: u64 = 1 << 30;
/// How many times the bytes that the adapters hold a result may take beyond that: tied factors that become each
/// layer's own are as many as there are layers.
const TIMES: u64 = 128;
/// Bytes of a number.
const NUMBER: u64 = 4;

/// Refuses what would become too large, before any of it is made.
///
/// # Errors
/// [`Code::ManifestLimit`].
pub(super) fn check_size(classes: &[Class], inputs: &[CombineInput]) -> Result<()> {
    let held = inputs.iter().map(|i| i.adapter.tensor_bytes());
    let held = held.fold(0u64, u64::saturating_add);
    let most = ALWAYS.saturating_add(held.saturating_mul(TIMES));
    let bytes = classes.iter().map(bytes).fold(0u64, u64::saturating_add);
    if bytes <= most {
        return Ok(());
    }
    let message = format!(
        "the result would take {bytes} bytes, of adapters that hold {held}; the limit is {most}"
    );
    Err(Error::new(Code::ManifestLimit, message).hint(
        "make the adapters smaller first: what is tied in one of them becomes each layer's own",
    ))
}

/// Bytes of A and B at the sum of the ranks; of each instance, where its members do not stay tied.
fn bytes(class: &Class) -> u64 {
    let Some(first) = class.members.first() else {
        return 0;
    };
    let group = &first.group;
    let each = !class.members.iter().all(|m| m.group.is_tied()) || !has_common_v(&class.members);
    let instances = if each { group.instances() } else { 1 };
    let rank = class.members.iter().map(|m| m.group.rank as u64);
    let rank = rank.fold(0u64, u64::saturating_add);
    let numbers = (group.in_features as u64).saturating_add(group.total_out() as u64);
    [instances as u64, rank, NUMBER]
        .into_iter()
        .fold(numbers, u64::saturating_mul)
}
