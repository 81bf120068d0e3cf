//! What `tlkit.peft` saves from PEFT's Tied-LoRA: a directory as PEFT has them, with a `.tl` beside the weights.

use std::path::{Path, PathBuf};

use super::config::{MAX_CONFIG_BYTES, TIED_LORA};
use super::files::{CONFIG_FILE, is_peft_dir};
use super::json::{Fields, Json};
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};

/// The `.tl` in it: the adapter that the weights beside it are, ties and seeds included.
pub const TL_FILE: &str = "adapter.tl";

/// The `.tl` of a directory whose `adapter_config.json` says [`TIED_LORA`]; `None` of any other path. A config that
/// cannot be read is somebody else's to refuse.
///
/// # Errors
/// [`Code::NoAdapter`] where the `.tl` is missing; [`Code::LinkOutside`]; what reading the config fails with.
pub fn tl_beside(path: &Path) -> Result<Option<PathBuf>> {
    if !is_peft_dir(path) {
        return Ok(None);
    }
    let config = path.join(CONFIG_FILE);
    check_inside(path, &config)?;
    let bytes = read_limited(&config, MAX_CONFIG_BYTES as u64)?;
    let fields = Json::parse(&bytes).and_then(Fields::new);
    let peft_type = fields.and_then(|mut f| f.text("peft_type"));
    if !matches!(peft_type, Ok(Some(name)) if name == TIED_LORA) {
        return Ok(None);
    }
    let file = path.join(TL_FILE);
    check_inside(path, &file)?;
    if !file.exists() {
        let message = format!("a Tied-LoRA of PEFT, without its {TL_FILE}");
        return Err(Error::new(Code::NoAdapter, message)
            .file(path)
            .hint("save it again: `tlkit.peft` writes the file beside the weights, and says why where it cannot"));
    }
    Ok(Some(file))
}
