//! Which file of a crate uses what another one defines, read from its `use` items and paths.
//!
//! A re-export counts as its definition: `use crate::merge::Plan` leads to `merge/plan.rs`, not to `merge/mod.rs`.

use std::collections::BTreeMap;

use fancy_regex::{Captures, Regex};

use super::{code, is_test};

/// For each file the files that it uses, with the path that names them.
pub(super) type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// A module's path in its crate.
type Module = Vec<String>;

/// One path that a file names.
struct Import {
    path: Vec<String>,
    /// The name that it has here; `None` where it is no import but a path in code.
    name: Option<String>,
    is_public: bool,
}

/// The code of one module.
struct File {
    path: String,
    code: String,
    imports: Vec<Import>,
    /// The modules that it declares, where their names start paths in its code.
    children: Vec<String>,
}

/// A crate as its modules.
pub(super) struct Tree(BTreeMap<Module, File>);

impl Tree {
    /// The library among all files of `src/`.
    pub(super) fn library(sources: &BTreeMap<String, String>) -> Self {
        let others = ["bin/", "python/"];
        let files = sources
            .iter()
            .filter(|(path, _)| !others.iter().any(|other| path.starts_with(other)));
        Self::new(files.map(|(path, text)| (path.as_str(), path, text)))
    }

    /// Another crate, of the files in some folders, each under a module's path: the command, the Python package.
    pub(super) fn within(folders: &[(&str, &str)], sources: &BTreeMap<String, String>) -> Self {
        let inside = |path: &str| {
            let found = folders
                .iter()
                .find_map(|(folder, at)| Some((at, path.strip_prefix(folder)?)));
            found.map(|(at, rest)| format!("{at}{rest}"))
        };
        let files: Vec<_> = sources
            .iter()
            .filter_map(|(path, text)| Some((inside(path)?, path, text)))
            .collect();
        Self::new(
            files
                .iter()
                .map(|(inside, path, text)| (inside.as_str(), *path, *text)),
        )
    }

    fn new<'a>(files: impl Iterator<Item = (&'a str, &'a String, &'a String)>) -> Self {
        let reader = Reader::new();
        let modules = files.map(|(inside, path, text)| {
            let mut module: Module = inside
                .trim_end_matches(".rs")
                .split('/')
                .map(str::to_owned)
                .collect();
            module.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
            (module, reader.file(path, text))
        });
        Self(modules.collect())
    }

    fn child(&self, module: &[String], name: &str) -> Option<Module> {
        let child = [module, &[name.to_owned()]].concat();
        self.0.contains_key(&child).then_some(child)
    }

    /// The module that defines what a path in `module` names; `None` for other crates.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<Module> {
        if depth > 20 {
            return None;
        }
        let mut rest = path;
        let mut current = module.to_vec();
        match path[0].as_str() {
            "crate" => (current, rest) = (Vec::new(), &path[1..]),
            "self" | "super" => {
                while let Some((step, after)) = rest.split_first()
                    && (step == "self" || step == "super")
                {
                    if step == "super" {
                        current.pop();
                    }
                    rest = after;
                }
            }
            name => {
                self.child(module, name)?;
            }
        }
        while let Some((name, after)) = rest.split_first() {
            if let Some(child) = self.child(&current, name) {
                (current, rest) = (child, after);
                continue;
            }
            if name == "*" {
                return Some(current);
            }
            return Some(
                self.definition(&current, name, after, path, depth)
                    .unwrap_or(current),
            );
        }
        Some(current)
    }

    /// The module behind the re-export of `name` in `module`.
    fn definition(
        &self,
        module: &[String],
        name: &str,
        after: &[String],
        asked: &[String],
        depth: usize,
    ) -> Option<Module> {
        let imports = || self.0.get(module).into_iter().flat_map(|f| &f.imports);
        let named = imports().rfind(|i| i.is_public && i.name.as_deref() == Some(name));
        if let Some(import) = named
            && import.path != asked
        {
            let path = [&import.path, after].concat();
            return self.resolve(module, &path, depth + 1);
        }
        let globs = imports().filter(|i| i.is_public && i.name.as_deref() == Some("*"));
        for glob in globs {
            let Some((_, path)) = glob.path.split_last() else {
                continue;
            };
            let target = self.resolve(module, path, depth + 1);
            let defines = |m: &Module| {
                let item = format!(r"\b(fn|struct|enum|trait|const|static|type)\s+{name}\b");
                Regex::new(&item)
                    .unwrap()
                    .is_match(&self.0[m].code)
                    .unwrap()
            };
            if let Some(target) = target.filter(defines) {
                return Some(target);
            }
        }
        None
    }
}

/// Every file's dependencies, tests aside. What a `mod.rs` re-exports it does not use.
pub(super) fn dependencies(tree: &Tree) -> Edges {
    let mut edges = Edges::new();
    for (module, file) in &tree.0 {
        if is_test(&file.path) {
            continue;
        }
        let mut found = BTreeMap::new();
        let is_contents = file.path.ends_with("mod.rs") || file.path == "lib.rs";
        for import in &file.imports {
            if import.is_public && is_contents {
                continue;
            }
            if let Some(target) = tree.resolve(module, &import.path, 0)
                && target != *module
                && let Some(used) = tree.0.get(&target)
            {
                found.insert(used.path.clone(), import.path.join("::"));
            }
        }
        for name in &file.children {
            if let Some(child) = tree.child(module, name) {
                found.insert(tree.0[&child].path.clone(), name.clone());
            }
        }
        found.retain(|path, _| !is_test(path));
        edges.insert(file.path.clone(), found);
    }
    edges
}

/// Reads files.
struct Reader {
    import: Regex,
    inline: Regex,
    module: Regex,
}

impl Reader {
    fn new() -> Self {
        let regex = |pattern| Regex::new(pattern).unwrap();
        Self {
            import: regex(r"(?:^|\n)\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);"),
            inline: regex(r"\b((?:crate|self|super)(?:::\w+)+)"),
            module: regex(r"\bmod\s+(\w+);"),
        }
    }

    fn file(&self, path: &str, text: &str) -> File {
        let code = code(text);
        let mut imports = Vec::new();
        for found in self.import.captures_iter(code.as_str()) {
            let found = found.unwrap();
            let is_public = found.get(1).is_some();
            expand(&[], group(&found, 2), is_public, &mut imports);
        }
        let rest = self.import.replace_all(&code, "\n").into_owned();
        for found in self.inline.captures_iter(rest.as_str()) {
            imports.push(Import {
                path: words(group(&found.unwrap(), 1)),
                name: None,
                is_public: false,
            });
        }
        let declared = self.module.captures_iter(rest.as_str());
        let children = declared
            .map(|found| group(&found.unwrap(), 1).to_owned())
            .filter(|name| {
                let used = Regex::new(&format!(r"(?<!:)\b{name}::\w")).unwrap();
                used.is_match(&rest).unwrap()
            })
            .collect();
        File {
            path: path.to_owned(),
            code,
            imports,
            children,
        }
    }
}

fn group<'t>(found: &Captures<'t, str>, i: usize) -> &'t str {
    found.get(i).unwrap().as_str()
}

fn words(path: &str) -> Vec<String> {
    path.split("::")
        .filter(|w| !w.is_empty())
        .map(|w| w.trim().to_owned())
        .collect()
}

/// Adds each path of a use tree, such as `a::{b, c::{self, d as e}}`, below `prefix`.
fn expand(prefix: &[String], tree: &str, is_public: bool, found: &mut Vec<Import>) {
    let mut depth = 0;
    let parts = tree.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    for part in parts.map(str::trim).filter(|p| !p.is_empty()) {
        if let Some((head, tail)) = part.split_once('{') {
            let inner = tail.rsplit_once('}').map_or(tail, |(inner, _)| inner);
            expand(&[prefix, &words(head)].concat(), inner, is_public, found);
            continue;
        }
        let (path, alias) = part.split_once(" as ").unwrap_or((part, part));
        let name = alias.rsplit("::").next().map(|n| n.trim().to_owned());
        found.push(Import {
            path: [prefix, &words(path)].concat(),
            name,
            is_public,
        });
    }
}
