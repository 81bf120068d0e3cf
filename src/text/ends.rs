//! The tokens at one end of a text, of which no more than those are made.

use super::cut::{floor, floor_from_end};
use super::vocabulary::{MAX_TEXT_BYTES, Vocabulary};
use crate::error::Result;

/// Longest text that is always tokenised whole, in bytes. Of a longer one, as much as will be used.
pub(super) const WHOLE_BYTES: usize = 512 << 10;

/// Which tokens of a text will be used.
#[derive(Clone, Copy)]
enum End {
    First,
    Last,
}

impl Vocabulary {
    /// As [`encode_prompt`](Self::encode_prompt), where no more than the first `most` tokens will be
    /// used: of a longer text there are at least that many and one more.
    ///
    /// A text of more than 512 kB is not tokenised to its end, so that its last tokens may differ.
    ///
    /// # Errors
    /// As [`encode_prompt`](Self::encode_prompt).
    pub fn encode_prompt_start(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.encode_end(text, most, End::First, &|text| self.encode_prompt(text))
    }

    /// As [`encode_prompt_start`](Self::encode_prompt_start), of the last `most` tokens.
    ///
    /// # Errors
    /// As [`encode_prompt`](Self::encode_prompt).
    pub fn encode_prompt_end(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.encode_end(text, most, End::Last, &|text| self.encode_prompt(text))
    }

    /// As [`encode_continuation`](Self::encode_continuation), of the first `most` tokens.
    ///
    /// # Errors
    /// As [`encode_prompt`](Self::encode_prompt).
    pub fn encode_continuation_start(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.encode_end(text, most, End::First, &|text| {
            self.encode_continuation(text)
        })
    }

    fn encode_end(
        &self,
        text: &str,
        most: usize,
        end: End,
        encode: &dyn Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let mut window = most.saturating_mul(8).clamp(WHOLE_BYTES, MAX_TEXT_BYTES);
        while window < text.len() {
            let part = match end {
                End::First => &text[..floor(text, window)],
                End::Last => &text[text.len() - floor_from_end(text, window)..],
            };
            let tokens = encode(part)?;
            // So many more than are used that the cut does not reach those.
            if tokens.len() >= most.saturating_add(most / 4 + 256) {
                return Ok(tokens);
            }
            if window == MAX_TEXT_BYTES {
                break;
            }
            window = (2 * window).min(MAX_TEXT_BYTES);
        }
        encode(text)
    }
}
