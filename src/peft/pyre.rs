//! Python's `re`, as far as patterns in a config need it, on top of `fancy-regex`.
//!
//! The two languages differ in corners where a pattern would compile and mean something else
//! (`[a&&b]`, `\z`, `{` as a letter). Those are translated, or refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};

use super::json::cut;
use crate::error::{Code, Error, Result};

/// Bytes of one pattern beyond which it is not compiled.
const MAX_PATTERN: usize = 16 << 10;
/// Steps of backtracking for one match: real patterns take some dozens.
const BACKTRACK_LIMIT: usize = 100_000;
/// Bytes of the automaton of a pattern that stands alone in a config.
const ONE_SIZE: usize = 8 << 20;
/// Bytes of the automaton of each pattern of a list.
const LISTED_SIZE: usize = 256 << 10;
/// Instructions of the backtracking program around the automata.
const PROGRAM_LIMIT: usize = 100_000;

/// Time that all matching for one config may take; real configs take milliseconds. Each match stops by
/// itself, but a thousand patterns times a hundred thousand modules, each just within the limits
/// above, would take days. Where the limit is not met it has no influence on any result.
const MATCH_TIME: Duration = Duration::from_secs(20);

/// Adds up the time that the rules of one config take.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<AtomicU64>);

impl Clock {
    /// Does some work of matching on this clock.
    ///
    /// # Errors
    /// [`Code::BadPattern`] where the config's time is used up; `source` is what a failure names.
    pub(super) fn charge<T>(&self, source: &str, work: impl FnOnce() -> T) -> Result<T> {
        let start = Instant::now();
        let done = work();
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let spent = self
            .0
            .fetch_add(took, Ordering::Relaxed)
            .saturating_add(took);
        if u128::from(spent) > MATCH_TIME.as_nanos() {
            return Err(bad(
                source,
                "is one of many that are too costly to match together",
            ));
        }
        Ok(done)
    }

    #[cfg(test)]
    pub(super) fn used_up() -> Self {
        Self(Arc::new(AtomicU64::new(MATCH_TIME.as_nanos() as u64)))
    }
}

/// A compiled pattern with the text that a failure names.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    regex: Regex,
    source: String,
    clock: Clock,
}

impl Pattern {
    /// `re.fullmatch(pattern, …)`, for a pattern that stands alone.
    pub(super) fn full(pattern: &str, clock: &Clock) -> Result<Self> {
        Self::compile(pattern, [r"\A(?:", r")\z"], ONE_SIZE, clock)
    }

    /// `re.match(pattern, …)`, for one of a list of patterns.
    pub(super) fn prefix(pattern: &str, clock: &Clock) -> Result<Self> {
        Self::compile(pattern, [r"\A(?:", ")"], LISTED_SIZE, clock)
    }

    fn compile(
        pattern: &str,
        [before, after]: [&str; 2],
        size: usize,
        clock: &Clock,
    ) -> Result<Self> {
        if pattern.len() > MAX_PATTERN {
            return Err(bad(pattern, &format!("is longer than {MAX_PATTERN} bytes")));
        }
        let body = translate(pattern).map_err(|why| bad(pattern, &why))?;
        let mut builder = RegexBuilder::new(&format!("{before}{body}{after}"));
        builder
            .backtrack_limit(BACKTRACK_LIMIT)
            .max_prog_size(PROGRAM_LIMIT)
            .delegate_size_limit(size)
            .delegate_dfa_size_limit(size)
            .delegate_dfa_skip_cache_capacity_check(false);
        let regex = clock
            .charge(pattern, || builder.build())?
            .map_err(|e| bad(pattern, "is not a valid regular expression").cause(e))?;
        Ok(Self {
            regex,
            source: pattern.to_owned(),
            clock: clock.clone(),
        })
    }

    /// Whether it matches.
    pub(super) fn matches(&self, text: &str) -> Result<bool> {
        let matched = self
            .clock
            .charge(&self.source, || self.regex.is_match(text))?;
        matched.map_err(|e| self.too_costly(e))
    }

    /// What its group `name` matched; `None` where nothing matches.
    pub(super) fn group<'t>(&self, text: &'t str, name: &str) -> Result<Option<&'t str>> {
        let captures = self
            .clock
            .charge(&self.source, || self.regex.captures(text))?;
        let captures = captures.map_err(|e| self.too_costly(e))?;
        Ok(captures.and_then(|c| c.name(name)).map(|m| m.as_str()))
    }

    fn too_costly(&self, error: fancy_regex::Error) -> Error {
        bad(&self.source, "is too costly to match").cause(error)
    }
}

pub(super) fn bad(pattern: &str, why: &str) -> Error {
    Error::new(
        Code::BadPattern,
        format!("the pattern `{}` {why}", cut(pattern)),
    )
    .hint("list the modules' names instead of a pattern")
}

/// Python's pattern in the syntax of `fancy-regex`; `Err` says what has no equal.
fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => rest = escape(rest, false, &mut out)?,
            '[' => rest = class(rest, &mut out)?,
            '(' => rest = group(rest, &mut out)?,
            '{' => rest = repeat(rest, &mut out),
            ']' | '}' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    Ok(out)
}

fn escape<'p>(rest: &'p str, in_class: bool, out: &mut String) -> Result<&'p str, String> {
    let c = rest.chars().next().ok_or("ends in a backslash")?;
    match c {
        'b' if in_class => out.push_str(r"\x08"),
        'b' | 'B' | 'A' | '1'..='9' if !in_class => out.extend(['\\', c]),
        'Z' | 'z' if !in_class => out.push_str(r"\z"),
        'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'u' => {
            out.extend(['\\', c]);
        }
        _ if c.is_ascii_alphanumeric() => {
            return Err(format!("has the escape \\{c}, which is not known"));
        }
        _ => push_literal(c, out),
    }
    Ok(&rest[c.len_utf8()..])
}

fn push_literal(c: char, out: &mut String) {
    if r"\.+*?()|[]{}^$#&-~".contains(c) {
        out.push('\\');
    }
    out.push(c);
}

fn class<'p>(mut rest: &'p str, out: &mut String) -> Result<&'p str, String> {
    out.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    loop {
        let c = rest.chars().next().ok_or("has an unclosed [")?;
        if rest.starts_with("--") {
            return Err("has -- in a class".into());
        }
        rest = &rest[c.len_utf8()..];
        match c {
            ']' if !first => break,
            '\\' => rest = escape(rest, true, out)?,
            // Set operations and nested classes are Rust's; in Python these are letters.
            '[' | ']' | '&' | '~' => out.extend(['\\', c]),
            _ => out.push(c),
        }
        first = false;
    }
    out.push(']');
    Ok(rest)
}

fn group<'p>(rest: &'p str, out: &mut String) -> Result<&'p str, String> {
    if rest.starts_with('*') {
        return Err("has nothing to repeat".into());
    }
    let Some(body) = rest.strip_prefix('?') else {
        out.push('(');
        return Ok(rest);
    };
    if let Some(comment) = body.strip_prefix('#') {
        return Ok(comment.split_once(')').ok_or("has an unclosed comment")?.1);
    }
    const OPENINGS: [&str; 9] = [":", "=", "!", ">", "<=", "<!", "P<", "P=", "("];
    if let Some(opening) = OPENINGS.into_iter().find(|o| body.starts_with(o)) {
        let name = body.split_once('>').map_or(body, |(name, _)| name);
        if opening == "P<" && out.contains(&format!("(?{name}>")) {
            return Err("has two groups of one name".into());
        }
        out.push_str("(?");
        out.push_str(opening);
        return Ok(&body[opening.len()..]);
    }
    let end = body.find([')', ':']).ok_or("has an unclosed group")?;
    if end == 0 || !body[..end].chars().all(|f| "imsu-".contains(f)) {
        return Err(format!(
            "has (?{}, which Python has not, or tlkit does not know",
            cut(&body[..end])
        ));
    }
    out.push_str("(?");
    out.extend(body[..end].chars().filter(|f| *f != 'u'));
    Ok(&body[end..])
}

/// `{m}`, `{m,}`, `{,n}`, `{m,n}` repeat; any other brace is itself.
fn repeat<'p>(rest: &'p str, out: &mut String) -> &'p str {
    if let Some((inner, after)) = rest.split_once('}') {
        let (low, high) = inner.split_once(',').unwrap_or((inner, inner));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if !inner.is_empty() && digits(low) && digits(high) {
            out.push('{');
            out.push_str(if low.is_empty() { "0" } else { low });
            out.push_str(&inner[inner.find(',').unwrap_or(inner.len())..]);
            out.push('}');
            return after;
        }
    }
    out.push_str(r"\{");
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(pattern: &str) -> Result<Pattern> {
        Pattern::full(pattern, &Clock::default())
    }

    fn full(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().matches(text).unwrap()
    }

    #[test]
    fn python_syntax_means_what_it_means_in_python() {
        // Each pair was checked with Python 3's re.fullmatch: (pattern, matches, does not).
        let cases = [
            (r"a|ab", "ab", "abb"),
            (r"(?P<n>q|k)_(?P=n)", "q_q", "q_k"),
            (r".*(?<=\.)q", "m.q", "mq"),
            (
                r"(?:.*\.)?layers\.\d+\.(q|k)_proj",
                "m.layers.11.k_proj",
                "m.layers.x.k_proj",
            ),
            (
                r"(?!.*vision).*\.q_proj",
                "text.0.q_proj",
                "vision.0.q_proj",
            ),
            (r"(?i)Q_Proj|x", "q_proj", "y"),
            (r"(?i:Q)_proj", "q_proj", "q_PROJ"),
            (r"(?s).+", "a\nb", ""),
            (r"[a&&b]+", "a&b", "c"),
            (r"[[:x]+", "[:x", "a"),
            (r"[]a]+", "]a", "b"),
            (r"[^]a]+", "bc", "]"),
            (r"[a~~b]", "~", "c"),
            (r"a{,2}", "aa", "aaa"),
            (r"a{2,}", "aaa", "a"),
            (r"a{x}", "a{x}", "ax"),
            (r"\_\/\<\-", "_/<-", "_/<"),
            (r"q\Z", "q", "qq"),
            (r"(?#note)q", "q", "p"),
            (r"(a)?b(?(1)c|d)", "abc", "abd"),
            (r"[\w.-]+", "a.b-c", "a b"),
            (r"\u0071", "q", "u0071"),
            (r"a]}", "a]}", "a"),
        ];
        for (pattern, yes, no) in cases {
            assert!(full(pattern, yes), "{pattern} must match {yes}");
            assert!(!full(pattern, no), "{pattern} must not match {no}");
        }
    }

    #[test]
    fn what_python_refuses_or_reads_otherwise_is_refused() {
        let long = "a".repeat(MAX_PATTERN + 1);
        for pattern in [
            "(",
            "[",
            "a\\",
            "*a",
            "(*FAIL)",
            r"\h",
            r"\K",
            r"\p{L}",
            "[a--b]",
            "(?<n>a)",
            "(?x)a b",
            "(?R)",
            "(?&n)",
            "(?#",
            "(?",
            "(?)",
            r"\N{BULLET}",
            "(?P<n>a)(?P<n>b)",
            &long,
        ] {
            let code = compile(pattern).err().map(|e| e.code());
            assert_eq!(code, Some(Code::BadPattern), "{pattern}");
        }
    }

    #[test]
    fn many_patterns_stop_together() {
        // Each within its own limit, they would add up to days.
        let late = Pattern::full("q", &Clock::used_up()).unwrap_err();
        assert_eq!(late.code(), Code::BadPattern);
        let clock = Clock::default();
        let pattern = Pattern::full("q", &clock).unwrap();
        assert!(pattern.matches("q").unwrap());
        clock.0.store(u64::MAX / 2, Ordering::Relaxed);
        assert_eq!(pattern.matches("q").unwrap_err().code(), Code::BadPattern);
    }

    #[test]
    fn costly_patterns_stop() {
        // Without limits the first would run for ages, the others take gigabytes.
        let p = compile(r"(?:(a|aa|ab?)(?!x))+c").unwrap();
        let text = "a".repeat(60) + "cb";
        assert_eq!(p.matches(&text).unwrap_err().code(), Code::BadPattern);
        for huge in [
            r"(?:\w{1000}){1000}",
            "(?:(?:(?:(?=a)a{999}){999}){999}){999}",
        ] {
            assert!(
                compile(huge)
                    .and_then(|p| p.matches("aaaa"))
                    .is_ok_and(|m| !m)
                    || compile(huge).is_err(),
                "{huge}"
            );
        }
        assert!(compile(&"(".repeat(10_000)).is_err());
    }
}
