//! Which key an object has (`spec/tl-store-v1.md` §2), and what a key says.

use std::collections::BTreeSet;

use super::name::Name;
use super::pack::name::PackName;
use crate::digest::Digest;

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

/// The folder of what repairs have set aside.
pub(super) const DAMAGED: &str = "damaged";
/// The folders right below the store, and right below a tenant.
pub(super) const IN_STORE: [&str; 4] = [TENANTS, PUBLIC, STORE_RECORDS, DAMAGED];
pub(super) const IN_TENANT: [&str; 3] = ["records", "blobs", "packs"];

/// Keys of objects that repairs have set aside.
pub(super) type Moved = BTreeSet<String>;

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

/// The folder of a tenant.
pub(super) fn tenant(user: &Name) -> String {
    format!("{TENANTS}/{user}")
}

/// The key to which a repair, called by some letters and digits, moves an object.
pub(super) fn moved(repair: &str, key: &str) -> String {
    format!("{DAMAGED}/{repair}/{key}")
}

/// The key that an object had before a repair set it aside.
pub(super) fn parse_moved(key: &str) -> Option<&str> {
    let below = key.strip_prefix(DAMAGED)?.strip_prefix('/')?;
    let (_, own) = below.split_once('/')?;
    is_key(own).then_some(own)
}

/// The folder of a tenant's records.
pub(super) fn records(user: &Name) -> String {
    format!("{TENANTS}/{user}/records")
}

/// The folder of a tenant's blobs.
pub(super) fn blobs(user: &Name) -> String {
    format!("{TENANTS}/{user}/blobs")
}

/// The folder of a tenant's packs.
pub(super) fn packs(user: &Name) -> String {
    format!("{TENANTS}/{user}/packs")
}

/// The tenant whose records are in a folder.
pub(super) fn tenant_of(records: &str) -> Option<Name> {
    let user = records.strip_prefix(TENANTS)?.strip_prefix('/')?;
    user.strip_suffix("/records")?.parse().ok()
}

/// The key of a pack.
pub(super) fn pack(user: &Name, name: PackName) -> String {
    format!("{}/{name}", packs(user))
}

/// The pack at a key right below a tenant's `folder` of packs.
pub(super) fn parse_pack(folder: &str, key: &str) -> Option<PackName> {
    key.strip_prefix(folder)?.strip_prefix('/')?.parse().ok()
}

/// The key of record `number` of a sequence in `folder`.
pub(super) fn record(folder: &str, subject: &Subject, number: u64) -> String {
    format!("{folder}/{}@{number:010}", subject.stem())
}

/// The sequence and number of the record at a key right below `folder`.
pub(super) fn parse_record(folder: &str, key: &str) -> Option<(Subject, u64)> {
    let below = key.strip_prefix(folder)?.strip_prefix('/')?;
    let (stem, digits) = below.split_once('@')?;
    let number = digits.parse().ok()?;
    let subject = Subject::parse(stem)?;
    let settings = subject == Subject::Settings;
    if !(1..=MAX_NUMBER).contains(&number) || settings != (folder == STORE_RECORDS) {
        return None;
    }
    // A second spelling of a number would be a second record of that number.
    (record(folder, &subject, number) == key).then_some((subject, number))
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

/// The digest and generation of the blob at a key of `folder`: a tenant's, or what is published.
pub(super) fn parse_blob(folder: &str, key: &str) -> Option<(Digest, u32)> {
    let below = key.strip_prefix(folder)?.strip_prefix('/')?;
    let (shard, file) = below.split_once('/')?;
    let (hex, generation) = match file.split_once('.') {
        None => (file, 0),
        Some((hex, n)) if folder != PUBLIC => {
            let number: u32 = n.parse().ok().filter(|n| *n > 0)?;
            (hex, (number.to_string() == n).then_some(number)?)
        }
        Some(_) => return None,
    };
    let plain = hex.len() == 64 && hex.starts_with(shard) && shard.len() == 2;
    let digest: Digest = plain.then(|| hex.parse().ok())??;
    // Digits have one spelling.
    (digest.hex() == hex).then_some((digest, generation))
}

/// Whether an object of a store may have a key.
pub(super) fn is_key(key: &str) -> bool {
    let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
    let tenant = || {
        let (user, below) = key
            .strip_prefix(TENANTS)?
            .strip_prefix('/')?
            .split_once('/')?;
        let user: Name = user.parse().ok()?;
        Some(match below.split_once('/')?.0 {
            "blobs" => parse_blob(&blobs(&user), key).is_some(),
            "packs" => parse_pack(&packs(&user), key).is_some(),
            _ => parse_record(&records(&user), key).is_some(),
        })
    };
    key == MARKER
        || parse_blob(PUBLIC, key).is_some()
        || (folder == STORE_RECORDS && parse_record(folder, key).is_some())
        || tenant().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_were_made_of_and_nothing_else_parses() {
        let name = |s: &str| s.parse::<Name>().unwrap();
        let alice = records(&name("alice"));
        for subject in [
            Subject::Adapter(name("chat")),
            Subject::Tag(name("chat"), name("prod")),
            Subject::Collection,
        ] {
            let key = record(&alice, &subject, 12);
            assert!(is_key(&key), "{key}");
            assert_eq!(parse_record(&alice, &key), Some((subject, 12)), "{key}");
        }
        let settings = record(STORE_RECORDS, &Subject::Settings, 1);
        assert!(is_key(&settings) && is_key(MARKER));
        let digest = Digest::of(b"x");
        for generation in [0, 3] {
            let key = blob(&name("alice"), &digest, generation);
            assert!(is_key(&key), "{key}");
            let parsed = parse_blob(&blobs(&name("alice")), &key);
            assert_eq!(parsed, Some((digest, generation)));
        }
        assert!(is_key(&public(&digest)));
        let hex = digest.hex();
        for bad in [
            "adapter=chat@1",
            "adapter=chat@0000000000",
            "adapter=chat@00000000001",
            "adapter=chat@+000000001",
            "adapter=chat@10000000000",
            "adapter=chat@18446744073709551615",
            "adapter=chat@99999999999999999999",
            "adapter@0000000001",
            "adapter=Chat@0000000001",
            "tag=chat@0000000001",
            "collection=x@0000000001",
            "settings@0000000001",
            "below/adapter=chat@0000000001",
            "x",
        ] {
            let key = format!("{alice}/{bad}");
            assert_eq!(parse_record(&alice, &key), None, "{bad}");
            assert!(!is_key(&key), "{bad}");
        }
        let shard = &hex[..2];
        for bad in [
            format!("xx/{hex}"),
            format!("{shard}/{hex}.0"),
            format!("{shard}/{hex}.01"),
            format!("{shard}/{}", hex.to_uppercase()),
            format!("{shard}/below/{hex}"),
            "aa/bb".into(),
        ] {
            let key = format!("{}/{bad}", blobs(&name("alice")));
            assert_eq!(parse_blob(&blobs(&name("alice")), &key), None, "{bad}");
            assert!(!is_key(&key), "{bad}");
        }
        // Another tenant's is none of a tenant's.
        let bobs = blob(&name("bob"), &digest, 0);
        assert_eq!(parse_blob(&blobs(&name("alice")), &bobs), None);
        assert!(!is_key(&format!("{}.1", public(&digest))));
    }
}
