//! Chat templates: messages to text, by the Jinja dialect that models ship their templates in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use fancy_regex::{Captures, Regex};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State};
use serde::Deserialize;

use super::sized::{Jinja, invalid};
use super::{clock, sized};
use crate::budget;
use crate::error::{Code, Error, Result};

/// What one rendering may do, in the engine's fuel: an instruction costs one, and so do 64 bytes that
/// are made or read. A long conversation takes a few thousand instructions.
const FUEL: u64 = 1_500_000;
/// Bytes that may be made or read for each byte of the messages.
const WORK: u64 = 32;
/// Most memory that one rendering may take without its messages; see [`budget`].
const MAX_MEMORY: u64 = 256 << 20;
/// Stack to compile and render on: expressions nest as deep as the template is long, values as deep as
/// fuel lasts, and each level is a few calls. Only what is used of it is taken.
const STACK_BYTES: usize = 1 << 30;
/// Largest template that is compiled, in bytes; those that models ship have up to 40 kB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Most of the operators whose chains the compiler takes the square of their length for.
const MAX_LINKS: usize = 4096;
/// Most text that one rendering may give, in bytes.
const MAX_RENDERED_BYTES: usize = 32 << 20;
/// Longest format of a date, in bytes.
const MAX_DATE_BYTES: usize = 4096;
/// Most of what a template says when it refuses the messages.
const MAX_REASON_CHARS: usize = 1000;
const NAME: &str = "chat_template";
/// The same with what its generation blocks hold between [`MARKS`].
const MARKED: &str = "marked chat_template";
/// Characters that no text may have, by Unicode's rules.
const MARKS: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(self.role.as_str())),
            "content" => Some(Value::from(self.content.as_str())),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// A compiled template, and the special tokens that it may name.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
    specials: Vec<(&'static str, String)>,
    /// Whether it marks what the assistant says.
    marks: bool,
}

impl ChatTemplate {
    /// Compiles `source`, which stood in the file `path`; `specials` become variables.
    pub(super) fn new(
        source: &str,
        path: &Path,
        specials: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let message = format!("the template has more than {MAX_TEMPLATE_BYTES} bytes");
            return Err(Error::new(Code::ChatTemplate, message).file(path));
        }
        let links = ["~", "and", "or"].map(|link| source.matches(link).count());
        if links.into_iter().any(|n| n > MAX_LINKS) {
            let message = format!("the template has more than {MAX_LINKS} of `~`, `and` or `or`");
            return Err(Error::new(Code::ChatTemplate, message).file(path));
        }
        let mut template = Self {
            env: Environment::new(),
            path: path.to_owned(),
            specials,
            marks: false,
        };
        // Else errors carry every variable along.
        template.env.set_debug(false);
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| template.error(&e))?;
        template.env.set_syntax(syntax);
        template.env.add_function("raise_exception", raise);
        sized::add_filters(&mut template.env);
        template.env.set_unknown_method_callback(python);
        template.set_clock(clock::now());
        let marked = blocks(source, MARKS.map(|mark| format!("{{{{ '{mark}' }}}}")));
        let plain = blocks(source, Default::default());
        template.marks = marked != plain && !source.contains(MARKS);
        let sources = [
            (NAME, Some(plain)),
            (MARKED, template.marks.then_some(marked)),
        ];
        let add = || {
            for (name, source) in sources {
                let Some(source) = source else { continue };
                let refusal = template.too_much();
                let env = &mut template.env;
                budget::within(MAX_MEMORY, refusal, || env.add_template_owned(name, source))
                    .map_err(|e| template.error(&e))?;
            }
            Ok::<_, Error>(())
        };
        on_deep_stack(add).ok_or_else(no_thread)??;
        Ok(template)
    }

    /// Fixes what `strftime_now` takes for the present, in seconds of Unix time.
    pub(super) fn set_clock(&mut self, seconds: i64) {
        self.env.add_function("strftime_now", move |format: &str| {
            if format.len() > MAX_DATE_BYTES {
                return Err(invalid("strftime_now: the format is too long".to_owned()));
            }
            Ok(clock::strftime(format, seconds))
        });
    }

    /// The text of `messages`, with the opening of the assistant's answer if that is asked for.
    pub(super) fn render(&self, messages: &[Message], opening: bool) -> Result<String> {
        self.render_as(NAME, messages, opening)
    }

    /// The text of `messages` in pieces, with the mark of those that generation blocks hold; none where the
    /// template has no such blocks.
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
    ) -> Result<Option<Vec<(String, bool)>>> {
        let contents = messages.iter().any(|m| m.content.contains(MARKS));
        if !self.marks || contents {
            return Ok(None);
        }
        let marked = self.render_as(MARKED, messages, false)?;
        let mut pieces = Vec::new();
        let mut rest = marked.as_str();
        let mut inside = false;
        while let Some(at) = rest.find(MARKS[usize::from(inside)]) {
            pieces.push((rest[..at].to_owned(), inside));
            rest = &rest[at + MARKS[0].len_utf8()..];
            inside = !inside;
        }
        pieces.push((rest.to_owned(), inside));
        let joined: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
        if inside || joined != self.render(messages, false)? {
            let message = "the template changes what its generation blocks hold, so the assistant's words \
                           cannot be told apart";
            return Err(Error::new(Code::ChatTemplate, message).file(&self.path));
        }
        Ok(Some(pieces))
    }

    fn render_as(&self, name: &str, messages: &[Message], opening: bool) -> Result<String> {
        let mut variables: Vec<(&str, Value)> = vec![
            (
                "messages",
                messages.iter().cloned().map(Value::from_object).collect(),
            ),
            ("add_generation_prompt", Value::from(opening)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        for (name, text) in &self.specials {
            variables.push((name, Value::from(text.as_str())));
        }
        let length: usize = messages
            .iter()
            .map(|m| m.role.len() + m.content.len())
            .sum();
        let work = WORK.saturating_mul(length as u64);
        let refusal = self.too_much();
        let memory = MAX_MEMORY.saturating_add(work);
        let rendered = on_deep_stack(|| {
            budget::within(memory, refusal, || {
                // Told here: dropped, it may need the stack, too.
                self.run(name, Value::from_pairs(variables), FUEL + work / 64)
                    .map_err(|e| self.error(&e))
            })
        });
        let out = rendered.ok_or_else(no_thread)??;
        String::from_utf8(out)
            .map_err(|e| Error::new(Code::ChatTemplate, "the rendering is not UTF-8").cause(e))
    }

    fn run(&self, name: &str, variables: Value, fuel: u64) -> Jinja<Vec<u8>> {
        let mut out = Bounded(Vec::new());
        let mut env = self.env.clone();
        env.set_fuel(Some(fuel));
        let template = env.get_template(name)?;
        template.render_captured_to(variables, &mut out)?;
        Ok(out.0)
    }

    /// What an allocator ends with where the template takes too much; see [`budget`].
    fn too_much(&self) -> Error {
        let message = "the template takes more memory than its messages can need";
        Error::new(Code::ChatTemplate, message).file(&self.path)
    }

    fn error(&self, e: &minijinja::Error) -> Error {
        // Only a failed write hides its reason in its source.
        let message = match (e.kind(), e.detail(), e.line()) {
            (ErrorKind::WriteFailure, ..) => {
                format!("the template renders to more than {MAX_RENDERED_BYTES} bytes")
            }
            (kind, Some(detail), Some(line)) => format!("{kind}: {detail} (template line {line})"),
            (kind, None, Some(line)) => format!("{kind} (template line {line})"),
            _ => e.to_string(),
        };
        Error::new(Code::ChatTemplate, message).file(&self.path)
    }
}

fn no_thread() -> Error {
    Error::new(Code::OutOfMemory, "no thread for the chat template")
}

/// What `work` gives on a thread of its own; nothing where there can be no thread.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).ok()?;
        match thread.join() {
            Ok(done) => Some(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A buffer that refuses to grow past the limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Templates may mark the assistant's words with `{% generation %}` blocks, which render as
/// what they hold; the engine knows no such block. What is to stand at their begin and end stands between
/// two of the engine's blocks, so that white space is trimmed as it would be.
fn blocks(source: &str, [begin, end]: [String; 2]) -> String {
    static BLOCKS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a constant pattern")
    });
    let plain = BLOCKS.replace_all(source, |mark: &Captures<'_, str>| {
        let part = |i| mark.get(i).map_or("", |m| m.as_str());
        let (left, right) = (part(1), part(3));
        match (part(2).is_empty(), begin.as_str(), end.as_str()) {
            (true, "", _) => format!("{{%{left} if true {right}%}}"),
            (false, _, "") => format!("{{%{left} endif {right}%}}"),
            (true, begin, _) => {
                format!("{{%{left} if true %}}{begin}{{% if true {right}%}}")
            }
            (false, _, end) => format!("{{%{left} endif %}}{end}{{% endif {right}%}}"),
        }
    });
    plain.into_owned()
}

fn raise(message: &str) -> Jinja<Value> {
    Err(invalid(message.chars().take(MAX_REASON_CHARS).collect()))
}

/// The methods of Python's `str` and `dict` that templates call.
fn python(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Jinja<Value> {
    match value.as_str() {
        Some(text) => python_str(state, text, method, args),
        None if value.kind() == ValueKind::Map => python_dict(value, method, args),
        None => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn python_str(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Jinja<Value> {
    let one = || from_args::<(&str,)>(args).map(|(a,)| a);
    let none = || from_args::<()>(args);
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,) = from_args::<(Option<&str>,)>(args)?;
            let cut = |c: char| chars.map_or(c.is_whitespace(), |set| set.contains(c));
            Value::from(match method {
                "strip" => text.trim_matches(cut),
                "lstrip" => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            })
        }
        "startswith" => Value::from(text.starts_with(one()?)),
        "endswith" => Value::from(text.ends_with(one()?)),
        "removeprefix" => Value::from(text.strip_prefix(one()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(one()?).unwrap_or(text)),
        "upper" => none().map(|()| Value::from(text.to_uppercase()))?,
        "lower" => none().map(|()| Value::from(text.to_lowercase()))?,
        "title" | "capitalize" => {
            none().map(|()| Value::from(capitals(text, method == "title")))?
        }
        "splitlines" => {
            none()?;
            sized::afford_items(state, text.lines().count())?;
            text.lines().map(Value::from).collect()
        }
        "replace" => {
            let (from, to) = from_args::<(&str, &str)>(args)?;
            let added = text.matches(from).count().saturating_mul(to.len());
            sized::afford(state, text.len().saturating_add(added))?;
            Value::from(text.replace(from, to))
        }
        "find" => {
            let at = text.find(one()?);
            Value::from(at.map_or(-1, |at| text[..at].chars().count() as i64))
        }
        "join" => {
            let (items,) = from_args::<(&Value,)>(args)?;
            sized::join(state, items, text)?
        }
        "split" => split(state, text, args)?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn split(state: &State<'_, '_>, text: &str, args: &[Value]) -> Jinja<Value> {
    let (separator, most) = from_args::<(Option<&str>, Option<i64>)>(args)?;
    // A negative count, Python's default, is no limit.
    let parts = most.map_or(usize::MAX, |n| {
        usize::try_from(n).map_or(usize::MAX, |n| n.saturating_add(1))
    });
    let separators = match separator {
        Some(separator) => text.matches(separator).count(),
        None => text.split_whitespace().count(),
    };
    sized::afford_items(state, separators.min(parts))?;
    match separator {
        Some("") => Err(invalid("split: empty separator".to_owned())),
        Some(separator) => Ok(text.splitn(parts, separator).map(Value::from).collect()),
        None if parts == usize::MAX => Ok(text.split_whitespace().map(Value::from).collect()),
        None => Err(invalid("split: a count needs a separator".to_owned())),
    }
}

fn python_dict(value: &Value, method: &str, args: &[Value]) -> Jinja<Value> {
    if method == "get" {
        let (key, default) = from_args::<(&Value, Option<Value>)>(args)?;
        let found = value.get_item(key)?;
        let absent = || default.unwrap_or_else(|| Value::from(()));
        return Ok(if found.is_undefined() {
            absent()
        } else {
            found
        });
    }
    from_args::<()>(args)?;
    let keys = value.try_iter()?;
    match method {
        "keys" => Ok(keys.collect()),
        "values" => keys.map(|k| value.get_item(&k)).collect(),
        "items" => keys
            .map(|k| Ok(Value::from(vec![k.clone(), value.get_item(&k)?])))
            .collect(),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// The first letter of the text, or of every word, in upper case and the rest in lower case.
fn capitals(text: &str, every: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start && (c.is_alphabetic() || !every) {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = every && !c.is_alphabetic();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const CHATML: &str = "\
{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}";

    const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    fn template(source: &str) -> Result<ChatTemplate> {
        let specials = vec![
            ("bos_token", "<s>".to_owned()),
            ("eos_token", "</s>".to_owned()),
        ];
        let mut template = ChatTemplate::new(source, Path::new("tokenizer_config.json"), specials)?;
        template.set_clock(1_721_951_999);
        Ok(template)
    }

    fn eval(source: &str) -> Result<String> {
        template(source)?.render(&[message("user", "hi <b>")], false)
    }

    #[test]
    fn chatml_renders_as_written_by_hand() {
        // Wrong trimming of blocks would show as stray spaces and newlines.
        let template = template(CHATML).unwrap();
        let talk = [message("user", " Hello \n"), message("assistant", "Hi")];
        let system = "<|im_start|>system\nBe brief.<|im_end|>\n";
        let user = "<|im_start|>user\nHello<|im_end|>\n";
        assert_eq!(
            template.render(&talk, false).unwrap(),
            format!("{system}{user}<|im_start|>assistant\nHi<|im_end|>\n")
        );
        assert_eq!(
            template.render(&talk[..1], true).unwrap(),
            format!("{system}{user}<|im_start|>assistant\n")
        );
    }

    #[test]
    fn llama2_renders_as_written_by_hand_and_refuses() {
        let template = template(LLAMA2).unwrap();
        let talk = [
            message("system", "Be kind."),
            message("user", "A"),
            message("assistant", " B "),
            message("user", "C"),
        ];
        assert_eq!(
            template.render(&talk, true).unwrap(),
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nA [/INST] B </s><s>[INST] C [/INST]"
        );
        let error = template.render(&talk[2..], true).unwrap_err();
        assert_eq!(error.code(), Code::ChatTemplate);
        assert!(error.message().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn python_methods_do_what_python_does() {
        for (source, expected) in [
            (
                "{{ 'xxaxx'.strip('x') }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}",
                "a|a | a",
            ),
            ("{{ 'a</t>b</t>c'.split('</t>')[-1] }}", "c"),
            ("{{ 'a,b,c'.split(',', 1) | join('|') }}", "a|b,c"),
            ("{{ ' a  b '.split() | join('|') }}", "a|b"),
            (
                "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('ab') }}",
                "True False",
            ),
            (
                "{{ 'aBc dE'.title() }} {{ 'aBc dE'.capitalize() }}",
                "Abc De Abc de",
            ),
            ("{{ 'é-b'.find('b') }} {{ 'ab'.find('x') }}", "2 -1"),
            ("{{ ', '.join(['a', 'b']) }}", "a, b"),
            ("{{ 'ab'.replace('a', 'c').upper() }}", "CB"),
            (
                "{{ messages[0].get('x', 'none') }} {{ messages[0].get('role') }}",
                "none user",
            ),
            (
                "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=user;content=hi <b>;",
            ),
            (
                "{{ messages[0] | tojson }}",
                r#"{"role": "user", "content": "hi <b>"}"#,
            ),
            (
                "{{ [1, 'é', none, true] | tojson(indent=1) }}",
                "[\n 1,\n \"é\",\n null,\n true\n]",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "25 Jul 2024"),
            ("{% generation %}x{%- endgeneration -%} y", "xy"),
            (
                "{% if tools is not none %}t{% endif %}{{ unk_token is defined }}",
                "False",
            ),
        ] {
            assert_eq!(eval(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hostile_templates_fail_and_say_where() {
        let error = eval("a\n{% if %}").unwrap_err();
        assert_eq!(error.code(), Code::ChatTemplate);
        assert!(error.message().contains("line 2"), "{error}");
        assert!(error.path().is_some());
        for source in [
            "{{ 'x'.no_such() }}",
            "{{ messages[3].content.x }}",
            "{{ 'a'.split('') }}",
            "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ] {
            assert_eq!(
                eval(source).unwrap_err().code(),
                Code::ChatTemplate,
                "{source}"
            );
        }
        let long = "0123456789".repeat(100);
        let flood = format!("{{% for i in range(99999) %}}{long}{{% endfor %}}");
        let error = eval(&flood).unwrap_err();
        assert!(error.message().contains("renders to more than"), "{error}");
        let silent =
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
        let error = eval(silent).unwrap_err();
        assert!(error.message().contains("fuel"), "{error}");
    }
}
