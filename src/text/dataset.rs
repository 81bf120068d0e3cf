//! Training examples from JSONL.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::batch::Example;
use super::ends::WHOLE_BYTES;
use super::jsonl::{Lines, bad_line, parse};
use super::{Message, Vocabulary};
use crate::error::{Code, Error, Result};

const EXPECTED: &str = r#"{"prompt": …, "completion": …}, {"text": …} or {"messages": [{"role": …, "content": …}, …]}"#;
/// Lines are tokenised in parallel by chunks: enough to be worth it, and no more memory than that.
const CHUNK_LINES: usize = 256;
const CHUNK_BYTES: usize = 8 << 20;
/// Every turn renders the conversation up to it, so the work grows with the square of this.
const MAX_MESSAGES: usize = 1024;

/// How examples are made of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOptions {
    /// Most inputs of an example, in tokens; at least 1. The last target makes one token more.
    pub seq_len: usize,
    /// Whether prompts, and what others than the assistant say, are to be predicted too.
    pub loss_on_prompt: bool,
    /// Whether lines must be messages, and what the template marks as the assistant's is all that is
    /// predicted.
    pub assistant_only: bool,
    /// Most lines to read, blank ones not counted.
    pub limit: Option<usize>,
}

/// What became of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct DataStats {
    /// Lines that were read, blank ones not counted.
    pub lines: usize,
    /// Examples made of them.
    pub examples: usize,
    /// Examples that lost their end to the length limit.
    pub truncated: usize,
    /// Lines that gave no example, as no target was left of them.
    pub dropped: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens to be predicted.
    pub targets: usize,
}

/// The examples of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// At least one.
    pub examples: Vec<Example>,
    /// What became of the lines.
    pub stats: DataStats,
}

impl Dataset {
    /// Reads a JSONL file of `{"prompt","completion"}`, `{"text"}` and `{"messages"}` lines, which
    /// may be mixed; other keys are ignored.
    ///
    /// An eos ends completions and texts; where messages end is the chat template's business.
    ///
    /// # Errors
    /// [`Code::BadExample`] or [`Code::ChatTemplate`] with the number of the first bad line;
    /// [`Code::NoExamples`]; [`Code::Usage`] for a `seq_len` of 0; [`Code::BadTokenizer`];
    /// [`Code::Io`].
    pub fn load(path: &Path, vocabulary: &Vocabulary, options: &DataOptions) -> Result<Self> {
        if options.seq_len == 0 {
            return Err(Error::new(
                Code::Usage,
                "a sequence length of 0 leaves no room",
            ));
        }
        let mut lines = Lines::open(path)?.take(options.limit.unwrap_or(usize::MAX));
        let mut data = Self {
            examples: Vec::new(),
            stats: DataStats::default(),
        };
        loop {
            let chunk = next_chunk(&mut lines);
            if chunk.is_empty() {
                break;
            }
            let make =
                |(number, line): (usize, String)| example(number, &line, vocabulary, options);
            // In order, errors too: which line is blamed does not depend on the threads.
            let made: Vec<Result<Example>> = chunk
                .into_par_iter()
                .map(|line| line.and_then(make))
                .collect();
            for example in made {
                let example = example.map_err(|e| e.file(path))?;
                data.add(example, options.seq_len);
            }
        }
        if data.examples.is_empty() {
            let DataStats { lines, dropped, .. } = data.stats;
            let message = format!("no usable example in {lines} lines ({dropped} dropped)");
            let error = Error::new(Code::NoExamples, message).file(path);
            return Err(match dropped {
                0 => error,
                _ => error.hint("prompts leave no room for an answer; raise the sequence length"),
            });
        }
        Ok(data)
    }

    fn add(&mut self, mut example: Example, seq_len: usize) {
        let stats = &mut self.stats;
        stats.lines += 1;
        let most = seq_len.saturating_add(1);
        let long = example.tokens.len() > most;
        example.tokens.truncate(most);
        example.predicted.truncate(most);
        let targets = example.predicted.iter().filter(|yes| **yes).count();
        if targets == 0 {
            stats.dropped += 1;
            return;
        }
        stats.truncated += usize::from(long);
        stats.examples += 1;
        stats.tokens += example.tokens.len();
        stats.targets += targets;
        self.examples.push(example);
    }
}

/// The next lines; an error ends them.
fn next_chunk(lines: &mut impl Iterator<Item = NumberedLine>) -> Vec<NumberedLine> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while chunk.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
        let Some(line) = lines.next() else { break };
        let failed = line.is_err();
        bytes += line.as_ref().map_or(0, |(_, text)| text.len());
        chunk.push(line);
        if failed {
            break;
        }
    }
    chunk
}

type NumberedLine = Result<(usize, String)>;

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    completion: Option<String>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

fn example(
    number: usize,
    line: &str,
    vocabulary: &Vocabulary,
    options: &DataOptions,
) -> Result<Example> {
    let line: Line = parse(number, line, EXPECTED)?;
    let all = options.loss_on_prompt;
    let bad = |what: &str| bad_line(number, what);
    let at_line = |e: Error| match e.code() {
        Code::TextTooLong => bad_line(number, e.message()).cause(e),
        _ => e,
    };
    if options.assistant_only && line.messages.is_none() {
        let what = "no messages, of which the assistant's words alone were to be learnt";
        return Err(bad(what));
    }
    let mut builder = Builder::new(vocabulary, options.seq_len);
    match (line.prompt, line.completion, line.text, line.messages) {
        (Some(prompt), Some(completion), None, None) => {
            // Apart and not as one text, for the boundary is then the one that generation sees:
            // a token over the end of the prompt could never be generated.
            builder.push(&prompt, all).map_err(at_line)?;
            builder.push(&completion, true).map_err(at_line)?;
            builder.end();
        }
        (None, None, Some(text), None) => {
            builder.push(&text, true).map_err(at_line)?;
            builder.end();
        }
        (None, None, None, Some(messages)) => {
            let marked = match options.assistant_only {
                true => vocabulary.render_marked(&messages),
                false => Ok(None),
            };
            let turns = match marked {
                Ok(Some(pieces)) => marked_turns(pieces),
                Ok(None) => conversation(&messages, vocabulary, all),
                Err(e) => Err(e),
            };
            let turns = turns.map_err(|e| e.context(format_args!("line {number}")))?;
            for (text, assistant) in turns {
                let pushed = builder.push(&text, all || assistant);
                pushed.map_err(at_line)?;
                builder.close_turn();
            }
        }
        (Some(_), None, None, None) => return Err(bad("a prompt without a completion")),
        (None, Some(_), None, None) => return Err(bad("a completion without a prompt")),
        (None, None, None, None) => return Err(bad(&format!("expected {EXPECTED}"))),
        _ => {
            return Err(bad(&format!(
                "keys of several kinds; expected one of {EXPECTED}"
            )));
        }
    }
    Ok(builder.example)
}

/// An example in the making.
struct Builder<'a> {
    vocabulary: &'a Vocabulary,
    example: Example,
    started: bool,
    /// Where the last piece begins.
    piece: usize,
    /// Most tokens that will be used.
    most: usize,
    /// Whether the last piece was too long to be tokenised to its end.
    cut: bool,
}

impl<'a> Builder<'a> {
    fn new(vocabulary: &'a Vocabulary, seq_len: usize) -> Self {
        let example = Example {
            tokens: Vec::new(),
            predicted: Vec::new(),
        };
        Self {
            vocabulary,
            example,
            started: false,
            piece: 0,
            most: seq_len.saturating_add(1),
            cut: false,
        }
    }

    fn push(&mut self, text: &str, predicted: bool) -> Result<()> {
        if self.example.tokens.len() > self.most {
            return Ok(());
        }
        let tokens = if self.started {
            self.vocabulary.encode_continuation_start(text, self.most)?
        } else {
            self.vocabulary.encode_prompt_start(text, self.most)?
        };
        self.started = true;
        self.cut = text.len() > WHOLE_BYTES && tokens.len() > self.most;
        self.piece = self.example.tokens.len();
        self.example.tokens.extend(tokens);
        self.flag(predicted);
        Ok(())
    }

    fn flag(&mut self, predicted: bool) {
        let flags = &mut self.example.predicted;
        flags.resize(self.example.tokens.len(), predicted);
        // Nothing stands before the first token to predict it from.
        if let Some(first) = flags.first_mut() {
            *first = false;
        }
    }

    /// Appends an eos, unless the text brought one.
    fn end(&mut self) {
        let eos = self.vocabulary.eos();
        let last = self
            .example
            .tokens
            .last()
            .filter(|_| self.example.tokens.len() > self.piece);
        if let (Some(id), false) = (eos.first(), last.is_some_and(|id| eos.contains(id))) {
            self.example.tokens.push(*id);
            self.flag(true);
        }
    }

    /// Takes no loss after a turn's eos: what the template puts there is never generated.
    fn close_turn(&mut self) {
        if self.cut {
            return;
        }
        let tokens = self.example.tokens.get(self.piece..).unwrap_or_default();
        let eos = self.vocabulary.eos();
        if let Some(at) = tokens.iter().rposition(|id| eos.contains(id)) {
            let after = self.example.predicted.iter_mut().skip(self.piece + at + 1);
            after.for_each(|flag| *flag = false);
        }
    }
}

/// The pieces that a template marks, where it marks any.
fn marked_turns(pieces: Vec<(String, bool)>) -> Result<Vec<(String, bool)>> {
    match pieces
        .iter()
        .any(|(text, marked)| *marked && !text.is_empty())
    {
        true => Ok(pieces),
        false => Err(Error::new(
            Code::BadExample,
            "the chat template marks nothing of these messages as the assistant's",
        )),
    }
}

/// The rendered conversation in pieces, with the mark of those that the assistant says.
///
/// Templates do not tell who said what, but the rendering of a conversation up to a message is
/// the beginning of the whole one's with every template that generation can use turn by turn.
fn conversation(
    messages: &[Message],
    vocabulary: &Vocabulary,
    all: bool,
) -> Result<Vec<(String, bool)>> {
    if messages.len() > MAX_MESSAGES {
        let message = format!("more than {MAX_MESSAGES} messages");
        return Err(Error::new(Code::BadExample, message));
    }
    let whole = vocabulary.render(messages, false)?;
    let mut pieces = Vec::new();
    let mut at = 0;
    for (i, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        let before = vocabulary.render(&messages[..i], true)?;
        let through = vocabulary.render(&messages[..=i], false)?;
        let consistent = whole.starts_with(&through) && through.starts_with(&before);
        let piece = |from: usize, to: usize| whole.get(from..to).map(str::to_owned);
        match (piece(at, before.len()), piece(before.len(), through.len())) {
            (Some(others), Some(answer)) if consistent => {
                pieces.push((others, false));
                pieces.push((answer, true));
            }
            _ => {
                let message = format!(
                    "the chat template renders the conversation up to message {} otherwise than \
                     within the whole, so the assistant's words cannot be told apart",
                    i + 1
                );
                let hint = "give prompts and completions, or a template that leaves past turns as they were";
                return Err(Error::new(Code::ChatTemplate, message).hint(hint));
            }
        }
        at = through.len();
    }
    if pieces.is_empty() && !all {
        return Err(Error::new(
            Code::BadExample,
            "no message of the role `assistant` to learn from",
        ));
    }
    if all {
        pieces.extend(whole.get(at..).map(|rest| (rest.to_owned(), false)));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shared;
    use crate::text::testing::Model;

    const CONFIG: &str = r#"{"bos_token":"<s>","eos_token":"</s>","chat_template":
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }}{{ eos_token }}|{% endif %}{% endfor %}"}"#;

    fn vocabulary() -> Vocabulary {
        Model::new()
            .open(&[("tokenizer_config.json", CONFIG)])
            .unwrap()
    }

    fn load(text: &str, seq_len: usize, all: bool) -> Result<Dataset> {
        load_with(&vocabulary(), text, seq_len, all)
    }

    fn load_with(
        vocabulary: &Vocabulary,
        text: &str,
        seq_len: usize,
        all: bool,
    ) -> Result<Dataset> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let options = DataOptions {
            seq_len,
            loss_on_prompt: all,
            assistant_only: false,
            limit: None,
        };
        Dataset::load(file.path(), vocabulary, &options)
    }

    /// The tokens that are predicted, as text with their eos.
    fn predicted(example: &Example) -> String {
        let pairs = example.tokens.iter().zip(&example.predicted);
        let pieces = pairs.map(|(id, yes)| match (id, yes) {
            (_, false) => "_".to_owned(),
            (2, _) => "$".to_owned(),
            (259, _) => " ".to_owned(),
            (id @ 260..=285, _) => char::from(b'a' + (*id - 260) as u8).to_string(),
            (id, _) => format!("<{id}>"),
        });
        pieces.collect()
    }

    #[test]
    fn loss_is_on_completions_alone_unless_asked() {
        // Loss on the prompt by accident trains the model to write questions.
        let line = r#"{"prompt":"bc","completion":" de","other":1}"#;
        let data = load(line, 99, false).unwrap();
        assert_eq!(predicted(&data.examples[0]), "____ de$");
        assert_eq!(data.examples[0].tokens[..2], [1, 259]);
        let data = load(line, 99, true).unwrap();
        assert_eq!(predicted(&data.examples[0]), "_ bc de$");
        let data = load(r#"{"text":"bc"}"#, 99, false).unwrap();
        assert_eq!(predicted(&data.examples[0]), "_ bc$");
        let data = load(r#"{"text":"bc</s>"}"#, 99, false).unwrap();
        assert_eq!(predicted(&data.examples[0]), "_ bc$");
    }

    #[test]
    fn only_the_assistant_is_learnt_from_messages() {
        let line = r#"{"messages":[{"role":"user","content":"b"},{"role":"assistant","content":"cd"},
            {"role":"user","content":"e"},{"role":"assistant","content":"f"},{"role":"user","content":"g"}]}"#
            .replace('\n', "");
        let data = load(&line, 99, false).unwrap();
        // <s> ▁ [ b ] c d </s> ▁ | [ e ] f </s> ▁ |
        assert_eq!(predicted(&data.examples[0]), "_____cd$_____f$__");
        let all = load(&line, 99, true).unwrap();
        assert_eq!(all.stats.targets, all.stats.tokens - 1 - 4);
    }

    #[test]
    fn long_examples_are_cut_and_empty_ones_dropped() {
        let lines = "{\"prompt\":\"bc\",\"completion\":\" defgh\"}\n\n{\"prompt\":\"bcdefgh\",\"completion\":\" d\"}\n{\"prompt\":\"\",\"completion\":\"\"}";
        let data = load(lines, 6, false).unwrap();
        assert_eq!(predicted(&data.examples[0]), "____ de");
        let stats = DataStats {
            lines: 3,
            examples: 2,
            truncated: 1,
            dropped: 1,
            tokens: 9,
            targets: 4,
        };
        assert_eq!(data.stats, stats);
        let error = load(lines, 1, false).map(|d| d.stats.examples);
        assert_eq!(error.unwrap(), 1);
        let error = load("{\"prompt\":\"bcd\",\"completion\":\" d\"}", 2, false).unwrap_err();
        assert_eq!(error.code(), Code::NoExamples);
        assert_eq!(load(" \n", 2, false).unwrap_err().code(), Code::NoExamples);
        assert_eq!(load(lines, 0, false).unwrap_err().code(), Code::Usage);
    }

    #[test]
    fn bad_lines_are_named_and_the_first_is_told() {
        let good = r#"{"text":"b"}"#;
        for (line, reason) in [
            ("{", "EOF while parsing"),
            ("[1]", "not a JSON object"),
            ("{}", "expected {\"prompt\""),
            (r#"{"prompt":"b"}"#, "without a completion"),
            (r#"{"completion":"b"}"#, "without a prompt"),
            (
                r#"{"text":3}"#,
                "invalid type: integer `3`, expected a string (column 9)",
            ),
            (r#"{"text":"b","messages":[]}"#, "several kinds"),
            (
                r#"{"messages":[{"role":"user","content":"b"}]}"#,
                "no message of the role",
            ),
            (
                r#"{"messages":[{"role":"user"}]}"#,
                "missing field `content`",
            ),
        ] {
            let text = format!("{good}\n\n{line}\n{{\n");
            let error = load(&text, 9, false).unwrap_err();
            assert_eq!(error.code(), Code::BadExample, "{line}");
            assert!(error.message().starts_with("line 3: "), "{error}");
            assert!(error.message().contains(reason), "{error}");
            assert!(error.path().is_some());
        }
    }

    #[test]
    fn templates_that_rewrite_the_past_are_refused() {
        // Qwen-like templates drop the thoughts of earlier turns; the loss would land elsewhere.
        let source = "{% for m in messages %}[{{ m.content if loop.last else 'x' }}]{% endfor %}";
        let vocabulary = Model::new()
            .open(&[("chat_template.jinja", source)])
            .unwrap();
        let line =
            r#"{"messages":[{"role":"user","content":"b"},{"role":"assistant","content":"c"}]}"#;
        let error = load_with(&vocabulary, line, 9, false).unwrap_err();
        assert_eq!(error.code(), Code::ChatTemplate);
        assert!(
            error
                .message()
                .starts_with("line 1: the chat template renders"),
            "{error}"
        );
    }

    const MARKED: &str = r#"{"bos_token":"<s>","eos_token":"</s>","chat_template":
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{% generation %}\n{{ m.content }}{{ eos_token }}{% endgeneration %}|{% endif %}{% endfor %}"}"#;

    /// Breaks where more or less is learnt than the template's generation blocks hold, or something that
    /// is no conversation is learnt whole.
    #[test]
    fn the_assistants_words_alone_are_those_that_the_template_marks() {
        let marked = Model::new()
            .open(&[("tokenizer_config.json", MARKED)])
            .unwrap();
        let load = |vocabulary: &Vocabulary, text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let options = DataOptions {
                seq_len: 64,
                loss_on_prompt: false,
                assistant_only: true,
                limit: None,
            };
            Dataset::load(file.path(), vocabulary, &options)
        };
        let talk = r#"{"messages":[{"role":"user","content":"ab"},{"role":"assistant","content":"ba"},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
        let plain = vocabulary();
        for vocabulary in [&marked, &plain] {
            let data = load(vocabulary, talk).unwrap();
            let example = &data.examples[0];
            let learnt: Vec<u32> = (example.tokens.iter().zip(&example.predicted))
                .filter(|(_, yes)| **yes)
                .map(|(token, _)| *token)
                .collect();
            let eos = vocabulary.eos()[0];
            let text = |tokens: &[u32]| vocabulary.decode(tokens).unwrap();
            let turns: Vec<String> = learnt.split(|t| *t == eos).map(text).collect();
            assert_eq!(turns, ["ba", "b", ""]);
        }
        let e = load(&marked, r#"{"text":"ab"}"#).unwrap_err();
        assert_eq!(e.code(), Code::BadExample);
        let e = load(&marked, r#"{"messages":[{"role":"user","content":"ab"}]}"#).unwrap_err();
        assert_eq!(e.code(), Code::BadExample);
    }

    #[test]
    fn real_tasks_load_and_read_back_as_they_were() {
        let (Some(model), Some(file)) = (
            shared("models/stories260K"),
            shared("tasks/squad/valid.jsonl"),
        ) else {
            return;
        };
        let vocabulary = Vocabulary::open(&model).unwrap();
        let options = DataOptions {
            seq_len: 512,
            loss_on_prompt: false,
            assistant_only: false,
            limit: Some(20),
        };
        let data = Dataset::load(&file, &vocabulary, &options).unwrap();
        assert_eq!(data.stats.lines, 20);
        let options = DataOptions {
            seq_len: 4096,
            ..options
        };
        let data = Dataset::load(&file, &vocabulary, &options).unwrap();
        assert_eq!((data.stats.examples, data.stats.truncated), (20, 0));
        let items = super::super::load_items(&file, Some(20)).unwrap();
        for (example, item) in data.examples.iter().zip(items) {
            assert_eq!(example.tokens.last(), Some(&2));
            let text = item.prompt + &item.completion.unwrap();
            assert_eq!(vocabulary.decode(&example.tokens).unwrap(), text);
        }
    }
}
