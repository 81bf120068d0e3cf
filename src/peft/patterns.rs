//! Values by module: `rank_pattern` and `alpha_pattern`, where the first match in the file wins.

use super::pyre::{Clock, Pattern, bad};
use crate::error::Result;

/// Regular expressions in one list of a config beyond which it is refused. Plain names, of which
/// PEFT itself writes one for each module, do not count.
const MAX_PATTERNS: usize = 1000;

/// A compiled `rank_pattern` or `alpha_pattern`.
#[derive(Debug, Clone)]
pub(crate) struct Patterns<T> {
    /// The values, in the order of the file.
    values: Vec<T>,
    /// Names in which only the dots are special, and the places of their values.
    names: PlainNames,
    /// The other patterns, and the places of their values.
    regexes: Vec<(usize, Pattern)>,
    clock: Clock,
}

impl<T: Clone> Patterns<T> {
    /// Compiles the patterns, in the order of the file.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`].
    #[cfg(test)]
    fn new(patterns: &[(String, T)]) -> Result<Self> {
        Self::on_clock(patterns, &Clock::default())
    }

    pub(super) fn on_clock(patterns: &[(String, T)], clock: &Clock) -> Result<Self> {
        let plain = |key: &str| {
            key.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let keys = patterns.iter().map(|(key, _)| key.as_str()).enumerate();
        let (names, others): (Vec<_>, Vec<_>) = keys.partition(|(_, key)| plain(key));
        check_count("rank_pattern or alpha_pattern", others.len())?;
        let compile = |(at, key): &(usize, &str)| {
            Pattern::prefix(&format!(r"(.*\.)?({key})$"), clock).map(|regex| (*at, regex))
        };
        Ok(Self {
            values: patterns.iter().map(|(_, value)| value.clone()).collect(),
            names: PlainNames::new(&names),
            regexes: others.iter().map(compile).collect::<Result<_>>()?,
            clock: clock.clone(),
        })
    }

    /// The value of the first pattern that matches `module`, PEFT's `(.*\.)?(pattern)$`.
    ///
    /// # Errors
    /// [`crate::Code::BadPattern`] where matching is too costly.
    pub(super) fn value(&self, module: &str) -> Result<Option<&T>> {
        let mut first = self.clock.charge(module, || self.names.first(module))?;
        for (at, regex) in &self.regexes {
            if first.is_some_and(|first| first < *at) {
                break;
            }
            if regex.matches(module)? {
                first = Some(*at);
                break;
            }
        }
        Ok(first.and_then(|at| self.values.get(at)))
    }
}

/// Names without any special character but the dot, which stands for any character. PEFT itself
/// writes one for each module, so that trying them one after another would be quadratic.
#[derive(Debug, Clone)]
struct PlainNames(Vec<(Vec<u8>, usize)>);

impl PlainNames {
    fn new(names: &[(usize, &str)]) -> Self {
        let backwards = |(at, name): &(usize, &str)| (name.bytes().rev().collect(), *at);
        let mut sorted: Vec<(Vec<u8>, usize)> = names.iter().map(backwards).collect();
        sorted.sort();
        Self(sorted)
    }

    /// The lowest place of a name that `(.*\.)?(name)$` finds in `module`.
    ///
    /// Both are read from their ends. The names that agree so far are one range of the sorted
    /// list, which each character narrows to those that have it and those that have a dot there.
    fn first(&self, module: &str) -> Option<usize> {
        let letters: Vec<char> = module.chars().rev().collect();
        let mut best: Option<usize> = None;
        let mut open = vec![(self.0.as_slice(), 0)];
        while let Some((names, depth)) = open.pop() {
            let ended = names.partition_point(|(name, _)| name.len() == depth);
            let (whole, longer) = names.split_at(ended);
            let letter = letters.get(depth);
            if let (Some((_, at)), None | Some('.')) = (whole.first(), letter) {
                best = Some(best.map_or(*at, |best| best.min(*at)));
            }
            let Some(letter) = letter else {
                continue;
            };
            let mut narrow = |byte: u8| {
                let next = |(name, _): &(Vec<u8>, usize)| name.get(depth).copied();
                let start = longer.partition_point(|n| next(n) < Some(byte));
                let end = longer.partition_point(|n| next(n) <= Some(byte));
                if let Some(range @ [_, ..]) = longer.get(start..end) {
                    open.push((range, depth + 1));
                }
            };
            if *letter != '\n' {
                narrow(b'.');
            }
            if let (true, Ok(byte)) = (*letter != '.', u8::try_from(*letter)) {
                narrow(byte);
            }
        }
        best
    }
}

pub(super) fn check_count(key: &str, count: usize) -> Result<()> {
    if count <= MAX_PATTERNS {
        return Ok(());
    }
    Err(bad(
        key,
        &format!("has {count} regular expressions, at most {MAX_PATTERNS} are compiled"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q3: &str = "model.layers.3.self_attn.q_proj";

    fn first(patterns: &[(&str, u32)], module: &str) -> Option<u32> {
        let owned: Vec<(String, u32)> = patterns.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        Patterns::new(&owned)
            .unwrap()
            .value(module)
            .unwrap()
            .copied()
    }

    #[test]
    fn the_first_pattern_in_file_order_wins() {
        let both = [("q_proj", 1), ("3.self_attn.q_proj", 2)];
        assert_eq!(first(&both, Q3), Some(1));
        let both = [("3.self_attn.q_proj", 2), ("q_proj", 1)];
        assert_eq!(first(&both, Q3), Some(2));
        assert_eq!(first(&both, "model.k_proj"), None);
    }

    #[test]
    fn patterns_are_regular_expressions_after_a_dot() {
        assert_eq!(first(&[("q_proj", 1)], "xq_proj"), None);
        assert_eq!(first(&[("layers.1.q", 1)], "layersX1Xq"), Some(1));
        assert_eq!(first(&[("layers.[02].q", 1)], "m.layers.2.q"), Some(1));
        assert_eq!(first(&[("layers.[02].q", 1)], "m.layers.1.q"), None);
        assert_eq!(first(&[("^q", 1)], "q"), Some(1));
        assert_eq!(first(&[("^q", 1)], "m.q"), None);
        assert_eq!(first(&[("q|k", 1)], "m.k"), Some(1));
        assert_eq!(first(&[("q", 1)], "m.q.bias"), None);
    }

    #[test]
    fn the_short_cut_for_plain_names_agrees_with_the_pattern() {
        // The fast path must not differ from the rule that it stands for.
        for key in ["q", "a.q", ".q", "q.", "", ".", "a-b_0", "layers.1"] {
            let regex = Pattern::prefix(&format!(r"(.*\.)?({key})$"), &Clock::default()).unwrap();
            let names = PlainNames::new(&[(3, "zz"), (7, key)]);
            for module in [
                "q",
                "a.q",
                "aXq",
                "x.a.q",
                "xa.q",
                "é.q",
                "éq",
                "",
                ".",
                "..",
                "m.layers.1",
                "m.layers11",
                "a-b_0",
                "q.x",
            ] {
                assert_eq!(
                    names.first(module) == Some(7),
                    regex.matches(module).unwrap(),
                    "{key} in {module}"
                );
            }
        }
    }

    #[test]
    fn many_plain_names_are_not_tried_one_by_one() {
        // PEFT writes one for each module; a linear search would compare 10^10 names here.
        let name = |i: usize| format!("model.layers.{}.experts.{i}.down_proj", i % 61);
        let patterns: Vec<(String, usize)> = (0..100_000).map(|i| (name(i), i)).collect();
        let patterns = Patterns::new(&patterns).unwrap();
        for i in 0..100_000 {
            assert_eq!(patterns.value(&name(i)).unwrap(), Some(&i));
        }
        let both = [
            ("b.q".to_owned(), 0),
            ("q".to_owned(), 1),
            (".q".to_owned(), 2),
        ];
        let first = |module| {
            Patterns::new(&both)
                .unwrap()
                .value(module)
                .unwrap()
                .copied()
        };
        assert_eq!(
            [first("a.b.q"), first("a.c.q"), first("x.Xq")],
            [Some(0), Some(1), Some(2)]
        );
    }
}
