//! The `.nemo` archive: its members into memory, bounded, and by their plain names alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Component, Path};

use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use crate::error::{Code, Error, Result};
use crate::fs::open_regular;

/// The config in the archive.
pub(super) const CONFIG: &str = "model_config.yaml";
/// The state dict in the archive.
const WEIGHTS: &str = "model_weights.ckpt";
/// Largest config that is read.
const MAX_CONFIG: u64 = 1 << 20;
/// Largest file that is read, packed or not.
const MAX_FILE: u64 = 16 << 30;
/// How many times as long an archive may unpack to, beyond 64 MiB: weights shrink by a few percent, and factors
/// that are zero are half of them at most.
const MAX_RATIO: u64 = 64;
/// Members that are looked at.
const MAX_MEMBERS: usize = 4096;
/// Ranks of a run that are joined.
const MAX_RANKS: usize = 256;

/// What is read of an archive.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) config: Vec<u8>,
    /// The state dicts by tensor-parallel rank; one where the run was not parallel.
    pub(super) ranks: Vec<Vec<u8>>,
    pub(super) bytes: u64,
}

/// Whether a path is a file that is called as NeMo calls its models, or begins as a tar archive does.
pub fn is_nemo_file(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    if path.extension().is_some_and(|e| e == "nemo") {
        return true;
    }
    let mut start = Vec::new();
    let read = open_regular(path).map(|(file, _)| file.take(262).read_to_end(&mut start));
    matches!(read, Ok(Ok(262))) && start.ends_with(b"ustar")
}

/// Looks at the config before anything larger is read, where it stands first, as NeMo writes it.
type Check<'c> = &'c dyn Fn(&[u8]) -> Result<()>;

/// Reads an archive; `check` may refuse its config.
///
/// # Errors
/// [`Code::BadArchive`] for what is no such archive, is damaged or beyond the limits; [`Code::NoAdapter`] where a
/// member is missing; [`Code::UnsupportedMegatron`] for shards that are not joined; the errors of the file system.
pub(super) fn read(path: &Path, check: Check<'_>) -> Result<Members> {
    let (mut file, len) = open_regular(path)?;
    if len > MAX_FILE {
        let message = format!("the file has {len} bytes, at most {MAX_FILE} are read");
        return Err(bad(message).file(path));
    }
    let mut magic = Vec::new();
    let rewound = (&mut file)
        .take(2)
        .read_to_end(&mut magic)
        .and_then(|_| file.rewind());
    rewound.map_err(|e| Error::io(path, "read", e))?;
    let members = match magic == [0x1f, 0x8b] {
        true => unpacked(file, len, check),
        false => members(BufReader::new(file), len, check),
    };
    let mut members = members.map_err(|e| e.file(path))?;
    members.bytes = len;
    Ok(members)
}

fn unpacked(file: File, len: u64, check: Check<'_>) -> Result<Members> {
    let most = len
        .saturating_mul(MAX_RATIO)
        .saturating_add(64 << 20)
        .min(MAX_FILE);
    // What is beyond is missing then, as if the file were cut off.
    members(GzDecoder::new(BufReader::new(file)).take(most), most, check)
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::BadArchive, message)
}

/// Where a member belongs.
#[derive(Debug, PartialEq)]
enum Place {
    Config,
    /// Of a tensor-parallel rank.
    Weights(usize),
    Other,
}

/// `room` is what all that is read may take together: entries cannot overlap, so no more than there is.
fn members(reader: impl Read, mut room: u64, check: Check<'_>) -> Result<Members> {
    let broken =
        |e: std::io::Error| bad(format!("the tar archive is broken or cut off: {e}")).cause(e);
    let mut archive = Archive::new(reader);
    let mut config = None;
    let mut ranks: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    for (n, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if n >= MAX_MEMBERS {
            return Err(bad(format!(
                "the archive has more than {MAX_MEMBERS} members"
            )));
        }
        let place = place(&entry.path_bytes())?;
        if place == Place::Other {
            continue;
        }
        if !matches!(
            entry.header().entry_type(),
            EntryType::Regular | EntryType::Continuous
        ) {
            return Err(bad("a member that should be a file is none"));
        }
        let size = entry.size();
        let most = match place {
            Place::Config => MAX_CONFIG.min(room),
            _ => room,
        };
        if size > most {
            return Err(bad(format!(
                "a member claims {size} bytes, at most {most} are read"
            )));
        }
        room -= size;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 != size {
            return Err(bad(format!("a member has {} of {size} bytes", bytes.len())));
        }
        if place == Place::Config {
            check(&bytes)?;
        }
        let twice = match place {
            Place::Weights(rank) => ranks.insert(rank, bytes).is_some(),
            _ => config.replace(bytes).is_some(),
        };
        if twice {
            return Err(bad("two members of the archive have one name"));
        }
    }
    whole(config, ranks)
}

fn whole(config: Option<Vec<u8>>, ranks: BTreeMap<usize, Vec<u8>>) -> Result<Members> {
    let missing = |what: &str| {
        Error::new(Code::NoAdapter, format!("the archive has no {what}"))
            .hint("a .nemo of an adapter has model_config.yaml and model_weights.ckpt")
    };
    let config = config.ok_or_else(|| missing(CONFIG))?;
    if ranks.is_empty() {
        return Err(missing(WEIGHTS));
    }
    if !ranks.keys().copied().eq(0..ranks.len()) {
        let message = format!("{} state dicts, not those of ranks 0 and up", ranks.len());
        return Err(Error::new(Code::UnsupportedMegatron, message)
            .hint("the archive is incomplete; get or save it again"));
    }
    Ok(Members {
        config,
        ranks: ranks.into_values().collect(),
        bytes: 0,
    })
}

/// What a member of this name is: below the archive's root, as `./name` or `name`.
fn place(name: &[u8]) -> Result<Place> {
    let Ok(name) = std::str::from_utf8(name) else {
        return Ok(Place::Other);
    };
    let parts: Option<Vec<&str>> = Path::new(name)
        .components()
        .filter(|c| *c != Component::CurDir)
        .map(|c| match c {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let sharded = |what: &str| {
        Err(Error::new(Code::UnsupportedMegatron, what)
            .hint("load it in NeMo and save it without parallel stages, in one state dict"))
    };
    match parts.as_deref() {
        Some([CONFIG]) => Ok(Place::Config),
        Some([WEIGHTS]) => Ok(Place::Weights(0)),
        Some([folder, WEIGHTS]) => match rank_of(folder) {
            Some((rank, 0)) if rank < MAX_RANKS => Ok(Place::Weights(rank)),
            Some((_, 0)) | None => Ok(Place::Other),
            Some(_) => sharded(
                "the state dict is in the stages of a pipeline, each with layers of its own",
            ),
        },
        Some(["model_weights", ..])
            if name.ends_with(".metadata") || name.ends_with("metadata.json") =>
        {
            sharded("the weights are a distributed checkpoint of Megatron's")
        }
        _ => Ok(Place::Other),
    }
}

/// The ranks of a folder's name, within tensors and in the pipeline.
fn rank_of(folder: &str) -> Option<(usize, usize)> {
    if let Some(rank) = folder.strip_prefix("mp_rank_") {
        return Some((rank.parse().ok()?, 0));
    }
    let (rank, stage) = folder.strip_prefix("tp_rank_")?.split_once("_pp_rank_")?;
    Some((rank.parse().ok()?, stage.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(name: &str) -> Code {
        place(name.as_bytes()).unwrap_err().code()
    }

    /// Breaks where a member is taken for another one, or a path in the archive means anything.
    #[test]
    fn members_are_known_by_their_plain_names() {
        let of = |name: &str| place(name.as_bytes()).unwrap();
        assert_eq!(of("./model_config.yaml"), Place::Config);
        assert_eq!(of("model_weights.ckpt"), Place::Weights(0));
        assert_eq!(of("./mp_rank_01/model_weights.ckpt"), Place::Weights(1));
        assert_eq!(
            of("tp_rank_03_pp_rank_000/model_weights.ckpt"),
            Place::Weights(3)
        );
        for other in [
            "/model_config.yaml",
            "../model_config.yaml",
            "a/model_config.yaml",
            "tokenizer.model",
            "./",
        ] {
            assert_eq!(of(other), Place::Other, "{other}");
        }
        assert_eq!(
            code("tp_rank_00_pp_rank_001/model_weights.ckpt"),
            Code::UnsupportedMegatron
        );
        assert_eq!(
            code("./model_weights/metadata.json"),
            Code::UnsupportedMegatron
        );
    }
}
