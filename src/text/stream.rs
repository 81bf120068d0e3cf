//! Text as its tokens arrive.

use super::Vocabulary;
use crate::error::Result;

/// Most tokens that wait for the rest of a character. A character has at most four bytes, so
/// what waits longer is not UTF-8 and never will be.
const MAX_WAITING: usize = 16;

/// Turns tokens into text one by one: what is given out, end to end, is the text of all tokens.
///
/// Tokens are not texts: a character may take several of them, and the space before a word
/// belongs to the token only if another stands before it. So a window of tokens is decoded, of
/// which the first part is out already, and the difference is new.
#[derive(Debug)]
pub struct TextStream<'a> {
    vocabulary: &'a Vocabulary,
    /// The tokens of the last text given out, then those that wait.
    window: Vec<u32>,
    known: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of what follows `prompt`, which is not given out.
    pub fn new(vocabulary: &'a Vocabulary, prompt: &[u32]) -> Self {
        // All of it, as a part could begin within a character; the first text drops it.
        Self {
            vocabulary,
            window: prompt.to_vec(),
            known: prompt.len(),
        }
    }

    /// Takes the next token; gives the text that is complete with it, if any.
    ///
    /// # Errors
    /// [`crate::Code::BadTokenizer`] if the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        self.window.push(token);
        let (fresh, whole) = self.fresh()?;
        let waits = self.window.len() - self.known < MAX_WAITING;
        if fresh.is_empty() || (waits && whole.ends_with(char::REPLACEMENT_CHARACTER)) {
            return Ok(None);
        }
        self.window.drain(..self.known);
        self.known = self.window.len();
        Ok(Some(fresh))
    }

    /// The text of the tokens that still wait: a character that was never completed.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(self) -> Result<Option<String>> {
        let (fresh, _) = self.fresh()?;
        Ok(Some(fresh).filter(|text| !text.is_empty()))
    }

    /// What the waiting tokens add to the text of the window, and that text.
    fn fresh(&self) -> Result<(String, String)> {
        let (known, waiting) = self.window.split_at(self.known.min(self.window.len()));
        let whole = self.vocabulary.decode(&self.window)?;
        // Bytes that are no character may spoil those before them, which are out already.
        let fresh = match whole.strip_prefix(self.vocabulary.decode(known)?.as_str()) {
            Some(fresh) => fresh.to_owned(),
            None => self.vocabulary.decode(waiting)?,
        };
        Ok((fresh, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shared;
    use crate::text::testing::Model;

    fn stream(vocabulary: &Vocabulary, prompt: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(vocabulary, prompt);
        let mut out: Vec<String> = Vec::new();
        for token in tokens {
            out.extend(stream.push(*token).unwrap());
        }
        out.extend(stream.finish().unwrap());
        out
    }

    #[test]
    fn characters_come_whole_and_spaces_stay() {
        // Decoding token by token would give `�` for `é` and lose the space before `b`.
        let vocabulary = Model::new().open(&[]).unwrap();
        let prompt = vocabulary.encode_prompt("ab").unwrap();
        let tokens = vocabulary.encode_continuation(" é b€c🙂").unwrap();
        let out = stream(&vocabulary, &prompt, &tokens);
        assert_eq!(out, [" ", "é", " ", "b", "€", "c", "🙂"]);
        let alone = stream(&vocabulary, &[], &vocabulary.encode_plain("ab c").unwrap());
        assert_eq!(alone.concat(), "ab c");
    }

    #[test]
    fn streams_of_real_models_are_their_texts() {
        for model in ["stories260K", "babyllama105"] {
            let Some(folder) = shared(&format!("models/{model}")) else {
                continue;
            };
            let vocabulary = Vocabulary::open(&folder).unwrap();
            let golden = std::fs::read(folder.join("golden.json")).unwrap();
            let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
            let ids = |ids: &serde_json::Value| -> Vec<u32> {
                let ids = ids.as_array().unwrap().iter();
                ids.map(|id| id.as_u64().unwrap() as u32).collect()
            };
            for case in golden["greedy"].as_array().unwrap() {
                let (prompt, new) = (ids(&case["prompt_ids"]), ids(&case["new_ids"]));
                let text = stream(&vocabulary, &prompt, &new).concat();
                let whole = case["prompt"].as_str().unwrap().to_owned() + &text;
                assert_eq!(whole, case["text"].as_str().unwrap());
            }
        }
    }

    #[test]
    fn special_tokens_say_nothing_and_broken_ends_come_last() {
        let vocabulary = Model::new().open(&[]).unwrap();
        let byte = |b: u32| b + 3;
        let out = stream(
            &vocabulary,
            &[1, 260],
            &[261, 2, 262, byte(0xE2), byte(0x82)],
        );
        assert_eq!(out, ["b", "c", "��"]);
        let out = stream(&vocabulary, &[1], &[byte(0xC3), byte(0xA9), byte(0xE2)]);
        assert_eq!(out, ["é", "�"]);
        // Endless rubbish must neither hold back the text for ever nor grow the window.
        let mut endless = TextStream::new(&vocabulary, &[1]);
        let pushed = (0..100).filter_map(|_| endless.push(byte(0x80)).unwrap());
        assert!(pushed.count() > 4);
        assert!(endless.window.len() <= 2 * MAX_WAITING);
    }
}
