//! Text to tokens and back, by the files that stand beside a model's weights.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokenizers::{ModelWrapper, Tokenizer};

use super::configs::{self, Ids, ModelConfig, TemplateText, TokenText, TokenizerConfig, read_json};
use super::growth::{self, Growth};
use super::sound::Parts;
use crate::budget;
use crate::error::{Code, Error, Result};
use crate::fs::check_inside;
use crate::fs::read_limited;
use crate::text::chat_template::{ChatTemplate, Message};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Those of models with the largest vocabularies have 35 MB; read, one takes some ten times its length.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Longest text, or part of one, that is tokenised at all; each byte takes some 400 in memory.
pub(super) const MAX_TEXT_BYTES: usize = 2 << 20;
/// Longest text that is tokenised beside others.
const MAX_PARALLEL_BYTES: usize = 128 << 10;
/// Most memory that tokenising one text may take; see [`budget`].
const MAX_MEMORY: u64 = 2 << 30;
/// Texts that may stand before a continuation; see [`Vocabulary::encode_continuation`].
const LEADS: [&str; 4] = ["\u{1}", ".", "|", "a"];

/// A model's tokenizer, its special tokens and its chat template.
///
/// Special tokens that stand in a text (`</s>`) become those tokens, as chat templates need.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    growth: Growth,
    path: PathBuf,
    size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// What stands before every prompt; the bos at most once.
    prefix: Vec<u32>,
    /// Texts to put before a continuation, with the tokens to take away again; empty where the
    /// tokenizer does not treat the start of a text in a way of its own.
    leads: Vec<(&'static str, Vec<u32>)>,
    template: Option<ChatTemplate>,
}

impl Vocabulary {
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json`, `config.json`,
    /// `generation_config.json` and `chat_template.jinja`, from a model's folder.
    ///
    /// `add_bos_token` overrides what `tokenizer.json` does about the bos; `add_eos_token` is of
    /// no consequence, as prompts never end and completions always do. Padding, truncation and
    /// BPE dropout are turned off.
    ///
    /// # Errors
    /// [`Code::BadTokenizer`] for a tokenizer or its config; [`Code::ModelConfig`] for ids in the
    /// model's configs; [`Code::ChatTemplate`] for a template that does not compile;
    /// [`Code::HeaderTooLarge`] for an absurdly large config; [`Code::Io`].
    pub fn open(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join(TOKENIZER);
        check_inside(model_dir, &path)?;
        check_inside(model_dir, &model_dir.join(TEMPLATE))?;
        let tokenizer = load_tokenizer(&path)?;
        let growth = Growth::of(&tokenizer)
            .map_err(|what| Error::new(Code::BadTokenizer, what).file(&path))?;
        let config: TokenizerConfig =
            read_json(&model_dir.join(TOKENIZER_CONFIG), Code::BadTokenizer)?;
        let size = tokenizer.get_vocab(true).into_values().max();
        let mut vocabulary = Self {
            size: size.map_or(0, |id| id as usize + 1),
            tokenizer,
            growth,
            path,
            bos: None,
            eos: Vec::new(),
            prefix: Vec::new(),
            leads: Vec::new(),
            template: None,
        };
        vocabulary.read_special_ids(model_dir, &config)?;
        vocabulary.prefix = vocabulary.find_prefix(config.add_bos_token)?;
        vocabulary.leads = vocabulary.find_leads()?;
        vocabulary.template = load_template(model_dir, &config)?;
        Ok(vocabulary)
    }

    /// The token that begins every text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text, any of them; the first is the one to append. May be empty.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// One more than the greatest token id; a model's logits may be wider.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Fixes what a chat template takes for the present, in seconds of Unix time.
    ///
    /// Some templates write today's date; a run that must repeat another needs its day.
    pub fn set_clock(&mut self, seconds: i64) {
        if let Some(template) = &mut self.template {
            template.set_clock(seconds);
        }
    }

    /// Tokens of a prompt: the bos once where the model wants it, even if the text itself begins
    /// with it, and never an eos after it.
    ///
    /// # Errors
    /// [`Code::BadTokenizer`] if the tokenizer cannot encode the text, or would make too much of it;
    /// [`Code::TextTooLong`] beyond 2 MiB.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.encode_plain(text)?;
        if self.bos.is_some() && plain.first().copied() == self.bos {
            return Ok(plain);
        }
        Ok([self.prefix.as_slice(), &plain].concat())
    }

    /// Tokens of a text, none added.
    ///
    /// # Errors
    /// As [`Vocabulary::encode_prompt`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }

    /// Tokens of a text that follows another: decoded after the tokens of the first they give
    /// both texts end to end.
    ///
    /// SentencePiece tokenizers mark the start of a text as the start of a word. Encoded alone,
    /// ` Paris` after `Answer:` would begin with two spaces and `s` after `cat` with one, which
    /// is not what the model would write there.
    ///
    /// # Errors
    /// As [`Vocabulary::encode_prompt`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        for (lead, tokens) in &self.leads {
            let whole = self.encode_plain(&format!("{lead}{text}"))?;
            // Where the text's start was merged into the lead, another lead may do better.
            if let Some(rest) = whole.strip_prefix(tokens.as_slice()) {
                return Ok(rest.to_vec());
            }
        }
        self.encode_plain(text)
    }

    /// The text of tokens; special tokens and unknown ids give nothing.
    ///
    /// # Errors
    /// [`Code::BadTokenizer`] if the tokenizer cannot decode the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(tokens, true);
        text.map_err(|e| self.failed("decode the tokens", e))
    }

    /// The text of a conversation by the model's chat template; with `add_generation_prompt` it
    /// ends where the assistant's answer begins. It may begin with the text of the bos.
    ///
    /// # Errors
    /// [`Code::ChatTemplate`] if there is no template, or it refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::new(Code::ChatTemplate, "the model has no chat template")
                .file(&self.path)
                .hint("put a chat_template.jinja beside it, or give prompts and completions")
        })?;
        template.render(messages, add_generation_prompt)
    }

    /// The text of `messages` in pieces, with the mark of those that the template's generation blocks hold;
    /// none where it has no such blocks.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
    ) -> Result<Option<Vec<(String, bool)>>> {
        match &self.template {
            Some(template) => template.render_marked(messages),
            None => self.render(messages, false).map(|_| None),
        }
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        /// Long texts are tokenised one after another, as each takes hundreds of times its length.
        static LONG: Mutex<()> = Mutex::new(());
        if text.len() > MAX_TEXT_BYTES {
            let message = format!(
                "a text of {} bytes; up to {MAX_TEXT_BYTES} are tokenised",
                text.len()
            );
            return Err(Error::new(Code::TextTooLong, message).hint("give it in parts"));
        }
        let refused = |what| Error::new(Code::BadTokenizer, what).file(&self.path);
        self.growth.check(text).map_err(refused)?;
        let _turn = (text.len() > MAX_PARALLEL_BYTES)
            .then(|| LONG.lock().unwrap_or_else(PoisonError::into_inner));
        let message = format!("it takes more than {MAX_MEMORY} bytes for one text");
        let encode = || self.tokenizer.encode_fast(text, special);
        let encoding = budget::within(MAX_MEMORY, refused(message), encode);
        let encoding = encoding.map_err(|e| self.failed("encode the text", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn failed(&self, doing: &str, e: tokenizers::Error) -> Error {
        let message = format!("the tokenizer cannot {doing}: {e}");
        Error::new(Code::BadTokenizer, message)
            .file(&self.path)
            .cause(e)
    }

    fn read_special_ids(&mut self, dir: &Path, config: &TokenizerConfig) -> Result<()> {
        let id = |name: &str, token: &Option<TokenText>| {
            let Some(text) = token.as_ref().map(TokenText::text) else {
                return Ok(None);
            };
            let id = self.tokenizer.token_to_id(text);
            id.map(Some).ok_or_else(|| {
                let message = format!("{name} `{text}` is not a token of {TOKENIZER}");
                Error::new(Code::BadTokenizer, message).file(dir.join(TOKENIZER_CONFIG))
            })
        };
        let mut bos: Vec<u32> = id("bos_token", &config.bos_token)?.into_iter().collect();
        let mut eos: Vec<u32> = id("eos_token", &config.eos_token)?.into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            let path = dir.join(file);
            let config: ModelConfig = read_json(&path, Code::ModelConfig)?;
            let size = config.vocab_size.unwrap_or(0).max(self.size as u64);
            // A negative id is some exporters' word for none.
            let checked = |ids: Option<Ids>| -> Result<Vec<u32>> {
                let ids = ids.map(Ids::list).unwrap_or_default();
                let ids = ids.into_iter().filter_map(|id| u64::try_from(id).ok());
                ids.map(|id| match u32::try_from(id) {
                    Ok(token) if id < size => Ok(token),
                    _ => {
                        let message = format!("token id {id} is outside a vocabulary of {size}");
                        Err(Error::new(Code::ModelConfig, message).file(&path))
                    }
                })
                .collect()
            };
            bos.extend(checked(config.bos_token_id)?);
            eos.extend(checked(config.eos_token_id)?);
        }
        self.bos = bos.first().copied();
        for id in eos {
            if !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
        Ok(())
    }

    /// What the tokenizer puts before a text, corrected by `add_bos_token`.
    fn find_prefix(&self, add_bos: Option<bool>) -> Result<Vec<u32>> {
        let (plain, special) = (self.encode("a", false)?, self.encode("a", true)?);
        let at = match plain.len() {
            0 => 0,
            n => special.windows(n).position(|w| w == plain).unwrap_or(0),
        };
        let mut prefix = special.get(..at).unwrap_or_default().to_vec();
        if let (Some(bos), Some(add)) = (self.bos, add_bos) {
            prefix.retain(|id| *id != bos);
            if add {
                prefix.insert(0, bos);
            }
        }
        // Some tokenizers end texts at both ends; a prompt has no end.
        prefix.retain(|id| Some(*id) == self.bos || !self.eos.contains(id));
        Ok(prefix)
    }

    fn find_leads(&self) -> Result<Vec<(&'static str, Vec<u32>)>> {
        let mut leads = Vec::new();
        let mut marked = false;
        for lead in LEADS {
            let tokens = self.encode_plain(lead)?;
            // A lead that the tokenizer drops or does not know would not stand for a text.
            if self.decode(&tokens)?.trim_start_matches(' ') != lead {
                continue;
            }
            let whole = self.encode_plain(&format!("{lead}b"))?;
            if let Some(rest) = whole.strip_prefix(tokens.as_slice()) {
                marked |= rest != self.encode_plain("b")?;
                leads.push((lead, tokens));
            }
        }
        Ok(if marked { leads } else { Vec::new() })
    }
}

fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bad = |message: String| Error::new(Code::BadTokenizer, message).file(path);
    let bytes = read_limited(path, MAX_TOKENIZER_BYTES).map_err(|e| match e.code() {
        Code::NotFound => bad(format!("there is no {TOKENIZER}"))
            .hint("convert the tokenizer with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)"),
        Code::HeaderTooLarge => bad(e.message().to_owned()).cause(e),
        _ => e,
    })?;
    let parts = Parts::read(&bytes).map_err(bad)?;
    growth::check_patterns(&parts).map_err(bad)?;
    drop(parts);
    let mut tokenizer =
        Tokenizer::from_bytes(&bytes).map_err(|e| bad(format!("not a tokenizer: {e}")).cause(e))?;
    tokenizer
        .with_padding(None)
        .with_truncation(None)
        .map_err(|e| bad(e.to_string()))?;
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model() {
        let mut bpe = bpe.clone();
        // Dropout makes encoding random.
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// The template's own file comes before the config's key, as in transformers.
fn load_template(dir: &Path, config: &TokenizerConfig) -> Result<Option<ChatTemplate>> {
    let path = dir.join(TEMPLATE);
    let specials = config.specials();
    if path.exists() {
        let bytes = read_limited(&path, configs::MAX_CONFIG_BYTES)?;
        let source = String::from_utf8(bytes).map_err(|e| {
            Error::new(Code::ChatTemplate, "not UTF-8")
                .file(&path)
                .cause(e)
        })?;
        return ChatTemplate::new(&source, &path, specials).map(Some);
    }
    let source = match &config.chat_template {
        None => return Ok(None),
        Some(TemplateText::One(source)) => Some(source),
        Some(TemplateText::Named(list)) => {
            let default = list.iter().find(|t| t.name == "default");
            default.map(|t| &t.template)
        }
    };
    let path = dir.join(TOKENIZER_CONFIG);
    let source = source.ok_or_else(|| {
        Error::new(
            Code::ChatTemplate,
            "chat_template has no template named `default`",
        )
        .file(&path)
    })?;
    ChatTemplate::new(source, &path, specials).map(Some)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::testing::shared;
    use crate::text::testing::Model;

    #[test]
    fn bos_stands_once_whoever_adds_it_and_eos_never() {
        // Two bos tokens, or an eos after the prompt, ruin generation without any error.
        let bare = Model::new().processor(&[], &[]);
        let both = Model::new().processor(&["<s>"], &["</s>"]);
        for (model, config, expected) in [
            (&bare, r#"{"bos_token":"<s>","eos_token":"</s>"}"#, false),
            (
                &bare,
                r#"{"bos_token":{"content":"<s>"},"add_bos_token":true}"#,
                true,
            ),
            (&both, r#"{"bos_token":"<s>","eos_token":"</s>"}"#, true),
            (
                &both,
                r#"{"bos_token":"<s>","add_bos_token":true,"add_eos_token":true}"#,
                true,
            ),
            (&both, r#"{"bos_token":"<s>","add_bos_token":false}"#, false),
        ] {
            let vocabulary = model.open(&[(TOKENIZER_CONFIG, config)]).unwrap();
            let plain = vocabulary.encode_plain("ab c").unwrap();
            let bos: &[u32] = if expected { &[1] } else { &[] };
            let prompt = vocabulary.encode_prompt("ab c").unwrap();
            assert_eq!(prompt, [bos, &plain].concat(), "{config}");
            assert_eq!(vocabulary.encode_prompt("<s>ab").unwrap()[..1], [1]);
            assert_ne!(vocabulary.encode_prompt("<s>ab").unwrap()[1], 1);
            assert_eq!(vocabulary.encode_prompt("").unwrap(), bos);
        }
    }

    #[test]
    fn special_ids_come_from_all_configs() {
        // Chat models end turns with another token than texts; both must stop generation.
        let model = Model::new();
        let vocabulary = model
            .open(&[
                (TOKENIZER_CONFIG, r#"{"eos_token":"</s>","bos_token":null}"#),
                (
                    "config.json",
                    r#"{"bos_token_id":1,"eos_token_id":2,"vocab_size":900}"#,
                ),
                ("generation_config.json", r#"{"eos_token_id":[2,5,-1]}"#),
            ])
            .unwrap();
        assert_eq!((vocabulary.bos(), vocabulary.eos()), (Some(1), &[2, 5][..]));
        assert_eq!(vocabulary.size(), vocabulary.tokenizer.get_vocab_size(true));
        let error = model
            .open(&[("config.json", r#"{"eos_token_id":99999}"#)])
            .unwrap_err();
        assert_eq!(error.code(), Code::ModelConfig);
        let error = model
            .open(&[(TOKENIZER_CONFIG, r#"{"eos_token":"<end>"}"#)])
            .unwrap_err();
        assert_eq!(error.code(), Code::BadTokenizer);
        assert!(error.message().contains("`<end>`"));
    }

    #[test]
    fn continuations_join_without_a_stray_space() {
        let vocabulary = Model::new().open(&[]).unwrap();
        for (first, then) in [
            ("ab:", " cd"),
            ("ab", "cd"),
            ("ab", ".c"),
            ("ab", " é|"),
            ("", "ab"),
        ] {
            let mut tokens = vocabulary.encode_prompt(first).unwrap();
            tokens.extend(vocabulary.encode_continuation(then).unwrap());
            // The decoder takes one leading space for the mark that starts every text.
            let expected = format!("{first}{then}");
            assert_eq!(vocabulary.decode(&tokens).unwrap(), expected);
        }
        assert!(vocabulary.encode_continuation("").unwrap().is_empty());
    }

    #[test]
    fn byte_level_tokenizers_need_no_lead() {
        // A lead before a sign could change where the tokenizer parts the text.
        let config = r#"{"eos_token":"</s>","bos_token":null,"add_bos_token":false}"#;
        let vocabulary = Model::byte_level()
            .open(&[(TOKENIZER_CONFIG, config)])
            .unwrap();
        assert!(vocabulary.leads.is_empty());
        assert_eq!((vocabulary.bos(), vocabulary.size()), (None, 258));
        let mut tokens = vocabulary.encode_prompt("q: é").unwrap();
        tokens.extend(vocabulary.encode_continuation(" a\n\n(€)").unwrap());
        assert!(tokens.contains(&257));
        assert_eq!(vocabulary.decode(&tokens).unwrap(), "q: é a\n\n(€)");
        let mut stream = super::super::TextStream::new(&vocabulary, &tokens[..3]);
        let text = tokens[3..]
            .iter()
            .filter_map(|id| stream.push(*id).unwrap());
        assert_eq!(text.collect::<String>(), "é a\n\n(€)");
    }

    #[test]
    fn templates_are_found_in_every_place() {
        let model = Model::new();
        let hi = [Message {
            role: "user".into(),
            content: "hi".into(),
        }];
        let one = (
            TOKENIZER_CONFIG,
            r#"{"bos_token":"<s>","chat_template":"{{ bos_token }}one"}"#,
        );
        let list = r#"{"chat_template":[{"name":"tool_use","template":"x"},{"name":"default","template":"two"}]}"#;
        let file = (TEMPLATE, "three\n");
        for (files, expected) in [
            (vec![one], "<s>one"),
            (vec![(TOKENIZER_CONFIG, list)], "two"),
            (vec![one, file], "three"),
        ] {
            assert_eq!(
                model.open(&files).unwrap().render(&hi, true).unwrap(),
                expected
            );
        }
        let error = model.open(&[]).unwrap().render(&hi, true).unwrap_err();
        assert_eq!(error.code(), Code::ChatTemplate);
        assert!(error.hint_text().is_some());
        let unnamed = r#"{"chat_template":[{"name":"rag","template":"x"}]}"#;
        let error = model.open(&[(TOKENIZER_CONFIG, unnamed)]).unwrap_err();
        assert_eq!(error.code(), Code::ChatTemplate);
    }

    #[test]
    fn broken_tokenizers_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Vocabulary::open(folder.path()).unwrap_err();
        assert_eq!(error.code(), Code::BadTokenizer);
        assert!(error.path().unwrap().ends_with(TOKENIZER));
        for text in [
            "",
            "{}",
            "[1]",
            r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#,
        ] {
            std::fs::write(folder.path().join(TOKENIZER), text).unwrap();
            let error = Vocabulary::open(folder.path()).unwrap_err();
            assert_eq!(error.code(), Code::BadTokenizer, "{text}");
        }
    }

    #[test]
    fn prompts_of_real_models_get_their_ids_and_texts() {
        #[derive(Deserialize)]
        struct Greedy {
            prompt: String,
            prompt_ids: Vec<u32>,
            new_ids: Vec<u32>,
            text: String,
        }
        #[derive(Deserialize)]
        struct Nll {
            text: String,
            ids: Vec<u32>,
        }
        #[derive(Deserialize)]
        struct Golden {
            greedy: Vec<Greedy>,
            nll: Vec<Nll>,
        }
        for model in ["stories260K", "babyllama105"] {
            let Some(folder) = shared(&format!("models/{model}")) else {
                continue;
            };
            let vocabulary = Vocabulary::open(&folder).unwrap();
            assert_eq!((vocabulary.bos(), vocabulary.eos()), (Some(1), &[2][..]));
            let golden: Golden = read_golden(&folder);
            for case in golden.greedy {
                assert_eq!(
                    vocabulary.encode_prompt(&case.prompt).unwrap(),
                    case.prompt_ids
                );
                let all = [case.prompt_ids, case.new_ids].concat();
                assert_eq!(vocabulary.decode(&all).unwrap(), case.text);
            }
            for case in golden.nll {
                assert_eq!(vocabulary.encode_prompt(&case.text).unwrap(), case.ids);
            }
        }
    }

    fn read_golden<T: DeserializeOwned>(folder: &Path) -> T {
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
    }
}
