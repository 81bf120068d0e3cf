//! Whose an adapter is, and what it is for: from its path, or from a table.

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Code, Error, Result};
use crate::fs::read_limited;
use crate::sheet;

/// Bytes of a table of owners beyond which it is not read.
const MAX_TABLE_BYTES: u64 = 1 << 30;

/// User and task of an adapter, where known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Whose it is.
    pub user: Option<String>,
    /// What it is for.
    pub task: Option<String>,
}

/// Where users and tasks come from.
#[derive(Debug, Clone, Default)]
pub enum Owners {
    /// Nobody said.
    #[default]
    Unknown,
    /// A template such as `{user}/{task}`, see [`Owners::from_str`].
    Template(Template),
    /// A table by path.
    Table(HashMap<String, Owner>),
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Vec<Token>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    User,
    Task,
    Any,
}

fn invalid(message: String) -> Error {
    Error::new(Code::PathTemplate, message)
        .hint("a template is a path such as {user}/{task}, {task}-{user} or models/*/{user}")
}

impl FromStr for Owners {
    type Err = Error;

    /// Parses a template. Its segments are matched with those of a path relative to the folder
    /// audited, from the first; what a path has beyond them does not matter. `{user}` and `{task}`
    /// stand for one or more characters, up to the next text of the template; `*` for any.
    ///
    /// # Errors
    /// [`Code::PathTemplate`].
    fn from_str(text: &str) -> Result<Self> {
        let segments: Vec<Vec<Token>> = text.split('/').map(parse).collect::<Result<_>>()?;
        let count = |part| segments.iter().flatten().filter(|p| **p == part).count();
        let (users, tasks) = (count(Token::User), count(Token::Task));
        if users > 1 || tasks > 1 || users + tasks == 0 {
            return Err(invalid(format!(
                "`{text}` has {users} {{user}} and {tasks} {{task}}"
            )));
        }
        Ok(Self::Template(Template(segments)))
    }
}

fn parse(segment: &str) -> Result<Vec<Token>> {
    if matches!(segment, "" | "." | "..") {
        return Err(invalid(format!("`{segment}` is no part of a path")));
    }
    let mut parts: Vec<Token> = Vec::new();
    let mut rest = segment;
    while let Some(first) = rest.chars().next() {
        let (part, end) = match first {
            '*' => (Token::Any, 1),
            '{' => match rest.find('}').map(|end| (&rest[..=end], end + 1)) {
                Some(("{user}", end)) => (Token::User, end),
                Some(("{task}", end)) => (Token::Task, end),
                _ => {
                    return Err(invalid(format!(
                        "`{rest}` does not begin with {{user}} or {{task}}"
                    )));
                }
            },
            '}' => return Err(invalid(format!("a `}}` without `{{` in `{segment}`"))),
            _ => {
                let end = rest.find(['{', '}', '*']).unwrap_or(rest.len());
                (Token::Text(rest[..end].to_owned()), end)
            }
        };
        let text = matches!(part, Token::Text(_));
        if !text && parts.last().is_some_and(|p| !matches!(p, Token::Text(_))) {
            return Err(invalid(format!(
                "nothing divides two values in `{segment}`"
            )));
        }
        parts.push(part);
        rest = &rest[end..];
    }
    Ok(parts)
}

impl Template {
    fn find(&self, relative: &str) -> Option<Owner> {
        let relative = relative.strip_suffix(".tl").unwrap_or(relative);
        let mut path = relative.split('/');
        let mut owner = Owner::default();
        for parts in &self.0 {
            matched(parts, path.next()?, &mut owner)?;
        }
        Some(owner)
    }
}

/// Matches one segment; values end at the first place where the next text stands, and the last
/// text ends the segment.
fn matched(parts: &[Token], segment: &str, owner: &mut Owner) -> Option<()> {
    let mut rest = segment;
    let mut parts = parts.iter().peekable();
    while let Some(part) = parts.next() {
        if let Token::Text(text) = part {
            rest = rest.strip_prefix(text.as_str())?;
            continue;
        }
        let next = parts.next();
        let end = match next {
            Some(Token::Text(text)) if parts.peek().is_none() => rest
                .len()
                .checked_sub(text.len())
                .filter(|_| rest.ends_with(text.as_str()))?,
            Some(Token::Text(text)) => {
                let first = rest.chars().next()?.len_utf8();
                first + rest.get(first..)?.find(text.as_str())?
            }
            _ => rest.len(),
        };
        let value = rest.get(..end).filter(|v| !v.is_empty())?;
        match part {
            Token::User => owner.user = Some(value.to_owned()),
            Token::Task => owner.task = Some(value.to_owned()),
            _ => {}
        }
        rest = rest.get(end..)?;
        if let Some(Token::Text(text)) = next {
            rest = rest.strip_prefix(text.as_str())?;
        }
    }
    rest.is_empty().then_some(())
}

impl Owners {
    /// Reads a CSV with the columns `path`, `user` and `task`, in any order; others are ignored.
    /// A path is that of an adapter as the audit tells it, or relative to the folder audited. An
    /// empty user or task is unknown.
    ///
    /// # Errors
    /// [`Code::OwnersInvalid`]: a column or field is missing, a path stands twice, no UTF-8;
    /// [`Code::Io`] and its kin; [`Code::HeaderTooLarge`] beyond a gigabyte.
    pub fn from_csv(file: &Path) -> Result<Self> {
        let bytes = read_limited(file, MAX_TABLE_BYTES)?;
        Self::parse_csv(&bytes).map_err(|e| e.file(file))
    }

    fn parse_csv(bytes: &[u8]) -> Result<Self> {
        let wrong = |message: String| Error::new(Code::OwnersInvalid, message);
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut reader = csv::Reader::from_reader(bytes);
        let header = reader.headers().map_err(|e| wrong(e.to_string()))?.clone();
        let column = |name: &str| {
            let at = header.iter().position(|h| h.trim() == name);
            at.ok_or_else(|| wrong(format!("there is no column `{name}`")))
        };
        let (path, user, task) = (column("path")?, column("user")?, column("task")?);
        let mut owners = HashMap::new();
        for record in reader.records() {
            let record = record.map_err(|e| wrong(e.to_string()))?;
            let value = |at| {
                let text = record.get(at).filter(|v| !v.is_empty());
                text.map(|v| sheet::plain(v).to_owned())
            };
            let line = record.position().map_or(0, csv::Position::line);
            let name = value(path).ok_or_else(|| wrong(format!("line {line} has no path")))?;
            let name = name.trim_end_matches('/').to_owned();
            let (user, task) = (value(user), value(task));
            if owners.insert(name, Owner { user, task }).is_some() {
                return Err(wrong(format!("the path of line {line} stands twice")));
            }
        }
        Ok(Self::Table(owners))
    }

    /// The owner of the adapter at `path`, which is `relative` to the folder audited.
    pub fn find(&self, relative: &str, path: &str) -> Option<Owner> {
        match self {
            Self::Unknown => None,
            Self::Template(template) => template.find(relative),
            Self::Table(owners) => owners.get(relative).or_else(|| owners.get(path)).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(template: &str, path: &str) -> Option<(String, String)> {
        let owner = template.parse::<Owners>().unwrap().find(path, "")?;
        Some((
            owner.user.unwrap_or_default(),
            owner.task.unwrap_or_default(),
        ))
    }

    /// Breaks where a path would be given to the wrong user or task.
    #[test]
    fn templates_take_users_and_tasks_from_paths() {
        let is = |user: &str, task: &str| Some((user.to_owned(), task.to_owned()));
        assert_eq!(find("{user}/{task}", "ann/sum"), is("ann", "sum"));
        assert_eq!(
            find("{user}/{task}", "ann/sum/checkpoint-5"),
            is("ann", "sum")
        );
        assert_eq!(find("{user}/{task}", "ann/sum.tl"), is("ann", "sum"));
        assert_eq!(find("{user}/{task}", "ann"), None);
        assert_eq!(find("{task}--{user}", "a--b--c"), is("b--c", "a"));
        assert_eq!(find("{task}-{user}-v1", "sum-ann-v1"), is("ann", "sum"));
        assert_eq!(find("{task}-{user}-v1", "sum-ann-v2"), None);
        assert_eq!(find("models/*/u-{user}", "models/x/u-ann/y"), is("ann", ""));
        assert_eq!(find("models/*/u-{user}", "models/x/u-"), None);
        assert_eq!(find("*-{user}", "ü-ä"), is("ä", ""));
        assert_eq!(find("{user}", ""), None);
    }

    /// Breaks where a template that cannot be told apart is guessed at.
    #[test]
    fn wrong_templates_are_refused() {
        for template in [
            "",
            "/",
            "{user}//{task}",
            "a/b",
            "{user}{task}",
            "{user}*",
            "{name}",
            "{user",
            "user}/{task}",
            "{user}/{user}",
            "../{user}",
            "{}",
        ] {
            let error = template.parse::<Owners>().unwrap_err();
            assert_eq!(error.code(), Code::PathTemplate, "{template}");
        }
    }

    /// Breaks where a table's columns are taken by place, or a broken one is half used.
    #[test]
    fn tables_name_owners_by_path() {
        let table = "task,path,user,more\nsum,a/b/,ann,x\n,c,bob,\n";
        let owners = Owners::parse_csv(table.as_bytes()).unwrap();
        let ann = Owner {
            user: Some("ann".into()),
            task: Some("sum".into()),
        };
        assert_eq!(owners.find("a/b", "/x/a/b"), Some(ann.clone()));
        assert_eq!(owners.find("b", "a/b"), Some(ann));
        assert_eq!(owners.find("c", "").unwrap().task, None);
        assert_eq!(owners.find("d", "d"), None);
        for broken in [
            "",
            "path,user\na,b\n",
            "path,user,task\na,b\n",
            "path,user,task\n,b,c\n",
            "path,user,task\na,b,c\na/,b,c\n",
            "path,user,task\n\u{fffd}",
        ] {
            let error = Owners::parse_csv(broken.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::OwnersInvalid, "{broken}");
        }
        let latin = b"path,user,task\na,\xe9,c\n";
        assert!(Owners::parse_csv(latin).is_err());
    }
}
