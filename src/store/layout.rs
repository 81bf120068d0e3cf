//! Which key an object has (`spec/tl-store-v1.md` §2), and what a key says.

use super::name::Name;
use crate::format::Digest;

/// What makes a place a store.
pub(super) const MARKER: &str = "store.json";
/// The folder of the tenants.
pub(super) const TENANTS: &str = "tenants";
/// The folder of the published blobs.
pub(super) const PUBLIC: &str = "public";
/// The folder of the store's own records.
pub(super) const STORE_RECORDS: &str = "records";
/// The largest number of a record. All have ten digits, so that a listing in the order of keys is
/// one in the order of numbers.
pub(super) const MAX_NUMBER: u64 = 9_999_999_999;

/// What a sequence of records is about. The last record of a sequence holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The versions of an adapter.
    Adapter(Name),
    /// A tag of an adapter: task, tag.
    Tag(Name, Name),
    /// What garbage collection has condemned.
    Collection,
    /// The settings of the store.
    Settings,
}

impl Subject {
    pub(super) fn stem(&self) -> String {
        match self {
            Self::Adapter(task) => format!("adapter={task}"),
            Self::Tag(task, tag) => format!("tag={task}={tag}"),
            Self::Collection => "collection".to_owned(),
            Self::Settings => "settings".to_owned(),
        }
    }

    fn parse(stem: &str) -> Option<Self> {
        let mut parts = stem.split('=');
        let mut name = || parts.next();
        let subject = match (name()?, name(), name()) {
            ("adapter", Some(task), None) => Self::Adapter(task.parse().ok()?),
            ("tag", Some(task), Some(tag)) => Self::Tag(task.parse().ok()?, tag.parse().ok()?),
            ("collection", None, None) => Self::Collection,
            ("settings", None, None) => Self::Settings,
            _ => return None,
        };
        parts.next().is_none().then_some(subject)
    }
}

/// The folder of a tenant's records.
pub(super) fn records(user: &Name) -> String {
    format!("{TENANTS}/{user}/records")
}

/// The folder of a tenant's blobs.
pub(super) fn blobs(user: &Name) -> String {
    format!("{TENANTS}/{user}/blobs")
}

/// The key of record `number` of a sequence in `folder`.
pub(super) fn record(folder: &str, subject: &Subject, number: u64) -> String {
    format!("{folder}/{}@{number:010}", subject.stem())
}

/// The sequence and number of the record at a key.
pub(super) fn parse_record(key: &str) -> Option<(Subject, u64)> {
    let (stem, digits) = key.rsplit('/').next()?.split_once('@')?;
    if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    if !(1..=MAX_NUMBER).contains(&number) {
        return None;
    }
    // A second spelling of a number would be a second record of that number.
    (format!("{number:010}") == digits).then_some((Subject::parse(stem)?, number))
}

/// The key of a tenant's blob. A blob that was condemned and came back has another generation.
pub(super) fn blob(user: &Name, digest: &Digest, generation: u32) -> String {
    let hex = digest.hex();
    let suffix = match generation {
        0 => String::new(),
        n => format!(".{n}"),
    };
    format!("{}/{}/{hex}{suffix}", blobs(user), &hex[..2])
}

/// The key of a published blob.
pub(super) fn public(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{PUBLIC}/{}/{hex}", &hex[..2])
}

/// The digest and generation of the blob at a key.
pub(super) fn parse_blob(key: &str) -> Option<(Digest, u32)> {
    let mut parts = key.rsplit('/');
    let (file, shard) = (parts.next()?, parts.next()?);
    let (hex, generation) = match file.split_once('.') {
        None => (file, 0),
        Some((hex, n)) => {
            let number: u32 = n.parse().ok().filter(|n| *n > 0)?;
            (hex, (number.to_string() == n).then_some(number)?)
        }
    };
    let plain = hex.len() == 64 && hex.starts_with(shard) && shard.len() == 2;
    plain.then_some((hex.parse().ok()?, generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_were_made_of_and_nothing_else_parses() {
        let name = |s: &str| s.parse::<Name>().unwrap();
        let folder = records(&name("alice"));
        for subject in [
            Subject::Adapter(name("chat")),
            Subject::Tag(name("chat"), name("prod")),
            Subject::Collection,
            Subject::Settings,
        ] {
            let key = record(&folder, &subject, 12);
            assert_eq!(parse_record(&key), Some((subject, 12)), "{key}");
        }
        let digest = Digest::of(b"x");
        for generation in [0, 3] {
            let key = blob(&name("alice"), &digest, generation);
            assert_eq!(parse_blob(&key), Some((digest, generation)));
        }
        let hex = digest.hex();
        for bad in [
            "adapter=chat@1",
            "adapter=chat@0000000000",
            "adapter=chat@00000000001",
            "adapter=chat@10000000000",
            "adapter=chat@18446744073709551615",
            "adapter=chat@99999999999999999999",
            "adapter@0000000001",
            "adapter=Chat@0000000001",
            "tag=chat@0000000001",
            "collection=x@0000000001",
            "x",
        ] {
            assert_eq!(parse_record(bad), None, "{bad}");
        }
        for bad in [
            format!("xx/{hex}"),
            format!("{}/{hex}.0", &hex[..2]),
            format!("{}/{hex}.01", &hex[..2]),
            "aa/bb".into(),
        ] {
            assert_eq!(parse_blob(&bad), None, "{bad}");
        }
    }
}
